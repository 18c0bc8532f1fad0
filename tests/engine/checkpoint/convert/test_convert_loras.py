"""LoRAs that `krea2 convert` adds to the weights: what is drawn with them, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from engine.checkpoint.checkpoint_files import CheckpointFiles
from engine.checkpoint.convert import writers
from engine.checkpoint.convert.convert import convert, quantization_of
from engine.checkpoint.files.open import open_tensor_file
from engine.checkpoint.files.stored import whole
from engine.checkpoint.merged_loras import MERGED_LORAS, merged_loras_entry, read_merged_loras
from engine.config.engine_config import EngineConfig
from engine.errors import ArgumentError, LoraError
from engine.lora.merge import merged
from engine.step import Adapter
from tests.engine.lora.adapter_files import add_vectors, draw_low_rank, layer_shapes, write, write_scheme
from tests.engine.lora.random_changes import write_random
from tests.engine_runs import jobs_of, run_jobs, run_requests
from tests.oracle import Request, expected_latents, load_pipeline, relative_error

REQUEST = Request("a red circle on a blue background", width=64, height=64, steps=2)
LORAS = ((0.25, 0), (-0.4, 1))  # strengths, and numbers of `files`
BLOCK, TABLE = "transformer_blocks.0.attn.to_q.weight", "final_layer.scale_shift_table"


@pytest.fixture(scope="module")
def files(turbo: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One that changes every norm and table, and each matrix in a way of its own, q, k and v as one, and a LoRA."""
    folder = tmp_path_factory.mktemp("loras")
    write_random(turbo, folder / "all.safetensors", 3, fused=True)
    return [
        add_vectors(folder / "all.safetensors", turbo),
        write_scheme(folder / "lora.safetensors", turbo, draw_low_rank(layer_shapes(turbo))),
    ]


@contextmanager
def opened(
    model: Path, loras: tuple[tuple[str, float], ...], quantization: str, **parts: str
) -> Iterator[CheckpointFiles]:
    engine = EngineConfig(model=str(model), merge_loras=loras, quantization=quantization, **parts)
    with closing(CheckpointFiles.open(engine)) as checkpoint, merged(checkpoint, engine) as result:
        yield result


