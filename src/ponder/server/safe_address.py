"""Addresses that a client names and this server may ask: on the public internet, and nowhere else.

A name is looked up once, every address that it has must be public, and the connection goes to the address that was
checked: a name that means another machine the next time it is looked up (DNS rebinding) gains nothing.

What an IPv6 address carries inside (mapped, 6to4, Teredo, NAT64) is checked as well. Names that are numbers in another
dress (0x7f.1, 017700000001, 2130706433) are refused before they are looked up.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""The addresses of a host."""

PORTS = (80, 443)
_LONGEST = 8192
_NUMBER = re.compile(r"0x[0-9a-f]*|[0-9]+", re.IGNORECASE | re.ASCII)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_REFUSED = tuple(
    ipaddress.ip_network(each)
    for each in (
        *("168.63.129.16/32", "192.0.0.0/24"),  # where clouds have services of their own
        *("192.88.99.0/24", "64:ff9b:1::/48", "100::/64", "2001::/23", "3fff::/20", "5f00::/16"),
    )
)
"""Not for the public, whatever a version of Python says of them."""


class Unsafe(Exception):
    """An address that is not asked, and why."""


@dataclass(frozen=True)
class Place:
    """Where a URL leads: `address` is what to connect to, `target` path and query."""

    scheme: str
    host: str
    port: int
    target: str
    address: str

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


def is_public(address: str) -> bool:
    """Whether an address, as a text, is one of the public internet, whatever it carries inside."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return all(_public(each) for each in _inside(found))


def _inside(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """The address, or the ones that it stands for."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    if address in _NAT64:
        return [ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)]
    return [address, *([address.sixtofour] if address.sixtofour else []), *(address.teredo or ())]


def _public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and (address.is_site_local or address.scope_id):
        return False
    nowhere = address.is_multicast or address.is_reserved or address.is_unspecified or address.is_loopback
    return (
        address.is_global
        and not nowhere
        and not address.is_link_local
        and not any(address in each for each in _REFUSED)
    )


async def looked_up(host: str, port: int) -> list[str]:
    """The addresses of a host, as the system knows them."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(each[4][0]) for each in found]


async def checked(
    url: str,
    resolve: Resolve = looked_up,
    allowed: Callable[[str], bool] = is_public,
    ports: Collection[int] = PORTS,
) -> Place:
    """Where a URL leads, with the one address to connect to. Raises Unsafe.

    ports: those that may be asked; empty for any.
    """
    scheme, host, port, target = _taken_apart(url)
    if ports and port not in ports:
        raise Unsafe(f"port {port} is not asked")
    try:
        addresses = await resolve(host, port)
    except (OSError, UnicodeError):
        addresses = []
    # One answer for a name that does not exist and for one inside: it must not be found out which names there are.
    if not addresses or not all(allowed(address) for address in addresses):
        raise Unsafe(f"{host[:100]} is no host of the public internet")
    return Place(scheme, host, port, target, addresses[0])


def _taken_apart(url: str) -> tuple[str, str, int, str]:
    if len(url) > _LONGEST or any(each.isspace() or not each.isprintable() for each in url) or "\\" in url:
        raise Unsafe("the address holds what no address has")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise Unsafe("this is no address") from None
    if parts.scheme not in ("http", "https") or not host:
        raise Unsafe("only http: and https: are asked")
    if parts.username is not None or parts.password is not None:
        raise Unsafe("the address holds a user or a password")
    host = _plain_host(host)
    target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._") + (
        f"?{quote(parts.query, safe='/%:@!$&()*+,;=~-._?')}" if parts.query else ""
    )
    return parts.scheme, host, port or (443 if parts.scheme == "https" else 80), target


def _plain_host(host: str) -> str:
    """The host in ASCII. Raises Unsafe for numbers in a form that only some programs read as an address."""
    try:
        plain = host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError:
        raise Unsafe("the host is no name") from None
    plain = plain.removesuffix(".").lower()
    if not plain or "%" in plain:
        raise Unsafe("the host is no name")
    if ":" not in plain and _NUMBER.fullmatch(plain.rpartition(".")[2]):
        try:
            return str(ipaddress.IPv4Address(plain))
        except ValueError:
            raise Unsafe(f"{plain[:100]} is no address") from None
    return plain
