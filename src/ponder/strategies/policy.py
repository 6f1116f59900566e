"""A policy: how much thinking to buy for a task, as a small TOML file that `ask` and servers obey.

version = 1
task = "gsm8k/test"
model = "ponder-135m"
default = "medium"

[efforts.medium]
strategy = "vote(8, risk=0.05)"
budget = 512              # tokens for the whole request
accuracy = 0.61           # what was measured, and on how many questions
interval = [0.52, 0.69]
tokens = 301.5            # mean a question
questions = 100

[route]                   # where a router was calibrated: the effort "auto"
...
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ponder.errors import InputError
from ponder.protocols import Strategy
from ponder.strategies.naming import strategy_named
from ponder.types import Budget

VERSION = 1
EFFORTS = ("low", "medium", "high")
AUTO = "auto"
"""The effort that a calibrated router chooses, question by question."""


@dataclass(frozen=True)
class Effort:
    """A strategy with its budget in tokens, and what it was measured to reach (None: it was not)."""

    strategy: str
    budget: int
    accuracy: float | None = None
    interval: tuple[float, float] | None = None
    tokens: float | None = None
    questions: int | None = None
    why: str = ""


@dataclass(frozen=True)
class Policy:
    """Efforts by name, one of them the default; `route` holds a router's table where one was calibrated."""

    efforts: Mapping[str, Effort]
    default: str = "medium"
    task: str = ""
    model: str = ""
    route: Mapping[str, Any] = field(default_factory=dict)

    def chosen(self, effort: str | None = None) -> tuple[Strategy, Budget]:
        """The strategy and budget of an effort, the default if None. Raises InputError for one that is not there."""
        name = effort or self.default
        if name == AUTO and self.route:
            from ponder.strategies.route import from_table

            return from_table(self.route)
        found = self.efforts.get(name)
        if found is None:
            known = ", ".join([*self.efforts, *([AUTO] if self.route else [])])
            raise InputError(f"the policy has no effort {name!r}", f"choose from {known}")
        return strategy_named(found.strategy), Budget(tokens=found.budget)


BUILT_IN = Policy(
    {
        "low": Effort("direct", 256, why="no thinking"),
        "medium": Effort("chain_of_thought", 1024, why="one chain of thought"),
        "high": Effort("vote(8, risk=0.05)", 8192, why="a vote that stops once it is decided"),
    }
)
"""What efforts mean where no policy says so: nothing was measured."""


def load(path: Path) -> Policy:
    """The policy in a file. Raises InputError naming what is wrong in it."""
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", "make a policy with ponder curve") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no TOML: {error}", "make a policy with ponder curve") from None
    if document.get("version") != VERSION:
        raise InputError(f"{path} has version {document.get('version')!r}", f"this ponder reads version {VERSION}")
    return _policy(document, path)


def dump(policy: Policy, path: Path) -> None:
    """Writes the policy."""
    import tomli_w

    document: dict[str, Any] = {"version": VERSION, "task": policy.task, "model": policy.model}
    document["default"] = policy.default
    document["efforts"] = {
        name: {key: value for key, value in asdict(effort).items() if value not in (None, "")}
        for name, effort in policy.efforts.items()
    }
    if policy.route:
        document["route"] = policy.route
    path.write_text(tomli_w.dumps(document), "utf-8")


def _policy(document: Mapping[str, Any], path: Path) -> Policy:
    from pydantic import TypeAdapter, ValidationError

    body = {key: value for key, value in document.items() if key != "version"}
    unknown = [key for key in body if key not in Policy.__dataclass_fields__]
    if unknown:
        raise InputError(
            f"{path} has the unknown field {unknown[0]}", f"it may have {', '.join(Policy.__dataclass_fields__)}"
        )
    try:
        policy: Policy = TypeAdapter(Policy).validate_python(body)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(each) for each in first["loc"])
        raise InputError(f"{path}: {place}: {first['msg']}", "see docs/policies.md") from None
    for name, effort in policy.efforts.items():
        strategy_named(effort.strategy)
        if effort.budget < 1:
            raise InputError(f"{path}: efforts.{name}.budget is {effort.budget}", "give at least 1 token")
    if policy.default not in policy.efforts and not (policy.default == AUTO and policy.route):
        raise InputError(f"{path}: the default {policy.default!r} is none of its efforts", "name one of them")
    return policy
