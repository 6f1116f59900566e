"""Places where things or people come and go: how many are there, were there, or came."""

from __future__ import annotations

from ponder.data.draw import Number, Unfit
from ponder.data.story import Scene, Story
from ponder.data.things import PLACES, Place, Thing


class _Visit:
    """Who is where."""

    def __init__(self, story: Story) -> None:
        self.story, self.draw = story, story.draw
        self.place: Place = story.draw.pick(PLACES)
        self.thing: Thing = story.draw.pick(self.place.who)
        self.many = self.thing.many
        self._used: set[str] = set()
        story.about.add("people")

    def some(self, value: Number) -> str:
        return self.story.some(value, self.thing)

    def moves(self, coming: bool) -> str:
        """What they did, not twice the same."""
        choices = self.place.comes if coming else self.place.goes
        text = self.draw.pick([each for each in choices if each not in self._used])
        self._used.add(text)
        return text

    def change(self, value: Number) -> tuple[Number, int]:
        """Tells that some come or go: how many are there then, and how many came (below 0: went)."""
        coming = self.draw.chance(0.5)
        number = self.draw.count(2) if coming else self.draw.below(value, 2)
        more = "more " if coming and self.draw.chance(0.7) else ""
        word = self.thing.of(number)
        text = f"{self.story.say(number)} {more}{word} {_agree(self.moves(coming), number)}"
        self.story.tell(text, lead=self.draw.pick(("", "", "then", "later,")))
        self.story.shape.append("come" if coming else "go")
        signed = number if coming else -number
        return value + signed, signed

    def apply(self, value: Number, signed: int, back: bool = False) -> Number:
        """Works a change out, forwards or back."""
        tail = "before that" if back else "now" if signed > 0 else "left"
        return (self.story.plus if (signed > 0) != back else self.story.minus)(value, abs(signed), self.thing, tail)


def _agree(text: str, number: int) -> str:
    return text.replace("were ", "was ", 1) if number == 1 and text.startswith("were ") else text


def _opened(visit: _Visit, steps: int) -> Number:
    story, draw, where = visit.story, visit.draw, visit.place.where
    if steps == 0:
        value = draw.count()
        story.shape.append("there")
        story.tell(
            draw.pick((f"there were {visit.some(value)} {where}", f"at first, there were {visit.some(value)} {where}"))
        )
        return value
    if visit.place.groups and draw.chance(0.5):
        groups, each, group = draw.few(), draw.size(), draw.pick(visit.place.groups)
        story.shape.append("groups")
        story.tell(f"there were {story.some(groups, group)} {where}, and each {group.one} had {visit.some(each)}")
        return story.times(groups, each, visit.thing, f"in the {group.many}")
    first, second, visit.thing = visit.place.sorts
    visit.many = visit.thing.many
    a, b = draw.count(), draw.count()
    story.shape.append("two_sorts")
    story.tell(f"there were {story.some(a, first)} and {story.some(b, second)} {where}")
    return story.plus(a, b, visit.thing)


def now_there(story: Story, steps: int) -> None:
    """How many are there in the end; how many seats are free; how many more came than went."""
    visit, draw = _Visit(story), story.draw
    place, ending = visit.place, 0
    if place.seats is not None and steps > 1 and draw.chance(0.4):
        ending = 1
    opening = 1 if steps - ending > 1 and draw.chance(0.5) else 0
    if steps - ending - opening > 3:
        raise Unfit
    value = _opened(visit, opening)
    last = 0
    for _ in range(steps - ending - opening):
        after, last = visit.change(value)
        value = visit.apply(value, last)
        assert value == after
    if ending and place.seats is not None:
        seats = int(value) + draw.count(2)
        story.shape.append("free")
        story.tell(f"there are {story.some(seats, place.seats)} {place.where}, one for each {visit.thing.one}")
        story.ask(f"how many {place.seats.many} are free")
        story.minus(seats, value, place.seats, "free")
        return
    many, where = visit.many, place.where
    left = (f"how many {many} are left {where}", f"how many {many} are still {where}") if last < 0 else ()
    story.ask(draw.pick((f"how many {many} are {where} now", f"how many {many} are now {where}", *left)))


def more_came_than_went(story: Story, steps: int) -> None:
    """Two changes compared; how many were there does not matter."""
    visit, draw = _Visit(story), story.draw
    there, come = draw.count(20), draw.count(5)
    go = draw.below(min(come, there), 2)
    many = visit.many
    if draw.chance(0.6):
        story.tell(f"there were {visit.some(there)} {visit.place.where}")
    story.tell(f"{visit.some(come)} {visit.moves(True)}")
    story.tell(f"{visit.some(go)} {visit.moves(False)}")
    story.ask(f"how many more {many} came than left")
    story.minus(come, go, visit.thing, "more")


def there_at_first(story: Story, steps: int) -> None:
    """How many were there before all that came and went."""
    visit, draw = _Visit(story), story.draw
    many, where = visit.many, visit.place.where
    story.tell(draw.pick((f"there were some {many} {where}", f"at first, there were some {many} {where}")))
    value: Number = draw.count()
    changes: list[int] = []
    for _ in range(steps):
        value, signed = visit.change(value)
        changes.append(signed)
    if value == 1:
        raise Unfit
    story.tell(draw.pick((f"now there are {visit.some(value)} {where}", f"in the end there were {visit.some(value)}")))
    story.ask(draw.pick((f"how many {many} were there at first", f"how many {many} were {where} to begin with")))
    for signed in reversed(changes):
        value = visit.apply(value, signed, back=True)


def how_many_moved(story: Story, steps: int) -> None:
    """How many came, or went."""
    visit, draw = _Visit(story), story.draw
    value = _opened(visit, 0)
    for _ in range(steps - 1):
        _, signed = visit.change(value)
        value = visit.apply(value, signed)
    coming = draw.chance(0.5)
    story.shape.append("come?" if coming else "go?")
    moved = visit.moves(coming)
    many = visit.many
    story.tell(f"{'some more' if coming else 'some'} {many} {moved}")
    after = int(value) + draw.count(2) if coming else draw.below(value, 2)
    story.tell(f"now there are {visit.some(after)} {visit.place.where}")
    story.ask(f"how many {many} {moved}")
    more, less = (after, value) if coming else (value, after)
    story.minus(more, less, visit.thing, "more" if coming else "gone")


SCENES = (
    Scene("place", now_there, (1, 2, 3, 4), weight=4),
    Scene("place_compare", more_came_than_went, (1,)),
    Scene("place_start", there_at_first, (1, 2, 3), weight=2),
    Scene("place_change", how_many_moved, (1, 2, 3), weight=2),
)
