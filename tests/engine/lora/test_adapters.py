"""Adapters of a running rank: each request has its own, whoever else is in the batch; loaded and unloaded at will."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.config.engine_config import EngineConfig
from engine.config.model_config import ModelConfig
from engine.kernels.packing import Packing
from engine.lora.adapters import DENOISING
from engine.lora.files import open_adapter
from engine.parallel.mesh import Mesh
from engine.rank.rank import Rank
from engine.step import Adapter, Job, Step
from tests.engine.lora.adapter_files import draw_low_rank, layer_shapes, write, write_scheme
from tests.engine_runs import RankGroups, jobs_of, on_ranks
from tests.oracle import Picture, Request, relative_error

BATCH_TOLERANCE = 2e-5
REQUESTS = [
    Request("a fox in the snow, oil on canvas", width=96, height=64, steps=3, guidance=2.0),
    Request("a red circle on a blue background", width=64, height=64, steps=3, seeds=(1,)),
    Request("a red circle on a blue background", width=64, height=96, steps=3, seeds=(2,)),
    Request("a fox in the snow, oil on canvas", width=64, height=64, steps=3, seeds=(3,)),
]
LORAS = [((0, 0.8),), (), ((0, -0.5), (1, 1.0)), ((1, 0.6),)]


@pytest.fixture(scope="module")
def adapters(turbo: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Adapter]:
    folder = tmp_path_factory.mktemp("loras")
    shapes = layer_shapes(turbo)
    files = [write_scheme(folder / f"{seed}.safetensors", turbo, draw_low_rank(shapes, seed=seed)) for seed in (0, 1)]
    return [Adapter(index, str(file)) for index, file in enumerate(files)]


def make_jobs(folder: Path) -> list[Job]:
    return [replace(job, loras=loras) for job, loras in zip(jobs_of(folder, REQUESTS), LORAS, strict=True)]


def make_rank(folder: Path, **engine: object) -> Rank:
    return Rank(EngineConfig(model=str(folder), device="cpu", **engine), Mesh(), torch.device("cpu"))


@pytest.mark.parametrize("tp", [1, 2])
def test_adapters_of_requests_in_one_batch_are_those_of_each_alone(
    turbo: Path, rank_groups: RankGroups, adapters: list[Adapter], tp: int
) -> None:
    jobs = make_jobs(turbo)
    together = rank_groups.run_jobs(turbo, jobs, tp=tp, adapters=adapters, joins=[0, 1, 0, 2])
    for job, picture in zip(jobs, together, strict=True):
        (alone,) = rank_groups.run_jobs(turbo, [job], tp=tp, adapters=adapters)
        assert relative_error(picture.latents, alone.latents) <= BATCH_TOLERANCE


def test_the_same_prompt_and_seed_with_other_adapters_is_another_image(
    turbo: Path, rank_groups: RankGroups, adapters: list[Adapter]
) -> None:
    """Text features and schedules are kept; neither may be another LoRA set's."""
    (job,) = jobs_of(turbo, REQUESTS[1:2])
    jobs = [replace(job, job_id=index, loras=loras) for index, loras in enumerate([(), ((0, 0.8),), ((0, 0.4),), ()])]
    pictures = rank_groups.run_jobs(turbo, jobs, adapters=adapters, joins=[0, 1, 2, 3])
    for index, later in ((0, 1), (1, 2), (0, 2)):
        assert relative_error(pictures[index].latents, pictures[later].latents) > 0.01
    assert relative_error(pictures[0].latents, pictures[3].latents) <= BATCH_TOLERANCE


def test_an_adapter_of_the_blocks_alone_shares_text_features_and_schedules(turbo: Path, tmp_path: Path) -> None:
    shapes = {layer: shape for layer, shape in layer_shapes(turbo).items() if layer.startswith("transformer_blocks.")}
    file = write_scheme(tmp_path / "lora.safetensors", turbo, draw_low_rank(shapes))
    rank = make_rank(turbo)
    (job,) = jobs_of(turbo, REQUESTS[1:2])
    first = rank.execute(Step(0, load=(Adapter(5, str(file)),), start=(job,)))
    second = rank.execute(Step(1, start=(replace(job, job_id=1, loras=((5, 1.0),)),)))
    assert first.wait().encoded_tokens > 0
    assert second.wait().encoded_tokens == 0


@pytest.mark.parametrize("tp", [1, 4])
def test_memory_is_what_the_file_says_and_is_freed(turbo: Path, adapters: list[Adapter], tp: int) -> None:
    def held(rank: Rank) -> list[int]:
        sizes = [rank.memory()["adapters"]]
        for number, step in enumerate([Step(0, load=tuple(adapters)), Step(1, unload=(0,)), Step(2, unload=(1,))]):
            assert step.number == number
            rank.execute(step).wait()
            sizes.append(rank.memory()["adapters"])
        return sizes

    size = open_adapter(adapters[0].path, ModelConfig.from_folder(turbo)).bytes_on_rank(tp, 4)
    for sizes in on_ranks(turbo, held, tp=tp):
        assert sizes == [0, 2 * size, size, 0]


