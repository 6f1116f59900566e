"""Servers and clients that several suites ask for. What is particular to a suite stands in its module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from job_server import Upstream, upstream_in_thread
from openai import OpenAI
from service import scripted, service
from serving import Serving


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server of what the module's `backends()` makes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PONDER_HOME", str(tmp_path_factory.mktemp("home")))
        with service(request.module.backends) as serving:
            yield serving


@pytest.fixture
def up() -> Iterator[Upstream]:
    """An upstream that hears, speaks and makes vectors."""
    with upstream_in_thread() as server:
        yield server


@pytest.fixture
def client(request: pytest.FixtureRequest, up: Upstream) -> Iterator[OpenAI]:
    """OpenAI's client at a server with a model of its own, "m", and what the module's `configured()` puts over `up`."""
    with (
        service(lambda: [scripted("4", "m")], config=request.module.configured(up.url)) as server,
        OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=20) as made,
    ):
        yield made
