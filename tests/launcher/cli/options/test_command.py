"""What a command does not know is answered with what was meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.setup.nearest import nearest_path
from tests.launcher.conftest import Krea2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generat", "x"], "there is no command 'generat': did you mean generate?"),
        (["version"], "there is no command 'version': did you mean --version?"),
        (["start"], "there is no command 'start': did you mean serve?"),
        (["turbo"], "there is no command 'turbo': it is a model, for krea2 serve krea/Krea-2-Turbo, or krea2 generate"),
        (["demo"], "there is no command 'demo': it is a model, for krea2 serve demo, or krea2 generate PROMPT --model"),
        (["a red fox"], "there is no command 'a red fox': to draw it, write krea2 generate 'a red fox'"),
        (
            ["xyzzy"],
            "there is no command 'xyzzy': there are generate, serve, info, convert, cluster, keys, audit, help",
        ),
        (["help", "serv"], "there is no command 'serv': did you mean serve?"),
        (["generate", "x", "--sed", "1"], "No such option '--sed'"),
        (["serve", "--num-gpu", "2"], "No such option '--num-gpu'. (Did you mean one of: '--num-gpus'"),
        (["serve", "--steps", "2"], "there is no option --steps of serve: it is one of generate; requests to a server"),
        (["generate", "x", "--port", "2"], "there is no option --port of generate: it is one of serve"),
        (["generate", "-a fox"], "there is no option -a, but -m, -o and -h; before a prompt that begins with -"),
        (["generate", "--a fox"], "there is no option --a fox; before a prompt that begins with -, write --prompt"),
        (["serve", "demo-trubo"], "demo-trubo: there is no such folder or file; did you mean demo-turbo?"),
        (["info", "-m", "Demo-Raw"], "Demo-Raw: there is no such folder or file; did you mean demo-raw?"),
        (
            ["generate", "x", "--lora", "demo-outlind:0.5"],
            "demo-outlind: No such file or directory; did you mean demo-o",
        ),
        (["serve", "demo", "--model", "demo-raw"], "MODEL demo contradicts --model demo-raw"),
        (["info", ""], "MODEL must be the path of a checkpoint, or one of demo, demo-turbo, demo-raw, got ''"),
        (["convert", "x.gguf"], "OUTPUT must be without .gguf for the layout diffusers; for such a file, add --layout"),
    ],
)
def test_a_slip_is_answered_with_what_was_meant(krea2: Krea2, arguments: list[str], message: str) -> None:
    code, stdout, stderr = krea2(*arguments)
    assert (code, stdout) == (2, "")
    assert stderr.startswith(f"error: {message}")
    assert stderr.count("\n") == 1


def test_a_repository_that_is_misspelt_is_answered_with_the_one_there_is(
    krea2: Krea2, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, _, stderr = krea2("info", "krea/Krea-2-Trubo")
    assert code == 2
    assert stderr.endswith("; did you mean krea/Krea-2-Turbo?\n")
    code, _, stderr = krea2("info", "krea/Krea-2-Turbo")
    assert code == 2
    assert "did you mean" not in stderr


def test_a_path_that_is_misspelt_is_answered_with_the_one_beside_it(krea2: Krea2, tmp_path: Path) -> None:
    there = tmp_path / "checkpoints" / "fox.safetensors"
    there.parent.mkdir()
    there.touch()
    missing = str(tmp_path / "chekpoints" / "Foks.safetensors")
    assert nearest_path(missing) == str(there)
    assert nearest_path(str(tmp_path / "nothing" / "like" / "it")) is None
    code, _, stderr = krea2("info", missing)
    assert (code, stderr) == (2, f"error: {missing}: there is no such folder or file; did you mean {there}?\n")
    code, _, stderr = krea2("serve", "--api-key-file", missing)
    assert code == 2
    assert stderr.endswith(f"; did you mean {there}?\n")


def test_the_model_may_be_an_argument(krea2: Krea2) -> None:
    assert krea2("info", "demo-raw")[1] == krea2("info", "demo-raw", "-m", "demo-raw")[1] != krea2("info", "demo")[1]


def test_help_is_there_under_each_of_its_names(krea2: Krea2) -> None:
    code, text, _ = krea2("help", "serve")
    assert code == 0
    assert text.startswith("Usage: krea2 serve [OPTIONS] [MODEL]")
    assert krea2("serve", "-h") == krea2("serve", "--help") == (0, text, "")
    assert krea2("-h") == krea2("help")
    assert krea2()[2] == krea2("help")[1]
    assert "--tp-size" not in text
