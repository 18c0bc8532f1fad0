"""Fixtures shared by the tests: random small checkpoints, written once a session."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

# Threads that spin while they wait make torch up to a hundred times slower as soon as another process wants the cores
# too. Read when torch is imported, and by the processes that tests start.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# What a user's shell may have set would change what tests see: a proxy before their servers on loopback, and colours in
# what processes print.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost,::1"
os.environ["PY_COLORS"] = os.environ["PYTHON_COLORS"] = "0"

import pytest
import torch

if TYPE_CHECKING:
    from tests.engine_runs import RankGroups

# Where there is no GPU, Triton's kernels run in its interpreter. Read when triton is imported.
INTERPRETED = not torch.cuda.is_available()
if INTERPRETED:
    os.environ["TRITON_INTERPRET"] = "1"

# Hypothesis allows an example 200 ms, and the making of ten a second, which a slow machine does not keep to. The tests
# that a GPU's machine runs do without it.
if find_spec("hypothesis") is not None:
    from hypothesis import HealthCheck, settings

    settings.register_profile("no-clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("no-clock")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if INTERPRETED and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # what was imported stays; every full collection of a test would look at all of it again


def pytest_sessionfinish() -> None:
    gc.unfreeze()


def pytest_runtest_setup() -> None:
    # a test draws the same numbers every time, whatever ran before it; those of kernels draw new ones all the same
    torch.default_generator.manual_seed(1789)


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    # ranks run as threads here, and another test process may run beside this one: more only fight over the cores
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    # Where engines keep what they find out, which is not to be the user's. The demos' hashes are there, or a picture
    # that is drawn again might tell more than the first did.
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    from engine.config.demo_checkpoints import DEMO_CHECKPOINT
    from launcher.provenance.file_hashes import find_hash

    for file in DEMO_CHECKPOINT.parent.glob("**/*.safetensors"):
        find_hash(file)


@pytest.fixture(scope="session")
def loops_with_run_time_bounds() -> None:
    """Triton 3.6's interpreter makes an int of an array of one element, which NumPy 2.4 refuses; 3.9's does not."""
    if not INTERPRETED or find_spec("triton") is None:
        return
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_index_too(tensor: type, scope: object) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_index_too


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`checkpoint(is_distilled=False)`: the folder of the random checkpoint with these fields of `CheckpointSpec`."""
    from bench.engines.checkpoints import (  # diffusers: seconds that most tests can do without
        CheckpointSpec,
        build_checkpoint,
    )

    folders: dict[CheckpointSpec, Path] = {}

    def get(**fields: object) -> Path:
        spec = CheckpointSpec(**fields)  # type: ignore[arg-type]
        if spec not in folders:
            folders[spec] = build_checkpoint(tmp_path_factory.mktemp("checkpoint"), spec)
        return folders[spec]

    return get


@pytest.fixture(scope="session")
def turbo(checkpoint: Callable[..., Path]) -> Path:
    return checkpoint()


@pytest.fixture(scope="session")
def raw(checkpoint: Callable[..., Path]) -> Path:
    return checkpoint(is_distilled=False)


@pytest.fixture(scope="module")
def rank_groups() -> Iterator[RankGroups]:
    """Groups of ranks that the tests of a module share; they end with it."""
    from tests.engine_runs import RankGroups  # as above

    with closing(RankGroups()) as groups:
        yield groups
