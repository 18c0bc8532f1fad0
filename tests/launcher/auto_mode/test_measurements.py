"""What is kept of a warm-up for the next `--parallel auto`, and that every front-end keeps it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.engines.real_size import KREA2
from engine.config.engine_config import EngineConfig
from engine.scheduling.cost import CostModel, Work
from launcher.auto_mode.measurements import keep_speed
from launcher.auto_mode.prediction import TEXT_TOKENS
from launcher.messages.configs import FrontendConfig
from launcher.messages.rank_messages import Ready
from tests.damage import FULL, full_disk
from tests.launcher.processes import PATIENCE_S, Marked, wait_until

H200 = "NVIDIA H200"
# Ranks that say that they are GPUs, and work fast; and a warm-up that is not cut off before anything was measured.
HOLLOW_GPUS = f"""
import sys
if {{"serve", "_frontend"}} & set(sys.orig_argv):
    from launcher.frontend import warm_up as warmup
    warmup.LONGEST_S = {PATIENCE_S}
if "_rank" in sys.orig_argv:
    from tests.launcher import hollow_rank
    hollow_rank.STEP_S = 0.001
    devices = sys.modules["engine.device.devices"]
    devices.pick_device, devices.device_name = lambda *_: "cuda", lambda _: "a hollow GPU"
"""
SCRIPT = """
from launcher import launch
with launch() as client:
    while not client.status().ready:
        pass
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where measurements are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "krea2-engine" / "measured.json"


def keep(engine: dict[str, Any], device: str) -> None:
    """Keep that a step of one image takes 0.321 s."""
    costs = CostModel()
    costs.correct(Work.of([KREA2.image_tokens(KREA2.default_width, KREA2.default_height) + TEXT_TOKENS]), 0.321)
    config = FrontendConfig(engine=EngineConfig(**engine))
    ready = Ready(rank=0, device=device, device_name=H200, link=(1e11, 2e-5), memory={}, attention={})
    keep_speed(config, KREA2, costs, ready)


def test_what_a_gpu_s_warm_up_measured_is_logged_and_kept(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "krea2"):
        keep({"sp": 2}, "cuda:0")
    (kept,) = json.loads(cache.read_text()).items()
    assert kept[0].startswith(f"{H200}, ")
    assert (kept[1]["link"], kept[1]["latency_s"]) == (1e11, 2e-5)
    (record,) = caplog.records
    fields = vars(record)["fields"]
    assert record.getMessage() == "denoise step measured"
    assert {name: fields[name] for name in fields if name != "predicted_ms"} == {
        "mode": "sp2",
        "step_ms": 321.0,
        "link_gb_per_s": 100.0,
        "latency_us": 20.0,
    }


@pytest.mark.parametrize(
    ("engine", "device"),
    [({}, "cpu"), ({}, "mps"), ({"dtype": "float32"}, "cuda:0"), ({"offload": ("vae",)}, "cuda:0")],
)
def test_nothing_is_kept_of_a_cpu_and_of_odd_runs(
    cache: Path, caplog: pytest.LogCaptureFixture, engine: dict[str, Any], device: str
) -> None:
    keep(engine, device)
    assert not cache.exists()
    assert not caplog.records


def test_what_cannot_be_kept_is_told(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache.parent.write_text("a file where the folder should be")
    keep({}, "cuda:0")
    assert caplog.records[-1].getMessage() == "what was measured cannot be kept"


def test_a_full_disk_is_told_with_the_files_name_and_leaves_the_old_one(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keep({}, "cuda:0")
    before = cache.read_bytes()
    with full_disk():
        keep({"sp": 2}, "cuda:0")
    assert vars(caplog.records[-1])["fields"]["error"] == f"[Errno 27] {FULL}: '{cache}'"
    assert [path.read_bytes() for path in cache.parent.iterdir()] == [before]


@pytest.mark.parametrize("started_by", ["serve", "launch"])
def test_every_front_end_keeps_what_its_warm_up_measured(marked: Marked, cache: Path, started_by: str) -> None:
    marked.use_hollow_ranks()
    marked.run_first(HOLLOW_GPUS)
    marked.environment["XDG_CACHE_HOME"] = str(cache.parent.parent)
    if started_by == "serve":
        process = marked.start_krea2("serve", "--no-http")
        wait_until(cache.exists, "the end of the warm-up")
        process.terminate()
    else:
        process = marked.start_script(SCRIPT)
    _, stderr = process.communicate(timeout=PATIENCE_S)
    (kept,) = json.loads(cache.read_text())
    assert kept.startswith("a hollow GPU, "), stderr
    marked.expect_nothing_left()