@pytest.fixture(scope="module")
def written(turbo: Path, files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`written(layout, weights)`: the checkpoint in that form, with LORAS in it, written once."""

    @cache
    def get(
        layout: str,
        weights: str,
        *,
        model: Path = turbo,
        loras: tuple[tuple[float, int], ...] = LORAS,
        tp: int = 1,
        **parts: str,
    ) -> Path:
        output = tmp_path_factory.mktemp("written") / "model"
        merging = tuple((str(files[index]), strength) for strength, index in loras)
        said = [{"name": files[index].stem, "strength": strength} for strength, index in loras]
        with opened(model, merging, quantization_of(layout, weights), **parts) as checkpoint:
            convert(checkpoint, output, layout=layout, weights=weights, tp=tp, merged=said)
        return output

    return get


@pytest.fixture(scope="module")
def beside(turbo: Path, files: list[Path]) -> torch.Tensor:
    """The latents of adapters beside the weights."""
    adapters = [Adapter(index, str(file)) for index, file in enumerate(files)]
    jobs = [
        replace(job, loras=tuple((index, strength) for strength, index in LORAS)) for job in jobs_of(turbo, [REQUEST])
    ]
    (picture,) = run_jobs(turbo, jobs, adapters=adapters)
    return picture.latents


@pytest.mark.parametrize(
    ("layout", "weights", "tp"),
    [("native", "float32", 1), ("gguf", "f32", 1), ("sharded", "float32", 2)],
)
def test_what_was_written_draws_what_the_loras_do_beside_the_weights(
    turbo: Path, written: Callable[..., Path], beside: torch.Tensor, layout: str, weights: str, tp: int
) -> None:
    output = written(layout, weights, tp=tp)
    folder, parts = (output, {}) if output.is_dir() else (turbo, {"transformer": str(output)})
    (picture,) = run_requests(folder, [REQUEST], tp=tp, **parts)
    assert relative_error(picture.latents, beside) <= 2e-5


@pytest.mark.slow  # the test above and test_schemes.py, which compares what is drawn beside the weights, guard it
def test_what_was_written_is_what_diffusers_fuses(turbo: Path, files: list[Path], written: Callable[..., Path]) -> None:
    folder = written("diffusers", "float32", loras=((0.7, 1),))
    pipeline = load_pipeline(turbo)
    pipeline.load_lora_weights(files[1].parent, weight_name=files[1].name)
    pipeline.fuse_lora(lora_scale=0.7)
    try:
        (expected,) = expected_latents(turbo, REQUEST)
    finally:
        pipeline.unfuse_lora()
        pipeline.unload_lora_weights()
    plain, fused = (run_requests(model, [REQUEST])[0].latents for model in (turbo, folder))
    assert relative_error(fused, expected) <= 1e-4
    assert relative_error(plain, expected) > 0.1


def test_the_sum_is_rounded_once(turbo: Path, written: Callable[..., Path], tmp_path: Path) -> None:
    """In the dtype of the checkpoint's own, or in what is asked for."""
    base = tmp_path / "bfloat16"
    with closing(CheckpointFiles.open(EngineConfig(model=str(turbo)))) as checkpoint:
        convert(checkpoint, base, layout="diffusers", weights="bfloat16")
    exact = load_file(written("diffusers", "float32", model=base) / "transformer/diffusion_pytorch_model.safetensors")
    kept = load_file(written("diffusers", "keep", model=base) / "transformer/diffusion_pytorch_model.safetensors")
    assert kept.keys() == exact.keys()
    for name, tensor in kept.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, exact[name].bfloat16()), name
    fp8 = load_file(written("native", "fp8"))
    layer = "blocks.0.attn.wq"
    values = load_file(written("native", "float32"))[f"{layer}.weight"]
    rounded = fp8[f"{layer}.weight"].float() * fp8[f"{layer}.weight_scale"]
    assert fp8[f"{layer}.weight"].dtype == torch.float8_e4m3fn
    assert float((rounded - values).abs().max()) <= float(values.abs().max()) / 28  # half of the widest step


@pytest.mark.parametrize(
    ("stored", "layout", "weights"),
    [
        (("native", "fp8"), "native", "fp8"),
        (("native", "fp8"), "sharded", "keep"),
        (("gguf", "q8_0"), "gguf", "q8_0"),
        pytest.param(("native", "nvfp4"), "native", "nvfp4", marks=pytest.mark.slow),
        pytest.param(("gguf", "q4_0"), "sharded", "int8", marks=pytest.mark.slow),
    ],
)
def test_what_was_rounded_is_not_rounded_once_more(
    turbo: Path,
    written: Callable[..., Path],
    tmp_path: Path,
    stored: tuple[str, str],
    layout: str,
    weights: str,
) -> None:
    file = tmp_path / "rounded"
    with closing(CheckpointFiles.open(EngineConfig(model=str(turbo)))) as checkpoint:
        convert(checkpoint, file, layout=stored[0], weights=stored[1])
    with pytest.raises(
        ArgumentError, match=r"merge_loras would have to round .*, which the checkpoint has as .*, once m"
    ):
        written(layout, weights, transformer=str(file))


def test_tables_are_floats_in_every_file_so_that_what_loras_add_to_them_is_not_rounded_away(
    turbo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writers, "_SMALL", 16)  # at the real size a table is larger than what stays float32 as small
    native, stored, output = tmp_path / "native.safetensors", tmp_path / "stored.gguf", tmp_path / "merged.gguf"
    with closing(CheckpointFiles.open(EngineConfig(model=str(turbo)))) as checkpoint:
        convert(checkpoint, native, layout="native", weights="float32")
    tensors = load_file(native)
    writers.write_gguf(stored, {name: tuple(each.shape) for name, each in tensors.items()}, "Q8_0", tensors.__getitem__)
    difference = torch.randn(tensors["last.modulation.lin"].shape) / 1000
    lora = write(tmp_path / "table.safetensors", {"last.modulation.lin.diff": difference})
    with opened(turbo, ((str(lora), 1.0),), quantization_of("gguf", "q8_0"), transformer=str(stored)) as checkpoint:
        table = checkpoint.components["transformer"].tensors[TABLE]
        assert table.format == "Q8_0"
        expected = table.read(whole(table.shape))
        convert(checkpoint, output, layout="gguf", weights="q8_0")
    with closing(CheckpointFiles.open(EngineConfig(model=str(turbo), transformer=str(output)))) as checkpoint:
        tensors = checkpoint.components["transformer"].tensors
        assert torch.equal(tensors[TABLE].read(whole(table.shape)), expected)
        assert tensors[BLOCK].format == "Q8_0"


