"""The tables of ledger.db, which the ledger and the keys share.

An entry is one attempt at one sample of a request: first reserved, then settled, never removed. `charged_*` is what
counts against limits now: the worst case while it is reserved or unknown, what was used once it is settled. `used`
holds the sums of these by key or project, for each minute and each day (`span`: 60 or 86400 seconds): hours are
sums of minutes, months of days. A window needs no reset: another one has other rows.
"""

from __future__ import annotations

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE owners (
            id INTEGER PRIMARY KEY,
            host TEXT NOT NULL,
            pid INTEGER NOT NULL,
            started TEXT NOT NULL,
            UNIQUE (host, pid, started)
        )""",
        """CREATE TABLE entries (
            request TEXT NOT NULL,
            attempt INTEGER NOT NULL,
            sample INTEGER NOT NULL,
            created INTEGER NOT NULL,
            owner INTEGER NOT NULL REFERENCES owners (id),
            state TEXT NOT NULL,
            key TEXT NOT NULL,
            project TEXT NOT NULL,
            model TEXT NOT NULL,
            backend TEXT NOT NULL,
            strategy TEXT NOT NULL,
            prompt_name TEXT NOT NULL,
            tokens_most INTEGER NOT NULL,
            micro_most INTEGER,
            charged_requests INTEGER NOT NULL,
            charged_tokens INTEGER NOT NULL,
            charged_micro INTEGER NOT NULL,
            prompt INTEGER NOT NULL DEFAULT 0,
            cached INTEGER NOT NULL DEFAULT 0,
            completion INTEGER NOT NULL DEFAULT 0,
            reasoning INTEGER NOT NULL DEFAULT 0,
            micro INTEGER,
            settled INTEGER,
            reserved_hash BLOB NOT NULL,
            settled_hash BLOB,
            UNIQUE (request, attempt, sample)
        )""",
        "CREATE INDEX entries_by_created ON entries (created)",
        # Holds only what is under way, so it stays small however long the ledger is.
        "CREATE INDEX entries_reserved ON entries (owner) WHERE state = 'reserved'",
        """CREATE TABLE used (
            scope TEXT NOT NULL,
            span INTEGER NOT NULL,
            start INTEGER NOT NULL,
            requests INTEGER NOT NULL,
            tokens INTEGER NOT NULL,
            micro INTEGER NOT NULL,
            PRIMARY KEY (scope, span, start)
        ) WITHOUT ROWID""",
        """CREATE TABLE keys (
            id TEXT PRIMARY KEY,
            name TEXT NOT NULL,
            project TEXT NOT NULL,
            limits TEXT NOT NULL,
            digest BLOB NOT NULL UNIQUE,
            created TEXT NOT NULL,
            revoked TEXT
        )""",
        "CREATE TABLE projects (name TEXT PRIMARY KEY, limits TEXT NOT NULL)",
        # Counts the changes of keys and projects: whoever holds them in memory reads them again when it has grown.
        "CREATE TABLE changes (keys INTEGER NOT NULL)",
        "INSERT INTO changes VALUES (0)",
    ),
)
"""Statements that lead from one version of the database (`PRAGMA user_version`) to the next. Only ever appended to."""
