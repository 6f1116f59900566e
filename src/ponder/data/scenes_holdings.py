"""Somebody has things; they change; something is asked. A state machine: an opening, changes, an ending.

Nearly every ending may follow any changes of any opening, so that some forty parts make hundreds of structures.
What is asked may also be what there was at first, or how large a change was.
"""

from __future__ import annotations

from collections.abc import Sequence

from ponder.data.draw import Draw, Number, Unfit
from ponder.data.holdings import CHANGES, OPENINGS, TIMES, Change, Holding, Part
from ponder.data.names import crowd
from ponder.data.story import DOLLAR, Scene, Story
from ponder.data.things import Thing

MOST_CHANGES = 3
PERSON = Thing("person", "people")
DAY = Thing("day", "days")


# ---------------------------------------------------------------- endings: what is asked


def _now(holding: Holding, value: Number) -> None:
    if holding.lost:
        asked = (f"how many {holding.many} does @who have left", f"how many {holding.many} are left")
    elif holding.past:
        asked = (f"how many {holding.many} does @who have now", f"how many {holding.many} does @who now have in all")
    else:
        asked = (f"how many {holding.many} does @who have", f"how many {holding.many} does @who have in total")
    holding.ask(holding.draw.pick(asked))


def _share(holding: Holding, value: Number) -> None:
    friends, takers = holding.draw.divisor(value), crowd(holding.draw)
    shares = holding.draw.pick(("shares", "divides", "splits"))
    holding.tell(f"@who {shares} the {holding.many} equally among {holding.story.say(friends)} {takers}")
    holding.ask(f"how many {holding.many} does each of the {takers} get")
    holding.over(value, friends, f"for each of the {takers}")


def _share_with_oneself(holding: Holding, value: Number) -> None:
    friends, takers = holding.draw.divisor(value) - 1, crowd(holding.draw)
    if friends < 2:
        raise Unfit
    holding.tell(f"@who shares all of the {holding.many} equally with {holding.story.say(friends)} {takers}")
    holding.ask(f"how many {holding.many} does each person get")
    everyone = holding.story.plus(friends, 1, PERSON)
    holding.over(value, everyone, "for each person")


def _pack(holding: Holding, value: Number) -> None:
    each, box = holding.draw.divisor(value), holding.other_box()
    holding.tell(
        holding.draw.pick(
            (
                f"@who puts the {holding.many} into {box.many} with {holding.story.say(each)} in each {box.one}",
                f"@who wants to put all the {holding.many} into {box.many} of {holding.story.say(each)}",
                f"one {box.one} can hold {holding.some(each)}",
            )
        )
    )
    holding.ask(holding.draw.pick((f"how many {box.many} does @who need", f"how many {box.many} can @who fill")))
    holding.story.over(value, each, box)


def _split(holding: Holding, value: Number) -> None:
    groups, box = holding.draw.divisor(value), holding.other_box()
    holding.tell(
        holding.draw.pick(
            (
                f"@who puts the {holding.many} into {holding.story.some(groups, box)}, the same number in each",
                f"@who divides the {holding.many} equally between {holding.story.some(groups, box)}",
            )
        )
    )
    holding.ask(f"how many {holding.many} are in each {box.one}")
    holding.over(value, groups, f"in each {box.one}")


def _full(holding: Holding, value: Number) -> tuple[int, Number, Thing]:
    """Boxes filled, what is in them, and their word; there are always at least two of them, and something remains."""
    each, box = holding.draw.integer(3, 12), holding.other_box()
    groups = int(value) // each
    if groups < 2 or value % each == 0:
        raise Unfit
    holding.tell(f"@who puts the {holding.many} into {box.many} that hold {holding.story.say(each)} each")
    return groups, holding.times(groups, each, f"in {groups} full {box.many}"), box


def _left_over(holding: Holding, value: Number) -> None:
    _, packed, box = _full(holding, value)
    holding.ask(
        holding.draw.pick(
            (
                f"how many {holding.many} are left over when no more {box.many} can be filled",
                f"how many {holding.many} do not fit into the full {box.many}",
            )
        )
    )
    holding.minus(value, packed, "left over")


def _boxes_for_all(holding: Holding, value: Number) -> None:
    groups, packed, box = _full(holding, value)
    holding.ask(f"how many {box.many} does @who need for all of the {holding.many}")
    holding.minus(value, packed, "left over")
    holding.story.plus(groups, 1, box)


