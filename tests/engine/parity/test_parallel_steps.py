"""Steps in every parallel mode, under NCCL's rules: images come out as on one rank, and no rank waits for another that
has failed."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from safetensors.torch import load_file

from bench.scaling.mesh_groups import CountingGroup
from engine.config.degrees import Degrees
from engine.config.demo_checkpoints import DEMO_CHECKPOINT, DEMO_LORAS
from engine.errors import RankError
from engine.parallel.group import Group
from engine.parallel.link import measure_link
from engine.parallel.mesh import Mesh
from engine.planning.work_division import Traffic
from engine.rank.rank import Rank
from engine.rank.warm_up import try_image
from engine.step import Adapter, Step
from tests.engine.kernels.tolerances import relative_error as relative_norm
from tests.engine.lora.adapter_files import add_vectors, draw_low_rank, layer_shapes, write, write_scheme
from tests.engine.parallel.strict_dist import strict_meshes
from tests.engine.parallel.thread_group import thread_meshes
from tests.engine.parity.test_parallel_modes import MODES as TOKENS_OR_SEGMENTS
from tests.engine.parity.test_parallel_modes import TOLERANCE, random_jobs
from tests.engine_runs import DEADLINE_S, RankGroup, RankGroups
from tests.launcher.processes import wait_until
from tests.oracle import relative_error
from tests.step_scripts import DECODED_TOGETHER, Script, scripts

MODES: dict[str, dict[str, Any]] = {"tp 2": {"tp": 2}, "tp 4": {"tp": 4}, **TOKENS_OR_SEGMENTS}
# An activation that rounds to another number is 6 % off, one of many in a sum. Later steps and guidance enlarge what
# comes of it: at most this, and FP8_ERRORS times what fp8 changes in the image anyway.
FP8_TOLERANCE, FP8_ERRORS = 3e-2, 2
ADAPTERS = 1, 2
# The first is the simplest there is. A rank that fails ends its group, so that to shrink takes long.
FEW = settings(max_examples=2, phases=[Phase.explicit, Phase.reuse, Phase.generate])


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Adapter]:
    """A LoRA, and a DoRA with norms of rows and of columns, both of which ranks split the matrices of; the second
    changes norms and tables too, which ranks have whole."""
    file = tmp_path_factory.mktemp("adapters") / "dora.safetensors"
    write_scheme(file, DEMO_CHECKPOINT, draw_low_rank(layer_shapes(DEMO_CHECKPOINT)))
    tensors = load_file(add_vectors(file, DEMO_CHECKPOINT))
    (weights,) = (DEMO_CHECKPOINT / "transformer").glob("*.safetensors")
    for index, (layer, weight) in enumerate(load_file(weights).items()):
        path = f"transformer.{layer.removesuffix('.weight')}"
        if f"{path}.lora_A.weight" in tensors:
            tensors[f"{path}.dora_scale"] = 1.1 * weight.float().norm(dim=index % 2, keepdim=True)
    return {1: Adapter(1, str(DEMO_LORAS["demo-outlined"])), 2: Adapter(2, str(write(file, tensors)))}


def check(script: Script, adapters: dict[int, Adapter], alone: RankGroup, split: RankGroup) -> None:
    steps = script.steps(adapters)
    expected, found = alone.run_steps(steps, script.pixels), split.run_steps(steps, script.pixels)
    assert expected.keys() == found.keys()
    for job_id, picture in expected.items():
        assert relative_error(found[job_id].latents, picture.latents) <= TOLERANCE
        assert np.abs(found[job_id].image.astype(int) - picture.image.astype(int)).max() <= 1


def check_fp8(
    script: Script, adapters: dict[int, Adapter], exact: RankGroup, fewest: RankGroup, split: RankGroup
) -> None:
    steps = script.steps(adapters)
    wide, expected, found = (group.run_steps(steps, script.pixels) for group in (exact, fewest, split))
    assert wide.keys() == expected.keys() == found.keys()
    for job_id, picture in expected.items():
        tolerance = FP8_TOLERANCE + FP8_ERRORS * relative_norm(picture.latents, wide[job_id].latents)
        assert relative_norm(found[job_id].latents, picture.latents) <= tolerance


@pytest.mark.parametrize("mode", MODES, scope="module")
def test_random_steps_are_those_of_one_rank(rank_groups: RankGroups, adapters: dict[int, Adapter], mode: str) -> None:
    @FEW
    @given(scripts(ADAPTERS))
    def run(script: Script) -> None:
        alone, split = rank_groups.get(DEMO_CHECKPOINT), rank_groups.get(DEMO_CHECKPOINT, **MODES[mode])
        check(script, adapters, alone, split)

    run()


@pytest.mark.parametrize("mode", MODES, scope="module")
def test_random_steps_in_fp8_through_torch(
    rank_groups: RankGroups, adapters: dict[int, Adapter], monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """After a warm-up, and by what the groups of processes ask torch for. A part of a matrix has scales of its own, so
    that the fewest ranks that give the same are those of tensor parallelism."""
    options: dict[str, Any] = {"quantization": "fp8"}
    exact = rank_groups.get(DEMO_CHECKPOINT)
    fewest = rank_groups.get(DEMO_CHECKPOINT, tp=MODES[mode].get("tp", 1), **options)
    monkeypatch.setattr("tests.engine_runs.thread_meshes", strict_meshes)
    for wait in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, wait, lambda *_: None)

    def warm_up(rank: Rank) -> None:
        for size in ((32, 32), DECODED_TOGETHER):
            try_image(rank, *size, decodes=True)
        assert measure_link(rank.model.mesh.world, rank.model.device, 2**16)[0] > 0

    with closing(RankGroups(most=1)) as groups:

        @FEW
        @given(scripts(ADAPTERS))
        def run(script: Script) -> None:
            split = groups.get(DEMO_CHECKPOINT, **options, **MODES[mode])
            check_fp8(script, adapters, exact, fewest, split)

        groups.get(DEMO_CHECKPOINT, **options, **MODES[mode]).on_ranks(warm_up)
        run()


class Trap:
    """Counts the operations of a rank, as `Counter`, and does something before one of them."""

    def __init__(self, at: int, act: Callable[[], None]) -> None:
        self._at, self._act, self._sent = at, act, Traffic()

    @property
    def sent(self) -> Traffic:
        return self._sent

    @sent.setter
    def sent(self, sent: Traffic) -> None:
        self._sent = sent
        if sent.operations == self._at:
            self._act()


def with_trap(mesh: Mesh, trap: Trap) -> Mesh:
    groups = (mesh.world, mesh.tp, mesh.sp, mesh.cfg, mesh.wide)
    return Mesh(*(CountingGroup(group, trap) if group.size > 1 else group for group in groups))


class PlantedError(Exception):
    pass


def run_into(
    trap: Callable[[list[Group]], None],
    monkeypatch: pytest.MonkeyPatch,
    ended: Callable[[], None] = lambda: None,
) -> list[str]:
    """Run steps on four ranks, one of which does `trap`, given the groups of all ranks, before one of its operations.
    Returns what the other ranks raise. ended: called when one of them has. That one waits until the deadline is an
    error of `RankGroup`."""
    seed = random.randrange(2**32)
    source = random.Random(seed)
    bad, at = source.randrange(4), source.randint(1, 40)
    meshes = thread_meshes(Degrees(2, 2), DEADLINE_S)
    groups = [group for mesh in meshes for group in (mesh.world, mesh.tp, mesh.sp)]
    sprung: list[int] = []

    def spring() -> None:
        sprung.append(at)
        trap(groups)

    meshes = [with_trap(mesh, Trap(at, spring if rank == bad else lambda: None)) for rank, mesh in enumerate(meshes)]
    monkeypatch.setattr("tests.engine_runs.thread_meshes", lambda *_, **__: meshes)
    jobs = random_jobs(source, 2)

    def step(rank: Rank) -> str:
        try:
            rank.execute(Step(0, start=tuple(jobs)))
            rank.execute(Step(1, denoise=tuple(job.job_id for job in jobs)))
        except (PlantedError, RankError) as error:
            rank.model.mesh.close()  # as a process that ends leaves its groups
            if rank.model.mesh.world.rank != bad:
                ended()
            return f"{type(error).__name__}: {error}"
        return "nothing"

    with closing(RankGroup(DEMO_CHECKPOINT, tp=2, sp=2)) as group:
        raised = group.on_ranks(step)
    assert len(sprung) == 1, (seed, raised)
    assert raised.pop(bad) != "nothing", seed
    return raised


def test_no_rank_waits_for_one_that_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: list[Group]) -> None:
        raise PlantedError

    raised = run_into(fail, monkeypatch)
    assert all("RankError: rank" in each and "in vain" in each for each in raised), raised


def test_ranks_give_up_one_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline passes when all others wait: before that no rank can be too slow, whatever else the machine does."""
    others = threading.Semaphore(0)

    def hang(groups: list[Group]) -> None:
        meetings = {group._meeting for group in groups}
        wait_until(lambda: sum(meeting.waiting for meeting in meetings) == 3, "the wait of all others", DEADLINE_S)
        for meeting in meetings:
            if meeting.waiting:
                meeting.close()  # as a wait that is over does
        for _ in range(3):
            assert others.acquire(timeout=DEADLINE_S)

    raised = run_into(hang, monkeypatch, others.release)
    assert all("RankError: rank" in each and "in vain" in each for each in raised), raised
