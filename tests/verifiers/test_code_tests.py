"""Code scored by tests: what passes, what does not, and what tries to pass without being right."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import os
import time
import uuid
from collections import Counter, OrderedDict, deque
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scoring import score

from ponder import sandbox
from ponder.errors import InputError, Unsupported
from ponder.types import Question, Sample, Score, user
from ponder.verifiers import code_sandboxed
from ponder.verifiers import code_tests as module
from ponder.verifiers.code_tests import code_tests

ADD = "def add(a, b):\n    return a + b\n"
THREE = ["assert add(1, 2) == 3", "assert add('a', 'b') == 'ab'", "assert add([1], [2]) == [1, 2]"]


def scored(answer: str, tests: Any, *, seconds: float = 10.0, partial: bool = False, **metadata: Any) -> Score:
    return score(code_tests(seconds=seconds, partial=partial), answer, tests=tests, **metadata)


# ---------------------------------------------------------------- finding the code


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("no fence", "no fence"),
        ("Here:\n```python\nx = 1\n```\nDone.", "x = 1"),
        ("```python\nx = 1\n```\nor\n```python\nx = 2\n```", "x = 2"),
        ("```python\nx = 1\n```\nIt prints\n```\n1\n```", "x = 1"),
        ("```\nx = 1\n```\nand\n```text\ny\n```", "y"),
        ("```Py\nx = 1\n```", "x = 1"),
        ("~~~python\nx = 1\n~~~", "x = 1"),
        ("````python\ns = '''\n```\n'''\n````", "s = '''\n```\n'''"),
        ("1. So:\n   ```python\n   if x:\n       y\n   ```\n", "if x:\n    y"),
        ("```python title=a.py\nx = 1\n```", "x = 1"),
        ("```python\nx = 1\n", "x = 1\n"),  # it was cut off
        ("```python\ndef f(x): pass\n```\nUse it:\n```python\nf(3)\n```", "f(3)"),
        ("```python\n```", ""),
    ],
)
def test_the_code_of_an_answer(answer: str, code: str) -> None:
    assert module._code_of(answer, "")[0] == code


@pytest.mark.parametrize("head", ["def f(x):", "async def f(x):", "class f:", "  def f(x):"])
def test_a_block_with_the_entry_point_is_preferred(head: str) -> None:
    answer = f"```python\n{head} pass\n```\nUse it:\n```python\nprint(f(3))\n```\n```python\ndef fx(): pass\n```"
    assert module._code_of(answer, "f")[0].strip() == f"{head.strip()} pass"


def test_finding_code_takes_no_time() -> None:
    begin = time.monotonic()
    for text in ("```python\n" * 20_000, "`" * 200_000, "``` \n" * 20_000 + "x" * 100_000):
        module._code_of(text, "f")
    assert time.monotonic() - begin < 5


# ---------------------------------------------------------------- assertions


@pytest.mark.parametrize("tests", [THREE, "\n".join(THREE)])
def test_right_code(bubblewrap: None, tests: Any) -> None:
    made = scored(f"Like this:\n```python\n{ADD}```", tests)
    assert (made.value, made.verifier) == (1.0, "code_tests")
    assert made.why in ("passed 3 of 3", "passed 1 of 1")


def test_wrong_code(bubblewrap: None) -> None:
    wrong = "def add(a, b):\n    return 3 if a == 1 else a + b + b\n"
    made = scored(wrong, THREE)
    assert (made.value, made.why) == (0.0, "test 2 of 3: AssertionError at `assert add('a', 'b') == 'ab'`")
    made = scored("def add(a, b):\n    return 3", THREE, partial=True)
    assert made.value == pytest.approx(1 / 3)
    assert made.why.startswith("test 2 of 3")
    made = scored(
        "def add(a, b):\n    return a + b if a else None", "assert add(1, 2) == 3\nassert add(0, 2) == 2, 'no'"
    )
    assert (made.value, made.why) == (0.0, "test 1 of 1: AssertionError: no at `assert add(0, 2) == 2, 'no'`")


def test_tests_may_be_given_to_the_verifier(bubblewrap: None) -> None:
    verifier = code_tests("assert add(2, 2) == 4")
    assert score(verifier, ADD).value == 1.0
    assert score(verifier, ADD, tests="assert add(2, 2) == 5").value == 1.0


def test_a_check_of_the_entry_point(bubblewrap: None) -> None:
    check = "METADATA = {}\n\ndef check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(2, 2) == 4\n"
    assert scored(ADD, check, entry_point="add").value == 1.0
    assert scored(ADD.replace("+", "-"), check, entry_point="add").value == 0.0
    made = scored("def sub(a, b): return 3", check, entry_point="add")
    assert (made.value, made.why) == (0.0, "test 1 of 1: NameError: name 'add' is not defined")
    assert scored(ADD, "assert candidate(1, 2) == 3", entry_point="add").value == 1.0
    with pytest.raises(InputError, match="uses nothing of the code"):
        scored(ADD, check)  # nobody calls check: that would let anything pass


def test_functions_named_test_are_called(bubblewrap: None) -> None:
    tests = "def test_sum():\n    assert add(1, 2) == 3\n\ndef test_text():\n    assert add('a', '') == {!r}\n"
    assert scored(ADD, tests.format("a")).value == 1.0
    assert scored(ADD, tests.format("b")).value == 0.0
    # Nor is the code's own function of such a name, or one named check, taken for a test.
    assert scored("def test_even(x): return x % 2 == 0", "assert test_even(4) == True").value == 1.0
    assert scored("def check(n): return n > 3", "assert check(4)", entry_point="check").value == 1.0


def test_prefix_and_setup(bubblewrap: None) -> None:
    prefix = "from typing import List\n\ndef poly(xs, x):\n    return sum(c * x**i for i, c in enumerate(xs))\n"
    answer = "def root(xs: List[float]) -> float:\n    return -xs[0] / xs[1]\n"
    test = "assert isclose(poly([1, 2], root([1, 2])), 0)"
    assert scored(answer, test, prefix=prefix, setup="from math import isclose").value == 1.0
    assert "NameError: name 'List'" in scored(answer, "assert root([1, 2])").why
    node = "class Node:\n    def __init__(self, value):\n        self.value, self.left = value, None\n"
    depth = f"{node}\ndef depth(tree):\n    return 1 + depth(tree.left) if tree else 0\n"
    tests = ["assert depth(root) == 2", "assert depth(root.left) == 1", "assert root.left.value == 8"]
    assert scored(depth, tests, setup="root = Node(7)\nroot.left = Node(8)").value == 1.0


@pytest.mark.parametrize(
    ("code", "test"),
    [
        ("def f(x): x.append(1); x[0].add(2)", "a = {0}; l = [a]; f(l); assert l == [{0, 2}, 1] and a == {0, 2}"),
        ("def f(d): d.pop(1); d[2].append(3)", "l = []; d = {1: 0, 2: l}; f(d=d); assert (d, l) == ({2: [3]}, [3])"),
        ("def f(g): return g(3) + g(x=4)", "assert f(lambda x: x + 1) == 9"),
        ("def f(g): return sorted([3, -4], key=g)", "assert f(abs) == [3, -4]"),
        (
            "def f(g):\n try: g()\n except KeyError as e: return 'caught'",
            "def g(): raise KeyError(1)\nassert f(g) == 'caught'",
        ),
        ("def f(n):\n yield from range(n)", "assert list(f(3)) == [0, 1, 2]; assert next(f(1)) == 0"),
        ("def f(it): return sum(it)", "assert f(iter([1, 2])) == 3; assert f(x for x in (1, 4)) == 5"),
        ("def f(x):\n def g(y): return x + y\n return g", "assert f(1)(2) == 3"),
        ("class E(ValueError): pass\ndef f(): raise E('no')", "try: f()\nexcept E as e: assert str(e) == 'no'"),
        ("def f(): return {}['k']", "try: f()\nexcept LookupError: pass\nelse: assert False"),
        ("class S(list):\n def top(self): return self[-1]", "s = S(); s.append(4); assert s.top() == 4 and s == [4]"),
        (
            "from collections import namedtuple\nP = namedtuple('P', 'x y')",
            "p = P(1, 2); assert p == (1, 2) and p.y == 2",
        ),
        ("import enum\nclass C(enum.IntEnum):\n A = 7", "assert C.A == 7"),
        ("import math\ndef f(x): return math.sqrt(x)", "assert math.isclose(f(2) ** 2, 2)"),
        ("LIMIT = 7", "assert LIMIT == 7"),
        ("def sum(a, b): return a * b", "assert sum(2, 3) == 6"),
        (
            "def f(): return 10**5000, float('nan'), -0.0",
            "a, b, c = f(); assert a == 10**5000 and b != b and str(c) == '-0.0'",
        ),
        ("def f(): return '\\ud800\\u2028é\\n'", "assert f() == '\\ud800\\u2028é\\n'"),
        ("class A:\n line, place = 1, 2", "a = A(); a.line = 5; assert (a.line, a.place) == (5, 2)"),
        (
            "class A: pass\ndef f(): return A()",
            "assert isinstance(f(), A) and not isinstance(3, A) and not isinstance(f, A)",
        ),
        ("import dataclasses\n@dataclasses.dataclass\nclass P:\n x: 'int'", "assert P(1) == P(1) and P(1) != P(2)"),
        (
            "class V:\n def __init__(s, x): s.x = x\n def __add__(s, o): return V(s.x + o.x)",
            "assert (V(1) + V(2)).x == 3",
        ),
        ("def f(x): print(x); return x", "assert f('a') == 'a'"),
        ("if __name__ == '__main__': input()\ndef f(): return 1", "assert f() == 1"),
    ],
)
def test_what_tests_may_do(bubblewrap: None, code: str, test: str) -> None:
    made = scored(code, test, entry_point="sum" if "sum(2" in test else "")
    assert made.value == 1.0, made.why


# ---------------------------------------------------------------- code that should not pass


LIAR = """
class Liar(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __bool__(self): return True
    def __lt__(self, other): return True
    __gt__ = __le__ = __ge__ = __contains__ = __lt__
    def __sub__(self, other): return 0
    __abs__ = __rsub__ = __add__ = __radd__ = lambda self, *other: 0
    def __hash__(self): return 0
def f(x): return Liar()
"""
BARE_LIAR = LIAR.replace("Liar(int)", "Liar")


@pytest.mark.parametrize("liar", [LIAR, BARE_LIAR, LIAR.replace("(int)", "(list)"), LIAR.replace("(int)", "(dict)")])
def test_objects_that_claim_to_equal_anything(bubblewrap: None, liar: str) -> None:
    claims = ("f(1) == 7", "not (f(1) != 7)", "abs(f(1) - 7.5) < 1e-6", "f(1) in (7, 8)", "7 in [f(1)]", "{7: 1}[f(1)]")
    made = scored(liar, [f"assert {claim}" for claim in (*claims, "f(1) > 7", "7 < f(1)", "7 in f(1)")], partial=True)
    assert made.value == 0.0


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "raise SystemExit",
        "def add(a, b):\n    import os; os._exit(0)",
        "def add(a, b):\n    raise SystemExit(0)",
        "def add(a, b):\n    raise KeyboardInterrupt",
        "print('passed 3 of 3'); print('{\"fault\": \"\"}' * 3)",
        # Other meanings for what the tests use.
        "def add(a, b): return 7\nabs = all = isinstance = print = lambda *a: True\nAssertionError = None",
        "import builtins\nbuiltins.isinstance = builtins.abs = lambda *a: True\ndef add(a, b): return 7",
        "def check(c): pass\ndef add(a, b): return 7",
        # Messages to the tests' process, in place of an answer.
        *(
            f"import gc\ndef add(a, b):\n  for o in gc.get_objects():\n    if type(o).__name__ == '_Code':\n"
            f"      for i in range(9): o.send({message})\n"
            for message in (
                "'ok'",
                "'ok', 3, None, None",
                "'fault', ''",
                "'call', 0, ['tuple'], ['dict']",
                "'ok', ['builtin', 'any']",
                "'ok', ['function', 0]",
                "'ok', ['os.system', 'true']",
                "'ok', [[]]",
            )
        ),
        # Its own process, taken over.
        "import gc\nfor o in gc.get_objects():\n  if type(o).__name__ == '_Code': o.outgoing.write(b'x' * (17 << 20))",
        "import gc\nfor o in gc.get_objects():\n  if type(o).__name__ == '_Code':\n"
        "    o.does['names'] = lambda names: {'abs': lambda x: 0, 'isinstance': lambda *a: True, 'add': lambda *a: 3}",
        "import threading, os\nthreading.Timer(0.0, os._exit, (0,)).start()\ndef add(a, b):\n    while True: pass",
    ],
)
def test_code_that_does_not_do_the_work(bubblewrap: None, code: str) -> None:
    tests = ["assert add(1, 2) == 3", "assert abs(add(1, 3) - 4) < 1e-6", "assert isinstance(add('a', 'b'), str)"]
    made = scored(code, tests, partial=True)
    assert made.value < 1.0
    assert made.why.startswith("test ")
    assert "\n" not in made.why
    assert len(made.why) <= module.LONGEST


def test_a_message_forged_before_the_tests_ask(bubblewrap: None) -> None:
    forged = """
        import gc
        line = next(o for o in gc.get_objects() if type(o).__name__ == "_Code")
        line.send("ok")
        for _ in range(9):
            line.send("ok", ["dict", ["tuple", "add", ["object", 0]]])
            line.send("ok", 7, None, None)
        """
    assert scored(forged.replace("\n        ", "\n"), THREE).value == 0.0


def test_the_tests_cannot_be_found(bubblewrap: None) -> None:
    hunter = """
import gc, glob, os
def find():
    texts = []
    for root in ("/sandbox", "/tmp", "/dev/shm", "/etc"):
        for folder, _, names in os.walk(root):
            texts += [os.path.join(folder, name) for name in names]
    texts += glob.glob("/proc/[0-9]*/cmdline") + glob.glob("/proc/[0-9]*/environ") + glob.glob("/proc/[0-9]*/fd/*")
    for place in texts:
        try:
            if os.path.isfile(place) and not place.endswith(".py"):
                text = open(place, errors="replace").read(1 << 20)
                if "s3cr3t-" in text:
                    return "s3cr3t-" + text.split("s3cr3t-")[1][:4]
        except OSError:
            pass
    for thing in gc.get_objects():
        if isinstance(thing, (list, tuple, dict)):
            for part in (thing.values() if isinstance(thing, dict) else thing):
                if isinstance(part, str) and part.startswith("s3cr3t-") and len(part) == 11:
                    return part
    return "nothing"
"""
    assert scored(hunter, "assert find() == 's3cr3t-4711'").value == 0.0
    assert scored(hunter, "assert find() == 'nothing'").value == 1.0


def test_code_that_never_ends(bubblewrap: None) -> None:
    begin = time.monotonic()
    made = scored("while True: pass", THREE, seconds=0.5, partial=True)
    assert (made.value, made.why) == (0.0, "test 1 of 3: timed out, when the code was loaded")
    made = scored("def add(a, b):\n    while True: pass", THREE, seconds=0.5)
    assert (made.value, made.why) == (0.0, "test 1 of 3: timed out")
    assert time.monotonic() - begin < 20


def test_a_test_that_the_code_makes_endless(bubblewrap: None) -> None:
    made = scored("def f(): return 10**9", "assert sum(range(f() * 10**9)) == 3", seconds=0.5)
    assert (made.value, made.why) == (0.0, "test 1 of 1: timed out")
    made = scored(
        "def f(): return 9", "assert f() ** f() ** f() ** f() == 3", seconds=0.5
    )  # in one step of the interpreter
    assert (made.value, made.why) == (0.0, "test 1 of 1: timed out")
    made = scored("def f(g):\n    while True: g(1)", "assert f(lambda x: x) == 3", seconds=0.5)
    assert (made.value, made.why) == (0.0, "test 1 of 1: timed out")


def test_the_share_counts_what_follows_a_test_that_ended_the_code(bubblewrap: None) -> None:
    for end in ("import os; os._exit(0)", "while True: pass", "exec('f = lambda: f()\\nf()')"):
        code = f"def add(a, b):\n    if a == 'a':\n        {end}\n    return a + b"
        made = scored(code, THREE, seconds=1, partial=True)
        assert made.value == pytest.approx(2 / 3)
        assert made.why.startswith("test 2 of 3")


@pytest.mark.parametrize(
    "code",
    [
        "x = bytearray(8 << 30)",
        "def add(a, b): return [0] * (1 << 30)",
        "def add(a, b): return 'x' * (50 << 20)",
        "import sys\ndef add(a, b):\n    sys.setrecursionlimit(1 << 30)\n    return add(a, b)",
        "def add(a, b):\n    x = []\n    x.append(x)\n    return x",
        "def add(a, b):\n    import os\n    while True: os.fork()",
        "def add(a, b):\n    import sys\n    while True: sys.stdout.write('x' * 10000)",
        "def add(a, b):\n    open('/usr/x', 'w')",
        "import socket\ndef add(a, b):\n    return socket.create_connection(('192.0.2.1', 53), 1) and a + b",
    ],
)
def test_code_that_takes_too_much(bubblewrap: None, code: str) -> None:
    begin = time.monotonic()
    assert scored(code, THREE, seconds=1).value == 0.0
    assert time.monotonic() - begin < 20


def test_what_code_deletes_is_its_own(bubblewrap: None, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("here")
    code = f"import shutil, os\nshutil.rmtree({str(tmp_path)!r}, True)\nshutil.rmtree('/sandbox', True)\n{ADD}"
    assert scored(code, THREE).value == 1.0
    assert mine.read_text() == "here"


@pytest.mark.parametrize("answer", ["", "  \n", "```python\n```", "```python\n\n```"])
def test_no_code(answer: str) -> None:
    made = scored(answer, THREE)
    assert (made.value, made.why) == (0.0, "found no code")


def test_no_code_but_words(bubblewrap: None) -> None:
    made = scored("I would add the two numbers.", THREE)
    assert made.value == 0.0
    assert "found no code (SyntaxError" in made.why
    made = scored("```python\ndef add(a, b:\n```", THREE)
    assert made.value == 0.0
    assert "no code" not in made.why
    assert "SyntaxError" in made.why
    assert scored("x = '\0'", THREE).value == 0.0
    assert scored("x = '\ud800'", THREE).value == 0.0
    for broken in ("x = '\0'", "x = '\ud800'", "\ufeff\ufeff"):
        assert scored(broken, PAIRS).value == 0.0


# ---------------------------------------------------------------- whole programs

DOUBLE = "print(int(input()) * 2)"
PAIRS = [{"input": "3\n", "output": "6\n"}, {"input": "5", "output": "10"}]


def test_programs(bubblewrap: None) -> None:
    assert scored(f"```python\n{DOUBLE}\n```", PAIRS).value == 1.0
    made = scored("print(int(input()) + 3)", PAIRS)
    assert (made.value, made.why) == (0.0, "test 2 of 2: line 1: expected '10', got '8'")
    assert scored("print(int(input()) + 3)", PAIRS, partial=True).value == 0.5
    assert scored("if __name__ == '__main__':\n    main()", PAIRS, prefix=f"def main(): {DOUBLE}").value == 1.0


@pytest.mark.parametrize(
    ("printed", "expected", "right"),
    [
        ("a \nb\n\n", "a\nb", True),
        ("a\nb", "a \nb\n", True),
        (" a", "a", False),
        ("a\n\nb", "a\nb", False),
        ("a", "a\nb", False),
        ("a\nb", "a", False),
        ("", "", True),
        ("a\x0bb", "a\nb", False),
    ],
)
def test_comparing_output(bubblewrap: None, printed: str, expected: str, right: bool) -> None:
    code = f"import sys; sys.stdout.write({printed!r})"
    assert scored(code, [{"input": "", "output": expected}]).value == float(right)


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("while True: pass", "timed out"),
        ("while True: print('x' * 1000)", "printed too much"),
        ("print(6); raise ValueError('no')", "ended with code 1: ValueError: no"),
        ("print(6); import sys; sys.exit(3)", "ended with code 3"),
        ("Six.", "found no code (ended with code 1: SyntaxError: invalid syntax)"),
        ("pass", "line 1: expected '6', got ''"),
        ("print(open('tests.json').read())", "ended with code 1: FileNotFoundError"),
    ],
)
def test_programs_that_fail(bubblewrap: None, code: str, why: str) -> None:
    made = scored(code, PAIRS, seconds=1)
    assert made.value == 0.0
    assert made.why.startswith(f"test 1 of 2: {why}")


# ---------------------------------------------------------------- faults that are not the code's


@pytest.mark.parametrize("tests", [None, "", " \n", [], ["assert add(1, 1) == 2", ""], [""]])
def test_no_tests(tests: Any) -> None:
    with pytest.raises(InputError, match="needs tests"):
        scored(ADD, tests)


@pytest.mark.parametrize("tests", [3, [3], [{"input": "a"}], ["assert 1", {"input": "", "output": ""}], {"input": ""}])
def test_what_is_no_test(tests: Any) -> None:
    with pytest.raises(InputError, match="no tests of code"):
        scored(ADD, tests)
    with pytest.raises(InputError, match="no tests of code"):
        code_tests(tests)


@pytest.mark.parametrize("metadata", [{"setup": ["import math"]}, {"prefix": 3}, {"entry_point": "Solution.add"}])
def test_what_is_no_metadata(metadata: Any) -> None:
    with pytest.raises(InputError, match=next(iter(metadata))):
        scored(ADD, THREE, **metadata)


def test_no_time() -> None:
    with pytest.raises(InputError, match="seconds=0"):
        code_tests(seconds=0)


@pytest.mark.parametrize(
    ("test", "why"),
    [
        ("assert add(1, 2 == 3", "SyntaxError"),
        ("import no_such_module\nassert add(1, 2) == 3", "no_such_module"),
        ("assert 1 + 2 == 3", "uses nothing of the code"),
        ("class Test:\n    def test(self): assert add(1, 2) == 4", "uses nothing of the code"),
        ("class Number: pass\nadd(Number(), 1)", "gives the code a Number"),
    ],
)
def test_tests_that_cannot_be_used(bubblewrap: None, test: str, why: str) -> None:
    with pytest.raises(InputError, match=f"test 2 cannot be used: .*{why}"):
        scored(ADD, [THREE[0], test])


def test_code_cannot_make_the_tests_unusable(bubblewrap: None) -> None:
    assert scored("import nowhere", THREE).value == 0.0
    assert scored("def add(a, b): import nowhere", THREE).value == 0.0
    assert scored("def add(a, b): raise SyntaxError('x')", THREE).value == 0.0
    assert scored("import types\nadd = types.ModuleType('msilib')", THREE).value == 0.0
    assert scored("def f(): return '1 +'", "assert eval(f()) == 3").value == 0.0
    assert scored("def f(): return 'import nowhere'", "exec(f())").value == 0.0


def test_a_broken_sandbox_is_no_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = 'if [ "$1" = --version ]; then echo bubblewrap 0.11.0; exit; fi'
    (tmp_path / "bwrap").write_text(f'#!/bin/sh\n{version}\necho "bwrap: not today" >&2; exit 1\n')
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for tests in (THREE, PAIRS):
        with pytest.raises(Unsupported, match="not today"):
            scored(ADD, tests)


def test_a_process_that_breaks_before_the_code_runs_is_no_score(
    bubblewrap: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_program", lambda: "import sys; sys.exit('out of order')\n")
    with pytest.raises(Unsupported, match="out of order"):
        scored(ADD, THREE)


def test_without_a_sandbox_only_if_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "find_bwrap", lambda: None)
    with pytest.raises(Unsupported, match="unsafe=True"):
        scored(ADD, THREE)
    unsafe = code_tests(unsafe=True)
    assert score(unsafe, ADD, tests=THREE).value == 1.0
    assert score(unsafe, ADD.replace("+", "-"), tests=THREE).value == 0.0
    assert score(unsafe, DOUBLE, tests=PAIRS).value == 1.0


def test_cancelling_leaves_nothing(bubblewrap: None) -> None:
    token = str(uuid.uuid4().int)
    code = f"import subprocess\ndef add(a, b):\n    subprocess.run(['sleep', '77.{token}'])"

    def living() -> int:
        count = 0
        for place in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                count += token.encode() in place.read_bytes()
        return count

    async def cancelled() -> None:
        question = Question((user("?"),), metadata={"tests": THREE})
        going = asyncio.ensure_future(code_tests()(question, Sample(0, code, answer=code)))
        while not living():  # noqa: ASYNC110 (another process starts)
            await asyncio.sleep(0.02)
        going.cancel()
        with pytest.raises(asyncio.CancelledError):
            await going

    asyncio.run(asyncio.wait_for(cancelled(), 30))
    end = time.monotonic() + 10
    while living() and time.monotonic() < end:
        time.sleep(0.02)
    assert living() == 0


def test_many_at_once(bubblewrap: None) -> None:
    async def many() -> list[Score]:
        verifier = code_tests()
        answers = [f"def f(): return {i}" for i in range(12)]
        question = Question((user("?"),), metadata={"tests": "assert f() % 3 == 0"})
        return list(await asyncio.gather(*(verifier(question, Sample(0, code, answer=code)) for code in answers)))

    assert [made.value for made in asyncio.run(many())] == [float(i % 3 == 0) for i in range(12)]


# ---------------------------------------------------------------- data between the two processes

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**200), 2**200)
    | st.floats(allow_nan=False)
    | st.text(st.characters())
    | st.binary()
    | st.complex_numbers(allow_nan=False)
    | st.decimals(allow_nan=False)
    | st.fractions()
    | st.dates()
    | st.datetimes()
    | st.times()
    | st.timedeltas()
    | st.builds(range, st.integers(-9, 9), st.integers(-9, 9), st.integers(1, 3))
)
DATA = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.lists(inner, max_size=4).map(deque)
        | st.sets(SCALARS, max_size=4)
        | st.frozensets(SCALARS, max_size=4)
        | st.dictionaries(SCALARS, inner, max_size=4)
        | st.dictionaries(SCALARS, inner, max_size=4).map(OrderedDict)
        | st.lists(st.text(), max_size=4).map(Counter)
    ),
    max_leaves=12,
)


def refuse(*what: Any) -> Any:
    raise AssertionError(what)


def shape(value: Any) -> Any:
    """The types of a value all through: 1 is not True, nor [1] (1,)."""
    if isinstance(value, dict):
        return type(value), [(shape(a), shape(b)) for a, b in value.items()]
    if isinstance(value, (list, tuple, deque)):
        return type(value), [shape(item) for item in value]
    return type(value), repr(value) if isinstance(value, float) else None


@given(DATA)
def test_data_crosses_unchanged(value: Any) -> None:
    packed = json.loads(json.dumps(code_sandboxed._pack(value, refuse)))
    made = code_sandboxed._unpack(packed, refuse)
    assert made == value
    assert shape(made) == shape(value)


@given(DATA, DATA)
def test_arguments_become_what_the_code_made_of_them(old: Any, new: Any) -> None:
    made = code_sandboxed._restore(old, new)
    assert made == new
    assert shape(made) == shape(new)
    if type(old) is type(new) and isinstance(old, (list, dict, set, deque)):
        assert made is old


@pytest.mark.parametrize("value", [Decimal("1.50"), Fraction(1, 3), datetime.time(1, 2), bytearray(b"\xff"), range(3)])
def test_kinds_of_data(value: Any) -> None:
    made = code_sandboxed._unpack(code_sandboxed._pack(value, refuse), refuse)
    assert (made, type(made)) == (value, type(value))


def test_what_is_not_data_is_refused() -> None:
    for packed in (["os.system", "true"], ["builtins.eval", "1"], [["list"]], ["list", ["x"]]):
        with pytest.raises((ValueError, TypeError)):
            code_sandboxed._unpack(packed, refuse)
