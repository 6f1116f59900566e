"""A calibrated router: for each question the cheapest effort that is expected to be about as right as the best.

For each arm a (a strategy with its budget), the probability that it answers question x rightly is

    p_a(x) = 1 / (1 + exp(-(b_a + w_a . f(x))))

where f are features of the text, which cost nothing (`features.py`), each held within what was seen when the
table was calibrated, and, with `first`, the mean log-probability of an answer that the cheapest arm has drawn
already, whose tokens are charged to the same budget. The choice is

    argmin_a tokens_a   over the arms with   p_a(x) >= max_b p_b(x) - tolerance

For two arms that is a price of tolerance / (tokens_2 - tokens_1) a token: the dear arm is taken where what it is
expected to add is worth more than that. Not to think at all may be one of the arms.

The table comes from `evals.routing`: fitted, and its tolerance set, on measured answers of every arm.

Sources: Ong et al., RouteLLM: Learning to Route LLMs with Preference Data (2024), for a router with a threshold
calibrated on data; Chen, Zaharia and Zou, FrugalGPT (2023), section 3, for accuracy under a bound on cost; Snell
et al., Scaling LLM Test-Time Compute Optimally (2024), section 3, for compute that depends on the difficulty.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from ponder.chat.model import Model
from ponder.errors import InputError, Unsupported
from ponder.protocols import Strategy
from ponder.strategies.features import CONFIDENCE, NAMES, features, mean_logprob
from ponder.strategies.naming import strategy_named
from ponder.strategies.pool import drawing, of_several
from ponder.strategies.stages import Stages, reseeded, stopped, within
from ponder.types import Budget, Event, Question, Score, Scored

MEND = "calibrate it anew: ponder route"


@dataclass(frozen=True)
class Arm:
    """An effort: a strategy by its expression, its budget in tokens, and the measured mean `tokens` a question.

    `bias` and `weights`, by the names of features, give the log-odds that it is right. `accuracy` is what was measured.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid"}

    strategy: str
    budget: int
    tokens: float
    bias: float
    weights: Mapping[str, float] = field(default_factory=dict)
    accuracy: float | None = None

    def expected(self, values: Mapping[str, float]) -> float:
        """The probability that it is right, of the features' values."""
        odds = self.bias + sum(weight * values[name] for name, weight in self.weights.items())
        return 1 / (1 + math.exp(-max(-500.0, min(500.0, odds))))

    def __str__(self) -> str:
        return f"{self.strategy}@{self.budget}"


@dataclass(frozen=True)
class Table:
    """What a router knows. Raises InputError, naming the field, for what cannot be.

    `seen` holds the least and the greatest value that each feature had when the weights were fitted. With `first`
    the first arm is always drawn, and its confidence is a feature. `measured` tells what calibration found.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid"}

    arms: tuple[Arm, ...]
    tolerance: float = 0.0
    first: bool = False
    seen: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = {*NAMES, *([CONFIDENCE] if self.first else [])}
        weighted = {name for arm in self.arms for name in arm.weights}
        numbers = [each for arm in self.arms for each in (arm.bias, *arm.weights.values())]
        numbers += [end for ends in self.seen.values() for end in ends]
        wrong = {
            "has no arms": not self.arms,
            f"has the tolerance {self.tolerance}, which is not within 0 and 1": not 0 <= self.tolerance <= 1,
            f"has features that are unknown: {', '.join(sorted({*self.seen} - known))}": not {*self.seen} <= known,
            "has weights for features without a range": not weighted <= {*self.seen},
            "has numbers that are not finite": not all(map(math.isfinite, numbers)),
            "has a range that ends below its start": any(low > high for low, high in self.seen.values()),
            "has an arm without a budget": any(arm.budget < 1 for arm in self.arms),
            "has an arm without a cost": not all(0 < arm.tokens < math.inf for arm in self.arms),
        }
        problem = next((text for text, holds in wrong.items() if holds), None)
        if problem is not None:
            raise InputError(f"the route {problem}", MEND)

    def expected(self, values: Mapping[str, float]) -> list[float]:
        """The probability that each arm is right. A feature without a value counts as the middle of its range."""
        held = {
            name: min(max(values.get(name, (low + high) / 2), low), high) for name, (low, high) in self.seen.items()
        }
        return [arm.expected(held) for arm in self.arms]


class Choice(NamedTuple):
    """The number of the chosen arm, and the probability that each arm is right."""

    arm: int
    expected: tuple[float, ...]


def cheapest_good_enough(expected: Sequence[float], tokens: Sequence[float], tolerance: float) -> int:
    """The number of the cheapest arm that is expected to be at most `tolerance` below the best; the first of equals."""
    enough = max(expected) - tolerance
    return min((a for a, p in enumerate(expected) if p >= enough), key=lambda a: tokens[a])


def choose(table: Table, values: Mapping[str, float], room: int | None = None) -> Choice:
    """The arm for a question with these features, among those whose budget fits into `room` tokens.

    Where none does, the one with the smallest budget, which then has less than it was measured with. An arm that
    was drawn first always fits: it is paid for.
    """
    expected = table.expected(values)
    fits = [a for a, arm in enumerate(table.arms) if room is None or arm.budget <= room or (table.first and a == 0)]
    if not fits:
        return Choice(min(range(len(table.arms)), key=lambda a: table.arms[a].budget), tuple(expected))
    tokens = [table.arms[a].tokens for a in fits]
    return Choice(fits[cheapest_good_enough([expected[a] for a in fits], tokens, table.tolerance)], tuple(expected))


def route(table: Table) -> Strategy:
    """The strategy that runs the arm chosen for each question, within that arm's own budget and the request's.

    The choice is told by a `Scored` of "route" before the arm begins: the probability that it is right, for its
    first sample. With `first`, the answer drawn first stands where the chosen arm comes to none.
    """
    strategies = [strategy_named(arm.strategy) for arm in table.arms]

    def strategy(question: Question, model: Model, budget: Budget) -> AsyncIterator[Event]:
        return _routed(table, strategies, question, model, budget)

    name = ", ".join([*map(str, table.arms), f"tolerance={table.tolerance:g}", *(["first"] if table.first else [])])
    # A greedy model stays greedy for the arms that draw one sample: those that draw several see to it themselves.
    marked = of_several(strategy, f"route({name})", draws=False)
    vars(marked).update(several=table.first or any(getattr(each, "several", False) for each in strategies))
    return marked


def from_table(table: Mapping[str, Any]) -> tuple[Strategy, Budget]:
    """The strategy of a policy's [route] table, and a budget that every arm fits into. Raises InputError."""
    checked = read(table)
    dearest = max(arm.budget for arm in checked.arms)
    return route(checked), Budget(tokens=dearest + (checked.arms[0].budget if checked.first else 0))


