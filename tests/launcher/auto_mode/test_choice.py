"""`--parallel auto` on the command line, for `launch`, and what warm-ups leave for it."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.engines.real_size import KREA2
from engine.checkpoint.checkpoint_files import CheckpointFiles
from engine.config.demo_checkpoints import DEMO_CHECKPOINTS
from engine.config.engine_config import EngineConfig
from engine.config.model_config import ModelConfig
from engine.errors import ArgumentError, LaunchError
from engine.parallel.link import measure_link
from engine.scheduling.cost import CostModel, Work
from launcher import launch
from launcher.auto_mode import choice
from launcher.auto_mode.choice import choose_mode, find_devices
from launcher.auto_mode.measurements import Measured, is_typical, measure, recall, remember, setting
from launcher.auto_mode.prediction import TEXT_TOKENS, Devices, Rates, StepModel, Workload
from launcher.cli.main import commands
from launcher.messages.configs import FrontendConfig
from tests.engine.parallel.thread_group import thread_groups
from tests.launcher.processes import PATIENCE_S, Marked

H200 = "NVIDIA H200"
KEY, FP8_KEY = (setting(H200, KREA2, form) for form in ("float", "fp8"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where measurements are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "krea2-engine" / "measured.json"


def info(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    commands.main(["info", *words], standalone_mode=False)
    return capsys.readouterr().out.splitlines()


def rows(lines: list[str]) -> dict[str, list[str]]:
    """Of the table of modes: its columns, by the mode."""
    first = next(index for index, line in enumerate(lines) if line.split()[:2] == ["mode", "compute"])
    return {line.split()[0]: line.split()[1:] for line in lines[first + 1 :]}


def test_info_shows_every_mode_s_time_and_memory_and_what_is_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    lines = info(capsys, "demo-raw", "--parallel", "auto", "--gpus", "4", "--size", "1024x1024", "--size", "500x512")
    table = rows(lines)
    assert set(table) == {"one", "tp2", "sp2", "cfg", "tp4", "sp4", "tp2xsp2", "tp2xcfg", "sp2xcfg"}
    head = next(line for line in lines if line.startswith("parallel auto"))
    chosen = head.split()[2]
    assert head == f"parallel auto: {chosen} on 4 × {H200}, for a guided image of 1024 × 1024, 512 × 512"
    assert any(line.startswith("  milliseconds of a denoise step, the mean of the sizes, modelled") for line in lines)
    assert [mode for mode, columns in table.items() if "chosen" in columns] == [chosen]
    assert float(table[chosen][2]) == min(float(columns[2]) for columns in table.values())
    ranks = next(line for line in lines if line.startswith("parameters that inference needs"))
    assert ("rank 1" in ranks) == (chosen != "one"), "what ranks hold is shown for the mode that is chosen"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--parallel", "auto", "--tp", "2"], "--parallel auto chooses --tp, which is given too: 2"),
        (["--parallel", "auto", "--sp", "1"], "--parallel auto chooses --sp, which is given too: 1"),
        (["--parallel", "auto", "--cfg-parallel"], "--parallel auto chooses --cfg-parallel, which is given too: True"),
        (["--parallel", "fastest"], "--parallel must be auto, or left out, got 'fastest'"),
        (["--gpus", "4"], "--gpus says what --parallel auto chooses for, which is not given"),
        (["--parallel", "auto", "--gpus", "0"], "--gpus must be at least 1, got 0"),
        (["--parallel", "auto", "--gpus", "2", "--size", "big"], "--size must be WIDTHxHEIGHT, as 512x768, got 'big'"),
    ],
)
def test_what_cannot_be_chosen(words: list[str], message: str) -> None:
    with pytest.raises(ArgumentError) as error:
        commands.main(["info", "demo", *words], standalone_mode=False)
    assert error.value.message == message


@pytest.mark.parametrize(
    ("options", "message"),
    [({"tp": 2}, "parallel auto chooses tp")],
)
def test_launch_refuses_a_mode_beside_auto(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message), launch(parallel="auto", **options):
        pass


def test_a_picture_in_the_mode_that_is_chosen(marked: Marked, tmp_path: Path) -> None:
    """A CPU's ranks would share its cores: it is one."""
    marked.use_hollow_ranks()
    path = str(tmp_path / "circle.png")
    code, _, stderr = marked.run_krea2(
        "generate",
        "a red circle on a blue background",
        "--parallel",
        "auto",
        "--steps",
        "1",
        "--seed",
        "0",
        "--output",
        path,
    )
    assert code == 0
    if not torch.cuda.is_available():
        assert stderr.splitlines()[0] == "parallel auto: one, since ranks share a CPU's cores"
    marked.expect_nothing_left()


