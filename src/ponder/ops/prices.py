"""What models cost: the public prices of providers, one's own in a file, and what one's own machine costs.

    prices = Prices.read()                                # prices.toml in ponder's folder, if it is there
    rate = prices.rate("openai", "gpt-4o")                # None: unknown, which is never taken for nothing
    rate.micro(prompt=1200, cached=1000, completion=80)   # whole micro-dollars, rounded up

Public prices are the data inside the package `genai-prices`; no network is used. The file goes before them:

    [local]                                # the models that this machine runs
    dollars_per_second = 0.00012           # and, or: dollars_per_exaflop, for 1e18 floating-point operations

    [models."openai/gpt-4o"]               # provider/model, provider/*, or model: dollars per million tokens
    prompt = 2.5
    cached = 1.25
    output = 10
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any

from ponder import paths
from ponder.errors import InputError
from ponder.ops.money import MICRO, rounded_up

LOCAL = "local"
"""The provider that stands for one's own machine."""
EXAFLOP = Decimal(10**18)
MOST = Decimal(1_000_000)
"""Dollars that any single price may be at most."""


@dataclass(frozen=True)
class Rate:
    """Dollars per million tokens: `prompt` where they are computed, `cached` where they are not, `cache_write` where
    they are computed and kept, `output` for all that is generated; `request`: dollars for each. For one's own machine,
    dollars per second of work and per 1e18 floating-point operations. The parts add up."""

    prompt: Decimal = Decimal(0)
    cached: Decimal = Decimal(0)
    output: Decimal = Decimal(0)
    cache_write: Decimal = Decimal(0)
    request: Decimal = Decimal(0)
    dollars_per_second: Decimal = Decimal(0)
    dollars_per_exaflop: Decimal = Decimal(0)

    def micro(
        self,
        prompt: int = 0,
        cached: int = 0,
        completion: int = 0,
        *,
        cache_written: int = 0,
        seconds: float | None = None,
        flops: float | None = None,
    ) -> int | None:
        """Micro-dollars, rounded up. `cached` and `cache_written` are among the `prompt` tokens.

        None where the rate counts seconds or operations and these are None.
        """
        plain = max(0, prompt - cached - cache_written)
        micro = plain * self.prompt + cached * self.cached + cache_written * self.cache_write + completion * self.output
        micro += self.request * MICRO
        for price, amount in ((self.dollars_per_second, seconds), (self.dollars_per_exaflop / EXAFLOP, flops)):
            if price and amount is None:
                return None
            if price and amount is not None:
                micro += price * Decimal(amount) * MICRO
        return rounded_up(micro)

    def most(
        self, prompt: int, completion: int, *, seconds: float | None = None, flops: float | None = None
    ) -> int | None:
        """Micro-dollars that a request may cost at most: nothing cached, all of the prompt written to a cache.

        seconds, flops: the most that it may take. None as for `micro`.
        """
        dearest = max(self.prompt, self.cached, self.cache_write)
        rate = replace(self, prompt=dearest, cached=dearest, cache_write=dearest)
        return rate.micro(prompt, 0, completion, seconds=seconds, flops=flops)


class Prices:
    """The prices that are known: `own` by "provider/model", "provider/*" or "model", `local` for one's own machine."""

    def __init__(self, own: Mapping[str, Rate] | None = None, local: Rate | None = None) -> None:
        self._own = {name.lower(): rate for name, rate in (own or {}).items()}
        self._local = local

    @classmethod
    def read(cls, path: str | Path | None = None) -> Prices:
        """The prices with those of a file, by default `prices.toml` in `ponder.paths.home()`, which need not be there.

        Raises InputError where the file cannot be read or a price in it is none.
        """
        chosen = paths.home() / "prices.toml" if path is None else Path(path)
        try:
            text = chosen.read_text(encoding="utf-8")
        except FileNotFoundError:
            if path is None:
                return cls()
            raise InputError(f"there is no file {chosen}", "name a file with prices") from None
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{chosen} cannot be read: {error}", "name a file with prices") from None
        try:
            document = tomllib.loads(text, parse_float=Decimal)
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"{chosen} is no TOML: {error}", "mend that line") from None
        return _of_document(document, str(chosen))

    def rate(self, provider: str, model: str, *, prompt_tokens: int = 0, at: datetime | None = None) -> Rate | None:
        """What `model` costs at `provider`, a name such as "openai" or the address of a server; None if unknown.

        Some providers take more for long prompts (`prompt_tokens`) or at some hours (`at`, now by default).
        """
        for name in (f"{provider}/{model}", f"{provider}/*", model):
            if (rate := self._own.get(name.lower())) is not None:
                return rate
        if provider == LOCAL:
            return self._local
        return _public(provider, model, prompt_tokens, at or datetime.now(UTC)) if provider else None


