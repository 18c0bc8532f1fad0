"""One checkpoint in every layout draws one picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from engine.checkpoint.checkpoint_files import CheckpointFiles
from engine.checkpoint.convert import convert
from engine.checkpoint.convert.convert import LAYOUTS, WEIGHTS, count_tensors
from engine.checkpoint.weight_format import summarize
from engine.config.engine_config import EngineConfig
from engine.config.model_config import ModelConfig
from engine.errors import ArgumentError, CheckpointError
from engine.parallel.mesh import Mesh
from engine.rank.rank import Rank
from tests.damage import copy_checkpoint, rewrite_json
from tests.engine.kernels.tolerances import relative_error
from tests.engine_runs import on_ranks, run_requests
from tests.oracle import Picture, Request

REQUEST = Request("a red circle on a blue background", steps=3)
CPU = torch.device("cpu")


# ‖latents − exact‖ / ‖exact‖ after three steps of a random model of two blocks, which float32 on any CPU tells to four
# digits; the formats' own errors are e4m3's 2.6 %, half a step of 127, of 7 with a scale for 16 or 32 columns.
ERRORS = {"fp8": 0.040, "int8-convrot": 0.0093, "mxfp8": 0.039, "nvfp4": 0.147, "q8_0": 0.0121, "q4_0": 0.184}


@pytest.fixture(scope="module")
def converted(turbo: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`converted(layout, weights, component)`: the tiny checkpoint, or another, written once a module."""
    written: dict[tuple[object, ...], Path] = {}

    def get(
        layout: str,
        weights: str = "keep",
        component: str = "transformer",
        prefix: str = "",
        tp: int = 1,
        source: Path = turbo,
        text_encoder: Path | None = None,
    ) -> Path:
        key = (layout, weights, component, prefix, tp, source, text_encoder)
        if key not in written:
            suffix = {"native": ".safetensors", "gguf": ".gguf"}.get(layout, "")
            output = tmp_path_factory.mktemp("converted") / f"model{suffix}"
            own = None if text_encoder is None else str(text_encoder)
            checkpoint = CheckpointFiles.open(EngineConfig(model=str(source), text_encoder=own))
            reports: list[None] = []
            convert.convert(
                checkpoint,
                output,
                layout=layout,
                weights=weights,
                component=component,
                prefix=prefix,
                tp=tp,
                report=lambda: reports.append(None),
            )
            assert len(reports) == count_tensors(checkpoint, layout, component, tp)
            checkpoint.close()
            written[key] = output
        return written[key]

    return get


@pytest.fixture(scope="module")
def exact(turbo: Path) -> Picture:
    return run_requests(turbo, [REQUEST])[0]


def same(one: Picture, other: Picture) -> bool:
    return torch.equal(one.latents, other.latents) and np.array_equal(one.image, other.image)


def product(names: Iterable[str], degrees: Iterable[int], fast: Container[tuple[str, int]]) -> list[Any]:
    """Every name at every degree of tensor parallelism, slow but for the pairs in `fast`."""
    return [
        pytest.param(name, tp, marks=() if (name, tp) in fast else pytest.mark.slow) for name in names for tp in degrees
    ]


# Both dtypes and all degrees; that a file gives every rank its share whatever its layout and dtype,
# test_checkpoint_files.py and test_encodings_slices.py guard too.
@pytest.mark.parametrize(
    ("weights", "tp"),
    product(("float32", "bfloat16"), (1, 2, 4), fast=(("float32", 1), ("bfloat16", 2), ("float32", 4))),
)
def test_every_layout_draws_the_identical_image(
    turbo: Path, converted: Callable[..., Path], weights: str, tp: int
) -> None:
    folder = converted("diffusers", weights)  # what the others are made from, since GGUF keeps vectors in float32
    written = partial(converted, source=folder)
    expected = run_requests(folder, [REQUEST], tp=tp)[0]
    if weights == "float32":
        assert same(expected, run_requests(turbo, [REQUEST], tp=tp)[0])
    singles = {
        "transformer": written("native"),
        "text_encoder": written("native", "keep", "text_encoder"),
        "vae": written("native", "keep", "vae"),
    }
    prefixed = {"transformer": written("native", prefix="model.diffusion_model.")}
    ggml = {"transformer": written("gguf", {"float32": "f32", "bfloat16": "bf16"}[weights])}
    for parts in (singles, prefixed, ggml):
        picture = run_requests(folder, [REQUEST], tp=tp, **{name: str(file) for name, file in parts.items()})[0]
        assert same(picture, expected), parts
    split = written("sharded", weights, tp=tp)
    assert same(run_requests(split, [REQUEST], tp=tp)[0], expected)


