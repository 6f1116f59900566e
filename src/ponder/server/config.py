"""`ponder serve --config serve.toml`: models, upstreams and routes, read from a file and made into backends.

    [server]
    port = 8333
    models = ["ponder-135m"]

    [[upstream]]
    name = "cloud"
    dialect = "openai"
    url = "https://api.example.com/v1"
    key_env = "CLOUD_KEY"
    models = { large = "large-2026-01-01" }       # or a list; left out: all that it lists

    [[route]]
    model = "chat"
    to = ["ponder-135m", "cloud/large"]
    how = "fallback"                              # weighted, cheapest, cascade

    [prices]
    large = { prompt = 2.5, output = 10 }         # dollars per million tokens

Keys are named, never written: `key_env` is the name of an environment variable. See docs/upstreams.md.
"""

from __future__ import annotations

import asyncio
import difflib
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ponder.errors import InputError
from ponder.ops.prices import LOCAL, Prices, Rate
from ponder.server.backend import Backend, Served
from ponder.server.media import Media
from ponder.server.request import EFFORT_TOKENS
from ponder.server.routing import Rates, Route, Target, cheapest_first, fallback, own_rate, weighted
from ponder.server.routing_cascade import Cascade
from ponder.server.upstream import Configuration, Price, Retries, Upstream
from ponder.server.upstream_answer import Timeouts
from ponder.server.upstream_anthropic import Anthropic
from ponder.server.upstream_breaker import BreakerSettings
from ponder.server.upstream_dialect import Dialect
from ponder.server.upstream_gemini import Gemini
from ponder.server.upstream_openai import OpenAI
from ponder.server.upstream_thinking import FLAVOURS
from ponder.server.upstream_wire import Address

SEE = "see docs/upstreams.md"
DIALECTS: Mapping[str, tuple[str, ...]] = {
    "openai": FLAVOURS,
    "anthropic": ("budget", "adaptive"),
    "gemini": ("budget", "level"),
}
"""The flavours of each dialect; the first is the usual one."""

Seconds = Annotated[float, Field(gt=0, le=86_400)]
Dollars = Annotated[float, Field(ge=0, le=1e6)]
How = Literal["fallback", "weighted", "cheapest", "cascade"]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ServerTable(_Table):
    """[server]: what `ponder serve` takes as options, under the same names."""

    host: str = "127.0.0.1"
    port: int = Field(default=8333, ge=0, le=65535)
    models: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    policy: Path | None = None
    keys: bool | None = None
    running: int = Field(default=64, ge=1)
    waiting: int = Field(default=256, ge=0)
    drain: float = Field(default=30.0, ge=0)
    store: bool = True
    reasoning_field: Literal["reasoning_content", "reasoning", "both"] = "reasoning_content"
    log: Path | None = None


class TimeoutsTable(_Table):
    """Seconds: for a connection, until the first byte, between two bytes."""

    connect: Seconds = 10.0
    first: Seconds = 600.0
    silence: Seconds = 120.0


class RetriesTable(_Table):
    """How often to try, and the longest Retry-After that is waited for."""

    attempts: int = Field(default=3, ge=1, le=10)
    base: Seconds = 0.25
    patience: float = Field(default=5.0, ge=0, le=600)


class BreakerTable(_Table):
    """When an upstream is left alone, and for how long."""

    failures: int = Field(default=5, ge=1)
    rate: float = Field(default=0.5, gt=0, le=1)
    window: int = Field(default=20, ge=1, le=10_000)
    pause: Seconds = 5.0
    longest: Seconds = 60.0

    @model_validator(mode="after")
    def _ordered(self) -> BreakerTable:
        if self.longest < self.pause:
            raise ValueError("longest is below pause")
        return self


class PriceTable(_Table):
    """Dollars per million tokens."""

    prompt: Dollars
    output: Dollars
    cached: Dollars | None = None