# ---------------------------------------------------------------- public prices


@lru_cache(maxsize=1024)
def _found(provider: str, model: str) -> Any:
    """The model in the public data, or None. Kept, for what is not there is searched for among all."""
    from genai_prices.data_snapshot import get_snapshot

    address = "://" in provider
    try:
        found = get_snapshot().find_provider_model(
            model, None, None if address else provider, provider if address else None
        )
    except LookupError:
        return None
    return found[1]


def _public(provider: str, model: str, prompt_tokens: int, at: datetime) -> Rate | None:
    found = _found(provider, model)
    if found is None:
        return None
    prices = found.get_prices(at)
    prompt, cached, written, output, thinking, request = (
        _flat(getattr(prices, name), prompt_tokens) for name in _PUBLIC
    )
    if prompt is None and output is None:  # priced by pictures, minutes or pages
        return None
    prompt = prompt or Decimal(0)
    return Rate(
        prompt,
        prompt if cached is None else cached,
        max(output or Decimal(0), thinking or Decimal(0)),
        prompt if written is None else written,
        (request or Decimal(0)) / 1000,
    )


_PUBLIC = (
    "input_mtok", "cache_read_mtok", "cache_write_mtok", "output_mtok", "output_reasoning_mtok", "requests_kcount",
)  # fmt: skip


def _flat(price: Any, prompt_tokens: int) -> Decimal | None:
    """The price of a prompt of this length: from a tier's start on, all tokens have that tier's price."""
    if price is None or isinstance(price, Decimal):
        return price
    reached = [tier.price for tier in price.tiers if prompt_tokens > tier.start]  # in the order of their starts
    return Decimal(reached[-1] if reached else price.base)


# ---------------------------------------------------------------- the file


def _of_document(document: dict[str, Any], place: str) -> Prices:
    if unknown := sorted(document.keys() - {"local", "models"}):
        raise InputError(f"{place} has a table {unknown[0]!r}", "name them local and models")
    local, models = document.get("local"), document.get("models", {})
    if not isinstance(models, dict):
        raise InputError(f"{place}: models is no table", 'write a model as [models."provider/model"]')
    times = ("dollars_per_second", "dollars_per_exaflop")
    return Prices(
        {name: _rate(table, f'{place}: models."{name}"', _NAMES) for name, table in models.items()},
        None if local is None else _rate(local, f"{place}: local", times),
    )


_NAMES = tuple(field.name for field in fields(Rate))


def _rate(table: Any, place: str, known: tuple[str, ...]) -> Rate:
    if not isinstance(table, dict) or not table:
        raise InputError(f"{place} states no price", f"give one of {', '.join(known)}")
    for name, price in table.items():
        if name not in known:
            raise InputError(f"{place} states {name!r}", f"choose from {', '.join(known)}")
        number = isinstance(price, int | Decimal) and not isinstance(price, bool)
        if not number or not (Decimal(price).is_finite() and 0 <= Decimal(price) <= MOST):
            raise InputError(f"{place}.{name} is {price}", f"give dollars from 0 to {MOST}")
    given = {name: Decimal(price) for name, price in table.items()}
    if ("prompt" in given) != ("output" in given):
        raise InputError(f"{place} states only one of prompt and output", "state both, 0 where one is free")
    prompt = given.get("prompt", Decimal(0))
    return Rate(**({"cached": prompt, "cache_write": prompt} | given))
