"""What is settled before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.auto_mode.prediction import Workload
from launcher.setup.configure import configure


def warnings_of(model: str, *loras: str) -> tuple[str, ...]:
    *_, warnings = configure(
        {"model": model, "loras": loras},
        auto=False,
        workload=lambda model, _: Workload.default(model),
        tell=lambda *_: None,
    )
    return warnings


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
