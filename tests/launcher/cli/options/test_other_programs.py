"""Who comes from another program is understood, or told what to write."""

from __future__ import annotations

import click
import pytest

from launcher.cli.main import commands
from launcher.cli.options.other_programs import OTHER_OPTIONS, OtherOption
from launcher.messages.parameter_names import GUIDANCE_IS_OFF
from tests.docs.documents import ROOT
from tests.launcher.conftest import Krea2


def row(other: OtherOption) -> str:
    return f"| {', '.join(f'`{flag}`' for flag in other.flags)} | {other.programs} | {other.here} |"


def test_the_document_has_all_of_them_in_this_order() -> None:
    document = (ROOT / "docs" / "command-line.md").read_text()
    assert "\n".join(map(row, OTHER_OPTIONS)) in document


def test_none_is_also_an_option_of_ours_and_each_option_that_it_is_exists() -> None:
    own = [each for command in commands.commands.values() for each in command.params if not getattr(each, "hidden", 0)]
    flags = {flag for each in own if isinstance(each, click.Option) for flag in (*each.opts, *each.secondary_opts)}
    assert not flags & {flag for other in OTHER_OPTIONS for flag in other.flags}
    assert {other.option for other in OTHER_OPTIONS} - {None} <= {each.name for each in own}


def given(command: str, *arguments: str) -> dict[str, object]:
    """The parameters that a command gets, without running it."""
    return commands.commands[command].make_context(command, [*arguments]).params


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (["--model-path", "demo-raw"], ["--model", "demo-raw"]),
        (["--checkpoint", "oss_turbo"], ["--model", "krea/Krea-2-Turbo"]),
        (["--tp-size", "2", "--ulysses-degree=2"], ["--tp", "2", "--sp", "2"]),
        (["--tensor_parallel_size", "4"], ["--tp", "4"]),
        (["--num-gpus", "4"], ["--sp", "4"]),
        (["--num-gpus", "4", "--tp-size", "2", "--enable-cfg-parallel"], ["--tp", "2", "--cfg-parallel"]),
        (["--num-gpus", "4", "--tp", "4"], ["--tp", "4"]),
        (["--num-gpus", "4", "--parallel", "auto"], ["--parallel", "auto"]),
        (["--enable-cfg-parallel", "true"], ["--cfg-parallel"]),
        (["--enable-cfg-parallel", "false"], []),
        (["--cfg-parallel-size", "2"], ["--cfg-parallel"]),
        (["--cfg-parallel-size", "1", "--ring-degree", "1", "--vae-tiling", "false"], []),
        (["--dit-layerwise-offload", "--vae-cpu-offload", "true"], ["--offload", "dit-layerwise,vae"]),
        (["--dit-cpu-offload", "false", "--offload", "vae", "--vae-cpu-offload"], ["--offload", "vae"]),
        (["--enforce-eager"], ["--no-cuda-graphs"]),
        (["--attention-backend", "TORCH_SDPA"], ["--attention", "torch"]),
        (["--attention-backend", "fa3"], ["--attention", "fa3"]),
        (["--torch-dtype", "bfloat16"], ["--dtype", "bfloat16"]),
        (["--lora-path", "a.safetensors", "--lora", "b"], ["--lora", "b", "--lora", "a.safetensors"]),
        (["--stage-init-timeout", "60"], ["--start-timeout", "60"]),
        (["--model", "demo", "--model-path", "demo"], ["--model", "demo"]),
    ],
)
@pytest.mark.parametrize("command", ["serve", "generate"])
def test_an_option_that_means_the_same_is_the_same(command: str, theirs: list[str], ours: list[str]) -> None:
    prompt = ["x"] if command == "generate" else []
    assert given(command, *theirs, *prompt) == given(command, *ours, *prompt)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (["--num-inference-steps", "4"], ["--steps", "4"]),
        (["--num_inference_steps=4"], ["--steps", "4"]),
        (["--cfg", "3.5"], ["--guidance", "3.5"]),
        (["--enable-teacache"], ["--cache", "quality"]),
        (["--cache-backend", "cache_dit"], ["--cache", "quality"]),
        (["--cache-backend", "none"], []),
        (["--guidance-scale", "2.5"], ["--guidance", "2.5"]),
        (["--guidance-scale", "1"], ["--guidance", "0"]),
        (["--num-outputs-per-prompt", "3"], ["--num-images", "3"]),
        (["--num_outputs", "3", "--sampling-steps", "4"], ["--num-images", "3", "--steps", "4"]),
        (["--cfg-scale", "1.0"], ["--guidance", "0"]),
        (["--true-cfg-scale", "4.5"], ["--guidance", "3.5"]),
        (["--neg-prompt", "red"], ["--negative-prompt", "red"]),
        (["--image-path", "a.png", "--mask_image", "m.png"], ["--image", "a.png", "--mask", "m.png"]),
        (["--denoise", "0.4", "--padding-mask-crop", "8"], ["--strength", "0.4", "--mask-crop", "8"]),
        (["--output-quality", "high"], ["--output-compression", "90"]),
        (["--output-quality", "default"], []),
        (["--save-output", "x y"], ["x y"]),
        (["--output-path", "outputs"], ["-o", "outputs/"]),
        (["--output-path", "outputs/fox.PNG"], ["-o", "outputs/fox.PNG"]),
        (["--prompt-path", "prompts.txt"], ["--prompts", "prompts.txt"]),
        (["--save-output", "true", "--trust-remote-code"], []),
        (["--", "--cfg"], ["--prompt", "--cfg"]),
    ],
)
def test_an_option_of_an_image_that_means_the_same_is_the_same(theirs: list[str], ours: list[str]) -> None:
    def drawn(arguments: list[str]) -> dict[str, object]:
        parameters = given("generate", *arguments)
        prompts = (*parameters.pop("prompts", ()), *parameters.pop("prompt", ()))  # type: ignore[misc]
        return parameters | {"all prompts": prompts}

    assert drawn(theirs) == drawn(ours)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--guidance-scale", "1"], f"warning: {GUIDANCE_IS_OFF}".replace("guidance", "--guidance").replace("_", "-")),
        (
            ["--guidance-scale", "4.5"],
            "note: --guidance-scale is Krea's own scale, as in diffusers; SGLang's is 1 more",
        ),
        (["--save-output"], "note: --save-output changes nothing: images are written in any case"),
        (["--backend", "sglang"], "note: --backend changes nothing: there is one engine, for Krea 2"),
    ],
)
def test_what_is_meant_otherwise_or_changes_nothing_is_told(krea2: Krea2, arguments: list[str], told: str) -> None:
    code, _, stderr = krea2("generate", "x", *arguments, "--width", "1")
    assert code == 2
    assert stderr.startswith(told)
    assert stderr.count("\n") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--true-cfg-scale", "0"], "cfg scale must be 1, which is off, or more, got 0"),
        (
            ["--output-quality", "so-so"],
            "--output-quality must be one of default, maximum, high, medium, low, got 'so-",
        ),
        (["--ring-degree", "2"], "there is no --ring-degree here: write --sp"),
        (["--vae-tiling"], "there is no --vae-tiling here: --vae-memory 2GB decodes in tiles"),
        (["--gpu-memory-utilization", "0.9"], "there is no --gpu-memory-utilization here: write --memory-budget 16GB"),
        (["--checkpoint", "raw"], "--checkpoint must be one of oss_turbo, oss_raw, got 'raw'"),
        (["--num-gpus", "3", "--tp", "2"], "--num-gpus 3 contradicts the other options, which take 2"),
        (["--num-gpus", "8"], "--num-gpus must be one of 1, 2, 4, got 8"),
        (["--tp-size", "2", "--tp", "4"], "--tp-size 2 contradicts --tp 4"),
        (["--num-inference-steps", "0"], "--num-inference-steps must be between 1 and 200, got 0"),
        (["--num-inference-steps", "x"], "Invalid value for '--num-inference-steps': 'x' is not a valid integer."),
        (["--enable-cfg-parallel=perhaps"], "--enable-cfg-parallel must be true or false, got 'perhaps'"),
    ],
)
def test_what_there_is_not_is_answered_with_what_there_is(krea2: Krea2, arguments: list[str], message: str) -> None:
    code, stdout, stderr = krea2("generate", "x", *arguments)
    assert (code, stdout) == (2, "")
    assert stderr.startswith(f"error: {message}")
    assert stderr.count("\n") == 1


@pytest.mark.parametrize(("command", "instead"), [("serve", "CUDA_VISIBLE_DEVICES"), ("info", "info's --gpus")])
def test_a_number_of_gpus_that_auto_does_not_look_at_is_told_of(
    capsys: pytest.CaptureFixture[str], command: str, instead: str
) -> None:
    assert given(command, "--num-gpus", "2", "--parallel", "auto") == given(command, "--parallel", "auto")
    note = f"note: --num-gpus changes nothing: --parallel auto looks at all GPUs; {instead} says at which\n"
    assert capsys.readouterr().err == note
