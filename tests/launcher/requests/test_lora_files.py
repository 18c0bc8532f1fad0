"""LoRA files as the command line names them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.config.demo_checkpoints import DEMO_LORAS
from engine.config.engine_config import EngineConfig
from engine.config.model_config import ModelConfig
from engine.errors import ArgumentError, LoraError
from launcher.messages.configs import FrontendConfig
from launcher.messages.limits import Limits
from launcher.requests import lora_files
from launcher.requests.lora_files import describe_scales, open_lora, parse_lora, path_inside, with_loras
from tests.launcher.lora_stand_in import FakeAdapter, fake_adapters, write_adapter

__all__ = ["fake_adapters"]
pytestmark = pytest.mark.usefixtures("fake_adapters")
CONFIG = FrontendConfig(engine=EngineConfig())


@pytest.mark.parametrize(
    ("text", "name", "path", "strength"),
    [
        ("ink.safetensors", "ink", "ink.safetensors", 1.0),
        ("a/b/ink.v2.safetensors:0.8", "ink.v2", "a/b/ink.v2.safetensors", 0.8),
        ("ink:-1", "ink", "ink", -1.0),
        ("ink:.5", "ink", "ink", 0.5),
        ("C:/loras/ink", "ink", "C:/loras/ink", 1.0),
        ("at 12:30", "at 12", "at 12", 30.0),
        ("12:30.safetensors", "12:30", "12:30.safetensors", 1.0),
        ("x:1e3", "x:1e3", "x:1e3", 1.0),
        ("x:nan", "x:nan", "x:nan", 1.0),
        ("x:1:2", "x:1", "x:1", 2.0),
        ("Ink wash=a/b.safetensors:2", "Ink wash", "a/b.safetensors", 2.0),
        ("./a=b.safetensors", "a=b", "./a=b.safetensors", 1.0),
        ("n=a=b", "n", "a=b", 1.0),
        ("demo-outlined:0.5", "demo-outlined", str(DEMO_LORAS["demo-outlined"]), 0.5),
        ("Lines=demo-outlined", "Lines", str(DEMO_LORAS["demo-outlined"]), 1.0),
        ("./demo-outlined", "demo-outlined", "./demo-outlined", 1.0),
    ],
)
def test_a_name_a_path_and_a_strength(text: str, name: str, path: str, strength: float) -> None:
    if not -10 <= strength <= 10:
        with pytest.raises(ArgumentError, match=f"the strength of a LoRA must be between -10 and 10, got {strength}"):
            parse_lora(text)
        return
    lora = parse_lora(text)
    assert (lora.name, lora.path, lora.strength) == (name, path, strength)


@pytest.mark.parametrize("text", ["", "n=", "=a", " =a", "..=a", "a\nb=c", "/"])
def test_what_is_no_name_or_path_is_refused(text: str) -> None:
    with pytest.raises(ArgumentError) as refusal:
        parse_lora(text)
    assert refusal.value.parameter == "lora"


def test_files_are_checked_and_become_choices_or_part_of_the_weights(tmp_path: Path, demo: ModelConfig) -> None:
    a = write_adapter(tmp_path / "a.safetensors")
    loras = [f"{a}:0.5", f"b={a}"]
    config, warnings = with_loras(CONFIG, demo, loras, lora_dir=str(tmp_path / ".." / tmp_path.name), merge=False)
    assert [(lora.name, lora.strength) for lora in config.loras] == [("a", 0.5), ("b", 1.0)]
    assert (config.lora_dir, config.engine.merge_loras, warnings) == (str(tmp_path.resolve()), (), ())
    merged, _ = with_loras(CONFIG, demo, [str(a), str(a)], lora_dir=None, merge=True)
    assert (merged.loras, merged.engine.merge_loras) == ((), ((str(a), 1.0), (str(a), 1.0)))


def test_lenient_reading_warns_of_what_it_leaves_out(tmp_path: Path, demo: ModelConfig) -> None:
    a = write_adapter(tmp_path / "a.safetensors", skipped=["k1", "k2", "k3", "k4"])
    with pytest.raises(LoraError, match="for no layer of Krea 2: k1"):
        with_loras(CONFIG, demo, [str(a)], lora_dir=None, merge=False)
    lenient = msgspec.structs.replace(CONFIG, engine=EngineConfig(lora_lenient=True))
    _, warnings = with_loras(lenient, demo, [str(a)], lora_dir=None, merge=False)
    assert warnings == (f"{a}: lora_lenient leaves out k1, k2, k3, k4",)


@pytest.mark.parametrize(
    ("scales", "words"),
    [
        ({}, ""),
        ({"": (1.0,)}, "scale 1 (no alpha given)"),
        ({"the header's lora_alpha": (0.5, 0.5)}, "scale 0.5 (the header's lora_alpha)"),
        ({"alpha tensors": (2.0, 0.25), "": (1.0,)}, "scale 0.25 to 2 in 2 (alpha tensors), 1 in 1 (no alpha given)"),
    ],
)
def test_where_a_scale_is_from(scales: dict[str, tuple[float, ...]], words: str) -> None:
    assert describe_scales(FakeAdapter("a", scales=scales)) == words  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("loras", "options", "message"),
    [
        (["a.safetensors", "b/a.safetensors"], {}, "two LoRAs are called 'a': name one with NAME=PATH"),
        ([], {"merge": True}, "merge_lora needs a lora"),
        ([], {"lora_dir": "/no/such"}, "lora_dir must be a folder, got '/no/such'"),
        ("a.safetensors", {}, r"loras must be a list of \[NAME=\]PATH\[:STRENGTH\], got 'a.safetensors'"),
        ([3], {}, "loras must be a list of"),
        (["a", "b", "c"], {}, "at most 2 LoRAs may be loaded, got 3"),
    ],
)
def test_what_cannot_be_is_refused_before_a_file_is_read(
    demo: ModelConfig, loras: Any, options: dict[str, Any], message: str
) -> None:
    config = msgspec.structs.replace(CONFIG, limits=Limits(max_loras=2))
    with pytest.raises(ArgumentError, match=message):
        with_loras(config, demo, loras, **{"lora_dir": None, "merge": False} | options)


def test_a_file_that_is_too_large_is_not_read(
    tmp_path: Path, demo: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = write_adapter(tmp_path / "a.safetensors")
    monkeypatch.setattr(lora_files, "MAX_FILE_BYTES", 1)
    with pytest.raises(LoraError, match=r"a\.safetensors: must be at most 1 bytes, got 2"):
        open_lora(str(a), demo, lenient=False)
    with pytest.raises(LoraError, match="null byte"):
        open_lora("a\0", demo, lenient=False)
    link = tmp_path / "link.safetensors"
    link.symlink_to("\udcff.safetensors")  # a name of one byte, which is no UTF-8
    for path in (str(link), "\udcff.safetensors"):
        with pytest.raises(LoraError, match="safetensors: 'utf-8' codec can't encode"):
            open_lora(path, demo, lenient=False)


def test_no_config_is_read_outside_of_the_folder(tmp_path: Path) -> None:
    file = write_adapter(tmp_path / "loras" / "ink" / "adapter_model.safetensors")
    (tmp_path / "config.json").write_text('{"lora_alpha": 8}')
    config = file.parent / "adapter_config.json"
    config.symlink_to(tmp_path / "config.json")
    for path in ("ink", "ink/adapter_model.safetensors"):
        with pytest.raises(ArgumentError, match="path must be relative to the server's --lora-dir"):
            path_inside(str(tmp_path / "loras"), path)
    config.unlink()
    config.symlink_to("../config.json")
    (tmp_path / "config.json").rename(tmp_path / "loras" / "config.json")
    assert path_inside(str(tmp_path / "loras"), "ink") == str(file)


def test_clients_are_told_that_repositories_are_for_the_start(tmp_path: Path) -> None:
    for path in ("someone/ink", "someone/ink@v1/b/ink.safetensors"):
        with pytest.raises(ArgumentError, match="Face's repositories, the server loads those of --lora when it starts"):
            path_inside(str(tmp_path), path)
    ink = write_adapter(tmp_path / "someone" / "ink" / "ink.safetensors")
    assert path_inside(str(tmp_path), "someone/ink") == str(ink)
