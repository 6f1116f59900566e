"""Images that are fetched: bounded, checked at every step, and from the address that was checked."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
from upstreams import request

from ponder.server.failures import Refusal
from ponder.server.media import Bounds, Media
from ponder.types import Image, Message, Text, Video, user

PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 20
DATA = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"


def answer(body: bytes = PNG, kind: str = "image/png", status: int = 200, **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} x", f"content-type: {kind}", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Site:
    """A server that gives what each path says, and remembers what was asked."""

    def __init__(self, **pages: bytes) -> None:
        self.pages = pages
        self.asked: list[tuple[str, str]] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        path = head.split(" ")[1]
        host = head.lower().split("host: ")[1].split("\r\n")[0]
        self.asked.append((host, path))
        page = self.pages.get(path.lstrip("/"))
        if page is None:
            await asyncio.sleep(5)
        writer.write((page or b"").replace(b"PORT", str(self.port).encode()))
        writer.close()


@asynccontextmanager
async def site(**pages: bytes) -> AsyncIterator[Site]:
    found = Site(**pages)
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await found.serve(reader, writer)
        except asyncio.CancelledError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    found.port = server.sockets[0].getsockname()[1]
    try:
        yield found
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Names:
    """A resolver that gives its answers in turn, the last one for ever."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        return list(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])


def media(
    names: Names | None = None, bounds: Bounds | None = None, allowed: Callable[[str], bool] | None = None
) -> Media:
    """One that takes this machine for the public internet, for here are the servers of the tests."""
    return Media(
        bounds, resolve=names or Names(["127.0.0.1"]), allowed=allowed or (lambda a: a == "127.0.0.1"), ports=()
    )


def fetched(path: str, fetcher: Media, **pages: bytes) -> str:
    async def run() -> str:
        async with site(**pages) as found:
            return await fetcher.data(f"http://img.example:{found.port}/{path}")

    return asyncio.run(run())


def test_an_image_comes_as_data_and_the_server_hears_its_name() -> None:
    async def run() -> None:
        async with site(**{"a.png?x=1": answer()}) as found:
            assert await media().data(f"http://img.example:{found.port}/a.png?x=1") == DATA
            assert found.asked == [(f"img.example:{found.port}", "/a.png?x=1")]

    asyncio.run(run())


def test_a_name_is_looked_up_once_and_the_connection_goes_to_what_was_checked() -> None:
    """DNS rebinding: the first answer is public, the next one is not, and nobody asks for it."""
    names = Names(["127.0.0.1"], ["10.0.0.1"])
    assert fetched("a", media(names), a=answer()) == DATA
    assert names.asked == ["img.example"]
    inside = Names(["10.0.0.1"], ["127.0.0.1"])
    with pytest.raises(Refusal, match="public internet"):
        fetched("a", media(inside), a=answer())


def test_redirects_are_followed_and_each_is_checked() -> None:
    moved = answer(b"", status=302, location="/b")
    away = answer(b"", status=307, location="http://other.example:PORT/b")
    assert fetched("a", media(), a=moved, b=answer()) == DATA
    names = Names(["127.0.0.1"])
    assert fetched("a", media(names), a=away, b=answer()) == DATA
    assert names.asked == ["img.example", "other.example"]
    with pytest.raises(Refusal, match="public internet"):
        fetched("a", media(Names(["127.0.0.1"], ["169.254.169.254"])), a=away, b=answer())
    for bad in ("file:///etc/passwd", "ftp://x.example/", ""):
        with pytest.raises(Refusal):
            fetched("a", media(), a=answer(b"", status=301, location=bad), b=answer())
    with pytest.raises(Refusal, match="redirects"):
        fetched("a", media(), a=answer(b"", status=302, location="/a"))


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (answer(kind="text/html"), "no image"),
        (answer(kind="image/svg+xml"), "no image"),
        (answer(kind="image/x y"), "no image"),
        (answer(status=404), "404"),
        (answer(b"x" * 2000), "larger"),
        (b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\n\r\n" + b"x" * 200_000, "larger"),
        (b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\ncontent-length: 50\r\n\r\nx", "cannot be fetched"),
        (b"what", "cannot be fetched"),
    ],
)
def test_what_is_no_image_or_too_much_is_refused(page: bytes, message: str) -> None:
    with pytest.raises(Refusal, match=message) as caught:
        fetched("a", media(bounds=Bounds(size=1000)), a=page)
    assert (caught.value.status, caught.value.param) == (400, "messages")


def test_a_server_that_does_not_answer_is_not_waited_for() -> None:
    with pytest.raises(Refusal, match="took longer"):
        fetched("missing", media(bounds=Bounds(seconds=0.2)))


def test_only_the_usual_ports_are_asked() -> None:
    with pytest.raises(Refusal, match="port 22"):
        asyncio.run(Media(resolve=Names(["8.8.8.8"])).data("http://img.example:22/"))


@pytest.mark.parametrize(
    "url", ["data:text/html;base64,AA==", "data:image/svg+xml;base64,AA==", "data:image/png,AA", "data:"]
)
def test_data_that_is_no_image_is_refused(url: str) -> None:
    with pytest.raises(Refusal, match="no image"):
        asyncio.run(media().data(url))


def test_data_is_checked_and_left_as_it_is() -> None:
    assert asyncio.run(media().data(DATA)) == DATA
    with pytest.raises(Refusal, match="base64"):
        asyncio.run(media().data("data:image/png;base64,not base64!"))
    with pytest.raises(Refusal, match="larger"):
        asyncio.run(media(bounds=Bounds(size=3)).data("data:image/png;base64," + "A" * 1000))


def test_every_image_of_a_request_is_fetched_once() -> None:
    async def run() -> None:
        async with site(a=answer(), b=answer(b"B" * 30)) as found:
            root = f"http://img.example:{found.port}"
            parts = (Text("look"), Image(f"{root}/a"), Image(f"{root}/a"), Video((f"{root}/b", DATA)))
            asked = await media()(request(Message("user", parts)))
            sent = asked.question.messages[0].parts
            assert sent[0] == Text("look")
            assert sent[1] == sent[2] == Image(DATA)
            assert isinstance(sent[3], Video)
            assert all(frame.startswith("data:image/png;base64,") for frame in sent[3].frames)
            assert sorted(path for _, path in found.asked) == ["/a", "/b"]
            plain = request(user("hi"))
            assert await media()(plain) is plain
            many = tuple(Image(f"{root}/a{number}") for number in range(3))
            with pytest.raises(Refusal, match="3 images"):
                await media(bounds=Bounds(images=2))(request(Message("user", many)))

    asyncio.run(run())