class UpstreamTable(_Table):
    """[[upstream]]: a server."""

    name: str = Field(min_length=1, max_length=60, pattern=r"^[A-Za-z0-9_.-]+$")
    url: str
    dialect: Literal["openai", "anthropic", "gemini"] = "openai"
    flavour: str = ""
    key_env: str = ""
    models: dict[str, str] = {}
    weight: int = Field(default=1, ge=1, le=1_000_000)
    efforts: tuple[str, ...] = ()
    budget: Literal["", "hard", "hint", "cut"] = ""
    provider: str = ""
    health: str = Field(default="/models", pattern=r"^/[!-~]*$")
    check: float = Field(default=15.0, ge=0, le=86_400)
    context: int = Field(default=0, ge=0)
    fetch_images: bool = False
    ca: Path | None = None
    timeouts: TimeoutsTable = TimeoutsTable()
    retries: RetriesTable = RetriesTable()
    breaker: BreakerTable = BreakerTable()

    @field_validator("models", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {name: name for name in value} if isinstance(value, list | tuple) else value

    @field_validator("url")
    @classmethod
    def _address(cls, value: str) -> str:
        try:
            Address(value)
        except InputError as error:
            raise ValueError(error.problem) from None
        return value

    @model_validator(mode="after")
    def _sound(self) -> UpstreamTable:
        flavours = DIALECTS[self.dialect]
        if self.flavour and self.flavour not in flavours:
            raise ValueError(f"flavour {self.flavour!r} is none of {self.dialect}: choose from {', '.join(flavours)}")
        if unknown := [effort for effort in self.efforts if effort not in EFFORT_TOKENS]:
            raise ValueError(f"effort {unknown[0]!r} is none: choose from {', '.join(EFFORT_TOKENS)}")
        if self.budget and self.dialect != "openai":
            raise ValueError(f"budget is for the dialect openai, not {self.dialect}")
        return self

    def made(self) -> Dialect:
        """How it is spoken to."""
        flavour: Any = self.flavour or DIALECTS[self.dialect][0]
        if self.dialect == "openai":
            return OpenAI(flavour, self.efforts, self.budget, self.provider)
        kind: Any = Anthropic if self.dialect == "anthropic" else Gemini
        dialect: Dialect = kind(flavour, self.efforts, **({"provider": self.provider} if self.provider else {}))
        return dialect


class RouteTable(_Table):
    """[[route]]: one name for several places. weights: by place, in place of those of the upstreams. threshold,
    verifier: of a cascade, whose places are the small model and the large one."""

    model: str = Field(min_length=1, max_length=200)
    to: tuple[str, ...] = Field(min_length=1)
    how: How = "fallback"
    weights: tuple[Annotated[int, Field(ge=1)], ...] = ()
    threshold: float | None = None
    verifier: str = ""

    @model_validator(mode="after")
    def _sound(self) -> RouteTable:
        if len(set(self.to)) < len(self.to):
            raise ValueError("to names a place twice")
        if self.weights and (self.how != "weighted" or len(self.weights) != len(self.to)):
            raise ValueError('weights are for how = "weighted", one for each place of to')
        if self.how == "cascade" and (len(self.to) != 2 or self.threshold is None):
            raise ValueError("a cascade needs two places, the small model first, and a threshold")
        if self.how != "cascade" and (self.threshold is not None or self.verifier):
            raise ValueError('threshold and verifier are for how = "cascade"')
        return self


class Config(_Table):
    """The whole file."""

    server: ServerTable = ServerTable()
    upstream: tuple[UpstreamTable, ...] = ()
    route: tuple[RouteTable, ...] = ()
    prices: dict[str, PriceTable] = {}

    @model_validator(mode="after")
    def _distinct(self) -> Config:
        for what, names in (
            ("upstream", [each.name for each in self.upstream]),
            ("route", [r.model for r in self.route]),
        ):
            if twice := [name for name in names if names.count(name) > 1]:
                raise ValueError(f"there are two {what}s {twice[0]!r}")
        return self

    def settings(self) -> dict[str, Any]:
        """The fields of `build.Settings`."""
        return {name: getattr(self.server, name) for name in type(self.server).model_fields}


# ---------------------------------------------------------------- reading


def read(path: Path) -> Config:
    """The configuration in a file. Raises InputError that names what is wrong."""
    try:
        return parsed(tomllib.loads(path.read_text("utf-8")), str(path))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", "give the path of a configuration") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no TOML: {error}", SEE) from None


def parsed(document: Mapping[str, Any], name: str = "the configuration") -> Config:
    """The configuration in a TOML document. Raises InputError."""
    try:
        return Config.model_validate(document)
    except ValidationError as error:
        raise _told(error, name) from None


