"""What counts as a right answer to a question of reasoning-gym.

Its scorers are made for shaping rewards, and many pay for what is wrong: for any text (game_of_life_halting), for the
right answer among others (the base scorer, gsm_symbolic), for a number nearby (number_sorting, decimal_arithmetic), for
a prefix of it (coin_flip), for nan (complex_arithmetic), for four numbers of one's own choice (puzzle24), for the
integral written down again (intermediate_integration); some run an answer as Python (spiral_matrix, countdown). So here
an answer is right if it equals the reference, and a family's scorer is asked only where several answers are right, only
about an answer of the family's form, and only its full score counts.
"""

from __future__ import annotations

import ast
import json
import operator
import re
import warnings
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

from ponder.errors import InputError

_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_FENCED = re.compile(r"^\s*```\w*[ \t]*\n(.*?)\n?\s*```\s*$", re.DOTALL | re.MULTILINE)
_MARKED = re.compile(r"\banswer(?:\s+is\b|\s*[*_]*:)[*\s]*:?|####", re.IGNORECASE)
_WRAPPERS = ("**", "`", "$", '"', "'")


def final(text: str) -> str:
    r"""The answer in `text`: the last <answer>, \boxed{} or fenced block, what follows "the answer is", else all."""
    for pattern in (_TAGGED, _BOXED, _FENCED):
        found = pattern.findall(text)
        if found:
            return str(found[-1]).strip()
    marks = list(_MARKED.finditer(text))
    return text[marks[-1].end() :].strip() if marks else text.strip()


def bare(text: str) -> str:
    """`text` without the full stops behind it and what it is wrapped in: bold print, quotes, dollars."""
    mark: str | None = ""
    while mark is not None:
        text = text[len(mark) : len(text) - len(mark)].strip().rstrip(".").rstrip()
        wrapped = (m for m in _WRAPPERS if text.startswith(m) and text.endswith(m) and len(text) >= 2 * len(m))
        mark = next(wrapped, None)
    return text


# ---------------------------------------------------------------- one right answer

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|[-+]?\.\d+")


def same(answer: str, reference: str) -> bool:
    """Whether both say the same: word by word, whatever the case and the space between; numbers by their value."""
    if not bare(reference):  # "report your answer as an empty string": one that is written, not silence
        return answer.strip() in ('""', "''")
    one, other = _cells(answer), _cells(reference)
    if len(one) == len(other) and all(map(_same_row, one, other)):
        return True
    if not bare(reference).startswith(("[", "{")):
        return False
    first, second = _literal(bare(answer)), _literal(bare(reference))
    return first is not None and first == second


def _cells(text: str) -> list[list[str]]:
    lines = re.sub(r"[ \t]*,[ \t]*(?!\d{3}(?!\d))", ", ", bare(text).casefold()).splitlines()
    return [line.split() for line in lines if line.strip()]


def _same_row(one: list[str], other: list[str]) -> bool:
    return len(one) == len(other) and all(a == b or _equal(a, b) for a, b in zip(one, other, strict=True))


def _equal(one: str, other: str) -> bool:
    if not (_NUMBER.fullmatch(one) and _NUMBER.fullmatch(other)):
        return False
    return Decimal(one.replace(",", "")) == Decimal(other.replace(",", ""))


def _literal(text: str) -> Any:
    """A list or dict written as JSON or Python; None for anything else."""
    for read in (json.loads, ast.literal_eval):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Python's advice on spelling is not for who wrote an answer
                return read(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    return None


# ---------------------------------------------------------------- several right answers, checked here

_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def _worked_out(node: ast.expr, used: list[int]) -> Fraction:
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_worked_out(node.left, used), _worked_out(node.right, used))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_worked_out(node.operand, used)
    if isinstance(node, ast.Constant) and type(node.value) is int:
        used.append(node.value)
        return Fraction(node.value)
    raise ValueError


def _reaches(answer: str, numbers: list[int], target: int) -> bool:
    """Whether `answer` is a sum of exactly these numbers that comes to `target`."""
    used: list[int] = []
    if not re.fullmatch(r"[-+*/()\d\s]+", answer):
        return False
    try:
        value = _worked_out(ast.parse(answer, mode="eval").body, used)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return False
    return value == target and sorted(used) == sorted(numbers)