def read(table: Mapping[str, Any]) -> Table:
    """The table of plain values, checked. Raises InputError naming the field that is wrong."""
    from pydantic import TypeAdapter, ValidationError

    try:
        found: Table = TypeAdapter(Table).validate_python(dict(table))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(each) for each in first["loc"])
        raise InputError(f"the route's {place}: {first['msg']}", MEND) from None
    for arm in found.arms:
        strategy_named(arm.strategy)
    return found


def write(table: Table) -> dict[str, Any]:
    """The table as plain values, without what is unset."""
    arms = [{name: value for name, value in vars(arm).items() if value is not None} for arm in table.arms]
    return {
        "tolerance": table.tolerance,
        "first": table.first,
        "arms": [arm | {"weights": dict(arm["weights"])} for arm in arms],
        "seen": {name: list(ends) for name, ends in table.seen.items()},
        "measured": dict(table.measured),
    }


async def _routed(
    table: Table, strategies: Sequence[Strategy], question: Question, model: Model, budget: Budget
) -> AsyncGenerator[Event, None]:
    stages, values = Stages(question, budget), features(question)
    if table.first:
        if CONFIDENCE in table.seen and not model.engine.capabilities.logprobs:
            raise Unsupported(
                "this route decides by a log-probability, and the engine tells none", "calibrate one without --first"
            )
        async with aclosing(stages.run(strategies[0], model, _bounds(table.arms[0], budget))) as events:
            async for event in events:
                yield event
        said = None if not stages.samples else mean_logprob(stages.samples[min(stages.samples)])
        if said is not None:
            values[CONFIDENCE] = said
    left = stages.left()
    if left is None or stopped(model):
        return
    choice = choose(table, values, left.tokens)
    arm, chosen = table.arms[choice.arm], strategies[choice.arm]
    drawn = table.first and choice.arm == 0
    yield Scored(Score(choice.expected[choice.arm], "route", _why(table, choice)), 0 if drawn else stages.next_index)
    if drawn:
        return
    own = reseeded(model, choice.arm) if table.first else model
    async with aclosing(stages.improve(chosen, drawing(own, chosen), _bounds(arm, left))) as events:
        async for event in events:
            yield event


def _bounds(arm: Arm, left: Budget) -> Budget:
    return within(left, arm.budget if left.tokens is None else min(arm.budget, left.tokens))


def _why(table: Table, choice: Choice) -> str:
    told = ", ".join(f"{arm} {p:.2f}" for arm, p in zip(table.arms, choice.expected, strict=True))
    return f"{table.arms[choice.arm]}; expected right: {told}"
