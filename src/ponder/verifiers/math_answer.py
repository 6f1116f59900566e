"""Whether a sample's answer is the reference as mathematics, and one canonical form of an answer for votes."""

from __future__ import annotations

import importlib.util
import re
import unicodedata
from fractions import Fraction

from ponder.errors import InputError, MissingExtra
from ponder.protocols import Verifier
from ponder.types import Question, Sample, Score
from ponder.verifiers import child

LONGEST = 1000
"""Characters of an answer that are compared: a longer one is no answer to a question in mathematics."""

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?![\d,]*\d)|\d+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.\d+)?|\.\d+)"
_FRACTION = r"\\frac\s*\{\s*-?\d+\s*\}\s*\{\s*-?\d+\s*\}"
_DATE = r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}|\d{1,2}:\d{2}(?::\d{2})?"
_TOKEN = re.compile(
    rf"(?<![\w.])(?:{_DATE})(?!\d)"
    rf"|(?:(?<![\w)}}])-\s?[$€£]?|[$€£]-)?(?:(?:\d+\s*)?{_FRACTION}|\d+\s\d+/\d+|\d+/\d+|{_DECIMAL}(?:e[+-]?\d{{1,3}}\b)?)"
    r"(?:\s*(?:%|percent\b))?",
    re.IGNORECASE,
)
_NUMBER = re.compile(
    r"(?P<sign>[-+]?)\s?(?:[$€£¥]|(?:USD|EUR)\s)?\s?(?P<inner>-?)"
    r"(?:(?P<whole>\d+)?\s*\\frac\s*\{\s*(?P<up>-?\d+)\s*\}\s*\{\s*(?P<down>-?\d+)\s*\}"
    r"|(?:(?P<mixed>\d+)\s+)?(?P<top>\d+)\s*/\s*(?P<bottom>\d+)(?![\d/.])"
    rf"|(?P<plain>\d{{1,3}}(?:[ \u00a0\u202f\u2009]\d{{3}})+(?!\d)|{_DECIMAL})\.?(?![\d,]*\d)"
    r"(?:\s*(?:\\times|\\cdot|[x×*])\s*10\s*\^\s*\{?\s*(?P<ten>-?\d{1,3})\s*\}?|[eE](?P<power>[-+]?\d{1,3})(?![A-Za-z\d]))?)"
    r"(?P<tail>.*)",
    re.DOTALL,
)
_SCALE = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
# A number followed by one of these, or by a letter that is no unit, is not that number.
_CHANGES = frozenset(
    re.findall(r"\w+", "and or to not neither plus minus times over pi sqrt sin cos tan log ln exp infinity half")
)
_UNITS = frozenset("mgshlLKCFJNWV")
_MARKED = re.compile(r"\banswer(?:\s+to\s[^\n.:]{1,80}?)?[*_\s]*(?:\s+is\b|:|=)[*_\s]*:?\s*", re.IGNORECASE)
_CLAUSE = re.compile(
    r"[.!?](?=\s)|;|,\s(?=[a-z])|(?<=\w)\s\((?=[^()]*[A-Za-z]{3})|\b(?:because|since|so|which|where|as)\b",
    re.IGNORECASE,
)
_VULGAR = {letter: unicodedata.normalize("NFKC", letter).replace("⁄", "/") for letter in "¼½¾⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"}
_LATEX = (
    (r"[−–]", "-"),
    (r"\\\[|\\\]|\\\(|\\\)", " "),
    (r"\\left\b|\\right\b|\\!|\\displaystyle\b|`", ""),
    (r"\{,\}|\\,(?=\d{3})", ","),
    (r"\\[,;: ]|~", " "),
    (r"\\[dt]frac", r"\\frac"),
    (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
    (r"\\(?:text|mathrm|textbf|mathbf|textit|mbox)\s*\{([^{}]*)\}", r" \1 "),
    (r"\\([%$])", r"\1"),
    (r"\^\s*\{?\s*\\circ\s*\}?|\\degree\b|°", " "),
    (r"\*\*([^*]+)\*\*", r"\1"),
)


def _clean(text: str) -> str:
    text = re.sub("[" + "".join(_VULGAR) + "]", lambda found: f" {_VULGAR[found[0]]}", text)
    for pattern, replacement in _LATEX:
        text = re.sub(pattern, replacement, text)
    text = re.sub(r"\$(?!\s*[-\d.])", " ", text)  # a dollar before no number opened or closed mathematics
    return text.strip().strip("*_").strip()


def _boxed(text: str) -> str | None:
    opened: list[tuple[bool, int]] = []
    last: tuple[int, int] | None = None
    for found in re.finditer(r"(\\boxed\s*)?\{|\}", text):
        if found[0] != "}":
            opened.append((bool(found[1]), found.end()))
        elif opened:
            boxed, start = opened.pop()
            if boxed and (last is None or start > last[0]):
                last = (start, found.start())
    return None if last is None else text[slice(*last)]


def _marked(text: str) -> str | None:
    for found in reversed(list(_MARKED.finditer(text))):
        line = text[found.end() :].split("\n", 1)[0].strip()[:LONGEST]
        phrase = _clean(_CLAUSE.split(line + " ", maxsplit=1)[0]).rstrip(".,;:!?")
        if phrase and not re.match(r"(?:wrong|right|correct|incorrect|not)\b", phrase, re.IGNORECASE):
            return phrase
    return None


def _tokens(text: str) -> list[str]:
    return [found[0] for found in _TOKEN.finditer(text)]


def _right_side(text: str) -> str | None:
    """What stands behind the last equals sign; None where there may be several answers."""
    left, _, right = text.rpartition("=")
    return None if re.search(r"[<>!]$|\b(?:or|and)\b|;|,(?!\d{3})", left) else right.strip()


def extract(text: str, strict: bool = False) -> str | None:
    r"""The answer in `text`: the last \boxed{}, "the answer is", "####", and if not `strict` the last number."""
    boxed = _boxed(text)
    if boxed is not None:
        return _clean(boxed) or None
    phrase = _marked(text)
    if phrase is not None:
        numbers = _tokens(phrase)
        words = set(re.findall(r"[a-z]+", phrase.casefold()))
        alone = not strict and len(numbers) == 1 and _number(phrase) is None
        # "The answer is that Anna has 12 apples".
        wordy = re.search(r"(?<!\\)\b[A-Za-z]{3,}", phrase) and not words & (_CHANGES | _SCALE.keys())
        return numbers[0] if alone and wordy else phrase
    hashes = re.findall(r"####[ \t]*([^\n]+)", text)
    if hashes:
        return _clean(hashes[-1]).rstrip(".,;:!?") or None
    if strict:
        return None
    clean = _clean(text)
    if len(clean) <= 200 and _lone(clean):
        return (_right_side(clean) if "=" in clean else None) or clean
    if _number(clean) is not None:  # "1 thousand", "7 cm^2"
        return clean
    numbers = _tokens(clean)
    return numbers[-1] if numbers else None


def _lone(text: str) -> bool:
    """Whether `text` is an expression and nothing else: "x^2 + 1" is not the answer 1."""
    commands = re.sub(r"\\[A-Za-z]+|\b(?:sqrt|pi|sin|cos|tan|log|ln|exp)\b", "", text)
    return "\n" not in text and not re.search(r"[A-Za-z]{2,}", commands) and bool(re.search(r"[-+*/^=\\(]", text))


def _number(text: str) -> tuple[Fraction, bool] | None:
    """The exact value that `text` states, and whether in percent; None where it is not one number."""
    text = _clean(text)
    if len(text) > LONGEST:
        return None
    if "=" in text:
        right = _right_side(text)
        if right is None:
            return None
        text = right
    text = re.sub(r"^(?:≈|\\approx\b|approximately\b|about\b)\s*", "", text, flags=re.IGNORECASE)
    found = _NUMBER.fullmatch(text)
    if found is None:
        return None
    part = found.groupdict()
    try:
        if part["up"]:
            value = Fraction(int(part["up"]), int(part["down"])) + int(part["whole"] or 0)
        elif part["top"]:
            value = Fraction(int(part["top"]), int(part["bottom"])) + int(part["mixed"] or 0)
        else:
            value = Fraction(re.sub(r"[,\s]", "", part["plain"])) * Fraction(10) ** int(
                part["ten"] or part["power"] or 0
            )
    except ZeroDivisionError:
        return None
    if (part["sign"] == "-") != (part["inner"] == "-"):
        value = -value
    return _with_tail(value, part["tail"])


def _with_tail(value: Fraction, tail: str) -> tuple[Fraction, bool] | None:
    attached = tail[:1].isalpha()
    tail = re.sub(r"(?<=[A-Za-z])\s*\^?\s*\{?[23²³]\}?(?!\w)", "", tail).strip(" \t\n.,!?;:*$€£")
    percent = re.match(r"%|percent\b", tail, re.IGNORECASE)
    if percent:
        tail = tail[percent.end() :]
    if not re.fullmatch(r"[A-Za-z'’/.,\s-]*", tail):
        return None
    words = re.findall(r"[A-Za-z]+", tail)
    if words and words[0].casefold() in _SCALE:
        value *= _SCALE[words.pop(0).casefold()]
    for position, word in enumerate(words):
        short = len(word) == 1 and word not in _UNITS and (word != "a" or (attached and position == 0))
        if short or word.casefold() in _CHANGES:
            return None
    return (value / 100, True) if percent else (value, False)


def _plain(text: str) -> str:
    text = re.sub(r"(?<=[\d)])\s*,\s*(?=[-\d(])", ",", _clean(text).casefold())
    text = re.sub(r"(?<!\d)[.,](?!\d)|[.,](?!\d)|[;:!?\"“”‘’$]|(?<!\w)'|'(?!\w)", " ", text)
    return re.sub(r"\s*([-+*/^=<>(){}])\s*", r"\1", " ".join(text.split())).strip()


def canonical(text: str, strict: bool = False) -> str | None:
    """One form for all ways of writing the answer in `text`: "1,000" and "$1000.0" are "1000", "0.5" is "1/2".

    A percentage stays one ("50%"), as it is 50 to some and 1/2 to others. What is no number is given
    in small letters without punctuation. None where there is no answer.
    """
    found = extract(text, strict)
    if found is None and not strict:
        found = text
    if found is None:
        return None
    number = _number(found)
    if number is None:
        return _plain(found) or None
    value, percent = number
    return f"{value * 100}%" if percent else str(value)


def _equal(reference: tuple[Fraction, bool], answer: tuple[Fraction, bool], asked: bool) -> bool:
    if reference[1] != answer[1] and asked:  # "What percentage ...?": 50 and 50% say the same
        bare, percent = (answer, reference) if reference[1] else (reference, answer)
        return bare[0] in (percent[0] * 100, percent[0])
    return reference[0] == answer[0]


def _symbolic(text: str) -> bool:
    """Whether there is mathematics to compare: letters of a word would be multiplied, "listen" be "silent"."""
    rest = re.sub(r"\\[A-Za-z]+|\b(?:sqrt|pi|sin|cos|tan|log|ln|exp)\b", "1", text)
    return len(text) <= LONGEST and not re.search(r"[A-Za-z]{3,}", rest) and bool(re.search(r"\w", rest))


def math_answer(strict: bool = False, seconds: float = 2.0) -> Verifier:
    """1 where the answer equals the reference, else 0.

    Numbers are compared exactly, as fractions; units are ignored. What is no number is compared as
    text and then by math-verify (https://github.com/huggingface/Math-Verify) for at most `seconds`.
    `strict` counts only an answer that is marked as one. 50% is 1/2, and 50 only where the question
    asks for a percentage.
    """
    if not seconds > 0:  # as NaN is not, either
        raise InputError(f"math_answer(seconds={seconds}) leaves no time to compare", "Give a number above 0")

    def score(right: bool, why: str) -> Score:
        return Score(float(right), "math_answer", why)

    async def verify(question: Question, sample: Sample) -> Score:
        if question.reference is None:
            raise InputError("math_answer() needs a question with a reference", "Set Question.reference")
        reference = extract(question.reference, strict=True) or _clean(question.reference)
        answer = extract(sample.answer, strict)
        if answer is None:
            right = not strict and bool(_plain(reference)) and _plain(sample.answer) == _plain(reference)
            return score(right, "the same text" if right else "found no answer")
        numbers = _number(reference), _number(answer)
        if numbers[0] is not None and numbers[1] is not None:
            asked = re.search(r"\bpercentage\b|\b(?:what|how many|in)\s(?:percent\b|%)", question.text, re.IGNORECASE)
            return score(_equal(numbers[0], numbers[1], bool(asked)), f"found {answer}")
        if _plain(answer) == _plain(reference):
            return score(True, f"found {answer}")
        if not (_symbolic(reference) and _symbolic(answer)):
            return score(False, f"found {answer}")
        if importlib.util.find_spec("math_verify") is None:
            raise MissingExtra(
                "math_answer() needs math-verify for this answer", "Run: pip install math-verify[antlr4_13_2]"
            )
        try:
            return score(bool(await child.ask("same", [reference, answer], seconds)), f"found {answer}")
        except TimeoutError:
            return score(False, "timed out")

    return verify
