"""Two or more people compared: how many more, how many times as many, chains of comparisons."""

from __future__ import annotations

from itertools import pairwise

from ponder.data.draw import Number, Unfit
from ponder.data.names import Person, people
from ponder.data.story import Scene, Story
from ponder.data.things import KITS, Thing, thing

TIMES = {2: "twice", 3: "three times", 4: "four times", 5: "five times"}
DOINGS = tuple(
    (past, base, thing(word), tail)
    for past, base, word, tail in (
        ("read", "read", "page", "of a book"),
        ("scored", "score", "point", "in a game"),
        ("ran", "run", "lap", "around the field"),
        ("did", "do", "push-up", ""),
        ("caught", "catch", "fish/fish", ""),
        ("wrote", "write", "postcard", ""),
        ("sold", "sell", "raffle ticket", ""),
        ("solved", "solve", "puzzle", ""),
        ("folded", "fold", "paper plane", ""),
        ("washed", "wash", "car", ""),
        ("planted", "plant", "tree", ""),
        ("swam", "swim", "lap", "in the pool"),
        ("counted", "count", "bird", "in the park"),
        ("built", "build", "sand castle", "at the beach"),
    )
)


class _Deed:
    """What people are compared in: what they have, or what they did."""

    def __init__(self, story: Story) -> None:
        draw = story.draw
        self.story = story
        self.owns = draw.chance(0.5)
        if self.owns:
            self.unit = draw.pick(draw.pick(KITS).things)
            self.past, self.base, tail = "has", "have", ""
        else:
            self.past, self.base, self.unit, tail = draw.pick(DOINGS)
            story.about.add("pages")
        self.many = self.unit.many
        self._tail = f" {tail}" if tail else ""

    def some(self, value: Number) -> str:
        """So many of what it is, and where."""
        return f"{self.story.some(value, self.unit)}{self._tail}"

    def asked(self, who: str, several: bool = False) -> str:
        """ "does she have", "did she read"."""
        return f"{('do' if several else 'does') if self.owns else 'did'} {who} {self.base}"

    def ask_more(self, word: str, who: Person, than: Person) -> None:
        """How many more one has than the other, in either order of words."""
        asked = self.asked("@who")
        order = (f"{self.many} than {than.name} {asked}", f"{self.many} {asked} than {than.name}")
        self.story.ask(f"how many {word} {self.story.draw.pick(order)}", who, than)

    def ask_together(self, people: list[Person]) -> None:
        """How many several people have."""
        names = f"{', '.join(person.name for person in people[:-1])} and {people[-1].name}"
        end = "in all" if len(people) > 2 else "together"
        self.story.ask(f"how many {self.many} {self.asked(names, several=True)} {end}")


def how_many_more(story: Story, steps: int) -> None:
    """The difference between two, one of them maybe told by a comparison with a third."""
    draw = story.draw
    deed = _Deed(story)
    first, second, third = people(draw, 3)
    a, b = draw.count(6), draw.count()
    if a <= b:
        a, b = b + a, b
    story.tell(f"@who {deed.past} {deed.some(a)}", first)
    if steps == 2:
        story.shape.append("third")
        more = draw.count(2)
        story.tell(f"@who {deed.past} {deed.some(b)}", second)
        story.tell(f"@who {deed.past} {story.say(more)} more {deed.many} than {second.name}", third, second)
        b = b + more
        story.plus(b - more, more, deed.unit, f"for {third.name}")
        second = third
        if b >= a:
            raise Unfit
    else:
        story.tell(f"@who {deed.past} {deed.some(b)}", second)
    if draw.chance(0.6):
        story.shape.append("more")
        deed.ask_more("more", first, second)
        story.minus(a, b, deed.unit, "more")
    else:
        story.shape.append("fewer")
        deed.ask_more("fewer", second, first)
        story.minus(a, b, deed.unit, "fewer")


def how_many_times(story: Story, steps: int) -> None:
    """How many times as many."""
    draw = story.draw
    deed = _Deed(story)
    first, second = people(draw, 2)
    less, times = draw.count(2), draw.integer(2, 9)
    once = Thing("time", "times")
    more: Number = less * times
    if steps == 1:
        story.tell(f"@who {deed.past} {deed.some(more)}", first)
        story.tell(f"@who {deed.past} {deed.some(less)}", second)
    else:
        part = draw.below(more, 2)
        when = ("at home", "at school") if deed.owns else ("in the morning", "in the afternoon")
        story.tell(f"@who {deed.past} {deed.some(part)} {when[0]} and {story.say(more - part)} {when[1]}", first)
        story.tell(f"@who {deed.past} {deed.some(less)}", second)
        more = story.plus(part, more - part, deed.unit, f"for {first.name}")
    story.ask(f"how many times as many {deed.many} as {second.name} {deed.asked('@who')}", first, second)
    story.over(more, less, once, "as many")


