"""Keeping what a model is tested on out of what it is trained on.

    clean = decontaminate(examples, {task.name: task.questions})
    clean.examples, clean.report

An example goes if it shares with an item of an evaluation set

- a run of `Rules.ngram` words, in small letters and without punctuation. Brown et al., Language Models are Few-Shot
  Learners (2020), appendix C, take 13-grams to clean training data, and to call test items dirty N-grams of 8 to 13
  words, by the length of the items. Here 8 is the rule: items of mathematics are short, a number interrupts what they
  share, and an example too many that goes costs little beside a test that measures memory. How many have a run of 13
  is reported too.
- the same text up to numbers and names: the Jaccard similarity of their word 3-grams is at least `Rules.near` after
  numbers, names and the pronouns for them are masked. A problem with other numbers may share no run with its source.
- the whole text, where an item has fewer words than a run. "What is 3 + 5?" is no copy of "What is 3 + 4?"; for items
  that are all made from one sentence, Rules(ngram=100, reported=100) compares whole texts alone.

Candidates come from an inverted index of the evaluation sets. For the similarity, only the rarest 3-grams of either
side have to be looked up: of two sets that are similar enough, those must share one (prefix filtering; Bayardo et al.,
Scaling Up All Pairs Similarity Search, 2007).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ponder.data.examples import Example
from ponder.errors import InputError
from ponder.types import Question

Rule = Literal["verbatim", "n-gram", "near"]

SHINGLE = 3
"""Words in what similarity is measured in."""

EPSILON = 1e-9
"""0.7 * 30 is 21 and not a little more, of which one more shingle would follow."""

_WORD = re.compile(r"\d+(?:\.\d+)*|[^\W\d_]+")
_INSIDE = re.compile(r"(?<=\w)['’](?=\w)|(?<=\d),(?=\d{3}(?!\d))")
"""What stands inside a word or a number and goes: "don't" is dont, "1,000" is 1000."""
_TOKEN = re.compile(rf"([.!?:;\"“”(]?)\s*({_WORD.pattern})")
"""A word, and whether a sentence may begin with it."""
_LOWER = re.compile(r"(?<![^\W_])[^\W\d_A-Z]+(?![^\W_])")
_POSSESSIVE = re.compile(rf"['’]s?(?![^\W_])|{_INSIDE.pattern}")
"""That, and what a name has at its end: "Anna's" is Anna."""
_PRONOUNS = frozenset(("he", "she", "his", "her", "him", "hers"))
_NUMBERS = frozenset(
    (
        *(
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
            "thirteen",
        ),
        *("fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty", "thirty", "forty", "fifty"),
        *("sixty", "seventy", "eighty", "ninety", "hundred", "thousand"),
    )
)

Words = tuple[str, ...]
Item = tuple[int, int]
"""An evaluation set and an item of it, by their numbers."""


@dataclass(frozen=True)
class Rules:
    """ngram: words in a run that may not be shared. reported: a longer run, of which it is said how often there is one.

    near: similarity from which on two texts are the same up to numbers and names.
    """

    ngram: int = 8
    reported: int = 13
    near: float = 0.7

    def __post_init__(self) -> None:
        if not 1 <= self.ngram <= self.reported:
            raise InputError(
                f"ngram={self.ngram} and reported={self.reported} do not fit",
                "reported must be at least ngram, and that 1",
            )
        if not 0 < self.near <= 1:
            raise InputError(f"near={self.near} is no similarity", "Give one above 0, and 1 at most")


@dataclass(frozen=True)
class Hit:
    """An example that an item of an evaluation set was found in.

    example: its number among the examples. shared: the run of words that both have, if there is one of that length.
    similarity: that of the masked texts, if it is high enough. Where there are both, the rule is that of the run.
    """

    example: int
    of: str
    item: str
    rule: Rule
    shared: str = ""
    similarity: float | None = None


@dataclass(frozen=True)
class Report:
    """What was compared and found. sets: items of each evaluation set. long_runs: examples with a run of `reported`."""

    rules: Rules
    examples: int
    kept: int
    sets: Mapping[str, int]
    hits: tuple[Hit, ...] = ()
    long_runs: int = 0

    def summary(self) -> dict[str, Any]:
        """The counts, as JSON takes them: examples removed by each rule, examples and items by each evaluation set."""
        rules: dict[str, set[int]] = {"verbatim": set(), "n-gram": set(), "near": set()}
        by_set: dict[str, set[int]] = {name: set() for name in self.sets}
        items: dict[str, set[str]] = {name: set() for name in self.sets}
        for hit in self.hits:
            rules[hit.rule].add(hit.example)
            by_set[hit.of].add(hit.example)
            items[hit.of].add(hit.item)
        return {
            "rules": asdict(self.rules),
            "examples": self.examples,
            "kept": self.kept,
            "removed": self.examples - self.kept,
            "removed_by": {rule: len(found) for rule, found in rules.items()},
            f"examples_with_{self.rules.reported}_grams": self.long_runs,
            "sets": {
                name: {"items": size, "items_hit": len(items[name]), "examples": len(by_set[name])}
                for name, size in self.sets.items()
            },
        }


@dataclass(frozen=True)
class Decontaminated:
    """The examples that share nothing with an evaluation set, and what was found in the others."""

    examples: tuple[Example, ...]
    report: Report


def decontaminate(
    examples: Iterable[Example], against: Mapping[str, Iterable[Question]], rules: Rules | None = None
) -> Decontaminated:
    """The examples without those that share something with an item of an evaluation set.

    `against` names evaluation sets. Questions are compared, and the thinking of an example too where the rule is about
    runs of words. Raises InputError without an evaluation set, or for one without an item.
    """
    rules = rules or Rules()
    examples = tuple(examples)
    sets = {name: tuple(questions) for name, questions in against.items()}
    empty = [name for name, questions in sets.items() if not questions]
    if empty or not sets:
        raise InputError(
            f"the evaluation set {empty[0]} has no items" if empty else "there is no evaluation set",
            "Give one to compare with",
        )
    texts = [[question.text for question in questions] for questions in sets.values()]
    runs = _Runs(texts, rules)
    similar = _Similar(texts, rules, _Masks.seen_in(texts, examples))
    names = [(name, [_name(question, at) for at, question in enumerate(questions)]) for name, questions in sets.items()]
    hits: list[Hit] = []
    clean: list[Example] = []
    long_runs = 0
    for number, example in enumerate(examples):
        alike = dict(similar.to(example.question))
        found: dict[Item, tuple[Rule, str, float | None]] = {item: ("near", "", alike[item]) for item in alike}
        long = False
        for item, rule, shared in runs.shared(example):
            long |= len(shared) >= rules.reported
            found[item] = (rule, " ".join(shared), alike.get(item))
        long_runs += long
        hits += [Hit(number, names[a][0], names[a][1][b], *what) for (a, b), what in sorted(found.items())]
        if not found:
            clean.append(example)
    sizes = {name: len(questions) for name, questions in sets.items()}
    return Decontaminated(tuple(clean), Report(rules, len(examples), len(clean), sizes, tuple(hits), long_runs))


def _name(question: Question, at: int) -> str:
    return str(question.metadata.get("id", at))


def words_of(text: str) -> Words:
    """The words of a text, in small letters and without punctuation; "1,000" is 1000."""
    return tuple(_WORD.findall(_INSIDE.sub("", text.casefold())))


def _grams(words: Sequence[str], size: int) -> Iterator[Words]:
    return (tuple(words[at : at + size]) for at in range(len(words) - size + 1))


# ---------------------------------------------------------------- runs of words


class _Runs:
    """Which items share a run of words with a text."""

    def __init__(self, texts: Sequence[Sequence[str]], rules: Rules) -> None:
        self._rules = rules
        self._known: set[str] = set()
        self._where: dict[Words, list[Item]] = {}
        self._whole: dict[Words, list[Item]] = {}
        self._words: dict[Item, Words] = {}
        for a, items in enumerate(texts):
            for b, text in enumerate(items):
                words = words_of(text)
                self._words[a, b] = words
                self._known.update(words)
                if len(words) < rules.ngram:
                    self._whole.setdefault(words, []).append((a, b))
                for gram in set(_grams(words, rules.ngram)):
                    self._where.setdefault(gram, []).append((a, b))

    def shared(self, example: Example) -> Iterator[tuple[Item, Rule, Words]]:
        """The items, the rule, and the longest run of words that each shares with the example."""
        question = words_of(example.question)
        for item in self._whole.get(question, ()):
            yield item, "verbatim", question
        longest: dict[Item, Words] = {}
        for words in (question, words_of(example.thinking)):
            for at in self._starts(words):
                for item in self._where.get(words[at : at + self._rules.ngram], ()):
                    run = _extended(words, at, self._words[item], self._rules.ngram)
                    if len(run) > len(longest.get(item, ())):
                        longest[item] = run
        for item, run in longest.items():
            yield item, ("verbatim" if run == self._words[item] == question else "n-gram"), run

    def _starts(self, words: Words) -> Iterator[int]:
        """Where a run may begin: from there on, as many words as it needs occur in some item."""
        size, length = self._rules.ngram, 0
        for at, word in enumerate(words):
            length = length + 1 if word in self._known else 0
            if length >= size:
                yield at - size + 1


def _extended(words: Words, at: int, item: Words, size: int) -> Words:
    """The longest run from `words[at]` on that `item` has too, of at least `size` words."""
    best = words[at : at + size]
    for start in range(len(item) - size + 1):
        if item[start : start + size] == best[:size]:
            length = size
            while words[at + length : at + length + 1] == item[start + length : start + length + 1] != ():
                length += 1
            best = max(best, words[at : at + length], key=len)
    return best


# ---------------------------------------------------------------- the same up to numbers and names


class _Masks:
    """`lower` holds words seen in small letters: where a sentence begins, any other word with a capital is a name."""

    def __init__(self, lower: set[str]) -> None:
        self._fixed = {**dict.fromkeys(_PRONOUNS, "@"), **dict.fromkeys(_NUMBERS, "#")}
        self._small = {word: self._fixed.get(word, word) for word in lower}

    @classmethod
    def seen_in(cls, texts: Sequence[Sequence[str]], examples: Sequence[Example]) -> _Masks:
        """By the words of these texts."""
        lower: set[str] = set()
        for text in (*(text for items in texts for text in items), *(example.question for example in examples)):
            lower.update(_LOWER.findall(_INSIDE.sub("", text)))
        return cls(lower)

    def of(self, text: str) -> list[str]:
        """The words of a text, with "#" for numbers, and "@" for names and the pronouns that may stand for them."""
        small, masked = self._small, self._masked
        tokens = enumerate(_TOKEN.findall(_POSSESSIVE.sub("", text)))
        return [small.get(word) or masked(word, begins=bool(mark) or not at) for at, (mark, word) in tokens]

    def _masked(self, word: str, begins: bool) -> str:
        """The mask of a word with a capital or of a number, as it stands here."""
        plain = word.casefold()
        if word[0].isdigit():
            return "#"
        if plain in self._fixed:
            return self._fixed[plain]
        name = word[0].isupper() and word != "I" and (not begins or plain not in self._small)
        return "@" if name else plain


class _Similar:
    """Which items are the same as a text up to numbers and names."""

    def __init__(self, texts: Sequence[Sequence[str]], rules: Rules, masks: _Masks) -> None:
        self._near, self._masks = rules.near, masks
        self._sets: dict[Item, frozenset[Words]] = {}
        for a, items in enumerate(texts):
            for b, text in enumerate(items):
                if len(words_of(text)) >= rules.ngram:
                    self._sets[a, b] = self._shingles(text)
        self._often = Counter(shingle for shingles in self._sets.values() for shingle in shingles)
        self._where: dict[Words, list[Item]] = {}
        for item, shingles in self._sets.items():
            for shingle in self._rarest(shingles):
                self._where.setdefault(shingle, []).append(item)

    def _shingles(self, text: str) -> frozenset[Words]:
        return frozenset(_grams(self._masks.of(text), SHINGLE))

    def _rarest(self, shingles: frozenset[Words]) -> list[Words]:
        """As many that a set with enough of them in common must have one of these."""
        count = len(shingles) - math.ceil(self._near * len(shingles) - EPSILON) + 1
        return sorted(shingles, key=lambda shingle: (self._often[shingle], shingle))[:count] if shingles else []

    def to(self, text: str) -> Iterator[tuple[Item, float]]:
        """The items that are similar enough, and how similar."""
        shingles = self._shingles(text)
        if sum(shingle in self._often for shingle in shingles) < self._near * len(shingles) - EPSILON:
            return
        candidates = {item for shingle in self._rarest(shingles) for item in self._where.get(shingle, ())}
        for item in sorted(candidates):
            common = len(shingles & self._sets[item])
            similarity = common / (len(shingles) + len(self._sets[item]) - common)
            if similarity >= self._near:
                yield item, round(similarity, 3)
