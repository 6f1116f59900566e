"""llama.cpp's own HTTP server with a model of ponder's, for the peers to sample from as ponder does.

    python benchmarks/peers/serve.py [--model ponder-135m] [--slots 16] [--threads N]

Prints one line of JSON ({"url": ..., "slots": ..., ...}) when it is ready, and ends when its standard
input does: whoever starts it gives it a pipe, and it ends with them, however they end.

A sample of a peer is a draw from the same distribution as one of ponder's, because the server

- holds the very file that ponder's engine computes with (the adapter merged in);
- renders the model's own chat template, with the text that ponder writes to begin the thinking
  ("<think>" and a line break) at the end of the generation prompt. An empty system message, which some
  peers always send, is taken for none, as in ponder's prompts;
- filters no tokens: top_k, top_p and min_p are off unless a request sets them, as in ponder.

Before anything is said to be ready, the server's prompts and their token ids are compared with ponder's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import urllib.request
from typing import Any

from ponder.chat.model import Model, Prompt, model_of
from ponder.engine import open_engine
from ponder.engine.llamacpp import LlamaSettings
from ponder.engine.weights import Weights, resolve
from ponder.errors import PonderError
from ponder.types import user

PROBE = "Tom had 35 stamps and got 7 more. How many stamps does Tom have now?"
BEGUN = "Tom has 35 + 7 = 42 stamps.\n"

NO_EMPTY_SYSTEM = (
    "{%- if messages[0]['role'] == 'system' and not messages[0]['content'] -%}"
    "{%- set messages = messages[1:] -%}"
    "{%- endif -%}"
)


async def ponders(name: str) -> tuple[Model, Prompt]:
    """The model as ponder opens it, and its prompt for `PROBE`. The engine is closed again."""
    engine = await open_engine(name, settings=LlamaSettings(threads=1))
    try:
        model = model_of(engine)
        return model, await model.prompt((user(PROBE),), think=True)
    finally:
        await engine.close()


def template(model: Model) -> str:
    """The model's template, with the beginning of the thinking in its generation prompt."""
    start = json.dumps(model.format.start)
    begin = f"{{% if add_generation_prompt %}}{{{{ {start} }}}}{{% endif %}}" if model.format.start else ""
    return NO_EMPTY_SYSTEM + model.template.source + begin


def start(weights: Weights, chat_template: str, slots: int, threads: int, cells: int) -> Any:
    """The running server. One cache for all slots: with a part for each, samples side by side were slower."""
    # As in ponder's own worker: threads that spin for long make each other wait on busy cores.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = str(weights.path)
    settings.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(a.path), a.scale) for a in weights.adapters]
    settings.hostnames, settings.port = ["127.0.0.1"], 0
    settings.n_parallel, settings.kv_unified, settings.n_ctx = slots, True, cells
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    settings.n_gpu_layers = 0
    settings.chat_template = chat_template
    settings.reasoning_format = xllamacpp.common_reasoning_format.COMMON_REASONING_FORMAT_NONE  # the text as it is
    settings.sampling.top_k, settings.sampling.top_p, settings.sampling.min_p = 0, 1.0, 0.0
    settings.endpoint_metrics, settings.verbosity = True, 0
    return xllamacpp.Server(settings)


def ask(url: str, path: str, body: object) -> dict[str, Any]:
    """The reply to a request."""
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as reply:
        found: dict[str, Any] = json.loads(reply.read())
    return found


def compare(url: str, prompt: Prompt) -> None:
    """Ends the program unless the server renders and tokenizes as ponder does. Warms the server up, too."""
    asked, begun = {"role": "user", "content": PROBE}, {"role": "assistant", "content": BEGUN}
    empty = {"role": "system", "content": ""}
    for messages, wanted in (
        ([asked], prompt.text),
        ([empty, asked], prompt.text),
        ([asked, begun], prompt.text + BEGUN),
        ([empty, asked, begun], prompt.text + BEGUN),
    ):
        rendered = ask(url, "/apply-template", {"messages": messages})["prompt"]
        if rendered != wanted:
            raise SystemExit(f"the server's prompt is {rendered!r}, and ponder's {wanted!r}")
    ids = ask(url, "/tokenize", {"content": prompt.text, "add_special": True, "parse_special": True})["tokens"]
    if tuple(ids) != prompt.ids:
        raise SystemExit(f"the server's prompt has the tokens {ids}, and ponder's {list(prompt.ids)}")
    counted = ask(url, "/v1/chat/completions", {"messages": [asked], "max_tokens": 1})["usage"]["prompt_tokens"]
    if counted != len(prompt.ids):
        raise SystemExit(f"the server counts {counted} tokens in a prompt where ponder counts {len(prompt.ids)}")


def main() -> None:
    """Starts, compares, says where, and waits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ponder-135m")
    parser.add_argument("--slots", type=int, default=16, help="samples side by side; no request may ask for more")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--cells", type=int, default=16_384, help="tokens that the cache holds, over all slots")
    asked = parser.parse_args()
    try:
        weights = resolve(asked.model)
        model, prompt = asyncio.run(ponders(asked.model))
    except PonderError as error:
        raise SystemExit(str(error)) from None
    server = start(weights, template(model), asked.slots, asked.threads, asked.cells)
    compare(server.listening_address, prompt)
    ready = {
        "url": server.listening_address,
        "model": asked.model,
        "file": weights.path.name,
        "slots": asked.slots,
        "threads": asked.threads,
        "prompt": prompt.text,
    }
    print(json.dumps(ready), flush=True)
    sys.stdin.read()
    os._exit(0)  # what is being computed for nobody is not waited for


if __name__ == "__main__":
    main()
