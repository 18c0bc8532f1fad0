"""Weights in host memory: the same latents as without, no more on the device than the plan says, copies beside work."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine.checkpoint.checkpoint_files import CheckpointFiles
from engine.config.engine_config import DIT, DIT_LAYERWISE, TEXT_ENCODER, VAE, EngineConfig
from engine.device.timing import seconds_between
from engine.model.layers import SwiGLU
from engine.offload import copying
from engine.offload import host_buffers as residency
from engine.offload.host_buffers import HostMemory, WeightLedger
from engine.offload.offload import BlockStream, Span, limit_allocations, plan_for
from engine.parallel.mesh import Mesh, thread_meshes
from engine.planning.step_memory import communication_bytes
from engine.rank.prompt_encoder import PromptFeatures
from engine.rank.rank import Rank
from engine.step import Adapter, Job, Step
from tests.engine.lora.adapter_files import draw_low_rank, layer_shapes, write_scheme
from tests.engine_runs import RankGroups, jobs_of, on_ranks, run_jobs, run_requests
from tests.oracle import Picture, Request

CPU = torch.device("cpu")
REQUESTS = [
    Request("a red circle on a blue background", seeds=(0, 1), steps=3),
    Request("a fox in the snow", guidance=2.0, negative_prompt="rain", width=64, seeds=(2,), steps=2),
]
COMBINATIONS = [
    (DIT_LAYERWISE,),
    (TEXT_ENCODER,),
    (VAE,),
    (DIT,),
    (DIT, TEXT_ENCODER, VAE),
    (DIT_LAYERWISE, TEXT_ENCODER, VAE),
]


def assert_same(pictures: list[Picture], expected: list[Picture]) -> None:
    for picture, reference in zip(pictures, expected, strict=True):
        assert torch.equal(picture.latents, reference.latents)
        assert (picture.image == reference.image).all()


@pytest.fixture(scope="module")
def of_weights_that_stay(turbo: Path, rank_groups: RankGroups) -> Callable[..., list[Picture]]:
    """`of_weights_that_stay(**options)`: the pictures of the requests without offloading, made once."""
    made: dict[Any, list[Picture]] = {}

    def get(**options: Any) -> list[Picture]:
        key = repr(sorted(options.items()))
        if key not in made:
            made[key] = rank_groups.run_requests(turbo, REQUESTS, **options)
        return made[key]

    return get


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("offload", COMBINATIONS)
def test_offloading_changes_no_bit(
    turbo: Path, of_weights_that_stay: Callable[..., list[Picture]], offload: tuple[str, ...], tp: int
) -> None:
    pictures = run_requests(turbo, REQUESTS, tp=tp, joins=[0, 0, 1], offload=offload)
    assert_same(pictures, of_weights_that_stay(tp=tp, joins=[0, 0, 1]))


@pytest.mark.parametrize("prefetch", [0, 1, 2, 3])
def test_any_number_of_blocks_may_be_copied_ahead(
    turbo: Path, of_weights_that_stay: Callable[..., list[Picture]], prefetch: int
) -> None:
    pictures = run_requests(turbo, REQUESTS, offload=(DIT_LAYERWISE, TEXT_ENCODER), prefetch=prefetch)
    assert_same(pictures, of_weights_that_stay())


@pytest.mark.parametrize("quantization", ["fp8", "int8"])
@pytest.mark.parametrize("offload", [(DIT_LAYERWISE,), (DIT,)])
def test_8_bit_matrices_travel_with_their_scales(
    turbo: Path, of_weights_that_stay: Callable[..., list[Picture]], offload: tuple[str, ...], quantization: str
) -> None:
    pictures = run_requests(turbo, REQUESTS, quantization=quantization, offload=offload)
    assert_same(pictures, of_weights_that_stay(quantization=quantization))


def test_bfloat16_is_the_same_too(turbo: Path, of_weights_that_stay: Callable[..., list[Picture]]) -> None:
    pictures = run_requests(turbo, REQUESTS, dtype="bfloat16", offload=(DIT_LAYERWISE, TEXT_ENCODER, VAE))
    assert_same(pictures, of_weights_that_stay(dtype="bfloat16"))


@pytest.mark.parametrize("offload", [(DIT_LAYERWISE,), (DIT,)])
def test_adapters_stay_beside_layers_that_come_and_go(
    turbo: Path, rank_groups: RankGroups, tmp_path: Path, offload: tuple[str, ...]
) -> None:
    file = write_scheme(tmp_path / "lora.safetensors", turbo, draw_low_rank(layer_shapes(turbo)))
    jobs = [replace(job, loras=((7, 0.8),) if job.job_id else ()) for job in jobs_of(turbo, REQUESTS)]
    adapters = [Adapter(7, str(file))]
    expected = rank_groups.run_jobs(turbo, jobs, adapters=adapters)
    assert_same(run_jobs(turbo, jobs, adapters=adapters, offload=offload), expected)


def make_rank(folder: str = "demo", **options: Any) -> Rank:
    return Rank(EngineConfig(model=folder, **options), Mesh(), CPU)


def draw(rank: Rank, steps: int = 2) -> None:
    """One image, from its prompt to its pixels."""
    job = Job(0, tuple(range(34 + 20)), None, 64, 64, steps, 0.0, None, 0)
    for number in range(steps):
        rank.execute(Step(number, start=() if number else (job,), denoise=(0,))).wait()
    rank.execute(Step(steps, decode=(0,))).wait()
    rank.close()


@pytest.fixture(scope="module")
def whole() -> int:
    """Bytes of the demo's weights on the device, where all stay."""
    return make_rank().memory()["weights"]


