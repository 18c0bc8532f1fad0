"""What is on the device while weights are in host memory: no more than the plan says, within a budget."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine.checkpoint.checkpoint_files import CheckpointFiles
from engine.config.engine_config import DIT, DIT_LAYERWISE, TEXT_ENCODER, VAE, EngineConfig
from engine.offload.offload import limit_allocations, plan_for
from engine.planning.step_memory import communication_bytes
from engine.rank.prompt_encoder import PromptEncoder
from engine.rank.rank import Rank
from engine.step import Job, Step
from tests.engine.offload.demo_rank import COMBINATIONS, CPU, draw, make_rank
from tests.engine.parallel.thread_group import thread_meshes
from tests.engine_runs import on_ranks


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
    assert memory["peak_weights"] == rank.model.offload.ledger.peak <= rank.model.offload.plan.weights
    assert rank.model.offload.plan.weights <= 1.02 * memory["peak_weights"] or {DIT, VAE} & set(offload)
    assert memory["host_weights"] <= rank.model.offload.plan.host <= 1.02 * memory["host_weights"]
    if DIT_LAYERWISE in offload:
        assert memory["peak_weights"] < 0.75 * whole
    if {DIT_LAYERWISE, TEXT_ENCODER} <= set(offload):
        assert memory["peak_weights"] < 0.65 * whole


def test_the_ledger_counts_what_parameters_really_lie_in() -> None:
    """Seen from the parameters: the memory that they lie in, but for what is in the buckets' host buffers."""
    rank = make_rank(offload=(DIT_LAYERWISE,), prefetch=1)
    seen = []
    visit = rank.model.transformer.visit

    def watched(blocks: Any, *part: Any) -> Any:
        for block in visit(blocks, *part):
            seen.append(device_bytes(rank))
            yield block

    rank.model.transformer.visit = watched
    draw(rank)
    ledger = rank.model.offload.ledger
    stream = rank.model.offload.streams["transformer"]
    unused = sum(slot.numel() for slot in stream._slots) // len(stream._slots)  # the slot that is being filled
    assert len(seen) == 2 * rank.model.config.transformer.num_layers
    assert {size + unused for size in seen} == {ledger.peak}


def device_bytes(rank: Rank) -> int:
    stream = rank.model.offload.streams["transformer"]
    host = {bucket.host.untyped_storage().data_ptr() for bucket in stream._buckets.values()}
    storages = {
        storage.data_ptr(): storage.nbytes()
        for module in (rank.model.text_encoder, rank.model.transformer, rank.model.vae, rank.model.vae_encoder)
        if module is not None
        for parameter in module.parameters()
        if (storage := parameter.untyped_storage()).data_ptr() not in host
    }
    return sum(storages.values())


def test_the_dit_is_there_while_images_are_made_and_the_decoder_while_one_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rank = make_rank(offload=(DIT, TEXT_ENCODER, VAE), prefetch=0)
    model, offload = rank.model, rank.model.offload
    assert model.vae is not None
    idle, dit, vae = offload.ledger.resident, offload.dit.absent, offload.vae.absent
    during: dict[str, int] = {}
    encode, decode = model.text_encoder.forward, model.vae.decode_pixels

    def watch_encoding(*arguments: Any) -> torch.Tensor:
        during["encoding"] = offload.ledger.resident - idle
        return encode(*arguments)

    def watch_decoding(*arguments: Any, **named: Any) -> torch.Tensor:
        during["decoding"] = offload.ledger.resident - idle
        return decode(*arguments, **named)

    monkeypatch.setattr(model.text_encoder, "forward", watch_encoding)
    monkeypatch.setattr(model.vae, "decode_pixels", watch_decoding)
    modules = {"text": model.text_encoder, "dit": model.transformer, "vae": model.vae}
    whole = {name: sum(p.numel() * p.element_size() for p in module.parameters()) for name, module in modules.items()}
    assert idle < 0.5 * whole["text"] + 0.05 * (whole["dit"] + whole["vae"])  # never the text encoder as a whole
    assert dit > 0.95 * whole["dit"]
    assert vae > 0.95 * whole["vae"]
    draw(rank)
    assert during["encoding"] == dit
    assert during["decoding"] in (vae, vae + dit)  # which goes when its last job has gone
    assert offload.ledger.resident == idle


