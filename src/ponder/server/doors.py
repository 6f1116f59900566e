"""Who may come in: those with a key, or, on a server that asks for none, what this machine itself asks.

A server without keys listens to its own machine alone, and so do all web pages that a browser shows there. Two things
give such a page away: it calls the server by its own name, which was made to point here (DNS rebinding), or it says
whose it is (the header Origin).
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from ponder.ops.keys import Keys
from ponder.ops.limits import Limit
from ponder.server.books import Limits
from ponder.server.failures import Refusal
from ponder.server.request import Caller
from ponder.server.start import loopback


class Keyed:
    """Lets those in who have a key, as `Authorization: Bearer` or `x-api-key`."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._limits: dict[str, tuple[Limit, ...]] = {}

    def caller(self, headers: Mapping[str, str]) -> Caller:
        """Whose key it is. Raises Refusal, 401, without a key or with one that is none."""
        key = self._keys.find(secret_of(headers))
        if key is None:
            raise Refusal(
                401, "authentication_error", "this server asks for a key, and knows none like that",
                "send one that ponder keys add has made", code="invalid_api_key",
            )  # fmt: skip
        self._limits[key.id] = key.limits  # from memory: no query for each request
        return Caller(key.id, key.name, key.project)

    def check(self, headers: Mapping[str, str]) -> None:
        """Refuses nobody: what needs no key is there for all who reach the server."""

    def limits(self, caller: Caller) -> Limits:
        """The limits of a key, as they were when it came in, and of its project."""
        if not caller.key:
            return (), ()
        return self._limits.get(caller.key, ()), self._keys.project_limits(caller.project)


class Nearby:
    """Lets everybody in who asks this machine by a name of its own, but no web page of another site.

    A server that asks for no keys is bound to no other address: see `start.check_bind`.
    """

    def caller(self, headers: Mapping[str, str]) -> Caller:
        """Nobody in particular. Raises Refusal, 403."""
        self.check(headers)
        return Caller()

    def check(self, headers: Mapping[str, str]) -> None:
        """Raises Refusal, 403."""
        host = headers.get("host", "")
        if not loopback(_name(host)):
            raise Refusal(
                403, "permission_error", f"this server is not asked as {host[:100]!r}",
                "ask it as localhost, or make a key with: ponder keys add NAME", code="foreign_host",
            )  # fmt: skip
        origin = headers.get("origin")
        if origin is not None and not loopback(_page(origin)):
            raise Refusal(
                403, "permission_error", f"pages of {origin[:100]!r} may not ask this server",
                "make a key with: ponder keys add NAME", code="foreign_origin",
            )  # fmt: skip


def _name(host: str) -> str:
    """The name of a Host header, without its port."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return name.lower()


def _page(origin: str) -> str:
    """The name of the site that a page is of; "" for one that has none, such as a file."""
    try:
        site = urlsplit(origin)
        return (site.hostname or "") if site.scheme in ("http", "https") else ""
    except ValueError:
        return ""


def secret_of(headers: Mapping[str, str]) -> str:
    """What a client sent as its key, "" for nothing."""
    kind, _, value = headers.get("authorization", "").partition(" ")
    return value.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "").strip()
