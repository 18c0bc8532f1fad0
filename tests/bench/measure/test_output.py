from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.measure import writing
from bench.measure.arguments import end_with
from bench.measure.output import append_json, publish
from tests.damage import full_disk
from tests.launcher.processes import PATIENCE_S


def test_a_line_says_what_it_was_measured_on_and_with_what(tmp_path: Path) -> None:
    file = tmp_path / "new" / "results.jsonl"
    append_json(file, "one", {"value": 1})
    append_json(file, "two", {"value": 2})
    first, second = (json.loads(line) for line in file.read_text().splitlines())
    assert (first["benchmark"], first["value"], second["benchmark"]) == ("one", 1, "two")
    assert {"cpu", "cores", "threads", "gpu", "gpus"} <= first["hardware"].keys()
    assert {"python", "torch", "triton", "cuda", "cudnn", "driver"} <= first["versions"].keys()


def test_a_result_goes_to_the_file_or_to_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish("one", {"value": 1}, tmp_path / "results.jsonl")
    assert capsys.readouterr().out == ""
    publish("one", {"value": 1}, None)
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "results.jsonl").read_text())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's full device")
def test_a_line_that_cannot_be_written_goes_to_stdout_and_leaves_no_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(writing, "_failed", [])
    full, file = tmp_path / "full.jsonl", tmp_path / "results.jsonl"
    full.symlink_to("/dev/full")
    publish("one", {"value": 1}, full)
    output = capsys.readouterr()
    assert json.loads(output.out)["value"] == 1
    assert output.err == f"error: a line cannot be added to {full}: No space left on device\n"
    assert not writing.all_written()
    with pytest.raises(SystemExit) as ended:
        end_with(lambda: 0)
    assert ended.value.code == 1

    file.write_text("{}\n")
    with full_disk(room=20):
        publish("one", {"value": 1}, file)
    assert json.loads(capsys.readouterr().out)["value"] == 1
    assert file.read_text() == "{}\n"


def test_where_there_is_no_checkout_the_commit_is_what_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.measure import output

    monkeypatch.setattr(output, "_output_of", lambda *_: None)
    monkeypatch.setenv("KREA2_COMMIT", "abc123")
    assert output._commit() == "abc123"


def test_sigterm_ends_what_wants_no_stacks_in_one_line() -> None:
    code = (
        "import time\nfrom bench.measure.arguments import end_with\n"
        "def main():\n    try:\n        print('ready', flush=True)\n        time.sleep(600)\n"
        "    finally:\n        print('tidied')\n"
        "end_with(main, stacks=False)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        output, errors = process.communicate(timeout=PATIENCE_S)
    assert (output, errors, process.returncode) == ("tidied\n", "stopped\n", 143)