def test_the_child_says_which_gpus_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_ASKED_S", PATIENCE_S)
    found = choice._ask()
    assert isinstance(found, str) == (not torch.cuda.is_available())
    assert find_devices(EngineConfig(device="cpu")) == Devices("cpu", 1)


def test_gpus_are_as_the_child_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_ask", lambda: Devices(H200, 2, 5))
    assert find_devices(EngineConfig()) == Devices(H200, 2, 5)
    assert find_devices(EngineConfig(), ranks=4) == Devices(H200, 4, 5, 4)
    monkeypatch.setattr(choice, "_ask", lambda: "there is no driver")
    assert find_devices(EngineConfig(), ranks=2) == Devices("cpu", 2, ranks=2)
    with pytest.raises(ArgumentError, match="device cuda is not available: there is no driver"):
        find_devices(EngineConfig(device="cuda"))


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("exec sleep 600", r"did not say within 0\.1 s"),
        ("echo Traceback >&2; echo RuntimeError: no driver >&2; exit 1", "no driver"),
        ("exit 3", "cannot say which GPUs exist: 3"),
        ("""echo '{"name": 3}'""", "cannot say which GPUs exist"),
    ],
)
def test_a_child_that_fails_is_an_error(script: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "python_command", lambda _: ["sh", "-c", script])
    monkeypatch.setattr(choice, "_ASKED_S", 0.1 if "sleep" in script else PATIENCE_S)
    with pytest.raises(LaunchError, match=message):
        find_devices(EngineConfig())


class Interrupted(BaseException):
    pass


def test_a_signal_that_interrupts_no_wait_ends_the_asking_nevertheless(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """As one that comes just before the wait: Python knows of it, but the thread that would handle it waits already."""

    def interrupt(number: int, frame: object) -> None:
        raise Interrupted

    def interrupt_main_thread() -> None:
        time.sleep(0.2)  # until it waits
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

    def command(_: str) -> list[str]:
        threading.Thread(target=interrupt_main_thread).start()
        return ["sleep", "600"]

    request.addfinalizer(lambda: signal.signal(signal.SIGUSR1, before))
    before = signal.signal(signal.SIGUSR1, interrupt)
    monkeypatch.setattr(choice, "python_command", command)
    monkeypatch.setattr(choice, "_ASKED_S", PATIENCE_S)
    with pytest.raises(Interrupted):
        find_devices(EngineConfig())


def test_measurements_are_kept_by_device_and_format(cache: Path) -> None:
    assert recall(KEY) is None
    remember(KEY, Measured(slowness=2.0, link=1e11, latency_s=1e-5))
    remember(FP8_KEY, Measured(slowness=3.0))
    assert recall(KEY) == Rates(slowness=2.0, link=1e11, exchange=1e11, latency_s=1e-5)
    assert recall(FP8_KEY) == Rates(slowness=3.0)
    remember(KEY, Measured(slowness=1.5))  # by one rank, which knows no link
    assert recall(KEY) == Rates(slowness=1.5, link=1e11, exchange=1e11, latency_s=1e-5)
    assert recall(setting("another", KREA2, "float")) is None
    assert [file.name for file in cache.parent.iterdir()] == ["measured.json"]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"NVIDIA H200, 16 bits": {"slowness": -1}}', '{"x": {"slow": 1}}'])
def test_a_damaged_file_is_no_measurement_and_is_replaced(cache: Path, text: str) -> None:
    cache.parent.mkdir()
    cache.write_text(text)
    assert recall(KEY) is None
    remember(KEY, Measured(slowness=2.0))
    assert json.loads(cache.read_text()) == {KEY: {"slowness": 2.0}}