@pytest.mark.parametrize("offload", COMBINATIONS)
@pytest.mark.parametrize("prefetch", [0, 1])
def test_no_more_is_on_the_device_than_the_plan_says(offload: tuple[str, ...], prefetch: int, whole: int) -> None:
    rank = make_rank(offload=offload, prefetch=prefetch)
    draw(rank)
    memory = rank.memory()
    assert memory["peak_weights"] == rank.offload.ledger.peak <= rank.plan.weights
    assert rank.plan.weights <= 1.02 * memory["peak_weights"] or {DIT, VAE} & set(offload)
    assert memory["host_weights"] <= rank.plan.host <= 1.02 * memory["host_weights"]
    if DIT_LAYERWISE in offload:
        assert memory["peak_weights"] < 0.75 * whole
    if {DIT_LAYERWISE, TEXT_ENCODER} <= set(offload):
        assert memory["peak_weights"] < 0.65 * whole


def test_the_ledger_counts_what_parameters_really_lie_in() -> None:
    """Seen from the parameters: the memory that they lie in, but for what is in the parcels' host buffers."""
    rank = make_rank(offload=(DIT_LAYERWISE,), prefetch=1)
    seen = []
    visit = rank.transformer.visit

    def watched(blocks: Any) -> Any:
        for block in visit(blocks):
            seen.append(device_bytes(rank))
            yield block

    rank.transformer.visit = watched
    draw(rank)
    ledger = rank.offload.ledger
    stream = rank.offload.streams["transformer"]
    unused = sum(slot.numel() for slot in stream._slots) // len(stream._slots)  # the slot that is being filled
    assert len(seen) == 2 * rank.config.transformer.num_layers
    assert {size + unused for size in seen} == {ledger.peak}


def device_bytes(rank: Rank) -> int:
    stream = rank.offload.streams["transformer"]
    host = {parcel.host.untyped_storage().data_ptr() for parcel in stream._parcels.values()}
    storages = {
        storage.data_ptr(): storage.nbytes()
        for module in (rank.text_encoder, rank.transformer, rank.vae)
        if module is not None
        for parameter in module.parameters()
        if (storage := parameter.untyped_storage()).data_ptr() not in host
    }
    return sum(storages.values())


