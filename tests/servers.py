"""Fakes of the servers that ponder talks to, on real loopback sockets, with faults on demand.

    async with FakeVllm(replies=("Hello",), faults=[cut_after(2)]) as server:
        engine = await open_remote(f"openai:{server.url}")

Each request for tokens uses up one fault of `faults.py`. The vocabulary is bytes: token `b + 3` is byte
b, so that a character beyond ASCII takes several tokens.
"""

from __future__ import annotations

import asyncio
import codecs
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from faults import CUT, DONE, HANG, Fault, Plain, Sign, Step, Wait, rendered

BOS, EOS, THINK, END_THINK = 1, 2, 259, 260
SPECIAL = {BOS: "<s>", EOS: "<|im_end|>", THINK: "<think>", END_THINK: "</think>"}
TEMPLATE = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"


def encode(text: str) -> list[int]:
    """Token ids of `text`, special tokens included."""
    by_text = {name: token for token, name in SPECIAL.items()}
    pieces = re.split(f"({'|'.join(map(re.escape, by_text))})", text)
    return [t for piece in pieces for t in ([by_text[piece]] if piece in by_text else [b + 3 for b in piece.encode()])]


def decode(ids: Iterable[int]) -> str:
    """The text of `ids`, special tokens included."""
    data = b"".join(SPECIAL[i].encode() if i in SPECIAL else bytes([i - 3]) for i in ids)
    return data.decode("utf-8", "replace")


# ---------------------------------------------------------------- the server


