"""Images that clients name by address, fetched for engines and upstreams that want bytes.

    URL -> checked address (`safe_address`) -> connection to that address -> redirects, each checked -> bounded bytes

What comes of it is a `data:` URI. Time, size and redirects are bounded; only images are taken, and none that hold
scripts.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from urllib.parse import urljoin

from ponder.server.failures import Refusal, invalid
from ponder.server.request import Request
from ponder.server.safe_address import PORTS, Place, Resolve, Unsafe, checked, is_public, looked_up
from ponder.server.upstream_answer import Answer, Timeouts, WireError
from ponder.server.upstream_wire import Wire
from ponder.types import Image, Message, Part, Video

_DATA = re.compile(r"data:(image/[\w.+-]+)(?:;[\w.+-]+=[\w.+-]+)*;base64,", re.ASCII)
_KIND = re.compile(r"image/[\w.+-]+", re.ASCII)
_SCRIPTED = ("image/svg+xml",)
_MOVED = (301, 302, 303, 307, 308)


@dataclass(frozen=True)
class Bounds:
    """Of one image: bytes, seconds for all of it, redirects; and of a request: images."""

    size: int = 20 * 2**20
    seconds: float = 20.0
    redirects: int = 3
    images: int = 32


class Media:
    """Fetches images. resolve, allowed, ports: what `safe_address.checked` goes by."""

    def __init__(
        self,
        bounds: Bounds | None = None,
        *,
        resolve: Resolve = looked_up,
        allowed: Callable[[str], bool] = is_public,
        ports: Collection[int] = PORTS,
    ) -> None:
        self._bounds = bounds or Bounds()
        self._resolve, self._allowed, self._ports = resolve, allowed, ports

    async def __call__(self, request: Request) -> Request:
        """The request with every image as data. Raises Refusal."""
        urls = [url for message in request.question.messages for part in message.parts for url in _urls(part)]
        if not urls:
            return request
        if len(urls) > self._bounds.images:
            raise invalid(f"there are {len(urls)} images", f"send at most {self._bounds.images}", "messages")
        fetching = [asyncio.ensure_future(self.data(url)) for url in dict.fromkeys(urls)]
        try:
            found = dict(zip(dict.fromkeys(urls), await asyncio.gather(*fetching), strict=True))
        finally:
            for task in fetching:
                task.cancel()
            await asyncio.gather(*fetching, return_exceptions=True)
        messages = tuple(_with(message, found) for message in request.question.messages)
        return replace(request, question=replace(request.question, messages=messages))

    async def data(self, url: str) -> str:
        """An image as a `data:` URI, from the web or already one. Raises Refusal."""
        if url.startswith("data:"):
            return self._checked_data(url)
        try:
            async with asyncio.timeout(self._bounds.seconds):
                return await self._fetched(url)
        except TimeoutError:
            raise _wrong(f"the image took longer than {self._bounds.seconds:g} s") from None
        except Unsafe as unsafe:
            raise _wrong(f"the image cannot be fetched: {unsafe}") from None
        except WireError as error:
            raise _wrong(f"the image cannot be fetched: {error.problem}") from None

    def _checked_data(self, url: str) -> str:
        found = _DATA.match(url)
        if found is None or found[1] in _SCRIPTED:
            raise _wrong("a data: URI holds no image")
        if len(url) > self._bounds.size * 4 // 3 + 200:
            raise self._too_large()
        try:
            base64.b64decode(url[found.end() :], validate=True)
        except (binascii.Error, ValueError):
            raise _wrong("a data: URI holds what is no base64") from None
        return url

    async def _fetched(self, url: str) -> str:
        for _ in range(self._bounds.redirects + 1):
            place = await checked(url, self._resolve, self._allowed, self._ports)
            wire = Wire(place.origin, timeouts=Timeouts(connect=self._bounds.seconds), pinned=place.address)
            try:
                answer = await wire.ask("GET", f"/{place.target}", headers={"accept": "image/*"})
                try:
                    if answer.status in _MOVED:
                        url = urljoin(url, answer.headers.get("location", ""))
                        continue
                    return await self._image(answer, place)
                finally:
                    answer.close()
            finally:
                await wire.close()
        raise _wrong(f"the image is behind more than {self._bounds.redirects} redirects")

    async def _image(self, answer: Answer, place: Place) -> str:
        if answer.status != 200:
            raise _wrong(f"{place.host} answered {answer.status} in place of an image")
        if not _KIND.fullmatch(answer.kind) or answer.kind in _SCRIPTED:
            raise _wrong(f"{place.host} gave {answer.kind[:60] or 'something'!r}, which is no image")
        length = answer.headers.get("content-length", "0")
        if length.isdigit() and int(length) > self._bounds.size:
            raise self._too_large()
        try:
            data = await answer.read(self._bounds.size)
        except WireError as error:
            if error.kind == "garbled":
                raise self._too_large() from None
            raise
        return f"data:{answer.kind};base64,{base64.b64encode(data).decode()}"

    def _too_large(self) -> Refusal:
        return _wrong(f"the image is larger than {self._bounds.size >> 20} MiB")


def _wrong(problem: str) -> Refusal:
    return invalid(problem, "send another one, or its data", "messages")


def _urls(part: Part) -> tuple[str, ...]:
    if isinstance(part, Image):
        return (part.url,)
    return part.frames if isinstance(part, Video) else ()


def _with(message: Message, found: dict[str, str]) -> Message:
    parts: list[Part] = []
    for part in message.parts:
        if isinstance(part, Image):
            part = replace(part, url=found[part.url])
        elif isinstance(part, Video):
            part = replace(part, frames=tuple(found[frame] for frame in part.frames))
        parts.append(part)
    return replace(message, parts=tuple(parts))