def _probability(answer: str, entry: Mapping[str, Any]) -> bool:
    """Right to one part in a thousand of it and of what it lacks to 1: the question asks for no number of digits."""
    if not re.fullmatch(r"\d{1,30}/\d{1,30}|\d{0,9}\.?\d{1,30}(?:e-\d{1,3})?", answer):
        return False
    right = Fraction(entry["rational"]["numerator"], entry["rational"]["denominator"])
    try:
        return abs(Fraction(answer) - right) * 1000 <= min(right, 1 - right)
    except ZeroDivisionError:
        return False


CHECKS: dict[str, Callable[[str, Mapping[str, Any]], bool]] = {
    "countdown": lambda answer, entry: _reaches(answer, entry["numbers"], entry["target"]),
    "puzzle24": lambda answer, entry: _reaches(answer, entry["numbers"], 24),
    "coin_flip": _probability,
}
"""Families whose scorers cannot be trusted with a right form either: whether an answer solves an entry's metadata."""

# ---------------------------------------------------------------- several right answers, the family's scorer asked

_DECIMAL = r"-?\d+(?:\.\d+)?"
_JSON = r"[\[{].*[\]}]"
_FUNCTIONS = "a?(?:sinh?|cosh?|tanh?|sec|csc|cot)|sqrt|exp|log|ln|Abs|pi"
_TERM = r"(?:\d+|[A-Za-z](?:\*\*\d+)?)(?:\*[A-Za-z](?:\*\*\d+)?)*"
_MOVE = r"Move disk \d{1,2} from Peg \d to Peg \d"
_ROLE = r"\w+ is an? \w+"

_FORMS = {
    "advanced_geometry": rf"{_DECIMAL}\s*°?|\(\s*{_DECIMAL}\s*,\s*{_DECIMAL}\s*\)",
    "boxnet": rf"(?!.*move\(\s*target){_JSON}",  # its scorer lets the targets come to the boxes
    "complex_arithmetic": r"(?i:[-+.\dij()\s]+)",  # no nan
    "cryptarithm": r"[A-Z]\s*=\s*\d(?:\s*,\s*[A-Z]\s*=\s*\d)*",
    "fraction_simplification": r"\\d?frac\s*\{\s*\d+\s*\}\s*\{\s*\d+\s*\}|-?\d+\s*/\s*-?\d+",
    "graph_color": _JSON,
    "group_anagrams": _JSON,
    # Numbers, single letters, functions: nothing that would solve or restate the question for the answer.
    "intermediate_integration": rf"(?:\d+(?:\.\d+)?(?![\w.])|(?:{_FUNCTIONS}|[A-Za-z])(?!\w)|[-+*/()\s])+",
    "jugs": _JSON,
    "kakurasu": r"[01\s]+",
    "knight_swap": _JSON,
    "knights_knaves": rf"(?i:{_ROLE}(?:(?:, and|,| and) {_ROLE})*)",
    "n_queens": r"[_Q\s]+",
    "number_format": r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d{1,3})?",
    "palindrome_generation": r"[A-Za-z]+",
    "palindrome_partitioning": _JSON,
    "polynomial_equations": rf"{_DECIMAL}(?:\s*,\s*{_DECIMAL})*",
    # Multiplied out: sympy would do it for products such as 2*(x + 1).
    "polynomial_multiplication": rf"-?\s*{_TERM}(?:\s*[-+]\s*{_TERM})*",
    "power_function": r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d{1,3})?",
    "prime_factorization": r"\d+(?:\s*×\s*\d+)*",
    "quantum_lock": r"[ABC](?:\s*→\s*[ABC])*",
    "rubiks_cube": r"[A-Za-z]{1,2}'?(?:\s+[A-Za-z]{1,2}'?)*",
    "rush_hour": r"[A-Z][-+]\d{1,2}(?:\s+[A-Z][-+]\d{1,2})*",
    "shortest_path": r"(?:up|down|left|right)(?:\s+(?:up|down|left|right))*",
    "sokoban": r"[UDLR]+",
    "tower_of_hanoi": rf"{_MOVE}(?:\s*\n\s*{_MOVE})*",
    "word_ladder": r"[A-Za-z]+(?:\s*,\s*[A-Za-z]+)+",
}
_FORMS["simple_integration"] = _FORMS["intermediate_integration"]

FORMS = {family: re.compile(form, re.DOTALL) for family, form in _FORMS.items()}
"""What an answer must look like before a family's scorer is asked."""


def literal_of(text: object) -> Mapping[str, Any]:
    """An entry's metadata, as `ponder.tasks.reasoning_gym` wrote it down. Raises InputError for anything else."""
    found = _literal(text) if isinstance(text, str) else None
    if not isinstance(found, dict):
        raise InputError("the question's metadata of reasoning-gym is damaged", "Load the task again")
    return found
