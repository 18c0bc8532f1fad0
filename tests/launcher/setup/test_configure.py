"""What is settled before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import ArgumentError
from launcher.auto_mode.prediction import Workload
from launcher.filters.spec import read_specs
from launcher.setup.configure import configure
from launcher.setup.given import check_given
from tests.damage import copy_checkpoint, rewrite_json
from tests.engine.checkpoint.layouts.layouts import load_transformer, save


def warnings_of(model: str, *loras: str) -> tuple[str, ...]:
    *_, warnings = configure(
        {"model": model, "loras": loras},
        auto=False,
        workload=lambda model, _: Workload.default(model),
        tell=lambda *_: None,
    )
    return warnings


def test_a_file_whose_name_and_header_disagree_is_warned_of(turbo: Path, tmp_path: Path) -> None:
    folder = copy_checkpoint(turbo, tmp_path / "Krea-2")
    rewrite_json(folder / "model_index.json", lambda values: values.pop("is_distilled"))
    file = save(load_transformer(turbo), folder / "krea2_raw.safetensors", {"modelspec.title": "Turbo"})
    (warning,) = warnings_of(str(file))
    assert warning.startswith(f"{file}: modelspec.title in its header says that it is Turbo, and its name that it")


def test_a_demo_is_taken_before_a_checkpoint_of_its_name_and_that_is_said(
    turbo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("demo").mkdir()  # as in a checkout of this engine
    assert warnings_of("demo") == ()
    Path("demo-raw").symlink_to(turbo)
    assert warnings_of("./demo-raw") == ()
    (warning,) = warnings_of("demo-raw")
    assert warning == "model demo-raw is the demo; for the checkpoint in the folder of this name, give ./demo-raw"
    assert warnings_of("demo", "outlined=demo-outlined:0.5") == ()
    Path("demo-outlined").touch()
    (warning,) = warnings_of("demo", "outlined=demo-outlined:0.5")
    assert warning == "lora demo-outlined is the demos' own; for what lies here under this name, give ./demo-outlined"


def test_filters_reach_the_front_end_and_a_wrong_one_is_refused_before_anything_is_looked_for() -> None:
    filters = ["python:checks:Nude,block=nude:0.5", "python:checks:Plain"]
    config, _ = check_given("demo", {"filters": filters, "filter_fail_open": True, "device": "cpu"})
    assert config.filters == read_specs(filters)
    assert config.filter_fail_open
    config, _ = check_given("demo", {"filters": filters[0], "device": "cpu"})
    assert [spec.label for spec in config.filters] == ["python"]
    with pytest.raises(ArgumentError, match="did you mean python") as raised:
        check_given("/no/such/model", {"filters": "pyton:a:B"})
    assert raised.value.parameter == "filters"
    with pytest.raises(ArgumentError, match=r"^filters must be a list of NAME"):
        check_given("demo", {"filters": 3})  # type: ignore[typeddict-item]
