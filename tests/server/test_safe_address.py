"""Addresses that clients name: none that is not public is ever asked, however it is written."""

from __future__ import annotations

import asyncio
import ipaddress
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.server.safe_address import Place, Unsafe, checked, is_public, looked_up


def check(url: str, *addresses: str) -> Place:
    async def resolve(host: str, port: int) -> list[str]:
        return list(addresses) if addresses else await looked_up(host, port)

    return asyncio.run(checked(url, resolve))


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.255.255", "10.0.0.1", "172.16.0.1", "192.168.1.1"),
        *("169.254.169.254", "100.64.0.1", "100.100.100.200", "168.63.129.16", "192.0.0.192", "198.18.0.1"),
        *("224.0.0.1", "224.0.1.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "192.0.2.1", "203.0.113.9"),
        *("::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "::ffff:7f00:1", "::ffff:169.254.169.254", "::ffff:0:0", "64:ff9b::7f00:1"),
        *("2002:7f00:1::", "2002:a00:1::1", "2001:0:7f00:1::", "::127.0.0.1", "64:ff9b:1::1"),
        *("", "example.com", "127.1", "8.8.8"),
    ],
)
def test_all_others(address: str) -> None:
    assert not is_public(address)


@given(st.ip_addresses(v=4))
def test_what_ipv6_carries_inside_is_judged_like_itself(address: ipaddress.IPv4Address) -> None:
    inside = int(address)
    for outer in (f"::ffff:{address}", str(ipaddress.IPv6Address((0x64FF9B << 96) | inside))):
        assert is_public(outer) == is_public(str(address))
    if not is_public(str(address)):
        assert not is_public(str(ipaddress.IPv6Address((0x2002 << 112) | (inside << 80))))


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://localhost/",
        "http://localhost./",
        "http://LOCALHOST/",
        "http://0/",
        "http://0x7f000001/",
        "http://2130706433/",
        "http://017700000001/",
        "http://0177.0.0.1/",
        "http://127.1/",
        "http://0x7f.1/",
        "http://127.0.0.0x1/",
        "http://①②⑦.⓪.⓪.①/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[fe80::1%25eth0]/",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::]/",
        "http://10.0.0.1/",
        "http://no-such-host.invalid/",
    ],
)
def test_urls_that_lead_inside_are_refused_with_the_systems_own_resolver(url: str) -> None:
    with pytest.raises(Unsafe):
        check(url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "file:///etc/passwd",
        "ftp://x.example/a",
        "gopher://x.example/",
        "//x.example/a",
        "http:///a",
        "http://user@x.example/",
        "http://user:pw@x.example/",
        "http://:@x.example/",
        "http://x.example\\@127.0.0.1/",
        "http://x.example/a b",
        "http://x.example/\n",
        "\thttp://x.example/",
        "http://x.example:22/",
        "http://x.example:99999/",
        "http://[::1/",
        "http://x.example/" + "a" * 9000,
    ],
)
def test_what_is_no_address_of_the_web_is_refused(url: str) -> None:
    with pytest.raises(Unsafe):
        check(url, "8.8.8.8")


def test_one_address_that_is_not_public_spoils_all_of_a_name() -> None:
    with pytest.raises(Unsafe):
        check("http://x.example/", "8.8.8.8", "127.0.0.1")
    with pytest.raises(Unsafe):
        check("http://x.example/", "127.0.0.1", "8.8.8.8")


def test_inside_and_nowhere_look_the_same_from_outside() -> None:
    async def nowhere(host: str, port: int) -> list[str]:
        raise OSError("no such name")

    with pytest.raises(Unsafe) as inside:
        check("http://x.example/", "10.0.0.1")
    with pytest.raises(Unsafe) as missing:
        asyncio.run(checked("http://x.example/", nowhere))
    assert str(inside.value) == str(missing.value)


def test_a_place_has_all_that_a_connection_needs() -> None:
    place = check("https://X.example/a/b?c=d%20e&f=g#h", "8.8.8.8", "8.8.4.4")
    assert place == Place("https", "x.example", 443, "/a/b?c=d%20e&f=g", "8.8.8.8")
    assert place.origin == "https://x.example:443"
    assert check("http://x.example:80", "8.8.8.8").target == "/"
    assert check("http://bücher.example/ü", "8.8.8.8") == Place(
        "http", "xn--bcher-kva.example", 80, "/%C3%BC", "8.8.8.8"
    )


@given(st.text(max_size=30))
def test_any_text_is_refused_or_leads_to_the_checked_address(text: str) -> None:
    try:
        place = check(f"http://{text}", "8.8.8.8")
    except Unsafe:
        return
    assert place.address == "8.8.8.8"
    assert urlsplit(place.origin).hostname == place.host
    assert place.target.isascii()
    assert not any(each.isspace() for each in place.target)
