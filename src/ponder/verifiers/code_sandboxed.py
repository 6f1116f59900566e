"""What runs in the two sandboxes of `code_tests`: the code in one, its tests in the other, values in between as data.

This file is sent in as text: it needs the standard library alone, and nothing of ours.
"""

from __future__ import annotations

import builtins
import contextlib
import faulthandler
import functools
import importlib
import json
import operator
import os
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_MOST = 16 << 20  # bytes of a message
_GROUPS = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
_PARTS: dict[str, Callable[[Any], Sequence[Any]]] = {
    "builtins.bytes": lambda value: (value.decode("latin-1"), "latin-1"),
    "builtins.bytearray": lambda value: (value.decode("latin-1"), "latin-1"),
    "builtins.complex": lambda value: (value.real, value.imag),
    "builtins.range": lambda value: (value.start, value.stop, value.step),
    "collections.Counter": lambda value: (dict(value),),
    "collections.OrderedDict": lambda value: (list(value.items()),),
    "collections.deque": lambda value: (list(value), value.maxlen),
    "decimal.Decimal": lambda value: (str(value),),
    "fractions.Fraction": lambda value: (value.numerator, value.denominator),
    "datetime.date": lambda value: (value.year, value.month, value.day),
    "datetime.time": lambda value: (value.hour, value.minute, value.second, value.microsecond),
    "datetime.datetime": lambda value: (*value.timetuple()[:6], value.microsecond),
    "datetime.timedelta": lambda value: (value.days, value.seconds, value.microseconds),
}
_ONE = ("getattr", "setattr", "delattr", "getitem", "setitem", "delitem", "len", "iter", "next", "bool", "str", "repr")
_ORDER = ("eq", "ne", "lt", "le", "gt", "ge")
_UNARY = ("neg", "pos", "abs", "invert")
_TWO = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor")


def _pack(value: Any, other: Callable[[Any], Any]) -> Any:
    """JSON of a value: text and small numbers as themselves, all else as a list; `other` packs what is no data."""
    kind = type(value)
    if value is None or kind in (bool, str, float):
        return value
    if kind is int:
        return value if abs(value) < 1 << 53 else ["int", hex(value)]
    if kind in _GROUPS.values():
        return [kind.__name__, *(_pack(item, other) for item in value)]
    if isinstance(value, (str, int, float)):  # of a subclass: an IntEnum, say
        base = next(base for base in (str, int, float) if isinstance(value, base))
        return _pack(getattr(base, f"__{base.__name__}__")(value), other)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if name in ("builtins.dict", "collections.defaultdict"):
        return ["dict", *(_pack(pair, other) for pair in value.items())]
    if name in _PARTS and getattr(value, "tzinfo", None) is None:
        return [name, *(_pack(part, other) for part in _PARTS[name](value))]
    return other(value)


def _unpack(packed: Any, other: Callable[..., Any]) -> Any:
    if not isinstance(packed, list):
        return packed
    kind, *rest = packed
    if kind == "int":
        return int(rest[0], 16)
    if kind in ("object", "function", "module", "exception", "builtin"):
        return other(kind, *rest)
    parts = [_unpack(part, other) for part in rest]
    groups: dict[str, Any] = {**_GROUPS, "dict": dict, "iterator": iter}
    if kind in groups:
        return groups[kind](parts)
    if kind not in _PARTS:
        raise ValueError("the code's process sent something else than data")
    module, _, name = kind.rpartition(".")
    return getattr(importlib.import_module(module), name)(*parts)


def _restore(old: Any, new: Any) -> Any:
    """`old` with the contents of `new`, changed in place: what a function did to its arguments shows outside."""
    if type(old) is not type(new):
        return new
    if isinstance(old, list):
        old[:] = [*map(_restore, old, new), *new[len(old) :]]
    elif isinstance(old, dict):
        values = {key: _restore(old.get(key), value) for key, value in new.items()}
        old.clear()
        old.update(values)
    elif isinstance(old, set):
        old.clear()
        old.update(new)
    elif isinstance(old, bytearray) or hasattr(old, "extendleft"):
        old.clear()
        old.extend(new)
    elif isinstance(old, tuple) and len(old) == len(new):
        return tuple(map(_restore, old, new))
    else:
        return new
    return old