def told_backwards(story: Story, steps: int) -> None:
    """One has 12, which is 5 more than another has: more means minus here."""
    draw = story.draw
    deed = _Deed(story)
    first, second, third = people(draw, 3)
    kind = draw.pick(("more", "fewer", "times"))
    story.shape.append(kind)
    value: Number
    if kind == "times":
        base, times = draw.count(2), draw.integer(2, 5)
        value = base * times
        relation = f"{TIMES[times]} as many as {second.name}"
        result = story.over(value, times, deed.unit, f"for {second.name}")
    elif kind == "more":
        value = draw.count(5)
        more = draw.below(value, 2)
        relation = f"{story.say(more)} more than {second.name}"
        result = story.minus(value, more, deed.unit, f"for {second.name}")
    else:
        value, fewer = draw.count(), draw.count(2)
        relation = f"{story.say(fewer)} fewer than {second.name}"
        result = story.plus(value, fewer, deed.unit, f"for {second.name}")
    story.tell(f"@who {deed.past} {deed.some(value)}, which is {relation}", first, second)
    if steps == 1:
        story.ask(f"how many {deed.many} {deed.asked('@who')}", second)
        return
    if steps == 2 and draw.chance(0.5):
        story.shape.append("together")
        deed.ask_together([first, second])
        story.plus(value, result, deed.unit, "together")
        return
    story.shape.append("third")
    times = draw.integer(2, 5)
    story.tell(f"@who {deed.past} {TIMES[times]} as many {deed.many} as {second.name}", third, second)
    result = story.times(result, times, deed.unit, f"for {third.name}")
    story.ask(f"how many {deed.many} {deed.asked('@who')}", third)
    if steps == 3:
        story.shape.append("together")
        deed.ask_together([first, third])
        story.plus(value, result, deed.unit, "together")


