"""The ledger: what every request may cost is reserved before it is sent, and what it did cost is settled once.

    with Ledger.open() as ledger:
        ledger.reserve(reservation)           # checked against all limits and on disk, or LimitReached
        ...                                   # now it may be sent
        ledger.settle(request, 0, Settlement(prompt=12, completion=40, micro=70))

Check and reservation are one transaction (BEGIN IMMEDIATE), so any number of processes on one file never
spend more than a limit allows together, as long as no reply costs more than was reserved for it: for every
limit, spent + reserved + this <= amount. Amounts are whole micro-dollars. An attempt that a process was
working on when it died becomes "unknown" and stays charged with its worst case until somebody settles it.

A `Ledger` belongs to the thread that opened it. The time is the clock's: where that goes backwards, entries
count in the windows that it shows, and every window keeps to its limits.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any

from ponder import paths
from ponder.errors import InputError, StoreError
from ponder.ops.database import Database
from ponder.ops.ledger_schema import MIGRATIONS
from ponder.ops.ledger_values import Attempt, By, Entry, Reservation, Settlement, Spent, State, Total
from ponder.ops.limits import Limit, LimitReached, NoPrice, Window, span_of, told
from ponder.ops.process import start_of

MINUTE, DAY = 60, 86_400
SOON = 1.0
"""Seconds after which to ask again where only requests under way hold what is missing."""


_ENTRY = ", ".join(Entry.__dataclass_fields__)
_BY: dict[By, str] = {
    "model": "model", "key": "key", "project": "project", "strategy": "strategy", "prompt": "prompt_name",
    "backend": "backend", "day": "date(created / 1000, 'unixepoch')", "all": "'all'",
}  # fmt: skip
_TOTAL = """count(DISTINCT request), count(*), sum(state = 'reserved'), sum(state = 'unknown'), sum(state = 'failed'),
    sum(state NOT IN ('reserved', 'unknown') AND micro IS NULL),
    sum(prompt), sum(cached), sum(completion), sum(reasoning), coalesce(sum(micro), 0),
    sum(iif(state = 'reserved', charged_micro, 0)), sum(iif(state = 'unknown', charged_micro, 0))"""
_RESERVE = """INSERT INTO entries (request, attempt, sample, key, project, model, backend, strategy, prompt_name,
    tokens_most, micro_most, created, owner, charged_requests, charged_tokens, charged_micro, reserved_hash, state)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'reserved')"""
_CHARGE = """INSERT INTO used VALUES {} ON CONFLICT DO UPDATE SET requests = requests + excluded.requests,
    tokens = tokens + excluded.tokens, micro = micro + excluded.micro"""
_CHARGE_KEY = _CHARGE.format("(?, ?, ?, ?, ?, ?), (?, ?, ?, ?, ?, ?)")
_CHARGE_BOTH = _CHARGE.format(", ".join(["(?, ?, ?, ?, ?, ?)"] * 4))
# The attempt itself, and whether the request has no other one.
_THERE = """SELECT state, reserved_hash, NOT EXISTS (SELECT 1 FROM entries WHERE request = ?1 AND state != 'void')
    FROM (SELECT 1) LEFT JOIN entries ON request = ?1 AND attempt = ?2 AND sample = ?3"""
_OPEN = """SELECT rowid, state, settled_hash, key, project, created, micro_most, charged_requests, charged_tokens,
    charged_micro FROM entries WHERE request = ? AND attempt = ? AND sample = ?"""
# Once, whoever asks: a reservation that was given up for lost may still be settled by who knows better.
_SETTLE = """UPDATE entries SET state = ?, prompt = ?, cached = ?, completion = ?, reasoning = ?, micro = ?,
    charged_requests = ?, charged_tokens = ?, charged_micro = ?, settled = ?, settled_hash = ?
    WHERE rowid = ? AND state IN ('reserved', 'unknown')"""


class Ledger:
    """What was reserved and settled. Open it with `Ledger.open`, close it or use it with `with`."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self.path = database.path
        self._database = database
        self._connection = database.connection
        self._clock = clock
        self._owner: int | None = None
        self._late: dict[Attempt, Settlement] = {}

    @classmethod
    def open(
        cls, path: str | Path | None = None, clock: Callable[[], float] = time.time, *, background: bool = False
    ) -> Ledger:
        """The ledger at `path`, by default `ledger.db` in `ponder.paths.home()`; made if it is not there.

        Reservations of processes of this machine that have died become "unknown". clock: seconds since 1970.
        background: a thread waits for the disk, which no event loop should; for servers.
        Raises StoreError with the mend if the file cannot be made, read, written or understood.
        """
        path = paths.home() / "ledger.db" if path is None else Path(path)
        ledger = cls(Database.open(path, MIGRATIONS), clock)
        try:
            ledger.recover()
            if background:
                ledger._database.checkpoint_in_background()
        except BaseException:
            ledger.close()
            raise
        return ledger

    def close(self) -> None:
        """Closes the file. Safe to call twice."""
        self._database.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------ reserving and settling

    def reserve(self, wanted: Reservation) -> None:
        """Reserves the worst case of an attempt; it is on disk when this returns, and may be sent.

        The same reservation again is still one, as long as it is open. Raises LimitReached where a limit of the key or
        the project does not allow it, NoPrice where one is in dollars and `micro_most` is None, StoreError where it
        cannot be written, or where this attempt is there already and another one or over.
        """
        self._settle_late()
        owner, now = self._own(), self._clock()
        with self._database.transaction():
            there = self._connection.execute(_THERE, (wanted.request, wanted.attempt, wanted.sample))
            state, hashed, first = there.fetchone()
            if state is not None:
                _check_same(wanted, state, hashed)
                return
            charge = Spent(first, wanted.tokens_most, wanted.micro_most or 0)
            self._check("key", wanted.key, wanted.limits, wanted, charge, now)
            if wanted.project:
                self._check("project", wanted.project, wanted.project_limits, wanted, charge, now)
            rest = (int(now * 1000), owner, charge.requests, charge.tokens, charge.micro, _hash(wanted.columns))
            self._connection.execute(_RESERVE, (*wanted.columns, *rest))
            self._charge(wanted.key, wanted.project, int(now), charge)

    def settle(self, request: str, attempt: int, used: Settlement, sample: int = 0) -> None:
        """Puts what an attempt did use in the place of what was reserved for it, once.

        The same settlement again does nothing. Without a price, what was reserved in dollars stays charged. Raises
        StoreError where there is no such reservation, it was settled with something else, or it cannot be written;
        in that last case it is tried again with every later call.
        """
        self._settle_late()
        self._settle((request, attempt, sample), used)

    def void(self, request: str, attempt: int = 0, sample: int = 0) -> None:
        """Nothing was sent: the reservation charges nothing any more. Raises as `settle` does."""
        self.settle(request, attempt, Settlement(state="void"), sample)

    def give_up(self, request: str, attempt: int = 0, sample: int = 0) -> None:
        """It was sent, and nobody can tell what it used: "unknown", and charged with its worst case, unless it is
        settled after all. Does nothing to what is settled already. Raises StoreError where it cannot be written."""
        with self._database.transaction():
            self._connection.execute(
                "UPDATE entries SET state = 'unknown' WHERE request = ? AND attempt = ? AND sample = ?"
                " AND state = 'reserved'",
                (request, attempt, sample),
            )

    def recover(self) -> int:
        """Gives up what processes of this machine that have died had reserved, and tells how many attempts that is.

        They become "unknown" and stay charged with their worst case. Processes of other machines are left alone:
        nobody here can know.
        """
        with self._database.errors():
            owners = self._connection.execute(
                "SELECT id, pid, started FROM owners WHERE host = ? AND id IN"
                " (SELECT owner FROM entries WHERE state = 'reserved')",
                (socket.gethostname(),),
            ).fetchall()
        gone = [(owner,) for owner, pid, started in owners if start_of(pid) != started]
        if not gone:
            return 0
        with self._database.transaction():
            return self._connection.executemany(
                "UPDATE entries SET state = 'unknown' WHERE owner = ? AND state = 'reserved'", gone
            ).rowcount

    # ------------------------------------------------------------ reading

    def totals(self, by: By = "model", since: float | None = None, until: float | None = None) -> list[Total]:
        """Sums over what was reserved from `since` until before `until`, by one property; the dearest first, days in
        their order."""
        if by not in _BY:
            raise InputError(f"costs cannot be told by {by!r}", f"choose one of {', '.join(_BY)}")
        order = "name" if by == "day" else "coalesce(sum(micro), 0) DESC, sum(prompt + completion) DESC, name"
        where, values = _period(since, until)
        with self._database.errors():
            rows = self._connection.execute(
                f"SELECT {_BY[by]} AS name, {_TOTAL} FROM entries WHERE {where} AND state != 'void'"
                f" GROUP BY 1 ORDER BY {order}",
                values,
            ).fetchall()
        return [Total(*row) for row in rows]

    def entries(
        self,
        since: float | None = None,
        until: float | None = None,
        *,
        request: str | None = None,
        key: str | None = None,
        state: State | None = None,
        limit: int | None = None,
    ) -> list[Entry]:
        """Attempts that were reserved from `since` until before `until`, the newest first."""
        where, values = _period(since, until)
        for column, value in (("request", request), ("key", key), ("state", state)):
            if value is not None:
                where, values = f"{where} AND {column} = ?", [*values, value]
        with self._database.errors():
            rows = self._connection.execute(
                f"SELECT {_ENTRY} FROM entries WHERE {where} ORDER BY created DESC, rowid DESC LIMIT ?",
                [*values, -1 if limit is None else limit],
            ).fetchall()
        found = [Entry(*row) for row in rows]
        return [
            replace(each, created=each.created / 1000, settled=None if each.settled is None else each.settled / 1000)
            for each in found
        ]

    def spent(self, key: str = "", window: Window = "total", *, project: str = "") -> Spent:
        """What counts against the limits of a key, or of a project, in the window that is now."""
        with self._database.errors():
            return self._used("project" if project else "key", project or key, window, self._clock())

    # ------------------------------------------------------------ limits

    def _check(
        self, kind: str, name: str, limits: Iterable[Limit], wanted: Reservation, charge: Spent, now: float
    ) -> None:
        used: dict[Window, Spent] = {}
        for limit in limits:
            if limit.unit == "USD" and wanted.micro_most is None:
                raise NoPrice(
                    f"the {kind} {name} has a limit of {limit}, and no price is known for {wanted.model}",
                    "state its price in prices.toml, or ask another model",
                )
            if limit.window not in used:
                used[limit.window] = self._used(kind, name, limit.window, now)
            there, more = used[limit.window].of(limit.unit), charge.of(limit.unit)
            if there + more > limit.amount:
                raise self._reached(kind, name, limit, there, more, now)

    def _reached(self, kind: str, name: str, limit: Limit, there: int, more: int, now: float) -> LimitReached:
        problem = (
            f"the {kind} {name} may use {limit} and has {told(max(0, limit.amount - there), limit.unit)} left, "
            f"while this request may take {told(more, limit.unit)}"
        )
        if more > limit.amount:
            return LimitReached(problem, "ask for less, or have the limit raised", limit, None)
        end = span_of(limit.window, now).end
        if there - self._held(kind, name, limit, now) + more <= limit.amount:
            return LimitReached(problem, "ask again when the requests under way are done", limit, SOON)
        if end is None:
            return LimitReached(problem, "have the limit raised", limit, None)
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(end))
        return LimitReached(problem, f"ask again from {when} UTC on, or have the limit raised", limit, end - now)

    def _held(self, kind: str, name: str, limit: Limit, now: float) -> int:
        """What requests under way may give back of a limit."""
        if limit.unit == "requests":
            return 0
        span = span_of(limit.window, now)
        where, values = _period(span.start, span.end)
        charged = "charged_micro" if limit.unit == "USD" else "charged_tokens"
        query = f"SELECT coalesce(sum({charged}), 0) FROM entries WHERE state = 'reserved' AND {kind} = ? AND {where}"
        return int(self._connection.execute(query, [name, *values]).fetchone()[0])

    def _used(self, kind: str, name: str, window: Window, now: float) -> Spent:
        span = span_of(window, now)
        width = MINUTE if window in ("minute", "hour") else DAY
        query = "SELECT coalesce(sum(requests), 0), coalesce(sum(tokens), 0), coalesce(sum(micro), 0) FROM used"
        if span.start is None:
            row = self._connection.execute(f"{query} WHERE scope = ? AND span = ?", (f"{kind}:{name}", width))
        else:
            row = self._connection.execute(
                f"{query} WHERE scope = ? AND span = ? AND start >= ? AND start < ?",
                (f"{kind}:{name}", width, span.start, span.end),
            )
        return Spent(*row.fetchone())

    def _charge(self, key: str, project: str, second: int, more: Spent) -> None:
        """Adds to what counts against limits in all windows that `second` is in."""
        counts = (more.requests, more.tokens, more.micro)
        minute, day = (MINUTE, second - second % MINUTE, *counts), (DAY, second - second % DAY, *counts)
        values: tuple[str | int, ...] = (f"key:{key}", *minute, f"key:{key}", *day)
        if project:
            values = (*values, f"project:{project}", *minute, f"project:{project}", *day)
        self._connection.execute(_CHARGE_BOTH if project else _CHARGE_KEY, values)

    # ------------------------------------------------------------ rows

    def _own(self) -> int:
        """The number of this process. In a transaction of its own: it must stay when a reservation is refused."""
        if self._owner is None:
            me = (socket.gethostname(), os.getpid(), start_of(os.getpid()))
            with self._database.transaction():
                self._connection.execute("INSERT OR IGNORE INTO owners (host, pid, started) VALUES (?, ?, ?)", me)
                row = self._connection.execute(
                    "SELECT id FROM owners WHERE host = ? AND pid = ? AND started = ?", me
                ).fetchone()
            self._owner = int(row[0])
        return self._owner

    def _first_of(self, request: str, but: int) -> int:
        """1 where the request has no other attempt or sample: those are no further requests. `but`: a row."""
        row = self._connection.execute(
            "SELECT NOT EXISTS (SELECT 1 FROM entries WHERE request = ? AND state != 'void' AND rowid != ?)",
            (request, but),
        ).fetchone()
        return int(row[0])

    def _settle_late(self) -> None:
        for attempt, used in list(self._late.items()):
            self._settle(attempt, used)

    def _settle(self, attempt: Attempt, used: Settlement) -> None:
        self._late[attempt] = used
        with self._database.transaction():
            conflict = self._settle_now(attempt, used)
        del self._late[attempt]  # it is on disk, or never can be
        if conflict:
            raise StoreError(f"attempt {attempt[1]} at request {attempt[0]} {conflict}", "settle each attempt once")

    def _settle_now(self, attempt: Attempt, used: Settlement) -> str:
        """Settles within a transaction; what stands against it, or nothing."""
        row = self._connection.execute(_OPEN, attempt).fetchone()
        if row is None:
            return "was never reserved"
        rowid, state, there, key, project, created, micro_most, *charged = row
        hashed = _hash(used.columns)
        if state not in ("reserved", "unknown"):
            return "" if there == hashed else f"was settled with something else, as {state}"
        before, after = Spent(*charged), Spent(charged[0], used.prompt + used.completion, used.micro or 0)
        if used.state == "void":
            after = Spent(charged[0] - self._first_of(attempt[0], but=rowid))
        elif used.micro is None:
            after = replace(after, micro=micro_most or 0)
        charges = (after.requests, after.tokens, after.micro, int(self._clock() * 1000), hashed)
        self._connection.execute(_SETTLE, (*used.columns, *charges, rowid))
        self._charge(key, project, created // 1000, after - before)
        return ""


def _period(since: float | None, until: float | None) -> tuple[str, list[Any]]:
    """A condition on the time of entries, and its values."""
    bounds = [("created >= ?", since), ("created < ?", until)]
    given = [(condition, round(bound * 1000)) for condition, bound in bounds if bound is not None]
    return " AND ".join(["1", *(condition for condition, _ in given)]), [value for _, value in given]


def _check_same(wanted: Reservation, state: str, hashed: bytes) -> None:
    """Raises StoreError unless what is in the ledger is the same reservation, and open."""
    if state != "reserved" or hashed != _hash(wanted.columns):
        raise StoreError(
            f"attempt {wanted.attempt} at request {wanted.request} is in the ledger already and {state}",
            "give each attempt a number of its own",
        )


def _hash(values: tuple[Any, ...]) -> bytes:
    return blake2b(repr(values).encode(errors="surrogatepass"), digest_size=16).digest()