def test_the_encoder_is_there_while_a_picture_is_encoded_and_gives_the_same() -> None:
    pixels = torch.rand(1, 3, 32, 48) * 2 - 1
    latents = []
    for offload in ((), (VAE,)):
        model = make_rank(offload=offload).model
        assert model.vae_encoder is not None
        ledger, absent = model.offload.ledger, model.offload.vae_encoder.absent
        whole = sum(parameter.nbytes for parameter in model.vae_encoder.parameters())
        assert absent > 0.95 * whole if offload else absent == 0
        idle = ledger.resident
        with model.offload.vae_encoder, torch.inference_mode():
            latents.append(model.vae_encoder(pixels))
            assert ledger.resident == idle + absent
            assert model.offload.vae_encoder.absent == 0
        assert ledger.resident == idle
        assert ledger.peak <= model.offload.plan.weights
        assert absent + model.offload.vae.absent <= model.offload.plan.host
        model.offload.close()
    assert torch.equal(*latents)


def test_a_component_that_has_no_room_is_not_there_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    rank = make_rank(offload=(DIT,))
    ledger, absent = rank.model.offload.ledger, rank.model.offload.dit.absent
    idle, allocate, sizes = ledger.resident, ledger.allocate, list[int]()

    def refuse_the_second(size: int) -> torch.Tensor:
        sizes.append(size)
        if len(sizes) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return allocate(size)

    monkeypatch.setattr(ledger, "allocate", refuse_the_second)
    with pytest.raises(torch.OutOfMemoryError):
        rank.model.offload.dit.bring()
    assert (ledger.resident, rank.model.offload.dit.absent) == (idle, absent)
    rank.model.offload.dit.bring()
    assert (ledger.resident, rank.model.offload.dit.absent) == (idle + absent, 0)


def test_what_is_free_leaves_room_for_what_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.offload.offload.free_bytes", lambda device: 10**12)
    assert make_rank().memory()["free"] == 10**12
    rank = make_rank(offload=(DIT, VAE))
    ledger = rank.model.offload.ledger
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
    rank.model.device = cuda = torch.device("cuda")
    PromptEncoder(rank.model, rank.adapters, beside=False)
    assert made == []
    PromptEncoder(rank.model, rank.adapters, beside=True)
    assert made == [cuda]
    for options, beside in (({}, True), ({"offload": (TEXT_ENCODER,)}, False), ({"memory_budget": 10**9}, False)):
        asked = []

        def make(*arguments: Any, beside: bool, asked: list[bool] = asked) -> SimpleNamespace:
            asked.append(beside)
            return SimpleNamespace(beside_steps=False)

        monkeypatch.setattr("engine.rank.rank.PromptEncoder", make)
        make_rank(**options).close()
        assert asked == [beside]


# ---- budgets


def test_a_rank_keeps_within_its_budget_and_tells_what_is_left_of_it() -> None:
    plain = make_rank()
    for part in (1.2, 0.97, 0.93):
        rank = make_rank(memory_budget=int(plain.model.offload.plan.needed * part))
        draw(rank)
        memory, plan = rank.memory(), rank.model.offload.plan
        assert plan.usable is not None
        assert plan.budget is not None
        assert memory["peak_weights"] <= plan.weights
        assert memory["free"] == plan.usable - plan.weights >= plan.work
        assert memory["decode_limit"] == plan.decode_limit
        assert plan.needed <= plan.budget


def test_torch_may_allocate_what_is_counted_and_a_part_of_what_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    rank = make_rank()
    plan = replace(rank.model.offload.plan, budget=16 * 10**9)
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
        return rank.model.offload.plan.budget, rank.memory()["peak_weights"]

    plans = on_ranks(turbo, plan_of, tp=2, memory_budget=300_000_000)
    assert [budget for budget, _ in plans] == [150_000_000] * 2


def test_ranks_on_other_machines_take_no_part_of_a_budget(turbo: Path) -> None:
    config = EngineConfig(model=str(turbo), sp=2, memory_budget=300_000_000)
    for local_ranks, budget in ((1, 300_000_000), (2, 150_000_000)):
        make = partial(Rank, config, device=CPU, local_ranks=local_ranks)
        with ThreadPoolExecutor(2) as threads:  # before they load, they look together whether there is room
            ranks = [*threads.map(make, thread_meshes(config.degrees))]
        assert [rank.model.offload.plan.budget for rank in ranks] == [budget, budget]


@pytest.mark.parametrize(("device", "sharing", "reserved"), [("cuda", 1, True), ("cuda", 2, False), ("cpu", 1, False)])
def test_only_ranks_that_talk_over_nccl_keep_room_for_it(
    turbo: Path, monkeypatch: pytest.MonkeyPatch, device: str, sharing: int, reserved: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    config = EngineConfig(model=str(turbo), sp=2)
    weights = CheckpointFiles.open(config)
    plan = plan_for(config, weights, sharing, torch.device(device), torch.bfloat16)
    assert plan.communication == (communication_bytes(config.degrees) if reserved else 0)