def chain(story: Story, steps: int) -> None:
    """Each is compared with the one before; asked for are the last one, all of them, or the last and the first."""
    draw = story.draw
    deed = _Deed(story)
    goal = draw.pick([name for name, least in (("last", 1), ("total", 2), ("first", 2)) if steps >= least])
    links = {"last": steps, "total": steps // 2, "first": steps - 1}[goal]
    if links > 4 or (goal == "total" and steps % 2):
        raise Unfit
    group = people(draw, links + 1)
    values: list[Number] = [draw.count(4)]
    story.tell(f"@who {deed.past} {deed.some(values[0])}", group[0])
    for before, person in pairwise(group):
        values.append(_linked(story, deed, values[-1], before, person))
    first, last = group[0], group[-1]
    story.shape.append(goal)
    if goal == "last":
        story.ask(f"how many {deed.many} {deed.asked('@who')}", last)
    elif goal == "total":
        deed.ask_together(group)
        story.sum(values, deed.unit, "in all")
    elif draw.chance(0.5) and values[0] != values[-1]:
        story.shape.append("difference")
        high, low = (first, last) if values[0] > values[-1] else (last, first)
        deed.ask_more("more", high, low)
        story.minus(max(values[0], values[-1]), min(values[0], values[-1]), deed.unit, "more")
    else:
        deed.ask_together([first, last])
        story.plus(values[0], values[-1], deed.unit, "together")


def _linked(story: Story, deed: _Deed, value: Number, before: Person, person: Person) -> Number:
    """One more person, who is compared with the one before."""
    draw = story.draw
    kinds = ["more", "fewer", "times"] + (["half"] if value % 2 == 0 else [])
    kind = draw.pick(kinds)
    story.shape.append(kind)
    tail = f"for {person.name}"
    if kind == "half":
        story.tell(f"@who {deed.past} half as many {deed.many} as {before.name}", person, before)
        return story.over(value, 2, deed.unit, tail)
    if kind == "times":
        times = draw.integer(2, 4)
        story.tell(f"@who {deed.past} {TIMES[times]} as many {deed.many} as {before.name}", person, before)
        return story.times(value, times, deed.unit, tail)
    number = draw.count(2) if kind == "more" else draw.below(value, 2)
    story.tell(f"@who {deed.past} {story.say(number)} {kind} {deed.many} than {before.name}", person, before)
    return (story.plus if kind == "more" else story.minus)(value, number, deed.unit, tail)


def rest_of_total(story: Story, steps: int) -> None:
    """All together and all but one of them are known."""
    draw = story.draw
    deed = _Deed(story)
    count = steps + 1
    group = people(draw, count)
    values = [draw.count() for _ in range(count)]
    total = sum(values)
    names = ", ".join(person.name for person in group[1:-1])
    joined = f"@who{', ' if names else ''}{names} and {group[-1].name}"
    story.tell(
        f"{joined} {'have' if deed.owns else deed.past} {deed.some(total)} {'in all' if count > 2 else 'together'}",
        group[0],
        *group[1:],
    )
    for person, value in zip(group[:-1], values[:-1], strict=True):
        story.tell(f"@who {deed.past} {deed.some(value)}", person, *(each for each in group if each != person))
    story.ask(f"how many {deed.many} {deed.asked('@who')}", group[-1])
    rest: Number = total
    for person, value in zip(group[:-1], values[:-1], strict=True):
        rest = story.minus(rest, value, deed.unit, "left" if person != group[-2] else f"for {group[-1].name}")


def handed_over(story: Story, steps: int) -> None:
    """One gives some to the other: how many has the other then, or how many more, or how many make them equal."""
    draw = story.draw
    item = draw.pick(draw.pick(KITS).things)
    first, second = people(draw, 2)
    a, b = draw.count(8), draw.count()
    if steps == 2:
        story.shape.append("equal")
        a, b = max(a, b), min(a, b)
        story.tell(f"@who has {story.some(a, item)}", first)
        story.tell(f"@who has {story.some(b, item)}", second)
        story.ask(
            f"how many {item.many} does @who have to give {second.name} so that both have the same", first, second
        )
        story.over(story.minus(a, b, item, "more"), 2, item)
        return
    given = draw.below(a, 2)
    story.tell(f"@who had {story.some(a, item)}", first)
    story.tell(f"@who had {story.some(b, item)}", second)
    story.tell(f"@who gave {second.name} {story.some(given, item)}", first, second)
    if steps == 1:
        story.shape.append("other")
        story.ask(f"how many {item.many} does @who have now", second)
        story.plus(b, given, item, "now")
        return
    story.shape.append("difference")
    left = story.minus(a, given, item, f"for {first.name}")
    got = story.plus(b, given, item, f"for {second.name}")
    if left == got:
        raise Unfit
    high, low = (first, second) if left > got else (second, first)
    story.ask(f"how many more {item.many} than {low.name} does @who have now", high, low)
    story.minus(max(left, got), min(left, got), item, "more")


def two_totals(story: Story, steps: int) -> None:
    """Two sums compared: two people, on two or three days."""
    draw = story.draw
    past, base, unit, _ = draw.pick(DOINGS)
    story.about.add("pages")
    what = unit.many
    first, second = people(draw, 2)
    count = (steps + 1) // 2
    days = ("on Monday", "on Tuesday", "on Wednesday")[:count]
    totals: list[Number] = []
    for person in (first, second):
        numbers: list[Number] = [draw.count() for _ in days]
        parts = [f"{story.say(number)} {day}" for number, day in zip(numbers, days, strict=True)]
        parts[0] = parts[0].replace(" on", f" {what} on", 1)
        story.tell(f"@who {past} {', '.join(parts[:-1])} and {parts[-1]}", person)
        totals.append(story.sum(numbers, unit, f"for {person.name}"))
    if totals[0] == totals[1]:
        raise Unfit
    high, low = (first, second) if totals[0] > totals[1] else (second, first)
    story.ask(f"how many more {what} than {low.name} did @who {base}", high, low)
    story.minus(max(totals), min(totals), unit, "more")


SCENES = (
    Scene("how_many_more", how_many_more, (1, 2), weight=2),
    Scene("how_many_times", how_many_times, (1, 2)),
    Scene("told_backwards", told_backwards, (1, 2, 3), weight=2),
    Scene("chain", chain, (1, 2, 3, 4, 5, 6), weight=3),
    Scene("rest_of_total", rest_of_total, (1, 2, 3), weight=2),
    Scene("handed_over", handed_over, (1, 2, 3)),
    Scene("two_totals", two_totals, (3, 5)),
)
