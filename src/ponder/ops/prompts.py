"""Prompts: versions that never change, and labels that move from one version to another.

    with Prompts.open() as prompts:
        prompts.put("support", "You answer for {{ product }}.", note="the first")    # support@1
        prompts.tag("support@1", "prod")
        prompts.get("support@prod").render({"product": "ponder"})
        prompts.rollback("support", "prod")                                         # to what it stood at before

What a version says, where its labels have stood and how it did in evaluations is only ever added to: triggers of the
database see to it. A `Prompts` belongs to the thread that opened it; several processes may use the file at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from ponder import paths
from ponder.errors import InputError
from ponder.ops.database import Database
from ponder.ops.prompt import LABEL, NAME, Prompt, Turn, checked


def _only_added_to(table: str, what: str) -> tuple[str, ...]:
    """Triggers that refuse every change of a row. REPLACE deletes without them, so numbers have to rise as well."""
    return tuple(
        f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table}"
        f" BEGIN SELECT RAISE(ABORT, '{what} never changes'); END"
        for verb in ("UPDATE", "DELETE")
    )


MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE versions (
            name TEXT NOT NULL,
            version INTEGER NOT NULL,
            messages TEXT NOT NULL,
            variables TEXT NOT NULL,
            note TEXT NOT NULL,
            created TEXT NOT NULL,
            PRIMARY KEY (name, version)
        )""",
        *_only_added_to("versions", "a version of a prompt"),
        """CREATE TRIGGER versions_in_order BEFORE INSERT ON versions
            WHEN NEW.version != 1 + (SELECT coalesce(max(version), 0) FROM versions WHERE name = NEW.name)
            BEGIN SELECT RAISE(ABORT, 'versions of a prompt are numbered in order'); END""",
        """CREATE TABLE evaluations (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            name TEXT NOT NULL,
            version INTEGER NOT NULL,
            created TEXT NOT NULL,
            passed INTEGER,
            document TEXT NOT NULL,
            FOREIGN KEY (name, version) REFERENCES versions (name, version)
        )""",
        "CREATE INDEX evaluations_of ON evaluations (name, version)",
        *_only_added_to("evaluations", "an evaluation of a prompt"),
        """CREATE TABLE moves (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            name TEXT NOT NULL,
            label TEXT NOT NULL,
            version INTEGER NOT NULL,
            kind TEXT NOT NULL CHECK (kind IN ('tag', 'rollback')),
            created TEXT NOT NULL,
            forced INTEGER NOT NULL,
            evaluation INTEGER REFERENCES evaluations (id),
            FOREIGN KEY (name, version) REFERENCES versions (name, version)
        )""",
        "CREATE INDEX moves_of ON moves (name, label)",
        *_only_added_to("moves", "the history of a label"),
        *(
            f"""CREATE TRIGGER {table}_in_order BEFORE INSERT ON {table}
            WHEN NEW.id IS NOT NULL AND EXISTS (SELECT 1 FROM {table} WHERE id = NEW.id)
            BEGIN SELECT RAISE(ABORT, 'what is there never changes'); END"""
            for table in ("evaluations", "moves")
        ),
    ),
)
"""Statements that lead from one version of the database to the next. Only ever appended to."""


class UnknownPrompt(InputError):
    """There is no prompt, version or label of that name."""


@dataclass(frozen=True)
class PromptSummary:
    """A prompt in one line: how many versions it has, and where its labels stand. The rest is of the newest one."""

    name: str
    versions: int
    labels: Mapping[str, int]
    variables: tuple[str, ...]
    note: str
    created: str


@dataclass(frozen=True)
class Move:
    """A label that was put at a version. forced: although its gate had refused. evaluation: the gate's, by its id."""

    name: str
    label: str
    version: int
    kind: Literal["tag", "rollback"]
    created: str
    forced: bool = False
    evaluation: int | None = None


@dataclass(frozen=True)
class Evaluation:
    """How a version did on a task. passed: whether a gate let it through, None where there was nothing to compare."""

    id: int
    created: str
    passed: bool | None
    document: Mapping[str, Any]