def _told(error: ValidationError, name: str) -> InputError:
    """The first thing that is wrong, without its value, which may be a secret in the wrong place."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = _place(first["loc"])
    if first["type"] == "extra_forbidden":
        known = _known(first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), known, 1, 0.4)
        mend = f"did you mean {near[0]}?" if near else f"choose from {', '.join(known)}"
        return InputError(f"{name} has an unknown key {place}", mend)
    problem = first["msg"].removeprefix("Value error, ")
    return InputError(f"{name}: {place + ': ' if place else ''}{problem[:1].lower()}{problem[1:]}", SEE)


def _place(location: Sequence[Any]) -> str:
    text = ""
    for each in location:
        text += f"[{each}]" if isinstance(each, int) else f".{each}" if text else str(each)
    return text


def _known(location: Sequence[Any]) -> list[str]:
    """The keys of the table at a place."""
    table: Any = Config
    for each in location:
        if isinstance(each, int):
            continue
        annotation = (
            table.model_fields[each].annotation
            if hasattr(table, "model_fields") and each in table.model_fields
            else None
        )
        inner = [
            kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type) and issubclass(kind, _Table)
        ]
        table = inner[0] if inner else table
    return list(table.model_fields)


# ---------------------------------------------------------------- opening


@dataclass(frozen=True)
class Opened:
    """Routes and upstreams, ready to be asked; routes first, since a route may have the name of a model."""

    routes: tuple[Backend, ...]
    upstreams: tuple[Upstream, ...]

    @property
    def backends(self) -> tuple[Backend, ...]:
        """All of them, for `build.built`."""
        return (*self.routes, *self.upstreams)

    async def close(self) -> None:
        """Closes the upstreams."""
        await asyncio.gather(*(upstream.close() for upstream in self.upstreams))


async def opened(config: Config, others: Sequence[Backend] = (), media: Media | None = None) -> Opened:
    """Everything that the file describes. others: backends that routes may lead to, such as models of this machine.

    An upstream that does not answer now is no error; a key that is not set, and a route to nowhere, are InputErrors.
    """
    upstreams = tuple(_upstream(table, config, media or Media()) for table in config.upstream)
    try:
        await asyncio.gather(*(upstream.start() for upstream in upstreams))
        rates = _rates(Prices.read())
        weights = {table.name: table.weight for table in config.upstream}
        routes: list[Backend] = []
        for table in config.route:
            targets = [_target(place, table, (*upstreams, *others)) for place in table.to]
            routes.append(_route(table, targets, weights, rates))
    except BaseException:
        await asyncio.gather(*(upstream.close() for upstream in upstreams))
        raise
    return Opened(tuple(routes), upstreams)


def _upstream(table: UpstreamTable, config: Config, media: Media) -> Upstream:
    key = os.environ.get(table.key_env, "") if table.key_env else ""
    if table.key_env and not key.strip():
        raise InputError(f"upstream {table.name}: {table.key_env} is not set", f"export {table.key_env}=...")
    prices = {name: Price(each.prompt, each.output, each.cached) for name, each in config.prices.items()}
    configuration = Configuration(
        table.url,
        table.made(),
        key.strip(),
        table.models,
        prices,
        Timeouts(**table.timeouts.model_dump()),
        Retries(**table.retries.model_dump()),
        BreakerSettings(**table.breaker.model_dump()),
        table.health,
        table.check,
        table.context,
        table.ca,
    )
    return Upstream(table.name, configuration, media=media if table.fetch_images else None)


def _target(place: str, table: RouteTable, backends: Sequence[Backend]) -> Target:
    """The place that a route names: "UPSTREAM/MODEL", or a model, or an upstream that has the route's model."""
    head, _, model = place.partition("/")
    for backend in backends:
        names = [served.name for served in backend.models()]
        if backend.name == head and model:
            if names and model not in names:
                raise InputError(
                    f"route {table.model}: {head} has no model {model!r}", f"choose from {', '.join(names)}"
                )
            return Target(backend, model)
        if backend.name == place and place not in names:
            return Target(backend, names[0] if len(names) == 1 else table.model)
    for backend in backends:
        if place in [served.name for served in backend.models()]:
            return Target(backend, place)
    known = [f"{backend.name}/{served.name}" for backend in backends for served in backend.models()]
    near = difflib.get_close_matches(place, known, 1, 0.4)
    mend = f"did you mean {near[0]}?" if near else f"choose from {', '.join(known[:8]) or 'nothing: there is none'}"
    raise InputError(f"route {table.model}: {place!r} leads nowhere", mend)


def _route(table: RouteTable, targets: Sequence[Target], weights: Mapping[str, int], rates: Rates) -> Route | Cascade:
    if table.how == "cheapest":
        return cheapest_first(table.model, targets, rates)
    if table.how == "weighted":
        given = table.weights or tuple(weights.get(target.backend.name, 1) for target in targets)
        return weighted(table.model, dict(zip(targets, given, strict=True)), rates)
    if table.how == "cascade":
        assert table.threshold is not None
        return Cascade(
            table.model,
            targets[0],
            targets[1],
            threshold=table.threshold,
            verifier=_verifier(table.verifier),
            rates=rates,
        )
    return fallback(table.model, targets, rates)


def _verifier(text: str) -> Any:
    if not text:
        return None
    from ponder.verifiers.naming import verifier_named

    return verifier_named(text)


def _rates(prices: Prices) -> Rates:
    """What models cost: as their backends say, else as is publicly known."""

    def rate(served: Served) -> Rate | None:
        provider = LOCAL if served.backend == LOCAL else str(served.details.get("provider", served.backend))
        return own_rate(served) or prices.rate(provider, str(served.details.get("model", served.name)))

    return rate