@pytest.mark.parametrize(
    "odd",
    [
        {"dtype": "float32"},
        {"attention": "torch"},
        {"share_gpu": True},
        {"offload": ("vae",)},
        {"memory_budget": 10**10},
    ],
)
def test_runs_unlike_others_keep_nothing(odd: dict[str, Any]) -> None:
    assert is_typical(FrontendConfig(engine=EngineConfig(tp=2, quantization="fp8")))
    assert not is_typical(FrontendConfig(engine=EngineConfig(**odd)))
    assert not is_typical(FrontendConfig(engine=EngineConfig(sp=2), ranks_host="node0"))


def test_without_a_home_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert recall(KEY) is None
    with pytest.raises(OSError, match="no home"):
        remember(KEY, Measured(slowness=2.0))


@pytest.mark.parametrize("link", [None, (1e11, 2e-5)])
def test_what_a_warm_up_measured_corrects_the_next_prediction(link: tuple[float, float] | None) -> None:
    engine = EngineConfig(sp=1 if link is None else 2)
    tokens = KREA2.image_tokens(KREA2.default_width, KREA2.default_height) + TEXT_TOKENS
    costs = CostModel()
    assert measure(KREA2, engine, costs, link, fp8=False) is None
    costs.correct(Work.of([tokens]), 0.321)
    found = measure(KREA2, engine, costs, link, fp8=False)
    assert found is not None
    measured, step_s, _ = found
    assert step_s == pytest.approx(0.321)
    remember(KEY, measured)
    rates = recall(KEY)
    assert rates is not None
    segments = [(TEXT_TOKENS, tokens - TEXT_TOKENS)]
    assert sum(StepModel(KREA2.transformer, rates).predict(segments, engine.degrees)) == pytest.approx(0.321)


def test_what_is_kept_of_a_mode_that_divides_guidance_is_of_guided_images() -> None:
    model = replace(KREA2, stated_guidance=3.5)
    engine = EngineConfig(sp=2, cfg_parallel=True)
    tokens = model.image_tokens(model.default_width, model.default_height) + TEXT_TOKENS
    costs = CostModel()
    costs.correct(Work.of([tokens, tokens]), 0.321)
    found = measure(model, engine, costs, None, fp8=False)
    assert found is not None
    measured, step_s, predicted_s = found
    segments = [(TEXT_TOKENS, tokens - TEXT_TOKENS)] * 2
    assert step_s == pytest.approx(0.321)
    assert predicted_s == pytest.approx(sum(StepModel(model.transformer, Rates()).predict(segments, engine.degrees)))
    assert measured.slowness == pytest.approx(0.321 / predicted_s, rel=0.1)


def test_the_choice_follows_what_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("demo-raw", "--parallel", "auto", "--gpus", "2", "--size", "2048x2048")
    before = info(capsys, *words)
    assert any("nothing having been measured here" in line for line in before)
    assert "chosen" not in rows(before)["one"]
    demo = ModelConfig.from_folder(DEMO_CHECKPOINTS["demo-raw"])
    remember(setting(H200, demo, "float"), Measured(slowness=1.0, link=1e6, latency_s=1.0))
    after = info(capsys, *words)
    assert any(line.endswith("modelled by what was measured here:") for line in after)
    assert "chosen" in rows(after)["one"]
    assert float(rows(after)["sp2"][1]) > 1000 * float(rows(before)["sp2"][1])


def test_links_are_measured() -> None:
    with ThreadPoolExecutor(2) as pool:
        links = list(
            pool.map(lambda group: measure_link(group, torch.device("cpu"), 2**20), thread_groups(2, PATIENCE_S))
        )
    assert all(0 < bandwidth < math.inf for bandwidth, _ in links)
    assert all(latency_s > 0 for _, latency_s in links)


def test_started_ranks_are_all_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "find_devices", lambda engine, ranks: Devices("cpu", ranks or 1, ranks=ranks))

    checkpoint = CheckpointFiles.open(EngineConfig())
    checkpoint.close()
    workload = Workload.default(checkpoint.config)
    for ranks in (1, 2, 4):
        engine, _ = choose_mode(checkpoint, EngineConfig(), workload, ranks=ranks)
        assert engine.ranks == ranks