# Every format at degree 1, at others one of each kind: a scale a tensor, scales in tiles, scales in blocks. Slices of
# every format are compared with the whole in test_encodings_slices.py and test_gguf_file.py.
@pytest.mark.parametrize(
    ("weights", "tp"),
    product(ERRORS, (1, 2, 4), fast=[*((weights, 1) for weights in ERRORS), ("fp8", 4), ("nvfp4", 2), ("q4_0", 4)]),
)
def test_quantised_layouts_draw_nearly_the_same(
    turbo: Path, converted: Callable[..., Path], exact: Picture, weights: str, tp: int
) -> None:
    file = converted("gguf" if weights.startswith("q") else "native", weights)
    dense = run_requests(turbo, [REQUEST], tp=tp, quantization="none", transformer=str(file))[0]
    error = relative_error(dense.latents, exact.latents)
    assert ERRORS[weights] / 1.5 < error < ERRORS[weights] * 1.5
    held = run_requests(turbo, [REQUEST], tp=tp, quantization="auto", transformer=str(file))[0]
    # 8 bits of the file's are the same numbers; Q4_0 becomes int8, with a scale for every 32 columns
    assert relative_error(held.latents, dense.latents) < (2e-2 if weights == "q4_0" else 1e-5)


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("weights", ["fp8", "int8"])
def test_a_split_checkpoint_in_8_bits_is_what_loading_makes_of_the_whole_one(
    turbo: Path, converted: Callable[..., Path], weights: str, tp: int
) -> None:
    split = converted("sharded", weights, tp=tp)
    for quantization in ("none", weights):
        now = run_requests(split, [REQUEST], tp=tp, dtype="bfloat16", quantization=quantization)[0]
        if quantization == weights:
            assert same(now, run_requests(turbo, [REQUEST], tp=tp, dtype="bfloat16", quantization=weights)[0])


# At degree 2 also what the whole weights have at degree 1 is counted: vectors, and matrices that are not split.
@pytest.mark.parametrize(
    ("weights", "tp"),
    product(("keep", "fp8", "q8_0"), (1, 2), fast=(("keep", 1), ("keep", 2), ("fp8", 2), ("q8_0", 2))),
)
def test_bytes_told_beforehand_are_those_that_ranks_hold(
    turbo: Path, converted: Callable[..., Path], weights: str, tp: int
) -> None:
    file = converted("gguf" if weights == "q8_0" else "native", weights)
    for quantization in ("auto", "none", "int8"):
        config = EngineConfig(model=str(turbo), transformer=str(file), tp=tp, quantization=quantization)
        checkpoint = CheckpointFiles.open(config)
        components = summarize(checkpoint, config, 4)
        told = [sum(component.bytes_per_rank[rank] for component in components) for rank in range(tp)]
        parts = {"transformer": str(file)}
        held = on_ranks(turbo, lambda rank: rank.memory()["weights"], tp=tp, quantization=quantization, **parts)
        assert held == told


def test_fp8_written_from_fp8_stays_bit_for_bit(turbo: Path, converted: Callable[..., Path], tmp_path: Path) -> None:
    once = converted("native", "fp8")
    again = tmp_path / "again.safetensors"
    checkpoint = CheckpointFiles.open(EngineConfig(model=str(turbo), transformer=str(once)))
    convert.convert(checkpoint, again, layout="native", weights="fp8")
    with safe_open(once, "pt") as one, safe_open(again, "pt") as other:
        assert one.keys() == other.keys()
        assert one.metadata() == other.metadata()
        fp8 = [name for name in one.keys() if one.get_tensor(name).dtype == torch.float8_e4m3fn]  # noqa: SIM118
        assert fp8
        for name in one.keys():  # noqa: SIM118
            values, same_values = one.get_tensor(name), other.get_tensor(name)
            assert values.dtype == same_values.dtype
            assert torch.equal(values.float(), same_values.float()), name


@pytest.mark.parametrize("weights", ["fp8", "int8-convrot"])
def test_text_encoders_in_8_bits(turbo: Path, converted: Callable[..., Path], exact: Picture, weights: str) -> None:
    file = converted("native", weights, "text_encoder")
    config = EngineConfig(model=str(turbo), text_encoder=str(file), device="cpu")
    rank = Rank(config, Mesh(), CPU)
    held = rank.model.text_encoder.get_parameter("layers.0.attn.qkv.weight").dtype
    assert held == (torch.float8_e4m3fn if weights == "fp8" else torch.float32)
    picture = run_requests(turbo, [REQUEST], text_encoder=str(file), quantization="auto")[0]
    assert 1e-4 < relative_error(picture.latents, exact.latents) < 0.05


