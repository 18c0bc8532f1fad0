"""The command that compares the engine with diffusers: its report, and what it refuses."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.verify import checks
from bench.verify.__main__ import main
from bench.verify.judging import Check
from bench.verify.oracle import loading
from bench.verify.report import Verified
from bench.verify.subject.models import Model, find_models
from bench.verify.subject.paths import check_paths
from engine.checkpoint.checkpoint_files import CheckpointFiles
from engine.checkpoint.convert.convert import convert
from engine.config.components import TransformerConfig
from engine.config.engine_config import EngineConfig
from engine.errors import ArgumentError
from tests.damage import copy_checkpoint
from tests.launcher.processes import PATIENCE_S


@pytest.mark.timeout(600)
def test_the_command_verifies_and_reports(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report, lines = tmp_path / "report.md", tmp_path / "lines.jsonl"
    words = [str(raw), "--sizes", "64x96", "--steps", "1", "--device", "cpu", "--modes", "tp2", "--images", "1"]
    words += ["--seconds", str(PATIENCE_S), "--report", str(report), "--json", str(lines)]
    assert main(words) == 0
    said = capsys.readouterr()
    assert report.read_text() in said.out
    text = report.read_text()
    assert f"- **{raw.name}** (Raw): all " in text
    assert "checks hold" in text
    assert "| stages: worst of " in text
    assert "- float32: 1 rank, attention torch, no CUDA graphs" in text
    assert "- float32, tp2: 2 ranks, attention torch, no CUDA graphs" in text
    assert str(tmp_path.parent) not in text
    assert str(Path.home()) not in text
    shown = f"python -m bench.verify {raw.name} --sizes 64x96 --steps 1 --device cpu --modes tp2 --images 1 --seconds"
    assert f"`{shown}" in text
    assert " --report report.md --json lines.jsonl`, begun 20" in text
    assert "- float32: 1 image of 64×96, 1 step, guidance " in text
    assert "- prompts, in turn: 'a red circle on a blue background'" in text
    assert "A row is one check, or the worst of those of a kind that hold" in text
    assert "torch " in text
    assert "commit " in text
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    assert {row["benchmark"] for row in rows} == {"verify"}
    assert all(row["holds"] for row in rows)
    assert {row["mode"] for row in rows} == {"", "one", "tp2"}
    assert "one after the other" in said.err
    assert "diffusers in float32: image 1 of 1" in said.err
    assert re.search(r"1 image on each side: \d+( seconds)? to \d+ (seconds|minutes), by how long", said.err)


def test_a_difference_ends_the_command_with_one(
    model: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(checks, "ask_diffusers", fail)
    assert main([str(model.folder), "--sizes", "64x96", "--steps", "1", "--device", "cpu"]) == 1
    out = capsys.readouterr().out
    assert "first difference: diffusers' side (float32), torch.OutOfMemoryError: CUDA out of memory" in out
    assert "| tokens |" in out


def test_a_model_that_cannot_be_verified_at_all_is_told_and_the_next_one_is(
    model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def lost(*_: object) -> None:
        raise RuntimeError("CUDA error: device lost")

    monkeypatch.setattr("bench.verify.__main__.describe_loading", lost)
    report = tmp_path / "report.md"
    assert main([str(model.folder), "demo-raw", "--device", "cpu", "--report", str(report)]) == 1
    assert report.read_text().count("first difference: verifying, RuntimeError: CUDA error: device lost") == 2
    assert report.read_text() in capsys.readouterr().out


def test_without_diffusers_it_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bench.verify.__main__.find_spec", lambda name: None)
    assert main(["demo"]) == 2
    assert "error: diffusers and transformers needed, and not installed: pip install" in capsys.readouterr().err


def test_a_diffusers_that_lacks_the_model_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "bench.verify.oracle.asking", None)
    assert main(["demo"]) == 2
    assert "error: diffusers and transformers are there, but cannot be used: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "model 'nowhere': there is no such folder"),
        (["/nope/nothing"], "model '/nope/nothing': there is no such folder"),
        (["demo-outlined"], "model 'demo-outlined': is a LoRA, and verify compares checkpoints"),
        (["demo", "engine/demo/outlined.safetensors"], "outlined.safetensors': is a LoRA, and verify compares"),
        (["engine/demo/raw/vae/diffusion_pytorch_model.safetensors"], "is a single file, Krea 2's VAE; verify needs a"),
        (
            ["engine/demo/raw/vae"],
            "there is no model_index.json in this folder; verify needs a folder in the diffusers",
        ),
        (["demo", "--modes", "tp2,sp4"], "sp 4 is not possible for this checkpoint"),
        (["demo", "--sizes", "100x64"], "must be as 512x512,640x384, multiples of 16"),
        (["demo", "--dtype", "float16"], "invalid choice"),
    ],
)
def test_what_cannot_be_verified_is_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[3])
    undivided = TransformerConfig.undivided_heads
    monkeypatch.setattr(
        TransformerConfig, "undivided_heads", lambda dit, ranks: [("heads", 6)] if ranks > 2 else undivided(dit, ranks)
    )
    try:
        status = main(words)
    except SystemExit as end:
        status = int(str(end.code))
    assert status == 2
    assert message in capsys.readouterr().err


def test_incomplete_and_quantised_folders_are_refused(model: Model, tmp_path: Path) -> None:
    for part in model.folder.iterdir():
        (tmp_path / part.name).symlink_to(part)
    (tmp_path / "vae").unlink()
    with pytest.raises(ArgumentError, match=r"it lacks vae/config\.json, vae/diffusion_pytorch_model\.safetensors; "):
        find_models([str(tmp_path)])
    (tmp_path / "vae").symlink_to(model.folder / "vae")
    assert find_models([str(tmp_path)])[0].variant == "Raw"
    (tmp_path / "transformer").unlink()
    (tmp_path / "transformer").mkdir()
    for file in (model.folder / "transformer").glob("*.json"):
        (tmp_path / "transformer" / file.name).symlink_to(file)
    checkpoint = CheckpointFiles.open(EngineConfig(model=str(model.folder)))
    quantised = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    convert(checkpoint, quantised, layout="native", weights="fp8")
    checkpoint.close()
    with pytest.raises(ArgumentError, match=r"has quantised weights \(float8_e4m3fn\), which diffusers does"):
        find_models([str(tmp_path)])
    with pytest.raises(ArgumentError, match=r"is a single file, Krea 2's transformer, quantised \(float8_e4m3fn\); "):
        find_models([str(quantised)])
    split = tmp_path / "split"
    split.mkdir()
    (split / "model_index.json").symlink_to(model.folder / "model_index.json")
    (split / "tp-2" / "rank-0").mkdir(parents=True)
    with pytest.raises(ArgumentError, match="was split for ranks"):
        find_models([str(split)])


def rewrite(model: Model, folder: Path, file: str, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A copy of the model's folder, one of whose files has other tensors."""
    copy_checkpoint(model.folder, folder)
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file)
    return folder


