"""Reading files of questions: JSONL, one JSON array, CSV with a header, and ASDiv's XML, in UTF-8."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from ponder.errors import InputError
from ponder.tasks import asdiv, mmlu
from ponder.tasks.fields import Row

Numbered = tuple[int, Row]
"""A row and the line, counted from 1, on which it begins."""

SPACE = " \t\r\n"


def read(path: Path) -> tuple[list[Numbered], str]:
    """All rows of a file with their lines, and the SHA-256 of its bytes."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", "Check the path of the file") from None
    return list(_rows(path, data)), hashlib.sha256(data).hexdigest()


def place(path: Path, line: int) -> str:
    """How a message names a line."""
    return f"{path}, line {line}"


def _rows(path: Path, data: bytes) -> Iterator[Numbered]:
    lines = _lines(path, data)
    first = next((line.lstrip() for line in lines if line.strip()), "")
    if not first:
        raise InputError(f"{path} is empty", "Give a file with at least one question")
    if path.suffix.lower() == ".csv":
        return _csv(path, lines)
    if first.startswith("["):
        return _array(path, "".join(lines))
    if first.startswith("{"):
        return _jsonl(path, lines)
    if first.startswith("<"):
        return _xml(path, "".join(lines))
    raise InputError(f"{path} is neither JSONL, a JSON array, CSV nor ASDiv's XML", "A CSV file must be called .csv")


def _lines(path: Path, data: bytes) -> list[str]:
    # Split as bytes: str.splitlines would also break at characters that JSON allows inside a string.
    lines = []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").removesuffix(b"\n").split(b"\n"), 1):
        try:
            lines.append(line.decode("utf-8") + "\n")
        except UnicodeDecodeError:
            raise InputError(f"{place(path, number)} is not UTF-8", "Save the file as UTF-8") from None
    return lines


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def _why(error: ValueError | RecursionError) -> str:
    """What is wrong, without the position inside the row, which reads like a line of the file."""
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)


def _object(path: Path, line: int, value: Any) -> Row:
    if not isinstance(value, dict):
        raise InputError(f"{place(path, line)}: a row must be a JSON object, not {value!r:.60}", "Write it as {...}")
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InputError(f"{place(path, line)} has half a surrogate pair", r"Mend its \u escape") from None
    return value


def _jsonl(path: Path, lines: list[str]) -> Iterator[Numbered]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = DECODER.decode(line)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{place(path, number)} is not JSON ({_why(error)})",
                "Write one JSON object a line, or one array of them",
            ) from None
        yield number, _object(path, number, value)


def _array(path: Path, text: str) -> Iterator[Numbered]:
    """The elements one by one, since `json.loads` does not tell on which line each begins."""
    position, line, counted = text.index("[") + 1, 1, 0
    expected = "a row"
    while True:
        while position < len(text) and text[position] in SPACE:
            position += 1
        line, counted = line + text.count("\n", counted, position), position
        here = text[position : position + 1]
        if here == "]" and expected != "a row after the comma":
            break
        if expected == "a comma":
            if here != ",":
                raise _broken(path, line, "a comma or ] is missing")
            position, expected = position + 1, "a row after the comma"
            continue
        try:
            value, position = DECODER.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise _broken(path, line, _why(error)) from None
        yield line, _object(path, line, value)
        expected = "a comma"
    if text[position + 1 :].strip():
        raise _broken(path, line, "something follows the array")


def _broken(path: Path, line: int, why: str) -> InputError:
    return InputError(f"{place(path, line)} is not JSON ({why})", "Mend the array")


def _csv(path: Path, lines: list[str]) -> Iterator[Numbered]:
    reader = csv.reader(iter(lines), strict=True)
    header: list[str] | None = None
    begins = 1
    while True:
        begins = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise InputError(f"{place(path, begins)} is not CSV ({error})", "Mend the quotes of the row") from None
        if cells is None:
            return
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = list(mmlu.COLUMNS) if mmlu.headless(cells) else [cell.strip() for cell in cells]
            if len(set(header)) < len(header):
                raise InputError(f"{place(path, begins)} names a column twice", "Give every column its own name")
            if not mmlu.headless(cells):
                continue
        if len(cells) != len(header):
            raise InputError(
                f"{place(path, begins)} has {len(cells)} cells where {len(header)} are expected",
                'Put a cell with a comma in "quotes"',
            )
        yield begins, dict(zip(header, cells, strict=True))


def _xml(path: Path, text: str) -> Iterator[Numbered]:
    try:
        return iter(asdiv.problems(text))
    except asdiv.XMLError as error:
        raise InputError(f"{place(path, error.line)} is not ASDiv's XML ({error})", "Mend the file") from None
