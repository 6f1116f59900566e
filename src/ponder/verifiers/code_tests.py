"""Whether the code of an answer passes tests, run in a sandbox.

The code and the tests never share a process. One sandbox holds the code, another the tests; when a test names something
that it does not define, it gets a stand-in that asks the code's process for it. Arguments and results cross between the
two as plain data, and comparisons are made on the tests' side. So the code cannot see the tests or what they expect,
cannot end or patch them, and its objects cannot claim to equal anything.

What remains possible: code that knows the tests by heart; where tests call a method of an object that the code gave
them, or a name that they neither define nor import, the code answers, as it should where its own classes are tested;
tests that evaluate a text that the code gave them let it into their own process. Operators between an object of the
code's own class and plain data are refused, as the other operand is often the expected value.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import re
import socket
import textwrap
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ponder import sandbox
from ponder.errors import InputError, Unsupported
from ponder.protocols import Verifier
from ponder.types import Question, Sample, Score

Tests = str | Sequence[str] | Sequence[Mapping[str, str]]

LONGEST = 300
"""Characters of the reason for a score."""

_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})[ \t]*([^\s`]*)")
_PYTHON = ("python", "python3", "py", "py3")
_NEEDS = "code_tests() needs tests"
_GIVE = "Give code_tests(tests=...) or set metadata['tests']: assertions, or pairs of input and output"


def code_tests(
    tests: Tests | None = None,
    *,
    partial: bool = False,
    seconds: float = 10.0,
    packages: bool = False,
    unsafe: bool = False,
) -> Verifier:
    """1 where the answer's code passes all `tests`, else 0; with `partial` the share of tests that it passes.

    `tests` here or in the question's metadata are one text of assertions, a list of them, or a list of mappings with
    the `input` that a whole program gets and the `output` that it has to print (trailing spaces do not count). Further
    metadata: `entry_point`, the name of what is tested, is given to a function `check` of the tests, as HumanEval does
    (arXiv 2107.03374, section 2.2), and is known to them as `candidate`; `setup` runs before each test, `prefix`
    before the code (imports and helpers that the question gave). Functions named test_... are called.

    Code is the last ```python block that holds the entry point, else the last such block, else the last block of any
    kind, else the whole answer. Loading it, and each test, may take `seconds`. The code has Python's standard library,
    and with `packages` what is installed here.

    Raises InputError where there are no tests or these cannot test anything, Unsupported where there is no working
    sandbox; `unsafe` does without one (see `ponder.sandbox.run`): code may then do whatever the user can, and could
    cheat by looking into the other process.
    """
    if tests is not None:
        _listed(tests)
    sandbox.Limits(seconds=seconds)
    runs = functools.partial(sandbox.run, packages=packages, unsafe=unsafe)

    async def verify(question: Question, sample: Sample) -> Score:
        known = question.metadata
        listed = _listed(known.get("tests") if tests is None else tests)
        for name in ("entry_point", "setup", "prefix"):
            given = known.get(name) or ""
            if not isinstance(given, str) or (name == "entry_point" and given and not given.isidentifier()):
                raise InputError(f"{given!r} is no {name} for code_tests()", f"Mend metadata['{name}']")
        code, fenced = _code_of(sample.answer, known.get("entry_point") or "")
        if not code.strip():
            return Score(0.0, "code_tests", "found no code")
        async with _slot():
            if isinstance(listed[0], str):
                faults = await _asserted(code, listed, known, partial, seconds, runs)
            else:
                faults = await _compared(code, listed, known, partial, seconds, runs)
        passed = sum(not fault for fault in faults)
        value = passed / len(listed) if partial else float(passed == len(listed))
        return Score(value, "code_tests", _why(faults, len(listed), fenced))

    return verify


def _why(faults: list[str], count: int, fenced: bool) -> str:
    first = next((place for place, fault in enumerate(faults) if fault), None)
    if first is None:
        return f"passed {count} of {count}"
    fault = " ".join(faults[first].split())
    if not fenced and re.search(r"\b(?:Syntax|Indentation|Tab)Error\b", fault):
        fault = f"found no code ({fault})"
    return f"test {first + 1} of {count}: {fault}"[:LONGEST]


def _listed(tests: Any) -> list[Any]:
    """The tests one by one: all of them texts, or all mappings."""
    one = isinstance(tests, (str, Mapping)) or not isinstance(tests, (Sequence, type(None)))
    listed = [tests] if one else list(tests or ())
    if not listed or any(isinstance(test, str) and not test.strip() for test in listed):
        raise InputError(_NEEDS, _GIVE)
    texts = all(isinstance(test, str) for test in listed)
    pairs = all(
        isinstance(test, Mapping) and all(isinstance(test.get(key), str) for key in ("input", "output"))
        for test in listed
    )
    if not texts and not pairs:
        raise InputError("these are no tests of code", _GIVE)
    return listed


def _blocks(answer: str) -> list[tuple[str, str]]:
    """The fenced blocks: the language of each, in small letters, and what is in it."""
    blocks: list[tuple[str, list[str]]] = []
    mark = ""
    for line in answer.split("\n"):
        bare = line.strip()
        if mark and bare.startswith(mark) and not bare.strip(mark[0]):
            mark = ""
        elif mark:
            blocks[-1][1].append(line)
        elif found := _FENCE.match(line):
            mark = found[1]
            blocks.append((found[2].casefold(), []))
    return [(language, textwrap.dedent("\n".join(lines))) for language, lines in blocks]


def _code_of(answer: str, entry_point: str) -> tuple[str, bool]:
    """The code in `answer`, and whether it stood in a fence. A fence that was never closed counts."""
    blocks = _blocks(answer)
    if not blocks:
        return answer, False
    python = [code for language, code in blocks if language in _PYTHON] or [blocks[-1][1]]
    named = re.compile(rf"^[ \t]*(?:async +def|def|class) +{re.escape(entry_point)}\b", re.MULTILINE)
    holding = [code for code in python if entry_point and named.search(code)]
    return (holding or python)[-1], True


_slots: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = weakref.WeakKeyDictionary()


def _slot() -> asyncio.Semaphore:
    """As many codes run at once as there are cores: more would only take time from each other, and time is judged."""
    return _slots.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(os.cpu_count() or 1))


# ---------------------------------------------------------------- whole programs


async def _compared(
    code: str, pairs: list[Any], known: Mapping[str, Any], partial: bool, seconds: float, runs: Callable[..., Any]
) -> list[str]:
    """A fault for each pair that was run, empty where the output is the right one."""
    program = f"{known['prefix']}\n{code}" if known.get("prefix") else code
    faults: list[str] = []
    for pair in pairs:
        most = max(1 << 20, 2 * len(pair["output"].encode()))
        limits = sandbox.Limits(seconds=seconds, output=most)
        faults.append(_difference(await runs(program, stdin=pair["input"], limits=limits), pair["output"]))
        if faults[-1] and not partial:
            break
    return faults


def _difference(outcome: sandbox.Outcome, expected: str) -> str:
    if outcome.timed_out:
        return "timed out"
    if outcome.truncated:
        return "printed too much"
    if outcome.code:
        lines = outcome.stderr.strip().splitlines()
        return f"ended with code {outcome.code}" + (f": {lines[-1]}" if lines else "")
    wanted, got = ([line.rstrip() for line in text.rstrip().split("\n")] for text in (expected, outcome.stdout))
    if wanted == got:
        return ""
    place = next((i for i, (a, b) in enumerate(zip(wanted, got, strict=False)) if a != b), min(len(wanted), len(got)))
    there = [repr(lines[place][:100]) if place < len(lines) else "nothing" for lines in (wanted, got)]
    return f"line {place + 1}: expected {there[0]}, got {there[1]}"


# ---------------------------------------------------------------- assertions


async def _asserted(
    code: str, tests: list[Any], known: Mapping[str, Any], partial: bool, seconds: float, runs: Callable[..., Any]
) -> list[str]:
    """A fault for each test that was run, empty where it passed. After a test that never ended the rest starts anew."""
    faults: list[str] = []
    while len(faults) < len(tests) and (partial or not any(faults)):
        order = {
            "tests": tests[len(faults) :],
            "setup": known.get("setup") or "",
            "entry_point": known.get("entry_point") or "",
            "partial": partial,
            "seconds": seconds,
        }
        lines, ended = await _judged({"answer.py": code, "prefix.py": known.get("prefix") or ""}, order, runs)
        if "loaded" not in lines[0]:
            why = f"{lines[0].get('unloaded', ended)}, when the code was loaded"
            return [*faults, *[why] * (len(tests) - len(faults))]
        for line in lines[1:]:
            if "unfit" in line:
                raise InputError(f"test {len(faults) + 1} cannot be used: {line['unfit']}"[:LONGEST], "Mend the tests")
            faults.append(line["fault"])
        if ended or not lines[1:]:
            faults.append(ended or "the tests ended early")
    return faults[: len(tests)]


async def _judged(
    files: Mapping[str, str], order: Mapping[str, Any], runs: Callable[..., Any]
) -> tuple[list[dict[str, str]], str]:
    """What the tests' process said about each test, and why it ended in the middle of one, if it did."""
    limits = sandbox.Limits(seconds=order["seconds"] * (len(order["tests"]) + 2) + sandbox.START_SECONDS)
    program = _program()
    theirs, ours = socket.socketpair()
    with theirs, ours:
        coding = asyncio.create_task(runs(program + "_run_code()", files=files, stdin=theirs, limits=limits))
        try:
            told = {"tests.json": json.dumps(order)}
            judged = await runs(program + "_run_tests()", files=told, stdin=ours, limits=limits)
            lines = [json.loads(line) for line in judged.stdout.splitlines() if line.endswith("}")]
            if not lines:  # nothing of the answer's code has run: it is not to blame
                said = (await coding).stderr + judged.stderr
                raise Unsupported(f"the sandbox broke: {said.strip()[-LONGEST:] or 'it said nothing'}", "Try it again")
        finally:
            coding.cancel()
            await asyncio.gather(coding, return_exceptions=True)
    said = [line for line in lines if not line.keys() & {"begun", "stopped"}]
    if any("stopped" in line for line in lines):
        return said, ""
    ended = "timed out" if "Timeout (" in judged.stderr else f"the tests ended with code {judged.code}"
    return said or [{}], ended


@functools.cache
def _program() -> str:
    """What runs in both sandboxes."""
    return Path(__file__).with_name("code_sandboxed.py").read_text("utf-8")
