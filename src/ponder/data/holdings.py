"""Somebody has things, and they change: the openings and the changes of the state machine in `scenes_holdings.py`.

Each part tells its facts and says how many lines of the solution it takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ponder.data.draw import Number, Unfit
from ponder.data.names import Person, crowd, kin, people
from ponder.data.story import Story
from ponder.data.things import KITS, Kit, Thing, Verb

LEADS = ("", "", "", "then", "later,", "after that,", "the next day,")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
TIMES = {2: "twice", 3: "three times"}
PARTS = {3: ("a third", "1/3"), 4: ("a quarter", "1/4"), 5: ("a fifth", "1/5")}


class Holding:
    """Who has what. `past` says that it changes before the question is asked."""

    def __init__(self, story: Story, past: bool) -> None:
        draw = story.draw
        self.story, self.draw = story, draw
        self.who, self.other, self.third = people(draw, 3)
        self.kit: Kit = draw.pick(KITS)
        self.thing: Thing = draw.pick(self.kit.things)
        self.box: Thing = draw.pick(self.kit.boxes)
        self.many = self.thing.many
        self.past = past
        self.had = "had" if past else "has"
        self.others: Number | None = None
        """How many the other person has, where that was told."""
        self.lost = False
        """Whether the last change was a loss."""
        self._used: set[Verb] = set()

    def some(self, value: Number) -> str:
        """So many of the things."""
        return self.story.some(value, self.thing)

    def more(self, value: Number) -> str:
        """So many more of them."""
        return f"{self.story.say(value)} more {self.thing.of(value)}"

    def other_box(self) -> Thing:
        """Something to put the things into that they were not in before."""
        return self.draw.pick([box for box in self.kit.boxes if box != self.box])

    def verb(self, choices: tuple[Verb, ...]) -> Verb:
        """One that was not used yet, so that "How many did she give away?" has one answer."""
        verb = self.draw.pick([each for each in choices if each not in self._used])
        self._used.add(verb)
        tail = verb.tail.replace("@kin", kin(self.draw, self.who))
        return Verb(verb.past, verb.base, f" {tail}" if tail else "")

    def tell(self, text: str, *others: Person) -> None:
        """One more fact about whoever has the things."""
        self.story.tell(text, self.who, *others)

    def then(self, text: str, *others: Person) -> None:
        """What happened next."""
        self.story.tell(text, self.who, *others, lead=self.draw.pick(LEADS))

    def ask(self, text: str, *others: Person) -> None:
        """The question."""
        self.story.ask(text, self.who, *others)

    def plus(self, a: Number, b: Number, tail: str = "now") -> Number:
        """Records a + b of the things."""
        return self.story.plus(a, b, self.thing, tail)

    def minus(self, a: Number, b: Number, tail: str = "left") -> Number:
        """Records a - b of the things."""
        return self.story.minus(a, b, self.thing, tail)

    def times(self, a: Number, b: Number, tail: str) -> Number:
        """Records a * b of the things."""
        return self.story.times(a, b, self.thing, tail)

    def over(self, a: Number, b: Number, tail: str) -> Number:
        """Records a / b of the things."""
        return self.story.over(a, b, self.thing, tail)


class Change(NamedTuple):
    """A change that was told: how many there are after it, and how to work that out, forwards and backwards."""

    after: Number
    work: Callable[[Number], Number]
    undo: Callable[[Number], Number]


class Part(NamedTuple):
    """`make` is an opening, a change or an ending; `steps` is how many lines of the solution it takes."""

    make: Callable[..., Any]
    steps: int
    advanced: bool = False

    @property
    def name(self) -> str:
        return str(self.make.__name__).strip("_")


# ---------------------------------------------------------------- openings: how many there are at first


def _plain(holding: Holding) -> Number:
    value = holding.draw.count()
    told = [f"@who {holding.had} {holding.some(value)}"]
    if holding.past:
        told += [f"@who {holding.draw.pick(holding.kit.makes).past} {holding.some(value)}"]
        told += [f"@who started with {holding.some(value)}"]
        told += [f"there were {holding.some(value)} in @his {holding.box.one}"] if value > 1 else []
    holding.tell(holding.draw.pick(told))
    return value


def _groups(holding: Holding) -> Number:
    groups, each = holding.draw.few(), holding.draw.size()
    box, holds = holding.box, "held" if holding.past else "holds"
    boxes = holding.story.some(groups, box)
    holding.tell(
        holding.draw.pick(
            (
                f"@who {holding.had} {boxes} with {holding.some(each)} in each {box.one}",
                f"@who {holding.had} {boxes} of {holding.many}, and each {box.one} {holds} {holding.some(each)}",
                f"@who {holding.had} {boxes} with {holding.some(each)} each",
                f"@who put {holding.some(each)} into each of {holding.story.say(groups)} {box.many}",
            )
        )
    )
    return holding.times(groups, each, f"in the {box.many}")


def _groups_and_loose(holding: Holding) -> Number:
    in_boxes = _groups(holding)
    loose = holding.draw.count(2)
    holding.tell(f"@who also {holding.had} {holding.some(loose)} outside the {holding.box.many}")
    return holding.plus(in_boxes, loose, "in all")


def _two_sorts(holding: Holding) -> Number:
    first, second = holding.draw.pick(holding.kit.sorts)
    a, b = holding.draw.count(), holding.draw.count()
    again = holding.draw.pick(("ones", holding.many))
    holding.tell(
        f"@who {holding.had} {holding.story.say(a)} {first} {holding.many} and {holding.story.say(b)} {second} {again}"
    )
    return holding.plus(a, b, "in all")


def _two_days(holding: Holding) -> Number:
    make, start = holding.draw.pick(holding.kit.makes), holding.draw.integer(0, len(DAYS) - 2)
    a, b = holding.draw.count(), holding.draw.count()
    on_first, on_second = f"on {DAYS[start]}", f"on {DAYS[start + 1]}"
    holding.tell(f"@who {make.past} {holding.some(a)} {on_first} and {holding.more(b)} {on_second}")
    return holding.plus(a, b, "in all")


def _every_day(holding: Holding) -> Number:
    make, unit = holding.draw.pick(holding.kit.makes), holding.draw.pick(("day", "week", "hour"))
    times, each = holding.draw.few(), holding.draw.size()
    holding.tell(f"@who {make.past} {holding.some(each)} every {unit} for {holding.story.say(times)} {unit}s")
    return holding.times(times, each, f"in {times} {unit}s")


def _more_than(holding: Holding) -> Number:
    base, more = holding.draw.count(), holding.draw.count(2)
    _of_other(holding, base)
    holding.tell(f"@who {holding.had} {holding.more(more)} than {holding.other.name}", holding.other)
    return holding.plus(base, more, f"for {holding.who.name}")


def _fewer_than(holding: Holding) -> Number:
    base = holding.draw.count(6)
    fewer = holding.draw.below(base - 1, 2)
    _of_other(holding, base)
    holding.tell(
        f"@who {holding.had} {holding.story.say(fewer)} fewer {holding.many} than {holding.other.name}", holding.other
    )
    return holding.minus(base, fewer, f"for {holding.who.name}")


def _times_as_many(holding: Holding) -> Number:
    base, times = holding.draw.count(), holding.draw.integer(2, 6)
    _of_other(holding, base)
    word = TIMES.get(times, f"{times} times")
    holding.tell(f"@who {holding.had} {word} as many {holding.many} as {holding.other.name}", holding.other)
    return holding.times(base, times, f"for {holding.who.name}")


def _half_as_many(holding: Holding) -> Number:
    base = 2 * holding.draw.integer(3, max(6, holding.draw.count() // 2))
    _of_other(holding, base)
    holding.tell(f"@who {holding.had} half as many {holding.many} as {holding.other.name}", holding.other)
    return holding.over(base, 2, f"for {holding.who.name}")


def _of_other(holding: Holding, value: Number) -> None:
    holding.others = value
    holding.story.tell(f"@who {holding.had} {holding.some(value)}", holding.other)


OPENINGS = (
    Part(_plain, 0),
    Part(_groups, 1),
    Part(_groups_and_loose, 2),
    Part(_two_sorts, 1),
    Part(_two_days, 1),
    Part(_every_day, 1),
    Part(_more_than, 1),
    Part(_fewer_than, 1),
    Part(_times_as_many, 1),
    Part(_half_as_many, 1),
)

# ---------------------------------------------------------------- changes


def _gain(holding: Holding, value: Number) -> Change:
    verb, more = holding.verb(holding.kit.gains), holding.draw.count(2)
    amount = holding.more(more) if holding.draw.chance(0.6) else holding.some(more)
    holding.then(f"@who {verb.past} {amount}{verb.tail}")
    return _gained(holding, value, more, lambda: more)


def _gain_from_all(holding: Holding, value: Number) -> Change:
    each, givers = holding.draw.size(), holding.draw.few()
    holding.then(f"@who got {holding.more(each)} from each of @his {holding.story.say(givers)} {crowd(holding.draw)}")
    return _gained(holding, value, each * givers, lambda: holding.times(givers, each, "more"))


def _gain_groups(holding: Holding, value: Number) -> Change:
    groups, each = holding.draw.few(), holding.draw.size()
    boxes = f"{holding.story.say(groups)} more {holding.box.of(groups)}"
    inside = holding.draw.pick((f"with {holding.some(each)} in each", f"of {holding.story.say(each)} {holding.many}"))
    holding.then(f"@who got {boxes} {inside}")
    return _gained(holding, value, groups * each, lambda: holding.times(groups, each, "more"))


def _gain_half_of_others(holding: Holding, value: Number) -> Change:
    half = holding.draw.integer(2, max(4, holding.draw.count() // 2))
    giver = kin(holding.draw, holding.who)
    amount = f"half of {holding.draw.pick(('a pile', 'a collection', 'a batch'))} of {holding.some(2 * half)}"
    holding.then(f"@who got {amount} from {giver}")
    return _gained(holding, value, half, lambda: holding.over(2 * half, 2, "more"))


def _gain_as_many_again(holding: Holding, value: Number) -> Change:
    giver = kin(holding.draw, holding.who)
    holding.then(f"@who got as many {holding.many} from {giver} as @who already had")
    holding.lost = False
    return Change(2 * value, lambda now: holding.times(now, 2, "now"), lambda now: holding.over(now, 2, "before that"))


def _gained(holding: Holding, value: Number, more: Number, work_out: Callable[[], Number]) -> Change:
    holding.lost = False
    return Change(
        value + more,
        lambda now: holding.plus(now, work_out()),
        lambda now: holding.minus(now, work_out(), "before that"),
    )


def _lose(holding: Holding, value: Number) -> Change:
    verb, less = holding.verb(holding.kit.losses), holding.draw.below(value, 2)
    amount = f"{holding.story.say(less)} of @his {holding.many}" if holding.draw.chance(0.3) else holding.some(less)
    holding.then(f"@who {verb.past} {amount}{verb.tail}")
    return _lose_amount(holding, value, less, lambda: less)


def _lose_to_all(holding: Holding, value: Number) -> Change:
    takers = holding.draw.few()
    each = holding.draw.integer(2, min(holding.draw.level.factor, (int(value) - 1) // takers))
    given = holding.draw.pick(
        (
            f"gave {holding.some(each)} to each of @his {holding.story.say(takers)} {crowd(holding.draw)}",
            f"gave {holding.story.say(takers)} {crowd(holding.draw)} {holding.some(each)} each",
        )
    )
    holding.then(f"@who {given}")
    return _lose_amount(holding, value, takers * each, lambda: holding.times(takers, each, "given away"))


def _lose_daily(holding: Holding, value: Number) -> Change:
    verb, days = holding.draw.pick(holding.kit.uses), holding.draw.few()
    each = holding.draw.integer(2, min(holding.draw.level.factor, (int(value) - 1) // days))
    holding.tell(f"@who {verb.past} {holding.some(each)} every day for {holding.story.say(days)} days")
    return _lose_amount(holding, value, days * each, lambda: holding.times(days, each, f"in {days} days"))


def _lose_groups(holding: Holding, value: Number) -> Change:
    groups = holding.draw.few()
    each = holding.draw.integer(2, min(holding.draw.level.factor, (int(value) - 1) // groups))
    verb = holding.verb(holding.kit.losses)
    boxes = holding.story.some(groups, holding.box)
    holding.then(f"@who {verb.past} {boxes} with {holding.some(each)} in each{verb.tail}")
    return _lose_amount(
        holding, value, groups * each, lambda: holding.times(groups, each, f"in {groups} {holding.box.many}")
    )


def _lose_half(holding: Holding, value: Number) -> Change:
    if value % 2 or value < 4:
        raise Unfit
    verb = holding.verb(holding.kit.losses)
    holding.then(f"@who {verb.past} half of @his {holding.many}{verb.tail}")
    holding.lost = True
    return Change(
        value // 2, lambda now: holding.over(now, 2, "left"), lambda now: holding.times(now, 2, "before that")
    )


def _lose_part(holding: Holding, value: Number) -> Change:
    parts = holding.draw.pick([each for each in PARTS if value % each == 0 and value > each])
    verb = holding.verb(holding.kit.losses)
    holding.then(f"@who {verb.past} {holding.draw.pick(PARTS[parts])} of @his {holding.many}{verb.tail}")
    gone = value // parts
    return _lose_amount(holding, value, gone, lambda: holding.over(value, parts, "gone"), reversible=False)


def _lose_percent(holding: Holding, value: Number) -> Change:
    share = holding.draw.pick([each for each in (10, 20, 25, 30, 40, 50, 60, 75, 80) if value * each % 100 == 0])
    verb = holding.verb(holding.kit.losses)
    holding.then(f"@who {verb.past} {share}% of @his {holding.many}{verb.tail}")
    gone = value * share // 100
    return _lose_amount(
        holding, value, gone, lambda: holding.story.percent(value, share, holding.thing, "gone"), reversible=False
    )


def _lose_amount(
    holding: Holding, value: Number, less: Number, work_out: Callable[[], Number], reversible: bool = True
) -> Change:
    holding.lost = True

    def undo(now: Number) -> Number:
        if not reversible:
            raise Unfit
        return holding.plus(now, work_out(), "before that")

    return Change(value - less, lambda now: holding.minus(now, work_out()), undo)


CHANGES = (
    Part(_gain, 1),
    Part(_lose, 1),
    Part(_gain, 1),
    Part(_lose, 1),
    Part(_gain_as_many_again, 1),
    Part(_lose_half, 1),
    Part(_gain_from_all, 2),
    Part(_gain_groups, 2),
    Part(_gain_half_of_others, 2),
    Part(_lose_to_all, 2),
    Part(_lose_daily, 2),
    Part(_lose_groups, 2),
    Part(_lose_part, 2, advanced=True),
    Part(_lose_percent, 2, advanced=True),
)