def drop_prefix(tensors: dict[str, torch.Tensor]) -> None:
    for name in list(tensors):
        tensors[name.removeprefix("language_model.")] = tensors.pop(name)


def test_weights_that_diffusers_would_draw_are_no_fault_of_the_engine(
    model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = rewrite(model, tmp_path / "bare", "text_encoder/model.safetensors", drop_prefix)
    lines = tmp_path / "lines.jsonl"
    words = [str(folder), "--sizes", "64x96", "--steps", "1", "--device", "cpu", "--json", str(lines)]
    assert main(words) == 1
    out = capsys.readouterr().out
    assert "- **bare** (Raw): not verified: diffusers cannot be the judge: the text_encoder's files lack " in out
    assert "the first is language_model.embed_tokens.weight; 1 of 1 checks before that hold\n" in out
    assert "DIFFERS" not in out
    assert "Traceback" not in out
    last = json.loads(lines.read_text().splitlines()[-1])
    assert (last["holds"], "random numbers" in last["cannot_judge"]) == (False, True)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("text_encoder/model.safetensors", "language_model.layers.1.mlp.up_proj.weight"),
        ("transformer/diffusion_pytorch_model.safetensors", "transformer_blocks.1.ff.down.weight"),
        ("vae/diffusion_pytorch_model.safetensors", "decoder.conv_out.bias"),
    ],
)
def test_numbers_that_are_not_finite_are_the_checkpoints_fault(
    model: Model, tmp_path: Path, file: str, name: str
) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].view(-1)[-1] = float("nan")

    (found,) = find_models([str(rewrite(model, tmp_path / "spoilt", file, spoil))])
    part = file.partition("/")[0]
    weights = loading.load_parts(found, [part], torch.float32)
    with pytest.raises(loading.CannotJudge, match=rf"not finite in the {part}'s {name}$"):
        loading.check_finite(found, part, weights[part])
    whole = loading.load_parts(model, [part], torch.float32)
    loading.check_finite(model, part, whole[part])


def test_latents_of_diffusers_that_are_not_finite_judge_nothing(
    model: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bench.verify.oracle import tracing

    make = tracing.make

    def overflow(*given: Any, **options: Any) -> Any:
        made, images = make(*given, **options)
        made.latents[-1][0, 0] = float("inf")
        return made, images

    monkeypatch.setattr(tracing, "make", overflow)
    assert main([str(model.folder), "--sizes", "64x96", "--steps", "1", "--device", "cpu"]) == 1
    assert "its own latents in float32 are not finite, of 64×96, guidance 3.5, seed 0" in capsys.readouterr().out


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's full device")
def test_a_report_that_cannot_be_written_is_printed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"

    def hold(found: Model, *_: object) -> Verified:
        if gone.exists():
            (gone / "report.md").unlink()
            gone.rmdir()
        return Verified(found, [Check("a", "float32", "one", 0.0, 1.0, "largest")])

    monkeypatch.setattr("bench.verify.__main__._verify", hold)
    for file, reason in (("/dev/full", "No space left on device"), (f"{gone}/report.md", "No such file or directory")):
        assert main(["demo-raw", "--device", "cpu", "--report", file]) == 1
        said = capsys.readouterr()
        assert "- **demo-raw** (Raw): all 1 checks hold" in said.out
        assert said.err == f"error: the report cannot be written to {file}: {reason}\n"


def test_too_little_memory_is_told_before_anything_is_loaded(
    model: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bench.verify.resources.free_bytes", lambda _: 1000)
    monkeypatch.setattr(checks, "ask_diffusers", lambda *_: pytest.fail("loads"))
    assert main([str(model.folder), "--device", "cpu"]) == 1
    assert "GB are needed on cpu and 1e-06 GB are free" in capsys.readouterr().out


def test_the_demo_is_both_of_its_checkpoints() -> None:
    found = [(model.name, model.variant) for model in find_models(["demo", "demo-raw"])]
    assert found == [("demo-turbo", "Turbo"), ("demo-raw", "Raw")]


def test_repositories_and_their_revisions_are_left_to_be_looked_for() -> None:
    check_paths(["krea/Krea-2-Turbo", "krea/Krea-2-Turbo@v1", "krea/Krea-2-Turbo@refs/pr/1"])
    for name in ("krea/Krea-2-Turbo@", "krea/turbo.safetensors", "./krea/Krea-2-Turbo", "a/b/c"):
        with pytest.raises(ArgumentError, match="there is no such folder"):
            check_paths([name])