def _plain(value: Any) -> list[Any]:
    """The data that an object of a subclass is, in a list; an empty one where it is none."""
    kinds: tuple[Any, ...] = (list, tuple, set, frozenset)
    for base in kinds:
        if isinstance(value, base):
            return [base(base.__iter__(value))]
    if isinstance(value, dict):
        return [dict(dict.items(value))]
    return [value.tolist()] if hasattr(value, "tolist") else []


def _said(error: BaseException) -> str:
    try:
        return str(error)[:2000]
    except Exception:  # its own method failed
        return ""


def _of_error(error: BaseException) -> list[Any]:
    return ["error", [kind.__name__ for kind in type(error).__mro__[:-2]], _said(error)]


@functools.cache
def _exception(*names: str) -> Any:
    """The exception class of these names, from the class itself up to Exception; what is not built in is made here."""
    made: Any = Exception if "Exception" in names else RuntimeError  # SystemExit must not end the tests
    for name in reversed(names):
        known = getattr(builtins, name, None)
        built_in = isinstance(known, type) and issubclass(known, Exception)
        made = known if built_in else type(name, (made,), {})
    return made


def _error(names: list[str], text: str) -> Any:
    try:
        made = _exception(*map(str, names))(text)
    except TypeError:  # UnicodeDecodeError and its like want more than a text
        made = RuntimeError(f"{names[0]}: {text}")
    made.of_the_code = True
    return made


class _Line:
    """One end of the line between the two: a message is a line of JSON, answered by one that says ok or error."""

    other: Any
    foreign: Any
    serve: Any

    def __init__(self) -> None:
        self.incoming, self.outgoing = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(0), "wb")
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        self.objects: list[Any] = []  # what the other side may name, by its place
        self.places: dict[int, int] = {}
        self.asked = 0

    def send(self, *message: Any) -> None:
        line = json.dumps(message).encode() + b"\n"
        if len(line) > _MOST:
            raise ValueError("too much data for the line between code and tests")
        self.outgoing.write(line)
        self.outgoing.flush()

    def receive(self) -> Any:
        line = self.incoming.readline(_MOST + 1)
        if not line.endswith(b"\n"):
            raise EOFError("the code ended")
        return json.loads(line)

    def ask(self, *message: Any) -> Any:
        """What the other side answers; meanwhile it may ask back."""
        self.asked += 1
        self.send(*message)
        while True:
            kind, *rest = answer = self.receive()
            if kind == "ok":
                return rest
            if kind == "error":
                raise _error(*rest)
            self.serve(*answer)

    def place(self, value: Any) -> int:
        if id(value) not in self.places:
            self.places[id(value)] = len(self.objects)
            self.objects.append(value)
        return self.places[id(value)]

    def pack(self, value: Any) -> Any:
        return _pack(value, self.other)

    def unpack(self, packed: Any) -> Any:
        return _unpack(packed, self.foreign)


class _Code(_Line):
    """The side of the answer's code."""

    def __init__(self) -> None:
        super().__init__()
        module = sys.modules["answer"] = types.ModuleType("answer")
        self.names = module.__dict__
        does = (*_ONE, *_UNARY, *_ORDER, *_TWO, "isinstance")
        self.does: dict[str, Any] = {name: getattr(operator, name, getattr(builtins, name, None)) for name in does}
        self.does |= {
            "plain": _plain,
            "names": lambda wanted: {name: self.names[name] for name in wanted & {*self.names}},
        }

    def load(self) -> None:
        for name in ("prefix.py", "answer.py"):
            with open(name, "rb") as file:
                exec(compile(file.read(), name, "exec", dont_inherit=True), self.names)

    def other(self, value: Any) -> list[Any]:
        if isinstance(value, types.ModuleType):
            return ["module", value.__name__]
        if isinstance(value, type) and issubclass(value, BaseException):
            return ["exception", self.place(value), [kind.__name__ for kind in value.__mro__[:-2]]]
        return ["object", self.place(value)]

    def foreign(self, kind: str, which: Any) -> Any:
        if kind == "builtin":
            return getattr(builtins, which)
        return self.objects[which] if kind == "object" else functools.partial(self.call_back, which)

    def call_back(self, place: int, *arguments: Any, **named: Any) -> Any:
        return self.unpack(self.ask("call", place, self.pack(arguments), self.pack(named))[0])

    def serve(self, what: str, *rest: Any) -> None:
        try:
            if what == "call":
                function, arguments, named = map(self.unpack, rest)
                result = self.pack(function(*arguments, **named))
                after = self.pack(arguments), self.pack(named)
                self.send("ok", result, *(None if a == b else a for a, b in zip(after, rest[1:], strict=True)))
            else:
                self.send("ok", self.pack(self.does[what](*map(self.unpack, rest))))
        except BaseException as error:
            self.send(*_of_error(error))


