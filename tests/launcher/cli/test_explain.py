"""`krea2 generate --explain`."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from launcher.cli.explain import ExplainedCommand, explain_option
from tests.launcher.conftest import Krea2
from tests.launcher.processes import Marked


@click.command(cls=ExplainedCommand)
@click.argument("prompts", nargs=-1)
@click.option("--seed", type=int)
@explain_option
def shown(prompts: tuple[str, ...], seed: int | None, explain: str | None) -> None:
    click.echo(json.dumps([prompts, seed, explain]))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["a red circle"], [["a red circle"], None, None]),
        (["--explain", "a red circle"], [["a red circle"], None, ""]),
        (["a red circle", "--explain"], [["a red circle"], None, ""]),
        (["--explain", "--seed", "7", "a"], [["a"], 7, ""]),
        (["--explain", "trace.json", "a"], [["a"], None, "trace.json"]),
        (["--explain=trace.json", "a"], [["a"], None, "trace.json"]),
        (["a", "--explain", "b", "c"], [["a", "b", "c"], None, ""]),
        (["--explain", "--", "trace.json"], [["trace.json"], None, ""]),
        (["--", "--explain", "a"], [["--explain", "a"], None, None]),
    ],
)
def test_only_what_ends_in_json_is_a_file_and_no_prompt_is_swallowed(arguments: list[str], expected: object) -> None:
    assert json.loads(CliRunner().invoke(shown, arguments).stdout) == expected


@pytest.mark.parametrize(
    "value",
    ["trace.txt", "{folder}/folder.json", "{folder}/file/trace.json", f"{'x' * 256}.json", f"{'x' * 256}/trace.json"],
)
def test_what_cannot_be_the_file_is_said_before_anything_starts(krea2: Krea2, tmp_path: Path, value: str) -> None:
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "file").touch()
    value = value.format(folder=tmp_path)
    code, stdout, stderr = krea2("generate", "x", "--output", str(tmp_path / "x.png"), f"--explain={value}")
    assert (code, stdout) == (2, "")
    assert stderr.startswith("error: --explain must ")
    assert stderr.count("\n") == 1


def test_a_table_goes_to_stderr_and_a_trace_to_its_file(marked: Marked, tmp_path: Path) -> None:
    marked.use_hollow_ranks()
    common = ("--device", "cpu", "--steps", "2", "--seed", "1", "--output", str(tmp_path / "x.png"))
    code, stdout, stderr = marked.run_krea2("generate", "--explain", "a red circle on a white background", *common)
    assert (code, stdout) == (0, f"{tmp_path / 'x.png'}\n")
    assert stderr.startswith("prompt-0: 1 image of 128 × 128 in ")
    assert [line.split("  ")[0] for line in stderr.splitlines() if line.startswith(("denois", "unattr", "total"))] == [
        "denoising",
        "unattributed",
        "total",
    ]
    trace = tmp_path / "new" / "trace.json"
    code, stdout, stderr = marked.run_krea2(
        "generate", "a red circle", "x", *common, "--tp", "2", "--explain", str(trace)
    )
    assert code == 0
    assert sorted(stdout.splitlines()) == [str(tmp_path / f"x_{index}.png") for index in range(2)]
    assert f"trace: {trace} (open it at https://ui.perfetto.dev)" in stderr.splitlines()
    events = json.loads(trace.read_text())["traceEvents"]
    processes = {event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert processes == {"client", "front-end", "rank 0", "rank 1"}
    tracks = {event["args"]["name"] for event in events if event["name"] == "thread_name" and event["pid"] == 10}
    assert tracks == {f"{track}: prompt-{index}" for track in ("encode", "denoise", "VAE") for index in range(2)}
    marked.expect_nothing_left()