def test_unloading_leaves_nothing_behind(turbo: Path, adapters: list[Adapter]) -> None:
    """Not even when another adapter comes under the same id."""
    rank = make_rank(turbo)
    (job,) = jobs_of(turbo, REQUESTS[:1])
    number = 0

    def latents(
        loras: tuple[tuple[int, float], ...], load: tuple[Adapter, ...], unload: tuple[int, ...]
    ) -> torch.Tensor:
        nonlocal number
        rank.execute(Step(number, load=load, start=(replace(job, loras=loras),), denoise=(job.job_id,))).wait()
        result = rank.jobs[job.job_id].latents.clone()
        rank.execute(Step(number + 1, release=(job.job_id,), unload=unload)).wait()
        number += 2
        return result

    plain = latents((), (), ())
    first = latents(((3, 1.0),), (replace(adapters[0], adapter_id=3),), (3,))
    second = latents(((3, 1.0),), (replace(adapters[1], adapter_id=3),), (3,))
    assert torch.equal(latents((), (), ()), plain)
    assert relative_error(first, second) > 0.01
    assert all(module.side_path is None for module in rank.model.transformer.modules() if hasattr(module, "side_path"))


def test_within_a_batch_a_narrower_one_has_its_own_rows(turbo: Path, adapters: list[Adapter]) -> None:
    rank = make_rank(turbo)
    rank.execute(Step(0, load=tuple(adapters))).wait()
    matrix = rank.model.transformer.transformer_blocks[0].ff.gate_up
    x = torch.randn(5, matrix.weight.shape[1], generator=torch.Generator().manual_seed(0))
    loras = rank.adapters.of(((0, 0.8),), DENOISING)
    with torch.inference_mode():
        plain = matrix(x)
        with rank.adapters.by_row([], [((), 3), (loras, 2)], []):
            wide = matrix(x)
            with rank.adapters.by_row([], [(loras, 2)], []):
                narrow = matrix(x[3:])
            again = matrix(x)
        after = matrix(x)
    assert torch.equal(wide[:3], plain[:3])
    assert relative_error(wide[3:], plain[3:]) > 0.01
    assert relative_error(narrow, wide[3:]) <= BATCH_TOLERANCE
    assert torch.equal(again, wide)
    assert torch.equal(after, plain)


def test_steps_with_an_adapter_are_not_replayed(turbo: Path, adapters: list[Adapter]) -> None:
    """A recording knows of no adapter."""

    class Recorded:
        replays = 0

        def holds(self, packing: Packing) -> bool:
            return True

        def denoise(self, *arguments: object) -> torch.Tensor:
            self.replays += 1
            return rank.model.transformer.denoise(*arguments)

    rank, recorded = make_rank(turbo), Recorded()
    rank.denoiser.graphs = recorded  # type: ignore[assignment]
    jobs = [
        replace(job, loras=loras) for job, loras in zip(jobs_of(turbo, REQUESTS[:2]), ((), ((0, 1.0),)), strict=True)
    ]
    rank.execute(Step(0, load=tuple(adapters), start=jobs, denoise=(0,)))
    assert recorded.replays == 1
    rank.execute(Step(1, denoise=(0, 1)))
    rank.execute(Step(2, denoise=(1,)))
    assert recorded.replays == 1


@pytest.fixture(scope="module")
def exact(turbo: Path, rank_groups: RankGroups, adapters: list[Adapter]) -> tuple[list[Picture], list[Picture]]:
    """The pictures of unquantised weights, without adapters and with them."""
    plain, with_loras = jobs_of(turbo, REQUESTS), make_jobs(turbo)
    return rank_groups.run_jobs(turbo, plain), rank_groups.run_jobs(turbo, with_loras, adapters=adapters)


@pytest.mark.parametrize("quantization", ["fp8", "int8"])
def test_quantised_weights_round_nothing_of_an_adapter(
    turbo: Path,
    rank_groups: RankGroups,
    adapters: list[Adapter],
    exact: tuple[list[Picture], list[Picture]],
    quantization: str,
) -> None:
    """An image with adapters is as far from the exact one as an image without, and the adapters change far more."""

    def errors(jobs: list[Job], exact: list[Picture]) -> list[float]:
        pictures = rank_groups.run_jobs(turbo, jobs, adapters=adapters, quantization=quantization)
        pairs = zip(pictures, exact, strict=True)
        return [relative_error(picture.latents, reference.latents) for picture, reference in pairs]

    without, with_loras = exact
    changed = errors(make_jobs(turbo), with_loras)
    assert max(changed) <= 1.5 * max(errors(jobs_of(turbo, REQUESTS), without))
    for index in (0, 2, 3):
        assert relative_error(with_loras[index].latents, without[index].latents) > 3 * changed[index]


def test_in_bfloat16_a_side_path_does_what_merged_weights_do(
    turbo: Path, rank_groups: RankGroups, adapters: list[Adapter]
) -> None:
    plain, with_loras = jobs_of(turbo, REQUESTS)[:1], make_jobs(turbo)[:1]
    (beside,) = rank_groups.run_jobs(turbo, with_loras, adapters=adapters, dtype="bfloat16")
    (merged,) = rank_groups.run_jobs(turbo, plain, merge_loras=((adapters[0].path, 0.8),), dtype="bfloat16")
    (without,) = rank_groups.run_jobs(turbo, plain, dtype="bfloat16")
    error = relative_error(beside.latents, merged.latents)
    assert error <= 0.08
    assert relative_error(without.latents, merged.latents) > 5 * error


def test_merged_weights_are_rounded_after_the_sum(turbo: Path, tmp_path: Path) -> None:
    """In bfloat16 too the change is added in float32."""
    layer = "transformer_blocks.0.ff.down"
    change = torch.randn(layer_shapes(turbo)[layer]) * 1e-3
    file = write(tmp_path / "lora.safetensors", {f"{layer}.diff": change})
    plain = make_rank(turbo).model.transformer.get_parameter(f"{layer}.weight")
    merged = make_rank(turbo, dtype="bfloat16", merge_loras=((str(file), 0.5),)).model.transformer
    assert torch.equal(merged.get_parameter(f"{layer}.weight"), (plain + 0.5 * change).bfloat16())