def _sell(holding: Holding, value: Number) -> None:
    _sold(holding, value)
    holding.ask(holding.draw.pick(("how much money does @who get", "how many dollars does @who make")))


def _sell_and_add(holding: Holding, value: Number) -> None:
    had = holding.draw.price(5, 60)
    holding.tell(f"@who has {holding.story.dollars(had)} in a wallet")
    earned = _sold(holding, value)
    holding.ask("how much money does @who have after that")
    holding.story.plus(earned, had, DOLLAR, "in all")


def _sell_and_spend(holding: Holding, value: Number) -> None:
    earned = _sold(holding, value)
    spent = holding.draw.below(earned, 2)
    bought = holding.draw.pick(("a book", "a present", "a new lamp", "a pair of gloves", "lunch"))
    holding.tell(f"@who spends {holding.story.dollars(spent)} of the money on {bought}")
    holding.ask("how much of the money does @who have left")
    holding.story.minus(earned, spent, DOLLAR, "left")


def _sold(holding: Holding, value: Number) -> Number:
    price = holding.draw.price(*holding.kit.price)
    holding.tell(
        f"@who sells {holding.draw.pick(('all of the', 'all the'))} {holding.many} for {_each(holding, price)}"
    )
    return holding.story.times(value, price, DOLLAR, f"for the {holding.many}")


def _each(holding: Holding, price: Number) -> str:
    return f"{holding.story.dollars(price)} {holding.draw.pick(('each', 'apiece'))}"


def _together(holding: Holding, value: Number) -> None:
    others = _other_has(holding)
    holding.ask(f"how many {holding.many} do @who and {holding.other.name} have together", holding.other)
    holding.plus(value, others, "together")


def _three_together(holding: Holding, value: Number) -> None:
    others, thirds = _other_has(holding), holding.draw.count()
    holding.story.tell(f"@who has {holding.some(thirds)}", holding.third)
    names = f"@who, {holding.other.name} and {holding.third.name}"
    holding.ask(f"how many {holding.many} do {names} have in all", holding.other, holding.third)
    holding.story.sum([value, others, thirds], holding.thing, "in all")


def _difference(holding: Holding, value: Number) -> None:
    if not holding.past and holding.others is not None:
        raise Unfit  # the opening has just said it
    others = _other_has(holding)
    more, less = (value, others) if value > others else (others, value)
    word = "more" if value > others else "fewer"
    holding.ask(f"how many {word} {holding.many} does @who have than {holding.other.name}", holding.other)
    holding.minus(more, less, word)


def _times_others(holding: Holding, value: Number) -> None:
    if holding.others is not None:
        raise Unfit
    times = holding.draw.integer(2, 5)
    word = TIMES.get(times, f"{times} times")
    holding.story.tell(f"@who has {word} as many {holding.many} as {holding.who.name}", holding.other, holding.who)
    holding.story.ask(f"how many {holding.many} does @who have", holding.other)
    holding.times(value, times, f"for {holding.other.name}")


def _together_with_more(holding: Holding, value: Number) -> None:
    if holding.others is not None:
        raise Unfit
    more = holding.draw.count(2)
    holding.story.tell(f"@who has {holding.more(more)} than {holding.who.name}", holding.other, holding.who)
    holding.ask(f"how many {holding.many} do @who and {holding.other.name} have together", holding.other)
    others = holding.plus(value, more, f"for {holding.other.name}")
    holding.plus(value, others, "together")


def _other_has(holding: Holding) -> Number:
    if holding.others is None:
        holding.others = holding.draw.count()
        holding.story.tell(f"@who has {holding.some(holding.others)}", holding.other)
    elif holding.past:
        holding.story.tell(f"@who still has {holding.some(holding.others)}", holding.other)
    return holding.others


def _goal(holding: Holding, value: Number) -> None:
    goal = value + holding.draw.count(2)
    holding.tell(
        holding.draw.pick(
            (
                f"@who wants to have {holding.some(goal)}",
                f"@who needs {holding.some(goal)} in total",
                f"@his goal is to have {holding.some(goal)}",
            )
        )
    )
    holding.ask(f"how many more {holding.many} does @who need")
    holding.minus(goal, value, "more")


def _how_long(holding: Holding, value: Number) -> None:
    daily, verb = holding.draw.divisor(value), holding.draw.pick(holding.kit.uses)
    holding.tell(f"@who {verb.third} {holding.some(daily)} {holding.draw.pick(('a day', 'every day', 'per day'))}")
    holding.ask(f"how many days will the {holding.many} last")
    holding.story.over(value, daily, DAY)


