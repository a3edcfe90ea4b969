"""Shared fixtures: a derandomised Hypothesis profile, a fixed seed, and the marker of tests that need a GPU."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.support.gpu import requires_cuda
from tests.support.sinkhorn_cuda_host import Host

if TYPE_CHECKING:
    from tests.support.milvus_server import MilvusServer
    from tests.support.postgres_server import PostgresServer

_MILVUS = pytest.StashKey["MilvusServer"]()

settings.register_profile(
    "hystar_fast",
    derandomize=True,
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("hystar_fast")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that has `requires_cuda` with ``gpu``, so that ``-m gpu`` selects it."""
    for item in items:
        if requires_cuda.mark in item.iter_markers("skipif"):
            item.add_marker("gpu")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Seed torch before every test."""
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def narrow_tiny() -> Iterator[None]:
    """Give the tiny backbone without weights a width of 32, for the tests of a file."""
    from tests.support.small_tiny import shrink_tiny

    with pytest.MonkeyPatch.context() as patch:
        shrink_tiny(patch)
        yield


@pytest.fixture(scope="session")
def host_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the emulated kernels, the same for every process of xdist, so that one compiles them."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cuda_host"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def host(host_folder: Path) -> Host:
    """Give the block algorithms of the CUDA Sinkhorn, compiled for the CPU once a session."""
    return Host(host_folder)


@pytest.fixture(scope="session")
def milvus_server(pytestconfig: pytest.Config) -> Iterator[MilvusServer]:
    """Give a Milvus server, the same for a session."""
    from tests.support.milvus_server import MilvusServer

    server = pytestconfig.stash[_MILVUS] = MilvusServer()
    yield server
    server.remove()


@pytest.fixture
def milvus(milvus_server: MilvusServer) -> MilvusServer:
    """Give a Milvus server that runs."""
    if not milvus_server.is_running:
        milvus_server.start()
    return milvus_server


def pytest_runtest_setup() -> None:
    """Let open_clip read CLIP's vocabulary once a process: it takes as long as a small model's tests do without it."""
    tokenizer = sys.modules.get("open_clip.tokenizer")
    if tokenizer is None or hasattr(tokenizer.SimpleTokenizer.__init__, "kept"):
        return
    read, kept = tokenizer.SimpleTokenizer.__init__, {}

    def initialise(self: Any, *arguments: Any, **options: Any) -> None:
        key = repr((arguments, sorted(options.items())))
        if key not in kept:
            read(self, *arguments, **options)
            kept[key] = vars(self).copy()
        vars(self).update(kept[key])

    initialise.kept = kept  # type: ignore[attr-defined]
    tokenizer.SimpleTokenizer.__init__ = initialise


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Stop Milvus after its last test, as it takes a third of a core for nothing; xdist runs its tests in one go."""
    server = item.config.stash.get(_MILVUS, None)
    group = None if nextitem is None else nextitem.get_closest_marker("xdist_group")
    if server is not None and "PYTEST_XDIST_WORKER" in os.environ and (group is None or group.args != ("milvus",)):
        server.kill()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """Start a PostgreSQL server, once a session."""
    from tests.support.postgres_server import PostgresServer

    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.stop()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--triton36",
        default=".venv/triton36",
        metavar="PATH",
        help="folder with Triton 3.6, the oldest supported, to put first on a subprocess's path (default: %(default)s)",
    )


@pytest.fixture(scope="session")
def triton36(pytestconfig: pytest.Config) -> Path:
    """Return the folder of Triton 3.6, for the PYTHONPATH of a subprocess."""
    folder = (pytestconfig.rootpath / pytestconfig.getoption("--triton36")).resolve()
    if not (folder / "triton" / "__init__.py").is_file():
        pytest.fail(f"no Triton 3.6 in {folder}: `make test` installs it there (or pass --triton36 PATH)")
    return folder
