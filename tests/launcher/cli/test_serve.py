"""`krea2 serve`, as users run it."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from engine.config.engine_config import EngineConfig
from launcher.cli.options.serving import tell_unfiltered
from launcher.messages.configs import FilterSpec, FrontendConfig
from launcher.messages.limits import Limits
from tests.launcher.conftest import Krea2
from tests.launcher.processes import PATIENCE_S, Marked, connect, without_logs

OWN = FilterSpec(name="python", label="own", value="a:B")
PROMPT = "a red circle on a blue background"


@pytest.mark.parametrize("rpc", [None, "tcp://127.0.0.1:0", "ipc://{folder}/here"])
def test_serve_prints_its_address_and_answers_there(marked: Marked, run_folder: Path, rpc: str | None) -> None:
    marked.use_hollow_ranks()
    arguments = [] if rpc is None else ["--rpc", rpc.format(folder=run_folder)]
    server = marked.start_krea2("serve", "--no-http", "--device", "cpu", "--warm-up", "100x128", *arguments)
    assert server.stdout is not None
    address = server.stdout.readline().strip().removeprefix("rpc: ")
    assert address.startswith("ipc:///" if rpc is None or rpc.startswith("ipc") else "tcp://127.0.0.1:")
    with connect(address) as client:
        assert client.generate(PROMPT, steps=1, output_format="webp").images[0].size == (128, 128)
        server.terminate()
        assert server.wait(PATIENCE_S) == 143
    assert without_logs(server.communicate()[1]) == ""
    marked.expect_nothing_left()
    assert not (run_folder / "here").exists()


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("512", "--warm-up must be WIDTHxHEIGHT, as 512x768, got '512'"),
        ("axb", "--warm-up must be WIDTHxHEIGHT, as 512x768, got 'axb'"),
        ("٦٤x٦٤", "--warm-up must be WIDTHxHEIGHT, as 512x768, got '٦٤x٦٤'"),
        ("64x5000", "--warm-up 64x5000: height must be between 64 and 4096, got 5000"),
    ],
)
def test_serve_refuses_sizes_to_warm_up_that_no_image_may_have(krea2: Krea2, size: str, message: str) -> None:
    code, stdout, stderr = krea2("serve", "--warm-up", size)
    assert (code, stdout, stderr) == (2, "", f"error: {message}\n")


def test_options_for_http_are_told_to_be_of_no_use_without_it(krea2: Krea2) -> None:
    code, _, stderr = krea2("serve", "--no-http", "--http-workers", "2", "--api-key", "secret", "--warm-up", "512")
    assert code == 2
    assert stderr.startswith("warning: with --no-http there is no use for --api-key, --http-workers\nerror: ")
    assert "no use" not in krea2("serve", "--no-http", "--warm-up", "512")[2]


@pytest.mark.parametrize(
    ("rpc", "message"),
    [
        ("tcp://0.0.0.0:5555", "--rpc tcp://0.0.0.0:5555 can be reached from other machines"),
        ("5555", "--rpc must be tcp://HOST:PORT"),
    ],
)
def test_serve_refuses_addresses_that_others_reach(krea2: Krea2, rpc: str, message: str) -> None:
    code, stdout, stderr = krea2("serve", "--rpc", rpc)
    assert (code, stdout) == (2, "")
    assert stderr.startswith(f"error: {message}")
    assert stderr.count("\n") == 1


def test_serve_refuses_files_of_keys_and_limits_that_are_damaged(krea2: Krea2, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("alice\nbob bob-key too many\n")
    for option, message in (
        ("--api-key-file", f"--api-key-file {file}: line 2 must be NAME KEY or KEY"),
        ("--key-limits", f"--key-limits {file}: it is not TOML: "),
    ):
        code, stdout, stderr = krea2("serve", option, str(file))
        assert (code, stdout) == (2, "")
        assert stderr.startswith(f"error: {message}"), stderr
        code, _, stderr = krea2("serve", option, str(tmp_path / "nothing"))
        assert code == 2
        assert "must be a text file that can be read (No such file or directory)" in stderr


@pytest.mark.parametrize("log_format", ["json", "text"])
@pytest.mark.parametrize(
    ("model", "filters", "warned"), [(None, (), 0), (DEMO_CHECKPOINT, (), 1), (DEMO_CHECKPOINT, (OWN,), 0)]
)
def test_weights_of_krea_that_are_served_without_a_filter_are_warned_of_in_one_line(
    model: Path | None,
    filters: tuple[FilterSpec, ...],
    warned: int,
    log_format: str,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = FrontendConfig(engine=EngineConfig(model=model and str(model)), limits=Limits(), filters=filters)
    with caplog.at_level("WARNING", "krea2"):
        tell_unfiltered(config, log_format)
    logged = [record.__dict__["fields"]["message"] for record in caplog.records]
    printed = [line.removeprefix("warning: ") for line in capfd.readouterr().err.splitlines()]
    lines, others = (logged, printed) if log_format == "json" else (printed, logged)
    assert (len(lines), others) == (warned, [])
    for line in lines:
        assert line.startswith("Krea 2 is served without a content filter")
        assert "give --filter" in line
        assert "docs/safety.md" in line