ENDINGS = (
    Part(_now, 0),
    Part(_now, 0),
    Part(_now, 0),
    Part(_share, 1),
    Part(_share_with_oneself, 2),
    Part(_pack, 1),
    Part(_split, 1),
    Part(_left_over, 2),
    Part(_boxes_for_all, 3),
    Part(_sell, 1),
    Part(_sell_and_add, 2),
    Part(_sell_and_spend, 2),
    Part(_together, 1),
    Part(_three_together, 2),
    Part(_difference, 1),
    Part(_times_others, 1),
    Part(_together_with_more, 2),
    Part(_goal, 1),
    Part(_how_long, 1),
)

# ---------------------------------------------------------------- the machine


def _part(draw: Draw, parts: Sequence[Part], most: int) -> Part:
    return draw.pick([part for part in parts if part.steps <= most and (draw.level.advanced or not part.advanced)])


def _changes(draw: Draw, steps: int) -> list[Part]:
    """Changes that take so many lines together."""
    chosen: list[Part] = []
    while steps:
        chosen.append(_part(draw, CHANGES, steps))
        steps -= chosen[-1].steps
    if len(chosen) > MOST_CHANGES:
        raise Unfit
    return chosen


def _changed(holding: Holding, changes: Sequence[Part], value: Number) -> list[Change]:
    """The changes told one after the other."""
    made: list[Change] = []
    for part in changes:
        made.append(part.make(holding, made[-1].after if made else value))
        holding.story.shape.append(part.name)
    return made


def _opened(story: Story, opening: Part, past: bool) -> tuple[Holding, Number]:
    holding = Holding(story, past)
    story.shape.append(opening.name)
    return holding, opening.make(holding)


def after_changes(story: Story, steps: int) -> None:
    """How many there are in the end, or something that follows from it."""
    ending = _part(story.draw, ENDINGS, steps)
    opening = _part(story.draw, OPENINGS, steps - ending.steps)
    changes = _changes(story.draw, steps - ending.steps - opening.steps)
    holding, value = _opened(story, opening, past=bool(changes))
    for part in changes:
        [change] = _changed(holding, [part], value)
        value = change.work(value)
    story.shape.append(ending.name)
    ending.make(holding, value)


def unknown_start(story: Story, steps: int) -> None:
    """How many there were at first: the changes are undone, the last one first."""
    draw = story.draw
    parts = _changes(draw, steps)
    holding = Holding(story, past=True)
    start = draw.count()
    holding.tell(draw.pick((f"@who had some {holding.many}", f"@who had a number of {holding.many}")))
    changes = _changed(holding, parts, start)
    value = changes[-1].after
    holding.tell(draw.pick((f"@who now has {holding.some(value)}", f"in the end @who had {holding.some(value)}")))
    holding.ask(
        draw.pick(
            (
                f"how many {holding.many} did @who have at first",
                f"how many {holding.many} did @who have in the beginning",
                f"how many {holding.many} did @who start with",
            )
        )
    )
    for change in reversed(changes):
        value = change.undo(value)


def unknown_change(story: Story, steps: int) -> None:
    """How large the last change was."""
    draw = story.draw
    opening = _part(draw, OPENINGS, steps - 1)
    parts = _changes(draw, steps - 1 - opening.steps)
    holding, value = _opened(story, opening, past=True)
    for change in _changed(holding, parts, value):
        value = change.work(value)
    gained = draw.chance(0.5)
    story.shape.append("gain" if gained else "lose")
    verb = holding.verb(holding.kit.gains if gained else holding.kit.losses)
    some = draw.pick(("some more", "more") if gained else ("some", "some of the"))
    holding.then(f"@who {verb.past} {some} {holding.many}{verb.tail}")
    after = value + draw.count(2) if gained else draw.below(value)
    holding.tell(f"@who {draw.pick(('now has', 'then had'))} {holding.some(after)}{'' if gained else ' left'}")
    holding.ask(f"how many {holding.many} did @who {verb.base}{verb.tail}")
    more, less = (after, value) if gained else (value, after)
    holding.minus(more, less, "more" if gained else "gone")


SCENES = (
    Scene("holding", after_changes, (1, 2, 3, 4, 5, 6), weight=14),
    Scene("unknown_start", unknown_start, (1, 2, 3, 4), weight=4),
    Scene("unknown_change", unknown_change, (1, 2, 3, 4, 5), weight=4),
)
