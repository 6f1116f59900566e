"""Who may come in: the keys of a server that asks for them."""

from __future__ import annotations

from collections.abc import Mapping

from ponder.ops.keys import Keys
from ponder.ops.limits import Limit
from ponder.server.books import Limits
from ponder.server.failures import Refusal
from ponder.server.request import Caller


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

    def limits(self, caller: Caller) -> Limits:
        """The limits of a key, as they were when it came in, and of its project."""
        if not caller.key:
            return (), ()
        return self._limits.get(caller.key, ()), self._keys.project_limits(caller.project)


def secret_of(headers: Mapping[str, str]) -> str:
    """What a client sent as its key, "" for nothing."""
    kind, _, value = headers.get("authorization", "").partition(" ")
    return value.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "").strip()
