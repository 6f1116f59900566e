"""Word problems in arithmetic, as many as wanted, with solutions that are worked out as they are told.

    for example in word_problems(1000, seed=1, difficulty=(1, 2)):
        print(example.question, example.thinking, example.answer, sep="\\n")

Each is a story put together from parts (`scenes_*.py`), not a sentence with gaps, and its thinking has one equation a
line. The same seed makes the same problems on every machine, in the same order, however many are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

from ponder.data import (
    scenes_compare,
    scenes_groups,
    scenes_holdings,
    scenes_money,
    scenes_parts,
    scenes_places,
    scenes_rates,
)
from ponder.data.draw import LEVELS, Draw, Level, Unfit
from ponder.data.examples import Example, answer_text
from ponder.data.story import DOLLAR, Scene, Story, plain
from ponder.data.telling import told
from ponder.errors import InputError

TASK = "word_problems"

SCENES: tuple[Scene, ...] = (
    *scenes_holdings.SCENES,
    *scenes_places.SCENES,
    *scenes_groups.SCENES,
    *scenes_compare.SCENES,
    *scenes_money.SCENES,
    *scenes_rates.SCENES,
    *scenes_parts.SCENES,
)

TRIES = 100
"""Draws of numbers for one scene, before another scene is taken."""

ATTEMPTS = 100
"""Scenes for one problem, before it is said that there are no more."""


def word_problems(
    count: int, *, seed: int = 0, difficulty: int | Level | Sequence[int | Level] = tuple(LEVELS)
) -> Iterator[Example]:
    """`count` problems, of which no two have the same text. Several difficulties (1 to 5, or levels) take turns.

    `metadata` says what a problem is: its kind, its structure, its difficulty, how many steps it takes and how many
    sentences in it do not matter. Raises InputError for a difficulty that does not exist, and where there are no more
    problems.
    """
    levels = _levels(difficulty)
    if count < 0:
        raise InputError(f"count={count} is below 0", "Say how many problems there shall be")
    return _made(count, seed, levels)


def _levels(difficulty: int | Level | Sequence[int | Level]) -> list[Level]:
    wanted = [difficulty] if isinstance(difficulty, int | Level) else list(difficulty)
    unknown = [each for each in wanted if not isinstance(each, Level) and each not in LEVELS]
    if unknown or not wanted:
        raise InputError(f"there is no difficulty {unknown[0] if unknown else '(none)'}", "It goes from 1 to 5")
    return [each if isinstance(each, Level) else LEVELS[each] for each in wanted]


def _made(count: int, seed: int, levels: Sequence[Level]) -> Iterator[Example]:
    seen: set[str] = set()
    for number in range(count):
        for attempt in range(ATTEMPTS):
            level = levels[number % len(levels)]
            # The level is part of the seed: sets of several difficulties must not tell the same stories.
            example = _drawn(f"{seed}/{number}/{attempt}/{level}", level, f"{seed}-{number}")
            if example is not None and example.question not in seen:
                break
        else:
            raise InputError(f"there are only {number} different problems of this difficulty", "Ask for fewer")
        seen.add(example.question)
        yield example


def _drawn(seed: str, level: Level, name: str) -> Example | None:
    """A problem of one scene, with the first numbers that make sense; None where none did."""
    draw = Draw(seed, level)
    steps = draw.integer(*level.steps)
    scene = _scene(draw, steps)
    for attempt in range(TRIES):
        story = Story(Draw(f"{seed}/{attempt}", level))
        try:
            scene.make(story, steps)
            text, asides = told(story)
        except Unfit:
            continue
        return _example(story, scene, text, asides, name)
    return None


def _scene(draw: Draw, steps: int) -> Scene:
    fitting = [scene for scene in SCENES if scene.fits(draw.level, steps)]
    bounds = list(accumulate(scene.weight for scene in fitting))
    point = draw.share() * bounds[-1]
    return next(scene for scene, bound in zip(fitting, bounds, strict=True) if point < bound)


def _example(story: Story, scene: Scene, text: str, asides: int, name: str) -> Example:
    structure = ">".join((scene.name, *story.shape))
    return Example(
        text,
        answer_text(plain(story.answer, cents=story.unit == DOLLAR)),
        "\n".join(story.steps),
        plain(story.answer),
        TASK,
        metadata={
            "id": name,
            "kind": scene.name,
            "structure": structure,
            "difficulty": story.draw.level.number,
            "steps": len(story.steps),
            "distractors": asides,
        },
    )