def test_diffusers_reads_what_was_written_for_it(turbo: Path, converted: Callable[..., Path]) -> None:
    import diffusers
    import transformers

    file = converted("native", "bfloat16")
    folder = converted("diffusers", "keep")
    theirs = diffusers.Krea2Transformer2DModel.from_pretrained(folder / "transformer")
    ours = diffusers.Krea2Transformer2DModel.from_pretrained(turbo / "transformer")
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in ours.state_dict().items())
    vae = diffusers.AutoencoderKLQwenImage.from_pretrained(folder / "vae")
    assert torch.equal(
        vae.decoder.conv_in.weight,
        diffusers.AutoencoderKLQwenImage.from_pretrained(turbo / "vae").decoder.conv_in.weight,
    )
    assert file.exists()
    # from a file whose names have another prefix
    folder = converted("diffusers", text_encoder=converted("native", component="text_encoder"))
    encoder, told = transformers.AutoModel.from_pretrained(folder / "text_encoder", output_loading_info=True)
    assert type(encoder).__name__ == json.loads((folder / "model_index.json").read_text())["text_encoder"][1]
    assert not told["unexpected_keys"]
    assert [name for name in told["missing_keys"] if not name.startswith("visual.")] == []
    assert sum(each.numel() for each in encoder.visual.parameters()) < 1e6
    original = transformers.AutoModel.from_pretrained(turbo / "text_encoder").language_model.state_dict()
    written = encoder.language_model.state_dict()
    assert all(torch.equal(tensor, written[name]) for name, tensor in original.items())


def test_defaults_and_domain_stay_with_the_checkpoint(
    raw: Path, tmp_path: Path, converted: Callable[..., Path]
) -> None:
    source = copy_checkpoint(raw, tmp_path / "own")
    own = {
        "default_steps": 40, "default_guidance": 0.0, "good_sides": [64, 2048],
        "prompt_words": ["a", "fox"], "prompt_note": "It draws foxes.",
    }  # fmt: skip
    rewrite_json(source / "model_index.json", lambda values: values.update(own))
    folder = converted("diffusers", source=source)
    assert ModelConfig.from_folder(folder) == ModelConfig.from_folder(source)
    assert json.loads((folder / "model_index.json").read_text()).items() >= own.items()
    assert not own.keys() & json.loads((converted("diffusers") / "model_index.json").read_text()).keys()


def test_what_does_not_go_together_is_refused(turbo: Path, converted: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = CheckpointFiles.open(EngineConfig(model=str(turbo)))
    for layout in LAYOUTS:
        with pytest.raises(ArgumentError, match=rf"weights must be one of {WEIGHTS[layout][0]}, .*, got 'int3'"):
            convert.convert(checkpoint, tmp_path / "x", layout=layout, weights="int3")
    with pytest.raises(ArgumentError, match="output must be a path that does not exist yet"):
        convert.convert(checkpoint, tmp_path, layout="diffusers", weights="keep")
    with pytest.raises(ArgumentError, match="component must be transformer for the layout gguf, got 'vae'"):
        convert.convert(checkpoint, tmp_path / "x", layout="gguf", weights="q8_0", component="vae")
    for prefix in ("x" * 101, "a\n", "\udcff"):
        with pytest.raises(ArgumentError, match="prefix must be at most 100 printable characters, got "):
            convert.convert(checkpoint, tmp_path / "x", layout="native", weights="keep", prefix=prefix)
    assert not list(tmp_path.iterdir())
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(ArgumentError, match="output must be a path that does not exist yet"):
        convert.convert(checkpoint, tmp_path / "link", layout="native", weights="keep")
    with pytest.raises(ArgumentError, match=r"tp must be 2, for which .* has been split, got 4"):
        CheckpointFiles.open(EngineConfig(model=str(converted("sharded", "float32", tp=2)), tp=4))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_split_checkpoint_of_which_a_rank_has_a_part_is_not_converted(
    converted: Callable[..., Path], tmp_path: Path, layout: str
) -> None:
    split = CheckpointFiles.open(EngineConfig(model=str(converted("sharded", "float32", tp=2)), tp=2))
    with pytest.raises(ArgumentError, match="model must be a whole checkpoint, not one that has been split for ranks"):
        convert.convert(split, tmp_path / "out", layout=layout, weights=WEIGHTS[layout][0], tp=2)
    assert not list(tmp_path.iterdir())


def test_a_damaged_shard_is_named(converted: Callable[..., Path], tmp_path: Path) -> None:
    from tests.damage import copy_checkpoint, replace_bytes

    folder = copy_checkpoint(converted("sharded", "float32", tp=2), tmp_path / "damaged")
    file = folder / "tp-2" / "rank-1" / "transformer.safetensors"
    replace_bytes(file, file.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=r"rank-1/transformer\.safetensors: is not a whole safetensors file"):
        CheckpointFiles.open(EngineConfig(model=str(folder), tp=2), rank=1)


@pytest.mark.parametrize("said", ["5", "null", "{", "[" * 100_000])
def test_a_shard_whose_metadata_is_nonsense_is_refused(
    converted: Callable[..., Path], tmp_path: Path, said: str
) -> None:
    from tests.damage import copy_checkpoint, replace_bytes

    folder = copy_checkpoint(converted("sharded", "float32", tp=2), tmp_path / "damaged")
    file = folder / "tp-2" / "rank-0" / "transformer.safetensors"
    replace_bytes(file, save(load_file(file), {"full_precision": said}))
    with pytest.raises(CheckpointError, match=r"transformer\.safetensors: full_precision: is not a json list"):
        CheckpointFiles.open(EngineConfig(model=str(folder), tp=2))
