"""How a story is told: the order of its sentences, pronouns where they are clear, and sentences that mislead."""

from __future__ import annotations

from typing import NamedTuple

from ponder.data.draw import Draw
from ponder.data.story import Fact, Story
from ponder.data.things import KITS

STREETS = ("Maple Street", "Oak Avenue", "Hill Road", "River Lane", "Park Street", "Mill Road")


class _Aside(NamedTuple):
    """A sentence with a number that does not matter, and the topic that it would confuse."""

    topic: str
    text: str
    low: int
    high: int


OF_PEOPLE = (
    _Aside("age", "@who is {n} years old", 7, 70),
    _Aside("", "@who lives at number {n} on {street}", 2, 180),
    _Aside("people", "there are {n} students in @his class", 17, 33),
    _Aside("time", "it takes @him {n} minutes to walk home", 4, 40),
    _Aside("", "@who has seen {n} countries", 2, 9),
    _Aside("", "@his house has {n} windows", 5, 20),
    _Aside("age", "@his cat is {n} years old", 2, 15),
    _Aside("pages", "@who read {n} pages of a novel last week", 20, 150),
    _Aside("", "@who wears size {n} shoes", 5, 12),
    _Aside("", "@his favorite number is {n}", 3, 99),
    _Aside("", "@who takes bus number {n} to town", 2, 90),
    _Aside("length", "@his garden is {n} feet long", 12, 60),
    _Aside("money", "@who paid ${n} for a new jacket last month", 25, 90),
)
OF_NOBODY = (
    _Aside("", "it was {n} degrees outside that day", 40, 95),
    _Aside("age", "the town hall is {n} years old", 40, 300),
    _Aside("time", "the radio played music for {n} minutes", 20, 90),
    _Aside("length", "the nearest gas station is {n} miles away", 2, 15),
    _Aside("", "the weather report came on channel {n}", 2, 40),
    _Aside("people", "the town has {n} firefighters", 14, 60),
)


def told(story: Story) -> tuple[str, int]:
    """The text of the problem, and how many sentences in it do not matter."""
    draw = story.draw
    asides = _asides(story)
    facts = list(story.facts)
    for aside in asides:
        # Not the last fact, which may become a part of the question; the first one only where there is no other.
        place = draw.integer(min(1, len(facts) - 1), len(facts) - 1)
        facts.insert(place, aside if place else aside._replace(text=aside.text.replace(" also ", " ", 1)))
    if len(facts) <= 2 and not asides and draw.chance(0.08):
        return _as_condition(draw, facts, story.question), 0
    if draw.chance(0.03):
        return " ".join((_sentences(draw, [story.question], "?"), _sentences(draw, facts, "."))), len(asides)
    if draw.chance(0.15):
        return _with_last(draw, facts, story.question), len(asides)
    before = _sentences(draw, facts, ".")
    return f"{before} {_sentences(draw, [story.question], '?', facts[-1])}", len(asides)


def _asides(story: Story) -> list[Fact]:
    draw, level = story.draw, story.draw.level
    count = 0
    while count < 2 and draw.chance(level.distractors):
        count += 1
    people = [fact.who for fact in story.facts if fact.who is not None]
    made: list[Fact] = []
    possible = [each for each in (OF_PEOPLE if people else OF_NOBODY) if each.topic not in story.about]
    for aside in draw.some(possible, min(count, len(possible))):
        text = aside.text.format(n=draw.integer(aside.low, aside.high), street=draw.pick(STREETS))
        made.append(Fact(text, people[0] if people else None))
    if made and people and draw.chance(0.5):
        made[0] = Fact(_others(story), people[0])
    return made


def _others(story: Story) -> str:
    """Things that nobody asks about."""
    text = " ".join(fact.text for fact in (*story.facts, story.question))
    choices = [thing for kit in KITS for thing in kit.things if thing.many not in text and thing.one not in text]
    return f"@who also has {story.some(story.draw.count(2), story.draw.pick(choices))}"


# ---------------------------------------------------------------- sentences


def _sentences(draw: Draw, facts: list[Fact], end: str, before: Fact | None = None) -> str:
    written = []
    for fact in facts:
        text = _clause(draw, fact, before)
        lead = f"{fact.lead} " if fact.lead and (before is not None) else ""
        written.append(_capital(lead + text) + end)
        before = fact
    return " ".join(written)


def _with_last(draw: Draw, facts: list[Fact], question: Fact) -> str:
    """ "... If she buys 5 more, how many does she have?" """
    *rest, last = facts
    start = _sentences(draw, rest, ".")
    condition = _clause(draw, last, rest[-1] if rest else None)
    text = f"If {condition}, {_clause(draw, question, last)}?"
    return f"{start} {text}" if start else text


def _as_condition(draw: Draw, facts: list[Fact], question: Fact) -> str:
    """ "How many does she have if she had 5 and bought 7?" """
    clauses, before = [], question
    for fact in facts:
        clauses.append(_clause(draw, fact, before))
        before = fact
    return f"{_capital(_clause(draw, question, None))} if {' and '.join(clauses)}?"


def _clause(draw: Draw, fact: Fact, before: Fact | None) -> str:
    """The sentence with names and pronouns in the place of its marks."""
    if fact.who is None:
        return fact.text
    text = fact.text
    if not (_clear(fact, before) and draw.chance(0.85)):
        places = {text.find(mark): mark for mark in fact.who.named if mark in text}
        if places:
            first = places[min(places)]
            text = text.replace(first, fact.who.named[first], 1)
    for mark, word in fact.who.pronouns.items():
        text = text.replace(mark, word)
    return text


def _clear(fact: Fact, before: Fact | None) -> bool:
    """Whether a pronoun can only mean the person of the sentence before."""
    if before is None or fact.who is None or before.who != fact.who or "@" not in before.text:
        return False
    return all(other.woman != fact.who.woman for other in before.others)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