def _run_code() -> None:
    line = _Code()
    os.dup2(0, 1)
    os.dup2(0, 2)
    line.send("hello")
    try:
        line.load()
        line.send("ok")
    except BaseException as error:
        line.send(*_of_error(error))
    with contextlib.suppress(EOFError):
        while True:
            line.serve(*line.receive())
    os._exit(0)


class _Unfit(BaseException):
    """Something about the tests that no code could mend."""


class _Object:
    """Stands for an object of the code's process."""

    def __init__(self, line: _Tests, place: int) -> None:
        vars(self).update(_Object__line=line, _Object__place=place)  # names that no attribute of the code has

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        line = vars(self)["_Object__line"]
        result, *changed = line.ask("call", *map(line.pack, (self, arguments, named)))
        for old, new in zip((arguments, named), changed, strict=True):
            if new is not None:
                _restore(old, line.unpack(new))
        return line.unpack(result)

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, _Object) and _do(value, "isinstance", self) is True

    def __hash__(self) -> int:
        return hash(vars(self)["_Object__place"])


def _do(thing: _Object, what: str, *arguments: Any) -> Any:
    line = vars(thing)["_Object__line"]
    return line.unpack(line.ask(what, *map(line.pack, (thing, *arguments)))[0])


def _operator(name: str, swapped: bool = False) -> Callable[[_Object, Any], Any]:
    """The code's own operator between two of its objects; else the built-in one on plain data, unseen by the code."""

    def operate(self: _Object, other: Any) -> Any:
        if isinstance(other, _Object):
            return _do(self, name, other)
        plain = _do(self, "plain")
        if not plain:
            return NotImplemented
        return getattr(operator, name)(*((other, plain[0]) if swapped else (plain[0], other)))

    return operate


for _name in (*_ONE, *_UNARY):
    setattr(_Object, f"__{_name}__", functools.partialmethod(_do, _name))
for _name in (*_ORDER, *_TWO):
    setattr(_Object, f"__{_name.rstrip('_')}__", _operator(_name))
for _name in _TWO:
    setattr(_Object, f"__r{_name.rstrip('_')}__", _operator(_name, swapped=True))


class _Tests(_Line):
    """The side of the tests."""

    def __init__(self) -> None:
        super().__init__()
        self.stand_ins: dict[int, Any] = {}

    def other(self, value: Any) -> list[Any]:
        for place, stand_in in self.stand_ins.items():
            if stand_in is value:
                return ["object", place]
        name = getattr(value, "__name__", "")
        if name and getattr(builtins, name, None) is value:
            return ["builtin", name]
        if hasattr(value, "__next__"):
            return ["iterator", *map(self.pack, value)]
        if not callable(value):
            raise _Unfit(f"it gives the code a {type(value).__name__}, which is no plain data: define that in prefix")
        return ["function", self.place(value)]

    def foreign(self, kind: str, which: Any, *rest: Any) -> Any:
        if kind == "module" and which.partition(".")[0] in sys.stdlib_module_names:
            with contextlib.suppress(ImportError):
                return importlib.import_module(which)  # the real one, and not what the code made of it
        if kind == "exception":
            return self.stand_ins.setdefault(which, _exception(*map(str, rest[0])))
        if kind == "object" and type(which) is int:
            return self.stand_ins.setdefault(which, _Object(self, which))
        raise ValueError(f"the tests cannot use a {kind} of the code")

    def serve(self, what: str, place: int, arguments: Any, named: Any) -> None:
        try:
            result = self.objects[place](*self.unpack(arguments), **self.unpack(named))
            self.send("ok", self.pack(result))
        except Exception as error:
            self.send(*_of_error(error))


