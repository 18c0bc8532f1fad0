"""What benchmarks have in common on the command line."""

from __future__ import annotations

import argparse
import errno
from pathlib import Path
from types import ModuleType

import pytest

from bench import shared_gpu
from bench.fidelity import __main__ as fidelity
from bench.image import __main__ as image
from bench.kernel_tests import __main__ as kernel_tests
from bench.kernels import __main__ as kernels
from bench.measure.arguments import INTERRUPTED, end_with, image_sides, json_file
from bench.step import __main__ as step
from bench.throughput import __main__ as throughput

BENCHMARKS = [step, image, throughput, kernels, fidelity, shared_gpu, kernel_tests]


def test_the_file_for_results_is_made_with_its_folder_and_keeps_what_it_has(tmp_path: Path) -> None:
    file = tmp_path / "new" / "results.jsonl"
    assert json_file(str(file)) == file
    file.write_text("{}\n")
    json_file(str(file))
    assert file.read_text() == "{}\n"


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_a_file_that_cannot_be_written_is_found_out_first(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        benchmark.main(["--json", str(tmp_path)])
    assert ended.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.endswith(f"argument --json: must be a file that can be written, got {tmp_path}: Is a directory")


def test_a_full_disk_is_no_reason_to_measure_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, *_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "open", full)
    file = tmp_path / "results.jsonl"
    assert json_file(str(file)) == file


@pytest.mark.parametrize("benchmark", BENCHMARKS)
@pytest.mark.parametrize("seconds", ["-1", "nan", "inf", "soon"])
def test_seconds_are_a_number_from_0_on(
    benchmark: ModuleType, seconds: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        benchmark.main([f"--seconds={seconds}"])
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.endswith(f"argument --seconds: must be a number of seconds, 0 or more, got {seconds}")


@pytest.mark.parametrize("text", ["0", "100", "64,", "64,-64", "large"])
def test_sides_are_multiples_of_a_token(text: str) -> None:
    assert image_sides("64,128") == [64, 128]
    with pytest.raises(argparse.ArgumentTypeError, match="must be a positive multiple of 16"):
        image_sides(text)


def test_an_interrupted_benchmark_ends_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        end_with(interrupted)
    assert ended.value.code == INTERRUPTED
    assert capsys.readouterr().err == "stopped\n"
