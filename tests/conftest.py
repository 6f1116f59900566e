"""What every test shares: a ponder home of its own, and one engine of the embedded model."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from ponder import paths, sandbox
from ponder.engine import catalogue
from ponder.engine.llamacpp import LlamaEngine, LlamaSettings, open_llamacpp
from ponder.engine.weights import Adapter, packaged_path, resolve

# A loaded machine makes no test wrong, and a failing example must come back on the next run.
settings.register_profile("ponder", deadline=None, derandomize=True)
settings.load_profile("ponder")


def _outer_home() -> Path:
    chosen = os.environ.get("PONDER_TEST_HOME")
    return Path(chosen).expanduser() if chosen else paths.home()


# Read once, before any test changes the environment.
OUTER_HOME = _outer_home()


def _link_weights(home: Path) -> None:
    """Files, not folders, are linked: a test that removes or replaces weights leaves the real ones alone."""
    name = catalogue.SMOLLM2.name
    target = home / "models" / name
    target.mkdir(parents=True)
    for file in (OUTER_HOME / "models" / name).glob("*.gguf*"):
        (target / file.name).symlink_to(file)


@pytest.fixture(scope="session")
def embedded_weights() -> Path:
    """The embedded base model, which the environment's own home has from here on, as it has the default model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PONDER_HOME", str(OUTER_HOME))
        resolve(catalogue.DEFAULT_MODEL)
        return resolve(catalogue.SMOLLM2.name).path


@pytest.fixture(autouse=True)
def ponder_home(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """An empty `PONDER_HOME` but for the weights of the embedded model."""
    if request.node.get_closest_marker("model"):
        request.getfixturevalue("embedded_weights")
    home = tmp_path_factory.mktemp("home")
    _link_weights(home)
    monkeypatch.setenv("PONDER_HOME", str(home))
    return home


@pytest.fixture(scope="session")
def thinking_adapter() -> Adapter:
    """The adapter that the default model comes with."""
    entry = catalogue.find(catalogue.DEFAULT_MODEL)
    assert entry is not None
    assert entry.adapter is not None
    return Adapter(entry.adapter.name, packaged_path(entry.adapter))


@pytest.fixture(scope="session")
def llama(embedded_weights: Path, thinking_adapter: Adapter) -> Iterator[LlamaEngine]:
    """An open engine: the embedded base model with its packaged adapter. Tests leave it alive and idle.

    One thread: two that wait for each other are many times slower than one where other work takes a core.
    """
    chosen = LlamaSettings(cells=8192, threads=1)
    engine = asyncio.run(open_llamacpp(embedded_weights, adapters=[thinking_adapter], settings=chosen))
    yield engine
    asyncio.run(engine.close())


@pytest.fixture(scope="session")
def bubblewrap() -> None:
    """Skips where bubblewrap is missing or may do nothing at all; a sandbox that is broken otherwise is a failure."""
    bwrap = sandbox.find_bwrap()
    if bwrap is None:
        pytest.skip("there is no bubblewrap here")
    bare = subprocess.run([bwrap, "--unshare-user", "--ro-bind", "/", "/", "true"], capture_output=True, text=True)
    if bare.returncode:
        pytest.skip(f"bubblewrap does not work here: {bare.stderr}")
    asyncio.run(sandbox.check())
