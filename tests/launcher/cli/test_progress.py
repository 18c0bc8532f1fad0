"""What is seen of loading and denoising, on a terminal and elsewhere."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from engine.config.engine_config import EngineConfig
from engine.config.model_config import ModelConfig
from launcher.cli import progress
from launcher.cli.progress import ConvertProgress, GenerateProgress, LoadingProgress
from launcher.cli.server_summary import ServerSummary
from launcher.messages.configs import FrontendConfig, HttpConfig, LoraFile
from launcher.messages.limits import Limits
from launcher.messages.message_parts import Computed, Stage
from launcher.messages.rank_messages import Ready
from tests.launcher.processes import Marked

GB = 10**9


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_loading_that_is_short_says_nothing_where_there_is_no_terminal_and_else_every_ten_seconds() -> None:
    now, said = 0.0, list[tuple[float, str]]()
    loading = LoadingProgress(None, lambda stage, seconds: said.append((seconds, stage.describe())), lambda: now)
    for tenth in range(351):
        now = tenth / 10
        name = "starting" if now < 12 else "loading" if now < 28 else "warming up"
        loading.show(Stage(name=name, done=min(tenth, 280) * GB // 280, total=GB if now >= 12 else 0))
    loading.close()
    assert [text for _, text in said] == ["starting", "loading 0.7 of 1.0 GB (71 %)", "warming up"]
    assert [round(seconds) for seconds, _ in said] == [10, 20, 30]
    last = progress.describe(Stage(name="loading", done=GB, total=2 * GB), 20.0)
    assert last == "loading 1.0 of 2.0 GB (50 %), after 20 s"


def test_a_conversion_says_nothing_while_it_is_short_and_else_how_far_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter((0, 5, 59, 70, 110, 250, 299, 300))
    with ConvertProgress(430, lambda: next(clock)) as written:
        for _ in range(7):
            written.advance()
    assert capsys.readouterr().err.splitlines() == [
        "3 of 430 tensors, after 70 s",
        "5 of 430 tensors, after 250 s",
        "7 of 430 tensors, after 300 s",
    ]
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    with ConvertProgress(4) as written:
        written.advance()
        written.advance()
        written._bar.refresh()
    assert "| 2/4 [" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r")


def test_a_terminal_has_a_bar_by_bytes_which_is_gone_at_the_end() -> None:
    terminal = Terminal()
    loading = LoadingProgress(terminal, lambda stage, seconds: pytest.fail("a line beside the bar"))
    loading.show(Stage(name="starting"))
    for done in (0, 1, 2, 3):
        loading.show(Stage(name="loading", done=done * 10 * GB, total=30 * GB))
        loading._bar._bar.refresh()  # type: ignore[union-attr]  # which tqdm does ten times a second at most
    loading.show(Stage(name="warming up", done=30 * GB, total=30 * GB))
    loading.close()
    shown = [text for text in terminal.getvalue().split("\r") if text.strip()]
    assert shown[0].startswith("starting [")
    assert [match[1] for text in shown if (match := re.search(r"\| (\S+)/30\.0G ", text))][-1] == "30.0G"
    assert any(text.startswith("loading:  67%") for text in shown)
    assert shown[-1].startswith("warming up [")
    assert terminal.getvalue().endswith("\r")


def test_the_rate_of_denoising_counts_from_its_own_beginning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal, now = Terminal(), 100.0
    monkeypatch.setattr("sys.stderr", terminal)
    shown = GenerateProgress([4, 4], lambda: now)
    shown.warn(["dark"])
    shown.warn(["dark", "cold"])
    shown.show_loading(0, 0, "starting")
    now += 50.0
    shown.begin()
    bar = shown._bar
    assert (bar.n, bar.total, bar.unit, bar.desc) == (0, 8, "step", "image 1 of 2")
    shown.advance(4)
    shown.image_done(Path("a.png"))
    assert bar.desc == "image 2 of 2: "
    shown.advance(4)
    shown.image_done(Path("b.png"))
    assert (bar.n, bar.desc) == (8, "image 2 of 2: ")
    now += 2.0
    shown.end([7, 8])
    assert capsys.readouterr().out == "a.png\nb.png\n"
    text = terminal.getvalue()
    assert text.count("warning: dark") == text.count("warning: cold") == 1
    assert text.endswith("2 images in 2.0 s, after 50.0 s of loading; seeds 7 to 8\n")


def test_the_last_line_says_what_was_saved_of_the_steps(capsys: pytest.CaptureFixture[str]) -> None:
    shown = GenerateProgress([2])
    shown.image_done(Path("a.png"), Computed(steps=((4,), (0,)), blocks=4))
    shown.end([7])
    assert capsys.readouterr().err.splitlines()[-1] == "4 of 8 block evaluations, 50 % saved; computed steps: 1"


@pytest.mark.parametrize(
    ("seeds", "shown"),
    [([3], "seed 3"), ([3, 4], "seeds 3 to 4"), ([3, 9], "seeds 3, 9"), ([*range(9), 0, 1], "8, 0, …")],
)
def test_the_last_line_has_the_seeds(seeds: list[int], shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    GenerateProgress([1] * len(seeds)).end(seeds)
    assert capsys.readouterr().err.rstrip().endswith(shown)


def summary(**http: object) -> ServerSummary:
    lora = LoraFile(name="ink", path="/ink", strength=0.5)
    config = FrontendConfig(engine=EngineConfig(tp=2), drain_s=20.0, block_format="fp8", loras=(lora,))
    ranks = [
        Ready(rank=rank, device=f"cuda:{rank}", device_name="H200", memory={"weights": 33 * GB}, attention={})
        for rank in range(2)
    ]
    own = HttpConfig(engine=config.engine, limits=Limits(), **http)  # type: ignore[arg-type]
    model = ModelConfig.from_folder(DEMO_CHECKPOINT)
    return ServerSummary(config, model, own, "http://127.0.0.1:30000", "ipc:///clients", ranks, 41.2)


def test_a_server_says_once_what_it_serves_on_what_and_where() -> None:
    assert summary().lines(addresses=False) == [
        "",
        "serving demo (Turbo: 8 steps, 128×128), started in 41 s",
        "  device   rank 0: cuda:0 (H200), 33.0 GB of weights",
        "           rank 1: cuda:1 (H200), 33.0 GB of weights",
        "  mode     tp2, 2 ranks",
        "  weights  fp8 in the blocks, bfloat16 elsewhere",
        "  page     http://127.0.0.1:30000/",
        "  API      http://127.0.0.1:30000/v1, as OpenAI's images API",
        "  docs     http://127.0.0.1:30000/docs",
        "  names    demo",
        "  keys     none: loopback only",
        "  LoRAs    ink (0.5)",
        "  filters  none",
        "  limits   sides of 64 to 4096 pixels, 10 images a request, 256 requests waiting",
        "  stop     Ctrl-C, which finishes what runs for up to 20 s",
        "",
    ]
    assert "  RPC      ipc:///clients" in summary().lines(addresses=True)
    fields = summary(api_keys=("a", "b")).fields()
    assert fields["keys"] == "one of 2 is asked for"
    assert fields["device"] == [f"rank {rank}: cuda:{rank} (H200), 33.0 GB of weights" for rank in range(2)]
    assert "level" not in fields
    named = summary(model_names=("a", "b"), any_model=True).fields()
    assert named["names"] == "a, b, and any other"
    assert summary(host="0.0.0.0").fields()["keys"] == "none: whoever reaches 0.0.0.0"


def test_warnings_come_before_the_work_and_no_more_after_it(marked: Marked, tmp_path: Path) -> None:
    marked.use_hollow_ranks()
    words = ("--device", "cpu", "--steps", "1", "--width", "100", "--seed", "0", "-o", f"{tmp_path}/a.png")
    code, _, stderr = marked.run_krea2("generate", "a fox " * 600, *words)
    first, second, third, last = stderr.splitlines()
    assert code == 0
    assert first.startswith("warning: the size 100 × 128 was rounded up")
    assert second.startswith('warning: the model does not know "fox"')
    assert third == "warning: prompt was cut to 507 tokens"
    assert last.startswith("1 image in ")