@dataclass
class Request:
    """A request that came in; `left` is set when its client closed the connection before the end of the reply."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    left: asyncio.Event = field(default_factory=asyncio.Event)


class FakeServer:
    """A server that deals in messages alone (kind `chat`), and the base of the others.

    Reply i is `replies[i % len(replies)]`, cut at the cap; `thinking` precedes it in chat. `asked` holds
    every request for tokens, `requests` all of them; `busy` is set with the first that is asked.
    """

    owner = "someone"

    def __init__(
        self,
        replies: Sequence[str] = ("Hello",),
        *,
        faults: Sequence[Fault] = (),
        models: Sequence[str] = ("tiny",),
        thinking: str = "",
        thinking_field: str = "reasoning_content",
        calls: Sequence[dict[str, Any]] = (),
        key: str | None = None,
        ignores_n: bool = False,
        refuses: Sequence[str] = (),
    ) -> None:
        self.replies = tuple(replies)
        self.faults = list(faults)
        self.models = list(models)
        self.thinking = thinking
        self.thinking_field = thinking_field
        self.calls = list(calls)
        self.key = key
        self.ignores_n = ignores_n
        self.refuses = tuple(refuses)
        self.requests: list[Request] = []
        self.asked: list[Request] = []
        self.busy = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> FakeServer:
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self.root = f"http://127.0.0.1:{self.port}"
        self.url = f"{self.root}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- what is served

    def get(self, path: str) -> object:
        """The JSON at `path`, None where there is none."""
        if path == "/v1/models":
            return {"object": "list", "data": [{"id": name, **self.about()} for name in self.models]}
        return None

    def about(self) -> dict[str, Any]:
        """What the list of models says of each."""
        return {"object": "model", "owned_by": self.owner}

    def post(self, path: str, body: Mapping[str, Any]) -> object:
        """The JSON that answers `body`, None where there is none."""
        return None

    def generate(self, path: str, body: Mapping[str, Any]) -> list[Step] | None:
        """The steps of the stream that answers `body`, None for a path that generates nothing."""
        return self.chat(body) if path == "/v1/chat/completions" else None

    def chat(self, body: Mapping[str, Any]) -> list[Step]:
        """Chat completions, one word a delta."""
        n = 1 if self.ignores_n else body.get("n", 1)
        cap = body.get("max_completion_tokens", body.get("max_tokens", 1 << 30))
        rows = [self._deltas(i, cap) for i in range(n)]
        events: list[Step] = []
        for step in range(max(map(len, rows))):
            for index, row in enumerate(rows):
                if step < len(row):
                    delta, finish = row[step]
                    choice = {"index": index, "delta": delta, "finish_reason": finish}
                    events.append({"object": "chat.completion.chunk", "choices": [choice], "usage": None})
        if "stream_options" in body:
            events.append({"choices": [], "usage": self.usage(sum(len(row) - 2 for row in rows))})
        return [*events, DONE]

    def usage(self, completion: int) -> dict[str, Any]:
        """What the last event counts."""
        return {
            "prompt_tokens": 7,
            "completion_tokens": completion,
            "prompt_tokens_details": {"cached_tokens": 3},
            "completion_tokens_details": {"reasoning_tokens": len(_words(self.thinking))},
        }

    def _deltas(self, index: int, cap: int) -> list[tuple[dict[str, Any], str | None]]:
        words: list[dict[str, Any]] = [{self.thinking_field: word} for word in _words(self.thinking)]
        words += [{"content": word} for word in _words(self.reply(index))]
        words += [{"tool_calls": [call]} for call in self.calls]
        finish = "length" if len(words) > cap else "tool_calls" if self.calls else "stop"
        opened: list[tuple[dict[str, Any], str | None]] = [({"role": "assistant", "content": None}, None)]
        return [*opened, *((word, None) for word in words[:cap]), ({}, finish)]

    def reply(self, index: int) -> str:
        """What reply `index` says."""
        return self.replies[index % len(self.replies)]

    def sampled(self, index: int, cap: int, endless: bool = False) -> tuple[list[int], str]:
        """Ids and finish reason of sample `index`."""
        ids = encode(self.reply(index))
        ids = (ids * (cap // len(ids) + 1)) if endless else [*ids, EOS]
        return (ids[:cap], "length") if len(ids) > cap else (ids, "stop")

    # -- how it is served

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while request := await _read(reader):
                self.requests.append(request)
                if not await self._answer(request, reader, writer):
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        except asyncio.CancelledError:
            pass  # the end of the test; asyncio would report the task as failed
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        reply = self._reply(request)
        if isinstance(reply, Plain):
            _write_plain(writer, reply)
            await writer.drain()
            return request.headers.get("connection") != "close"
        sending = asyncio.ensure_future(_send(writer, reply))
        watching = asyncio.ensure_future(reader.read(1))
        await asyncio.wait([sending, watching], return_when=asyncio.FIRST_COMPLETED)
        if not sending.done():
            request.left.set()
        for task in (sending, watching):
            task.cancel()
        await asyncio.gather(sending, watching, return_exceptions=True)
        return False

    def _reply(self, request: Request) -> list[Step] | Plain:
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            return _json(401, {"error": {"message": f"no such key: {request.headers.get('authorization')}"}})
        if request.method == "GET":
            found = self.get(request.path)
            return _json(200, found) if found is not None else _json(404, {"detail": "Not Found"})
        answered = self.post(request.path, request.body)
        if answered is not None:
            return _json(200, answered)
        named = request.body.get("model")
        if named is not None and named not in self.models:
            return _json(404, {"error": {"message": f"The model `{named}` does not exist.", "param": "model"}})
        for name in self.refuses:
            if request.body.get(name, 1) != 1:
                self.asked.append(request)
                return _json(400, {"error": {"message": f"Unsupported parameter: {name}", "param": name}})
        steps = self.generate(request.path, request.body)
        if steps is None:
            return _json(404, {"detail": "Not Found"})
        self.asked.append(request)
        self.busy.set()
        return self.faults.pop(0)(steps) if self.faults else steps


class FakeVllm(FakeServer):
    """vLLM. `names_ids=False` is a version before 0.10.2, which spells ids in the log-probabilities."""

    owner = "vllm"

    def __init__(self, replies: Sequence[str] = ("Hello",), *, names_ids: bool = True, **more: Any) -> None:
        super().__init__(replies, **more)
        self.names_ids = names_ids

    def about(self) -> dict[str, Any]:
        return {**super().about(), "max_model_len": 4096}

    def get(self, path: str) -> object:
        return {"version": "0.11.0"} if path == "/version" else super().get(path)

    def post(self, path: str, body: Mapping[str, Any]) -> object:
        if path == "/tokenize":
            return {"tokens": encode(body["prompt"]), "count": 1, "max_model_len": 4096}
        if path == "/detokenize":
            return {"prompt": decode(body["tokens"])}
        if path == "/v1/completions" and "prompt_logprobs" in body:
            rows = [None, *({str(t): {"logprob": -t / 100, "rank": 1}} for t in body["prompt"][1:])]
            return {"choices": [{"index": 0, "text": "x", "finish_reason": "length", "prompt_logprobs": rows}]}
        return None

    def generate(self, path: str, body: Mapping[str, Any]) -> list[Step] | None:
        if path != "/v1/completions":
            return super().generate(path, body)
        events: list[Step] = []
        samples = [self.sampled(i, body["max_tokens"], body["ignore_eos"]) for i in range(body["n"])]
        decoders = [codecs.getincrementaldecoder("utf-8")() for _ in samples]
        for step in range(max(len(ids) for ids, _ in samples)):
            for index, (ids, finish) in enumerate(samples):
                if step < len(ids):
                    token, last = ids[step], step == len(ids) - 1
                    choice: dict[str, Any] = {
                        "index": index,
                        "text": _spelled(token, decoders[index]),
                        "logprobs": {"token_logprobs": [-token / 100], "tokens": [f"token_id:{token}"]},
                        "finish_reason": finish if last else None,
                    }
                    if self.names_ids:
                        choice |= {"token_ids": [token], "prompt_token_ids": None if step else body["prompt"]}
                    events.append({"choices": [choice]})
        count = len(body["prompt"])
        usage = {"prompt_tokens": count, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": count // 2}}
        return [*events, {"choices": [], "usage": usage}, DONE]


class FakeLlamaServer(FakeServer):
    """llama-server. `special` is its --special: end-of-turn tokens and markers appear in the text."""

    owner = "llamacpp"

    def __init__(
        self, replies: Sequence[str] = ("Hello",), *, slots: int = 4, special: bool = False, **more: Any
    ) -> None:
        super().__init__(replies, **more)
        self.slots = slots
        self.special = special

    def about(self) -> dict[str, Any]:
        return {**super().about(), "meta": {"n_params": 1234, "n_ctx_train": 8192}}

    def get(self, path: str) -> object:
        if path == "/props":
            return {
                "default_generation_settings": {"n_ctx": 2048},
                "total_slots": self.slots,
                "chat_template": TEMPLATE,
                "bos_token": SPECIAL[BOS],
                "eos_token": SPECIAL[EOS],
            }
        return super().get(path)

    def post(self, path: str, body: Mapping[str, Any]) -> object:
        if path == "/tokenize":
            return {"tokens": encode(body["content"])}
        if path == "/detokenize":
            return {"content": decode(body["tokens"])}
        return None

    def generate(self, path: str, body: Mapping[str, Any]) -> list[Step] | None:
        if path != "/completion":
            return super().generate(path, body)
        assert 1 <= body["n_cmpl"] <= self.slots, "the real one answers 400"
        rows = [self._events(i, body) for i in range(body["n_cmpl"])]
        return [row[step] for step in range(max(map(len, rows))) for row in rows if step < len(row)]

    def _events(self, index: int, body: Mapping[str, Any]) -> list[Step]:
        ids, finish = self.sampled(index, body["n_predict"], body["ignore_eos"])
        decoder = codecs.getincrementaldecoder("utf-8")()
        timings = {"timings": {"prompt_n": len(body["prompt"]) - 2, "cache_n": 2}}
        events: list[Step] = []
        for count, token in enumerate(ids, 1):
            text = _spelled(token, decoder, eos=True)
            if not text:
                continue  # inside a character: the real one says nothing, and later names the last token only
            shown = text if self.special or token not in SPECIAL else ""
            row = {"id": token, "logprob": -token / 100}
            events.append(
                {
                    "index": index,
                    "content": shown,
                    "tokens": [token],
                    "stop": False,
                    "tokens_predicted": count,
                    "completion_probabilities": [row],
                    **timings,
                }
            )
        end = {"index": index, "content": "", "tokens": [], "stop": True, "tokens_predicted": len(ids), **timings}
        return [*events, {**end, "stop_type": "eos" if finish == "stop" else "limit"}]


class FakeSGLang(FakeServer):
    """SGLang. Sends all ids and text so far with each event, or what is new with `pieces`."""

    owner = "sglang"

    def __init__(
        self, replies: Sequence[str] = ("Hello",), *, pieces: bool = False, tokenizer: bool = True, **more: Any
    ) -> None:
        super().__init__(replies, **more)
        self.pieces = pieces
        self.tokenizer = tokenizer

    def get(self, path: str) -> object:
        if path == "/get_model_info":
            return {"model_path": "tiny"}
        if path == "/get_server_info":
            return {"context_length": 1024}
        return super().get(path)

    def post(self, path: str, body: Mapping[str, Any]) -> object:
        if path == "/tokenize" and self.tokenizer:
            return {"tokens": encode(body["prompt"])}
        if path == "/detokenize" and self.tokenizer:
            return {"text": decode(body["tokens"])}
        return None

    def generate(self, path: str, body: Mapping[str, Any]) -> list[Step] | None:
        if path != "/generate":
            return super().generate(path, body)
        params = body["sampling_params"]
        rows = params if isinstance(params, list) else [params] * params["n"]
        prompt = body["input_ids"][0] if isinstance(params, list) else body["input_ids"]
        samples = [self.sampled(i, row["max_new_tokens"], row["ignore_eos"]) for i, row in enumerate(rows)]
        events: list[Step] = []
        for step in range(max(len(ids) for ids, _ in samples)):
            for index, (ids, finish) in enumerate(samples):
                if step < len(ids):
                    event = self._event(ids, step, finish, len(prompt))
                    events.append({**event, "index": index} if len(rows) > 1 else event)
        return [*events, DONE]

    def _event(self, ids: list[int], step: int, finish: str, prompt: int) -> dict[str, Any]:
        upto = ids[: step + 1]
        before = decode(t for t in ids[:step] if t != EOS).rstrip("\ufffd")
        text = decode(t for t in upto if t != EOS)
        new = text.rstrip("\ufffd")[len(before) :]
        return {
            "text": new if self.pieces else text,
            "output_ids": [ids[step]] if self.pieces else upto,
            "meta_info": {
                "prompt_tokens": prompt,
                "cached_tokens": 1,
                "completion_tokens": step + 1,
                "output_token_logprobs": [[-t / 100, t, None] for t in ([ids[step]] if self.pieces else upto)],
                "finish_reason": {"type": finish} if step == len(ids) - 1 else None,
            },
        }


# ---------------------------------------------------------------- HTTP


async def _read(reader: asyncio.StreamReader) -> Request | None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1") if not reader.at_eof() else ""
    if not head:
        return None
    first, *lines = head.split("\r\n")
    method, path, _ = first.split(" ", 2)
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    data = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, path, headers, json.loads(data) if data else None)


def _json(status: int, body: object) -> Plain:
    return Plain(status, json.dumps(body).encode(), {"content-type": "application/json"})


def _write_plain(writer: asyncio.StreamWriter, reply: Plain) -> None:
    lines = [f"HTTP/1.1 {reply.status} x", f"content-length: {len(reply.body)}"]
    lines += [f"{name}: {value}" for name, value in reply.headers.items()]
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + reply.body)


async def _send(writer: asyncio.StreamWriter, steps: list[Step]) -> None:
    """Takes the steps. The headers go out with the first bytes, even with none."""
    begun = False
    for step in steps:
        if isinstance(step, Wait):
            await asyncio.sleep(step.seconds)
        elif step is HANG:
            await asyncio.Event().wait()
        elif step is CUT:
            writer.transport.abort()
            return
        else:
            assert not isinstance(step, Sign)
            data = rendered(step)
            if not begun:
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n")
                writer.write(b"transfer-encoding: chunked\r\n\r\n")
                begun = True
            if data:
                writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            await writer.drain()
            await asyncio.sleep(0)  # so that each step travels on its own
    writer.write(b"0\r\n\r\n")
    await writer.drain()


def _words(text: str) -> list[str]:
    return re.findall(r"\s*\S+", text)


def _spelled(token: int, decoder: codecs.IncrementalDecoder, eos: bool = False) -> str:
    if token in SPECIAL:
        return SPECIAL[token] if eos or token != EOS else ""
    return decoder.decode(bytes([token - 3]))