def test_the_dit_is_there_while_images_are_made_and_the_decoder_while_one_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rank = make_rank(offload=(DIT, TEXT_ENCODER, VAE), prefetch=0)
    assert rank.vae is not None
    ledger = rank.offload.ledger
    idle = ledger.resident_of("transformer"), ledger.resident_of("vae")
    during: dict[str, tuple[int, int]] = {}
    encode, decode = rank.text_encoder.forward, rank.vae.decode_pixels

    def watch_encoding(*arguments: Any) -> torch.Tensor:
        during["encoding"] = ledger.resident_of("text_encoder"), ledger.resident_of("transformer")
        return encode(*arguments)

    def watch_decoding(*arguments: Any, **named: Any) -> torch.Tensor:
        during["decoding"] = ledger.resident_of("vae"), ledger.resident_of("transformer")
        return decode(*arguments, **named)

    monkeypatch.setattr(rank.text_encoder, "forward", watch_encoding)
    monkeypatch.setattr(rank.vae, "decode_pixels", watch_decoding)
    whole = {name: sum(p.numel() * p.element_size() for p in module.parameters())
             for name, module in (("text", rank.text_encoder), ("dit", rank.transformer))}  # fmt: skip
    draw(rank)
    assert during["encoding"][0] < 0.5 * whole["text"]  # never as a whole
    assert during["encoding"][1] >= whole["dit"] > 20 * idle[0]
    assert during["decoding"][0] > 20 * idle[1]
    assert (ledger.resident_of("transformer"), ledger.resident_of("vae")) == idle


def test_a_component_that_has_no_room_is_not_there_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    rank = make_rank(offload=(DIT,))
    assert rank.offload.dit is not None
    ledger, absent = rank.offload.ledger, rank.offload.dit.absent
    idle, allocate, sizes = ledger.resident, ledger.allocate, list[int]()

    def refuse_the_second(component: str, size: int) -> torch.Tensor:
        sizes.append(size)
        if len(sizes) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return allocate(component, size)

    monkeypatch.setattr(ledger, "allocate", refuse_the_second)
    with pytest.raises(torch.OutOfMemoryError):
        rank.offload.dit.bring()
    assert (ledger.resident, rank.offload.dit.absent) == (idle, absent)
    rank.offload.dit.bring()
    assert (ledger.resident, rank.offload.dit.absent) == (idle + absent, 0)


def test_what_is_free_leaves_room_for_what_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.rank.rank.free_bytes", lambda device: 10**12)
    assert make_rank().memory()["free"] == 10**12
    rank = make_rank(offload=(DIT, VAE))
    ledger = rank.offload.ledger
    idle = ledger.resident
    rank.execute(Step(0, start=(Job(0, tuple(range(34 + 20)), None, 64, 64, 2, 0.0, None, 0),), denoise=(0,))).wait()
    dit = ledger.resident - idle
    vae = 10**12 - rank.memory()["free"]
    assert 0 < vae < dit
    rank.execute(Step(1, release=(0,))).wait()
    assert rank.memory()["free"] == 10**12 - dit - vae
    rank.close()


