"""Sounds over the server: OpenAI's own clients against an upstream that hears and speaks; keys, ledger, faults."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from job_server import SOUND, Upstream
from openai import AsyncOpenAI, OpenAI
from service import service

from ponder.ops.keys import Keys
from ponder.ops.ledger import Entry, Ledger
from ponder.ops.limits import parse_limits
from ponder.server.config import Config, parsed

WAV = b"RIFF\r\n--\r\n\x00\xff" * 1000


def configured(url: str) -> Config:
    tables = [
        {"name": "up", "url": url, "models": {"ears": "whisper-1", "voice": "tts-1"}, "check": 0},
        {"name": "claude", "url": url, "dialect": "anthropic", "models": {"claude": "c"}, "check": 0},
    ]
    return parsed({"upstream": tables})


def heard(client: OpenAI, model: str = "ears", **fields: Any) -> Any:
    return client.audio.transcriptions.create(model=model, file=("a.wav", WAV, "audio/wav"), **fields)


def entries() -> list[Entry]:
    """What is booked, once nothing is open: a client may have all it wants before the end is written down."""
    until = time.monotonic() + 5
    with Ledger.open() as ledger:
        while any(entry.state == "reserved" for entry in ledger.entries()) and time.monotonic() < until:
            time.sleep(0.01)
        return list(ledger.entries())


# ---------------------------------------------------------------- what passes


def test_a_sound_passes_as_it_came_but_for_the_name_of_the_model(client: OpenAI, up: Upstream) -> None:
    up.reply = json.dumps(
        {"text": "Grüße", "usage": {"type": "tokens", "input_tokens": 14, "output_tokens": 45}}
    ).encode()
    reply = heard(client, language="de", temperature=0.5, prompt="ears")
    assert reply.text == "Grüße"
    path, headers, body = up.asked[-1]
    assert path == "/v1/audio/transcriptions"
    assert WAV in body
    assert b'name="model"\r\n\r\nwhisper-1\r\n' in body
    assert b'name="prompt"\r\n\r\nears\r\n' in body
    assert b'name="language"\r\n\r\nde\r\n' in body
    assert headers["content-type"].startswith("multipart/form-data; boundary=")
    (entry,) = entries()
    assert (entry.state, entry.prompt, entry.completion, entry.model) == ("done", 14, 45, "ears")


def test_other_formats_come_back_as_they_are(client: OpenAI, up: Upstream) -> None:
    up.kind, up.reply = "text/plain; charset=utf-8", b"1\n00:00:00,000 --> 00:00:01,000\nhello\n"
    assert heard(client, response_format="srt") == up.reply.decode()
    (entry,) = entries()
    assert (entry.state, entry.prompt, entry.completion, entry.micro) == ("done", 0, 0, None)


def test_a_stream_of_words_passes_event_by_event(client: OpenAI, up: Upstream) -> None:
    usage = {"type": "tokens", "input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
    events = [
        {"type": "transcript.text.delta", "delta": "hel"},
        {"type": "transcript.text.delta", "delta": "lo"},
        {"type": "transcript.text.done", "text": "hello", "usage": usage},
    ]
    up.kind, up.pieces = "text/event-stream", 7
    up.reply = b"".join(f"data: {json.dumps(event)}\n\n".encode() for event in events) + b"data: [DONE]\n\n"
    told = list(heard(client, stream=True))
    assert [event.type for event in told] == [event["type"] for event in events]
    assert told[-1].text == "hello"
    (entry,) = entries()
    assert (entry.state, entry.prompt, entry.completion) == ("done", 3, 4)


def test_a_text_is_spoken_and_streams_back(client: OpenAI, up: Upstream) -> None:
    up.kind, up.reply, up.pieces, up.pause = "audio/mpeg", SOUND, 5, 0.05
    with client.audio.speech.with_streaming_response.create(
        model="voice", voice="alloy", input="hello", instructions="slowly"
    ) as reply:
        pieces = list(reply.iter_bytes())
        assert reply.headers["content-type"] == "audio/mpeg"
        assert reply.headers["x-ponder-backend"] == "up"
    assert b"".join(pieces) == SOUND
    assert len(pieces) > 1
    assert up.body == {"model": "tts-1", "voice": "alloy", "input": "hello", "instructions": "slowly"}
    (entry,) = entries()
    assert (entry.state, entry.prompt, entry.completion) == ("done", 0, 0)
    assert 5 <= entry.tokens_most < 1000


def test_asynchronous_clients_side_by_side(up: Upstream) -> None:
    up.kind, up.reply = "audio/wav", SOUND

    async def work(url: str) -> None:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            spoken = [client.audio.speech.create(model="voice", voice="alloy", input="x") for _ in range(4)]
            assert [reply.content for reply in await asyncio.gather(*spoken)] == [SOUND] * 4
            up.kind, up.reply = "application/json", b'{"text": "hm"}'
            told = await client.audio.transcriptions.create(model="ears", file=("a.wav", WAV))
            assert told.text == "hm"

    with service(config=configured(up.url)) as server:
        asyncio.run(work(server.url))


# ---------------------------------------------------------------- sounds in messages


def spoken(sound: bytes) -> Any:
    part = {"type": "input_audio", "input_audio": {"data": base64.b64encode(sound).decode(), "format": "wav"}}
    return [{"role": "user", "content": [{"type": "text", "text": "What is said?"}, part]}]


def test_a_sound_in_a_message_reaches_an_upstream_and_is_refused_by_our_own_model(client: OpenAI, up: Upstream) -> None:
    chunk = {"choices": [{"index": 0, "delta": {"content": "hello"}, "finish_reason": "stop"}]}
    up.kind, up.reply = "text/event-stream", f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode()
    reply = client.chat.completions.create(model="ears", messages=spoken(WAV))
    assert reply.choices[0].message.content == "hello"
    assert up.body["messages"] == spoken(WAV)
    for model, said in (("m", "takes no audio"), ("claude", "audio")):
        with pytest.raises(openai.BadRequestError, match=said):
            client.chat.completions.create(model=model, messages=spoken(WAV))
    assert len(up.asked) == 1


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("model", "error", "said"),
    [
        ("m", openai.BadRequestError, "m neither hears nor speaks"),
        ("claude", openai.BadRequestError, "has no /audio/.*openai dialect"),
        ("nobody", openai.NotFoundError, "there is no model 'nobody'.*ears"),
    ],
)
def test_models_that_cannot_say_so(client: OpenAI, up: Upstream, model: str, error: Any, said: str) -> None:
    with pytest.raises(error, match=said):
        heard(client, model)
    with pytest.raises(error, match=said):
        client.audio.speech.create(model=model, voice="alloy", input="x")
    assert not up.asked
    assert {each.state for each in entries()} <= {"void"}


def test_bodies_that_are_none(up: Upstream) -> None:
    with service(config=configured(up.url)) as server, httpx.Client(base_url=f"{server.url}/v1/audio") as http:
        for path, sent in (
            ("/transcriptions", {"json": {"model": "ears"}}),
            ("/transcriptions", {"files": {"file": WAV}}),
            ("/transcriptions", {"files": {"other": WAV}, "data": {"model": "ears"}}),
            ("/transcriptions", {"files": [("file", WAV), ("model", (None, "ears")), ("model", (None, "voice"))]}),
            ("/speech", {"json": {"model": "voice"}}),
            ("/speech", {"json": {"input": "x"}}),
            ("/speech", {"content": b"x"}),
        ):
            refused = http.post(path, **sent)  # type: ignore[arg-type]
            assert (refused.status_code, refused.json()["error"]["type"]) == (400, "invalid_request_error")
    assert not up.asked


# ---------------------------------------------------------------- faults, keys, prices


def test_what_the_upstream_says_is_told(client: OpenAI, up: Upstream) -> None:
    up.faults = [(400, {}), (500, {})]
    with pytest.raises(openai.BadRequestError, match="the upstream up answered 400: it failed"):
        heard(client)
    with pytest.raises(openai.InternalServerError, match="answered 500"):
        heard(client)
    assert len(up.asked) == 2


def test_a_sound_that_is_cut_does_not_look_whole(client: OpenAI, up: Upstream) -> None:
    up.kind, up.reply, up.pieces, up.cut = "audio/mpeg", SOUND, 5, True
    with pytest.raises((openai.APIConnectionError, httpx.RemoteProtocolError)):
        client.audio.speech.create(model="voice", voice="alloy", input="x").read()


def test_each_request_has_its_price_where_one_is_known(up: Upstream, ponder_home: Path) -> None:
    (ponder_home / "prices.toml").write_text('[models."tts-1"]\nrequest = 0.015\n')
    with Keys.open() as keys:
        _, secret = keys.add("alice", limits=parse_limits("0.04 USD/day"))
    with (
        service(config=configured(up.url)) as server,
        OpenAI(base_url=f"{server.url}/v1", api_key=secret, max_retries=0) as alice,
    ):
        for _ in range(2):
            alice.audio.speech.create(model="voice", voice="alloy", input="x").read()
        with pytest.raises(openai.RateLimitError):
            alice.audio.speech.create(model="voice", voice="alloy", input="x")
        with pytest.raises(openai.BadRequestError, match="no price is known for ears"):
            heard(alice)
    assert [(each.state, each.micro) for each in entries()] == [("done", 15_000), ("done", 15_000)]