def _mentioned(code: types.CodeType) -> set[str]:
    """The names that `code` may look up."""
    inner = (part for part in code.co_consts if isinstance(part, types.CodeType))
    return set(code.co_names).union(*map(_mentioned, inner))


def _run_test(line: _Tests, setup: str, test: str, entry_point: str) -> None:
    try:
        programs = [compile(text, name, "exec", dont_inherit=True) for name, text in (("setup", setup), ("test", test))]
    except (SyntaxError, ValueError) as error:
        raise _Unfit(f"{type(error).__name__}: {error}") from error
    wanted = {entry_point}.union(*map(_mentioned, programs))
    # A built-in name is the code's only where it is what is tested: else the code could say what `abs` means.
    wanted = {name for name in wanted if name == entry_point or not hasattr(builtins, name)}
    found = line.unpack(line.ask("names", line.pack(wanted))[0])
    names = {name: value for name, value in found.items() if name in wanted}  # and nothing that nobody asked for
    used = any(not isinstance(value, (_Object, type, types.ModuleType)) for value in names.values())
    if entry_point in names:
        names.setdefault("candidate", names[entry_point])
    names["__name__"] = "tests"
    before = line.asked
    for program in programs:
        exec(program, names)
    if entry_point and isinstance(names.get("check"), types.FunctionType):
        if entry_point not in names:
            raise NameError(f"name {entry_point!r} is not defined")
        names["check"](names[entry_point])
    for name, value in list(names.items()):
        if name.startswith("test_") and isinstance(value, types.FunctionType):
            value()
    if line.asked == before and not used:
        raise _Unfit("it uses nothing of the code, so it says nothing about it")


def _frames(error: BaseException) -> list[tuple[str, int]]:
    trace, frames = error.__traceback__, []
    while trace is not None:
        frames.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    return frames


def _fault(error: BaseException, test: str) -> str:
    """What went wrong, and in which line of the test."""
    line = 0
    for file, number in _frames(error):
        line = number if file == "test" else line
    where = f" at `{test.splitlines()[line - 1].strip()[:200]}`" if line else ""
    return f"{type(error).__name__}{': ' if _said(error) else ''}{_said(error)[:200]}{where}"


def _verdict(line: _Tests, order: Mapping[str, Any], test: str) -> tuple[dict[str, str], bool]:
    """What to say about a test, and whether the next one should follow."""
    try:
        _run_test(line, order["setup"], test, order["entry_point"])
    except _Unfit as error:
        return {"unfit": str(error)}, False
    except BaseException as error:
        of_the_tests = _frames(error)[-1][0] in ("setup", "test") and not hasattr(error, "of_the_code")
        if of_the_tests and isinstance(error, ImportError):
            return {"unfit": _fault(error, test)}, False
        return {"fault": _fault(error, test)}, order["partial"] and not isinstance(error, (EOFError, OSError))
    return {"fault": ""}, True


def _run_tests() -> None:
    with open("tests.json", encoding="utf-8") as file:
        order = json.load(file)
    verdicts = os.fdopen(os.dup(1), "w")

    def say(**verdict: str) -> None:
        print(json.dumps(verdict), file=verdicts, flush=True)

    line = _Tests()
    os.dup2(0, 1)
    if line.receive() != ["hello"]:
        return
    say(begun="")
    faulthandler.dump_traceback_later(order["seconds"], exit=True)
    try:
        kind, *rest = line.receive()
        if kind != "ok":
            raise _error(*rest)
        say(loaded="")
    except Exception as error:
        say(unloaded=f"{type(error).__name__}: {_said(error)}")
        order["tests"] = []
    for test in order["tests"]:
        faulthandler.dump_traceback_later(order["seconds"], exit=True)
        verdict, goes_on = _verdict(line, order, test)
        say(**verdict)
        if not goes_on:
            break
    say(stopped="")