def test_what_was_rounded_is_made_floats_of_that_loras_are_added_to(
    turbo: Path, written: Callable[..., Path], tmp_path: Path, files: list[Path]
) -> None:
    file = tmp_path / "rounded.safetensors"
    with closing(CheckpointFiles.open(EngineConfig(model=str(turbo)))) as checkpoint:
        convert(checkpoint, file, layout="native", weights="fp8")
    loras = tuple((str(files[index]), strength) for strength, index in LORAS)
    with opened(turbo, loras, "none", transformer=str(file)) as checkpoint:
        expected = checkpoint.components["transformer"].tensors[BLOCK].read((slice(0, 128), slice(0, 128)))
    output = load_file(written("native", "keep", transformer=str(file)))
    assert torch.equal(output["blocks.0.attn.wq.weight"], expected.bfloat16())


@pytest.mark.parametrize(("layout", "weights"), [("native", "float32"), ("gguf", "f32"), ("sharded", "keep")])
def test_the_file_says_what_was_merged_into_it_and_so_does_one_made_of_it(
    turbo: Path, written: Callable[..., Path], tmp_path: Path, layout: str, weights: str
) -> None:
    output = written(layout, weights)
    file = output / "tp-1/rank-0/transformer.safetensors" if layout == "sharded" else output
    said = [{"name": "all", "strength": 0.25}, {"name": "lora", "strength": -0.4}]
    with closing(open_tensor_file(file)) as tensors:
        assert read_merged_loras(tensors.metadata) == said
    if layout != "sharded":
        again = written("diffusers", "keep", loras=((1.5, 1),), transformer=str(file))
        with safe_open(again / "transformer/diffusion_pytorch_model.safetensors", "pt") as other:
            assert read_merged_loras(other.metadata()) == [*said, {"name": "lora", "strength": 1.5}]
        with safe_open(again / "vae/diffusion_pytorch_model.safetensors", "pt") as other:
            assert other.metadata() == {"format": "pt"}


def test_what_others_write_as_merged_loras_is_left_out() -> None:
    good = {"name": "ink", "strength": 0.5, "sha256": "0a" * 32}
    odd = [
        3,
        {},
        {"name": "a\nb", "strength": 1},
        {"name": "x", "strength": True},
        {"name": "x", "strength": float("inf")},
    ]
    unknown = {"name": "oil", "strength": 1, "sha256": "?"}
    text = json.dumps([*odd, good, unknown])
    assert read_merged_loras({MERGED_LORAS: text}) == [good, {"name": "oil", "strength": 1.0}]
    for nonsense in ("", "{", "{}", "[" * 10_000, "null"):
        assert read_merged_loras({MERGED_LORAS: nonsense}) == []
    assert merged_loras_entry({}, []) == {}


@pytest.mark.parametrize(("layout", "weights"), [("native", "bfloat16"), ("gguf", "q8_0"), ("sharded", "keep")])
def test_a_lora_that_overflows_is_named_and_nothing_is_left(
    turbo: Path, tmp_path: Path, layout: str, weights: str
) -> None:
    shape = layer_shapes(turbo)[BLOCK.removesuffix(".weight")]
    lora = write(tmp_path / "bold.safetensors", {BLOCK.replace("weight", "diff"): torch.full(shape, 1e38)})
    with (
        opened(turbo, ((str(lora), 9.0),), quantization_of(layout, weights)) as checkpoint,
        pytest.raises(LoraError, match=r"bold\.safetensors at strength 9 makes .*to_q\.weight overflow"),
    ):
        convert(checkpoint, tmp_path / "out", layout=layout, weights=weights)
    assert [path.name for path in tmp_path.iterdir()] == ["bold.safetensors"]