def test_prompts_are_encoded_beside_steps_unless_memory_is_to_be_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then both would take memory at once; and a stream of its own does not wait for weights that come in that of the
    steps."""
    made = []
    monkeypatch.setattr(torch.cuda, "Stream", made.append)
    rank = make_rank()
    cuda = torch.device("cuda")
    PromptFeatures(rank.text_encoder, rank.transformer, rank._adapters, cuda, beside=False)
    assert made == []
    PromptFeatures(rank.text_encoder, rank.transformer, rank._adapters, cuda, beside=True)
    assert made == [cuda]
    for options, beside in (({}, True), ({"offload": (TEXT_ENCODER,)}, False), ({"memory_budget": 10**9}, False)):
        asked = []

        def make(*arguments: Any, beside: bool, asked: list[bool] = asked) -> SimpleNamespace:
            asked.append(beside)
            return SimpleNamespace(beside_steps=False)

        monkeypatch.setattr("engine.rank.rank.PromptFeatures", make)
        make_rank(**options).close()
        assert asked == [beside]


# ---- copies beside work


def run_slowly(monkeypatch: pytest.MonkeyPatch, prefetch: int) -> list[Span]:
    """The timeline of two steps in which every block computes until the copies ahead of it have begun: for ever, if
    they wait for it."""
    forward, copy_bytes = SwiGLU.forward, copying.copy_bytes
    computed = itertools.count(1)
    copies, another = 0, threading.Condition()

    def count(target: torch.Tensor, source: torch.Tensor) -> None:
        nonlocal copies
        with another:
            copies += 1
            another.notify()
        copy_bytes(target, source)

    def slow(module: SwiGLU, x: Any) -> torch.Tensor:
        if module not in of_blocks:  # but the text encoder's or text fusion's
            return forward(module, x)
        due = next(computed) + prefetch
        with another:
            assert another.wait_for(lambda: copies >= due, timeout=60), f"{copies} copies have begun, not {due}"
        return forward(module, x)

    monkeypatch.setattr(copying, "copy_bytes", count)
    rank = make_rank(offload=(DIT_LAYERWISE,), prefetch=prefetch)
    of_blocks = {block.ff for block in rank.transformer.transformer_blocks}
    monkeypatch.setattr(SwiGLU, "forward", slow)
    stream = rank.offload.streams["transformer"]
    stream.timeline = []
    draw(rank)
    return stream.timeline


@pytest.mark.parametrize("prefetch", [1, 2])
def test_the_next_blocks_are_copied_while_one_computes(monkeypatch: pytest.MonkeyPatch, prefetch: int) -> None:
    timeline = run_slowly(monkeypatch, prefetch)
    computes = [span for span in timeline if span.what == "compute"]
    copies = [span for span in timeline if span.what == "copy"]
    assert [span.block for span in computes] == [span.block for span in copies] == [*range(6), *range(6)]
    for index, compute in enumerate(computes):
        assert seconds_between(copies[index].ended, compute.began) >= 0  # not before it is there
        for ahead in copies[index + 1 : index + 1 + prefetch]:  # from block 5 on to block 0 of the next step
            assert seconds_between(ahead.began, compute.ended) > 0
        for later in copies[index + 1 + prefetch :]:
            assert seconds_between(compute.ended, later.began) >= 0  # its place is taken until then


def test_without_prefetch_nothing_is_copied_while_a_block_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    timeline = run_slowly(monkeypatch, 0)
    for earlier, later in pairwise(timeline):
        assert seconds_between(earlier.ended, later.began) >= 0


def test_blocks_that_stay_are_not_copied_and_those_that_do_not_are_spread(turbo: Path) -> None:
    rank = make_rank()
    rank.close()
    sizes = rank.plan
    budget = int((sizes.needed - sizes.weights / 6) // 1)
    planned = make_rank(memory_budget=budget, offload=(DIT_LAYERWISE,), vae_memory=10**9)
    stream = planned.offload.streams["transformer"]
    assert tuple(stream._parcels) == planned.plan.streamed
    assert 0 < len(planned.plan.streamed) < planned.plan.blocks
    draw(planned)
    assert planned.memory()["peak_weights"] <= planned.plan.weights <= budget


def test_a_copy_that_fails_fails_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    rank = make_rank(offload=(DIT_LAYERWISE,))
    whole = copying.copy_bytes
    left = [2]

    def fail(target: torch.Tensor, source: torch.Tensor) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("the bus is gone")
        whole(target, source)

    monkeypatch.setattr(copying, "copy_bytes", fail)
    with pytest.raises(RuntimeError, match="the bus is gone"):
        draw(rank)


@pytest.mark.gpu
def test_on_a_gpu_latents_are_the_same_and_copies_begin_while_blocks_compute() -> None:
    device = torch.device("cuda", 0)
    job = Job(0, tuple(range(34 + 20)), None, 512, 512, 2, 0.0, None, 0)
    latents, timeline = [], []
    for offload in ((), (DIT_LAYERWISE, TEXT_ENCODER, VAE), (DIT, TEXT_ENCODER, VAE)):
        rank = Rank(EngineConfig(device="cuda", offload=offload), Mesh(), device)
        if DIT_LAYERWISE in offload:
            rank.offload.streams["transformer"].timeline = timeline
        rank.execute(Step(0, start=(job,), denoise=(0,))).wait()
        rank.execute(Step(1, denoise=(0,))).wait()
        latents.append(rank.latents(0).clone())
        rank.execute(Step(2, decode=(0,))).wait()
        rank.close()
        assert rank.memory()["peak_weights"] <= rank.plan.weights
    torch.cuda.synchronize(device)
    assert torch.equal(latents[0], latents[1])
    assert torch.equal(latents[0], latents[2])
    computes = [span for span in timeline if span.what == "compute"]
    copies = [span for span in timeline if span.what == "copy"]
    for compute, following in zip(computes, copies[1:], strict=False):
        assert seconds_between(following.began, compute.ended) > 0


# ---- budgets


def test_a_rank_keeps_within_its_budget_and_tells_what_is_left_of_it() -> None:
    plain = make_rank()
    for part in (1.2, 0.97, 0.93):
        rank = make_rank(memory_budget=int(plain.plan.needed * part))
        draw(rank)
        memory, plan = rank.memory(), rank.plan
        assert plan.usable is not None
        assert plan.budget is not None
        assert memory["peak_weights"] <= plan.weights
        assert memory["free"] == plan.usable - plan.weights >= plan.work
        assert memory["decode_limit"] == plan.decode_limit
        assert plan.needed <= plan.budget


def test_torch_may_allocate_what_is_counted_and_a_part_of_what_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    rank = make_rank()
    plan = replace(rank.plan, budget=16 * 10**9)
    rank.close()
    limits = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=20 * 10**9))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *limit: limits.append(limit))
    limit_allocations(plan, CPU)
    limit_allocations(replace(plan, budget=None), torch.device("cuda", 1))
    assert limits == []
    limit_allocations(plan, torch.device("cuda", 1))
    limit_allocations(replace(plan, budget=25 * 10**9), torch.device("cuda", 1))
    assert limits == [(15.5 / 20, torch.device("cuda", 1)), (1.0, torch.device("cuda", 1))]
    assert plan.usable == 15 * 10**9


def test_ranks_on_one_device_share_its_budget(turbo: Path) -> None:
    def plan_of(rank: Rank) -> tuple[int | None, int]:
        return rank.plan.budget, rank.memory()["peak_weights"]

    plans = on_ranks(turbo, plan_of, tp=2, memory_budget=200_000_000)
    assert [budget for budget, _ in plans] == [100_000_000] * 2


def test_ranks_on_other_machines_take_no_part_of_a_budget(turbo: Path) -> None:
    config = EngineConfig(model=str(turbo), sp=2, memory_budget=200_000_000)
    meshes = thread_meshes(config.degrees)
    budgets = [Rank(config, meshes[0], CPU, local_ranks=local_ranks).plan.budget for local_ranks in (1, 2)]
    assert budgets == [200_000_000, 100_000_000]


@pytest.mark.parametrize(("device", "sharing", "reserved"), [("cuda", 1, True), ("cuda", 2, False), ("cpu", 1, False)])
def test_only_ranks_that_talk_over_nccl_keep_room_for_it(
    turbo: Path, monkeypatch: pytest.MonkeyPatch, device: str, sharing: int, reserved: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    config = EngineConfig(model=str(turbo), sp=2)
    weights = CheckpointFiles.open(config)
    plan = plan_for(config, weights, 1, sharing, torch.device(device), torch.bfloat16)
    assert plan.communication == (communication_bytes(config.degrees) if reserved else 0)


def test_requests_in_a_tight_budget_give_the_same_latents(
    turbo: Path, of_weights_that_stay: Callable[..., list[Picture]]
) -> None:
    needed = Rank(EngineConfig(model=str(turbo)), Mesh(), CPU).plan
    pictures = run_requests(turbo, REQUESTS, memory_budget=needed.needed - needed.weights // 3)
    assert len(pictures) == 3
    assert_same(pictures, of_weights_that_stay())


def test_a_stream_gives_every_block_its_own_weights_pass_after_pass() -> None:
    parameters = [torch.nn.Parameter(torch.full((4, 4), float(index)), requires_grad=False) for index in range(5)]
    travelling = {index: residency.Parcel([parameters[index]], HostMemory(CPU)) for index in (1, 2, 4)}
    copier = copying.make_copier(CPU)
    stream = BlockStream("transformer", travelling, 1, WeightLedger(CPU), copier)
    for _ in range(3):
        assert [float(parameter.sum()) for parameter in stream.visit(parameters)] == [0.0, 16.0, 32.0, 48.0, 64.0]
    copier.close()
