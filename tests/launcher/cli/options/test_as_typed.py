"""Errors on the command line call options what users have typed."""

from __future__ import annotations

import click
import pytest

from engine.errors import ArgumentError, CheckpointError, Krea2Error, LoraError, RankError
from launcher.cli.generate import generate
from launcher.cli.options.as_typed import as_typed
from tests.launcher.conftest import Krea2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("serve", "--step-timeout", "0"), "--step-timeout must be above 0 and at most 604800, got 0\n"),
        (("serve", "--drain-s", "-1.5"), "--drain-s must be between 0 and 604800, got -1.5\n"),
        (("serve", "--limit", "max_queue=0"), "--limit max_queue must be a positive whole number, got 0\n"),
        (("serve", "--limit", "max_queue=.5"), "--limit max_queue must be a positive whole number, got 0.5"),
        (("serve", "--lora-dir", "/num_images"), "--lora-dir must be a folder, got '/num_images'"),
        (("generate", "x", "--num-images", "0"), "--num-images must be between 1 and 10, got 0\n"),
        (("generate", "x", "--prefetch", "2"), "--prefetch needs --offload or --memory-budget: nothing is copied\n"),
        (("convert", "/o", "--component", "x"), "--component must be one of transformer, text_encoder, vae, got 'x'"),
        (("info", "--model", ""), "--model must be the path of a checkpoint, or one of demo, demo-turbo, "),
        (("keys", "/keys", "--client", "server"), "--client must be letters, digits"),
        (("generate", "x", "--width", "4096", "--height", "4096"), "--width × --height must be at most 8400000 pixels"),
        (("serve", "--lora-dir", "/my lora_dir is"), "--lora-dir must be a folder, got '/my lora_dir is'\n"),
        (("info", "--lora", "/my lora_memory is/x"), "/my lora_memory is/x: No such file or directory\n"),
        (("info", "--model", "lora_memory"), "lora_memory: there is no such folder or file\n"),
        (
            ("convert", "/o", "--prefix", "a tp b\t"),
            r"--prefix must be at most 100 printable characters, got 'a tp b\t'" "\n",
        ),
    ],
)
def test_an_option_is_called_what_was_typed(krea2: Krea2, arguments: tuple[str, ...], message: str) -> None:
    code, stdout, stderr = krea2(*arguments)
    assert (code, stdout, stderr.count("\n")) == (2, "", 1)
    assert stderr.startswith(f"error: {message}")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            LoraError("/lora_memory/x: no layer; lora_lenient skips it"),
            "/lora_memory/x: no layer; --lora-lenient skips it",
        ),
        (CheckpointError("/x.json: text_encoder: is missing"), "/x.json: text_encoder: is missing"),
        (CheckpointError("/x/num_images: is damaged"), "/x/num_images: is damaged"),
        (CheckpointError("model: there is no such file"), "model: there is no such file"),
        (RankError("the first sum of the tp group failed"), "the first sum of the tp group failed"),
        (ArgumentError("prompt must have at most 2 steps"), "prompt must have at most 2 steps"),
        (ArgumentError("model 'model': give a vae, 'num_images'"), "--model 'model': give a vae, 'num_images'"),
        (ArgumentError("seed must fit, which was not given"), "seed must fit, which was not given"),
        (ArgumentError("missing: vae; or else the model"), "missing: --vae; or else the --model"),
        (ArgumentError("merge_loras needs it whole"), "--merge-lora needs it whole"),
    ],
)
def test_what_is_no_name_of_an_option_stays(error: Krea2Error, message: str) -> None:
    context = click.Context(generate)
    context.params = {"model": "model", "steps": 2}
    assert as_typed(error, context) == message