class Prompts:
    """The prompts in prompts.db. Open them with `Prompts.open`, close them or use them with `with`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection = database.connection

    @classmethod
    def open(cls, path: str | Path | None = None) -> Prompts:
        """The prompts at `path`, by default `prompts.db` in `ponder.paths.home()`; made if it is not there.

        Raises StoreError with the mend if the file cannot be made, read, written or understood.
        """
        return cls(Database.open(paths.home() / "prompts.db" if path is None else Path(path), MIGRATIONS))

    def close(self) -> None:
        """Closes the file. Safe to call twice."""
        self._database.close()

    def __enter__(self) -> Prompts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------ versions

    def put(
        self, name: str, content: str | Sequence[Turn], variables: Sequence[str] | None = None, note: str = ""
    ) -> Prompt:
        """A new version; the newest one, where that says the same already. A text alone is a system message.

        variables: None declares those that the texts use. Raises InputError for what can be no prompt.
        """
        if not NAME.fullmatch(name):
            raise InputError(
                f"{name[:60]!r} cannot be the name of a prompt", "take letters, digits and _ . - /, such as support"
            )
        messages, declared = checked(content, variables)
        with self._database.transaction():
            newest = self._newest(name)
            if newest is not None and (newest.messages, newest.variables) == (messages, declared):
                return newest
            version = newest.version + 1 if newest else 1
            made = Prompt(name, version, messages, declared, note, _now())
            texts = json.dumps([[turn.role, turn.text] for turn in messages], ensure_ascii=False)
            self._connection.execute(
                "INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?)",
                (name, version, texts, json.dumps(declared), note, made.created),
            )
        return made

    def get(self, reference: str) -> Prompt:
        """A version: "support@3", the one at a label: "support@prod", or the newest: "support".

        Raises UnknownPrompt, an InputError, where there is none.
        """
        name, _, which = reference.partition("@")
        with self._database.errors():
            newest = self._newest(name)
            if newest is None:
                raise UnknownPrompt(f"there is no prompt {name[:60]!r}", "see them with: ponder prompts list")
            if "@" not in reference:
                return newest
            if which.isascii() and which.isdecimal() and len(which) < 10:
                number = int(which)
                mend = f"its versions are 1 to {newest.version}" if newest.version > 1 else "its only version is 1"
            else:
                labels = self.labels(name)
                number = labels.get(which, 0)
                known = ", ".join(f"{label} ({version})" for label, version in labels.items())
                mend = f"it has {known}" if known else f"set it with: ponder prompts tag {name}@{newest.version} LABEL"
            found = self._found(name, number)
        if found is None:
            raise UnknownPrompt(f"the prompt {name!r} has no version or label {which[:60]!r}", mend)
        return found

    def versions(self, name: str) -> tuple[Prompt, ...]:
        """All versions of a prompt, the oldest first. Raises UnknownPrompt."""
        self.get(name)
        with self._database.errors():
            rows = self._connection.execute("SELECT * FROM versions WHERE name = ? ORDER BY version", (name,))
            return tuple(_prompt(row) for row in rows)

    def list(self) -> tuple[PromptSummary, ...]:
        """Every prompt, by its name."""
        with self._database.errors():
            rows = self._connection.execute(
                "SELECT * FROM versions AS each WHERE version ="
                " (SELECT max(version) FROM versions WHERE name = each.name) ORDER BY name"
            ).fetchall()
            newest = [_prompt(row) for row in rows]
            return tuple(
                PromptSummary(each.name, each.version, self.labels(each.name), each.variables, each.note, each.created)
                for each in newest
            )

    def _newest(self, name: str) -> Prompt | None:
        row = self._connection.execute(
            "SELECT * FROM versions WHERE name = ? ORDER BY version DESC LIMIT 1", (name,)
        ).fetchone()
        return None if row is None else _prompt(row)

    def _found(self, name: str, version: int) -> Prompt | None:
        row = self._connection.execute(
            "SELECT * FROM versions WHERE name = ? AND version = ?", (name, version)
        ).fetchone()
        return None if row is None else _prompt(row)

    # ------------------------------------------------------------ labels

    def labels(self, name: str) -> dict[str, int]:
        """Where the labels of a prompt stand, by their names."""
        standing: dict[str, list[Move]] = {}
        for move in self.history(name):
            _step(standing.setdefault(move.label, []), move)
        return {label: standing[label][-1].version for label in sorted(standing)}

    def history(self, name: str, label: str | None = None) -> tuple[Move, ...]:
        """Every move of the labels of a prompt, or of one of them, the oldest first."""
        with self._database.errors():
            rows = self._connection.execute(
                "SELECT name, label, version, kind, created, forced, evaluation FROM moves"
                " WHERE name = ?1 AND (?2 IS NULL OR label = ?2) ORDER BY id",
                (name, label),
            ).fetchall()
        return tuple(_move(row) for row in rows)

    def tag(
        self,
        reference: str,
        label: str,
        *,
        evaluation: int | None = None,
        forced: bool = False,
        instead_of: int | None = None,
    ) -> Move:
        """Puts a label at a version; where it stands there already, nothing is written.

        instead_of: the version at which it has to stand, 0 for none: a gate's verdict holds for no other one.
        Raises InputError where it stands at another, UnknownPrompt for a version that is not there.
        """
        check_label(label)
        with self._database.transaction():
            prompt = self.get(reference)
            stood = self._standing(prompt.name, label)
            current = stood[-1].version if stood else 0
            if instead_of is not None and current != instead_of:
                raise InputError(f"{label} was moved to {prompt.name}@{current} meanwhile", "try again")
            if current == prompt.version:
                return stood[-1]
            move = Move(prompt.name, label, prompt.version, "tag", _now(), forced, evaluation)
            self._insert(move)
        return move

    def rollback(self, name: str, label: str) -> Move:
        """Puts a label back to where it stood before it was last tagged; again, to where it stood before that.

        Raises InputError where it never stood anywhere else.
        """
        with self._database.transaction():
            self.get(f"{name}@{label}")
            stood = self._standing(name, label)
            if len(stood) < 2:
                raise InputError(
                    f"{label} of {name} stood nowhere before {name}@{stood[-1].version}",
                    f"put it elsewhere with: ponder prompts tag {name}@VERSION {label}",
                )
            move = Move(name, label, stood[-2].version, "rollback", _now())
            self._insert(move)
        return move

    def _standing(self, name: str, label: str) -> Sequence[Move]:
        """The moves that were not rolled back; the label stands at the last one."""
        stood: list[Move] = []
        for move in self.history(name, label):
            _step(stood, move)
        return stood

    def _insert(self, move: Move) -> None:
        self._connection.execute(
            "INSERT INTO moves (name, label, version, kind, created, forced, evaluation) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (move.name, move.label, move.version, move.kind, move.created, move.forced, move.evaluation),
        )

    # ------------------------------------------------------------ evaluations

    def add_evaluation(self, reference: str, document: Mapping[str, Any], passed: bool | None = None) -> int:
        """Keeps how a version did, as JSON values, and gives the id of that. Raises UnknownPrompt."""
        with self._database.transaction():
            prompt = self.get(reference)
            cursor = self._connection.execute(
                "INSERT INTO evaluations (name, version, created, passed, document) VALUES (?, ?, ?, ?, ?)",
                (prompt.name, prompt.version, _now(), passed, json.dumps(document, ensure_ascii=False)),
            )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def evaluations(self, reference: str) -> tuple[Evaluation, ...]:
        """How a version did, the oldest first. Raises UnknownPrompt."""
        prompt = self.get(reference)
        with self._database.errors():
            rows = self._connection.execute(
                "SELECT id, created, passed, document FROM evaluations WHERE name = ? AND version = ? ORDER BY id",
                (prompt.name, prompt.version),
            ).fetchall()
        return tuple(
            Evaluation(id, created, None if passed is None else bool(passed), json.loads(document))
            for id, created, passed, document in rows
        )


def check_label(label: str) -> None:
    """Raises InputError for what cannot be a label: a number would be a version."""
    if not LABEL.fullmatch(label):
        raise InputError(f"{label[:60]!r} cannot be a label", "take letters, digits and _ . -, such as prod")


def _step(stood: list[Move], move: Move) -> None:
    """Takes one move into those that a label stands on."""
    if move.kind == "tag":
        stood.append(move)
    else:
        stood.pop()


def _prompt(row: Sequence[Any]) -> Prompt:
    name, version, messages, variables, note, created = row
    turns = tuple(Turn(role, text) for role, text in json.loads(messages))
    return Prompt(name, version, turns, tuple(json.loads(variables)), note, created)


def _move(row: Sequence[Any]) -> Move:
    name, label, version, kind, created, forced, evaluation = row
    return Move(name, label, version, kind, created, bool(forced), evaluation)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
