"""The fields that OpenAI's chat and completions have in common on their way in: how tokens are drawn, and what else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ponder.server.json_body import Fields, wrong
from ponder.server.request import Sampling

MOST_CHOICES = 128
MOST_LIKELIEST = 20
MOST_STOPS = 64

READ = (
    "model",
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "ignore_eos",
    "stream",
    "stream_options",
    "user",
    "metadata",
    "ponder",
)
"""Fields that both dialects read."""

WITHOUT_EFFECT = (
    "prompt_cache_key",
    "prompt_cache_retention",
    "prompt_cache_options",
    "prediction",
    "service_tier",
    "cache_prompt",
    "cache_salt",
    "keep_alive",
    "request_id",
)
"""Fields that only help a server along: a reply is the same without them."""

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "repetition_penalty": (1,),
    "repeat_penalty": (1,),
    "length_penalty": (1,),
    "min_tokens": (0,),
    "use_beam_search": (False,),
    "skip_special_tokens": (True,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "separate_reasoning": (True,),
    "reasoning_format": ("auto", "deepseek"),
    "return_token_ids": (False,),
    "priority": (0,),
    "modalities": (["text"],),
    "verbosity": ("medium",),
}
"""Fields that are not supported, but change nothing with these values."""


def check_known(body: Fields, read: Iterable[str], refused: Mapping[str, str]) -> None:
    """Refuses every field that is not `read`, by its name: to ignore it would say that it was obeyed.

    refused: fields that exist, with what to do instead.
    """
    for name in body.values:
        if not body.has(name):
            continue
        if name in refused:
            raise body.wrong(name, "is not supported", refused[name])
        if name in NEUTRAL and body.raw(name) not in NEUTRAL[name]:
            values = " or ".join(map(repr, NEUTRAL[name]))
            raise body.wrong(name, f"is not supported but for {values}", "leave it out")
    given = Fields({name: value for name, value in body.values.items() if value is not None}, body.path)
    given.only(*READ, *read, *WITHOUT_EFFECT, *NEUTRAL)


def sampling_of(body: Fields, logprobs: int | None) -> Sampling:
    """How tokens are drawn. `logprobs` is read by each dialect in its own way."""
    return Sampling(
        temperature=body.number("temperature", 0, 2),
        top_p=body.number("top_p", most=1, above=0),
        top_k=_top_k(body),
        min_p=_below_one(body, "min_p"),
        seed=_seed(body),
        stop=_stop(body),
        logprobs=logprobs,
        frequency_penalty=body.number("frequency_penalty", -2, 2) or 0.0,
        presence_penalty=body.number("presence_penalty", -2, 2) or 0.0,
        logit_bias=_logit_bias(body),
        ignore_eos=body.flag("ignore_eos", False),
    )


def stream_usage(body: Fields) -> bool:
    """Whether the last chunk of a stream is to tell the usage."""
    options = body.object("stream_options")
    if options is None:
        return False
    if not body.flag("stream", False):
        raise body.wrong("stream_options", "is there without a stream", "set stream to true, or leave it out")
    options.only("include_usage", "include_obfuscation", "continuous_usage_stats")
    if options.flag("continuous_usage_stats", False):
        raise options.wrong("continuous_usage_stats", "is not supported", "usage comes with the last chunk")
    options.flag("include_obfuscation")
    return options.flag("include_usage", False)


def metadata_of(body: Fields) -> dict[str, str]:
    """The client's own notes: at most 16 texts."""
    notes = body.object("metadata")
    if notes is None:
        return {}
    if len(notes.values) > 16:
        raise body.wrong("metadata", "has more than 16 entries", "leave some out")
    found = {name: notes.text(name, "") for name in notes.values}
    for name, text in found.items():
        if len(name) > 64 or len(text) > 512:
            raise body.wrong("metadata", "has a name over 64 or a text over 512 characters", "shorten it")
    return found


def user_of(body: Fields) -> str:
    """Whom the client asks for."""
    return body.text("safety_identifier") or body.text("user") or ""


def _top_k(body: Fields) -> int | None:
    value = body.whole("top_k", -1, 2**31 - 1)
    return 0 if value == -1 else value  # the two ways to switch it off


def _below_one(body: Fields, name: str) -> float | None:
    value = body.number(name, 0, 1)
    if value == 1:
        raise body.wrong(name, "must be below 1")
    return value


def _seed(body: Fields) -> int | None:
    value = body.whole("seed", -(2**63), 2**64 - 1)
    return None if value is None else value % 2**63  # generators take no negative ones


def _stop(body: Fields) -> tuple[str, ...]:
    value = body.raw("stop")
    stops = (value,) if isinstance(value, str) else body.texts("stop")
    if "" in stops:
        raise body.wrong("stop", "holds an empty text", "leave it out")
    if len(stops) > MOST_STOPS:
        raise body.wrong("stop", f"holds more than {MOST_STOPS} texts", "leave some out")
    return stops


def _logit_bias(body: Fields) -> dict[int, float]:
    biases = body.object("logit_bias")
    if biases is None:
        return {}
    found: dict[int, float] = {}
    for name in biases.values:
        if not (name.isascii() and name.isdecimal() and len(name) < 10):
            raise wrong(biases.path, f"{name[:40]!r} is no token id", 'write {"1234": -100}')
        value = biases.number(name, -100, 100)
        if value is not None:
            found[int(name)] = value
    return found
