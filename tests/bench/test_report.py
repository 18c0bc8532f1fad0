"""python -m bench.report, and that docs/benchmarks.md says what bench/results says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.report.__main__ import (
    BEGIN,
    END,
    NOT_MEASURED,
    ReportError,
    images,
    main,
    markdown,
    read_results,
    rows,
    with_table,
)

DOCUMENT = f"before\n\n{BEGIN}\nold\n{END}\n\nafter\n"
CIRCUMSTANCES = {
    "hardware": {"gpu": "NVIDIA H200"},
    "versions": {"torch": "2.11.0", "triton": "3.6.0", "cudnn": 91900},
    "commit": "abc123",
    "size": "real",
}


def image(seconds: float, side: int = 1024, quantization: str = "none", **fields: Any) -> dict[str, Any]:
    stages = {"encode_s": 0.02, "denoise_s": 0.8 * seconds, "decode_s": 0.03, "file_s": 0.006, "png_s": 0.1}
    return {
        "benchmark": "image",
        "side": side,
        "steps": 8,
        "quantization": quantization,
        "wall_s": {"median": seconds},
        "stages": stages,
        "outside_s": 0.01,
        "denoise_floor_s": 0.7 * seconds,
        "denoise_of_floor": 0.875,
        "peers": {},
        **CIRCUMSTANCES,
        **fields,
    }


def write(file: Path, *results: dict[str, Any]) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps(result) + "\n" for result in results))


def put_document(root: Path) -> Path:
    file = root / "docs" / "benchmarks.md"
    file.parent.mkdir()
    file.write_text(DOCUMENT)
    return file


def measured(results: list[dict[str, Any]], what: str) -> list[str]:
    return [row.cells(results)[3] for row in rows() if what in row.what]


def test_the_document_says_what_the_results_say() -> None:
    assert main(["--check"]) == 0


def test_without_results_every_row_says_so(tmp_path: Path) -> None:
    results = read_results(tmp_path / "none")
    assert results == []
    table = markdown(results)
    assert table.count(NOT_MEASURED) == len(rows())
    assert "](results.svg)" not in table


def test_the_newest_result_counts_and_only_those_of_a_gpu_at_the_real_size(tmp_path: Path) -> None:
    write(tmp_path / "2027-01-02-h200.jsonl", image(1.5), image(1.25))
    write(tmp_path / "2027-01-01-h200.jsonl", image(9.0), image(0.9, quantization="fp8"))
    write(tmp_path / "2027-01-03-cpu.json", image(3.0, hardware={"gpu": None}), image(4.0, size="tiny"))
    results = read_results(tmp_path)
    assert len(results) == 4
    assert measured(results, "1024², 8 steps, one image, bfloat16") == [
        "1.25 s (a PNG file takes 100 ms); denoising 1.00 s, 88% of which is its floor, 0.88 s"
    ]
    assert measured(results, "1024², 8 steps, one image, fp8")[0].startswith("0.90 s")
    assert measured(results, "2048², 8 steps, one image, bfloat16") == [NOT_MEASURED]
    assert "NVIDIA H200, torch 2.11.0, triton 3.6.0, cuDNN 91900, commit abc123" in markdown(results)


def test_what_the_table_does_not_speak_of_does_not_count(tmp_path: Path) -> None:
    other = [image(1.0, gpu_shared=True), image(1.0, dtype="float32"), image(1.0, device="cpu")]
    write(tmp_path / "2027-01-01-h200.jsonl", image(1.25, gpu_shared=False, dtype="bfloat16", device="cuda"), *other)
    left_out = {"benchmark": "left_out", "what": ["1024²"], "of": 2, "hardware": {"gpu": "NVIDIA H200"}}
    write(tmp_path / "2027-01-02-h200.jsonl", left_out)
    assert len(read_results(tmp_path)) == 1


def test_an_image_beside_a_peer_counts_for_the_comparison_alone() -> None:
    results = [image(1.25), image(1.5, peers={"eager": {"ratio": 1.5}, "compiled": {"ratio": 1.25}})]
    assert measured(results, "1024², 8 steps, one image, bfloat16")[0].startswith("1.25 s")
    assert measured(results, "1024², one image, bfloat16") == ["1.50×", "1.25×"]
    assert [result["wall_s"]["median"] for result in images(results)] == [1.25]


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err == f"error: there is no folder {tmp_path / 'none'}\n"


def test_loads_peers_and_kernels_have_their_rows() -> None:
    load = {
        **CIRCUMSTANCES,
        **{"benchmark": "throughput", "images": 20, "side": 1024, "steps": 8, "quantization": "none"},
        **{"images_per_s": 0.8, "latency_mean_s": 13.25, "of_floor": 0.9},
    }
    kernel = {**CIRCUMSTANCES, "benchmark": "kernel", "moved": 1, "side": 1024, "tp": 1}
    peers = {"eager": {"ratio": 1.5}, "compiled": {"ratio": 1.25}}
    results: list[dict[str, Any]] = [
        load,
        image(1.3, peers=peers),
        image(1.2),  # newer, but without a peer
        {**kernel, "kernel": "slow", "share": 0.7},
        {**kernel, "kernel": "fast", "share": 0.9},
    ]
    assert measured(results, "20 requests for 1024² at once, bfloat16") == [
        "0.80 images/s, mean 13.2 s; 90% of the floor's"
    ]
    assert measured(results, "1024², one image") == ["1.50×", "1.25×"]
    assert measured(results, "512², one image") == [NOT_MEASURED]
    assert measured(results, "elementwise") == ["1 of 2 do; the least, slow, 70%"]


def test_check_compares_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = put_document(tmp_path)
    (tmp_path / "results").mkdir()
    arguments = [str(tmp_path / "results"), "--root", str(tmp_path)]
    assert main([*arguments, "--check"]) == 1
    assert "run python -m bench.report" in capsys.readouterr().err
    assert document.read_text() == DOCUMENT
    assert main(arguments) == 0
    assert main([*arguments, "--check"]) == 0
    text = document.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert not (tmp_path / "docs" / "results.svg").exists()
    write(tmp_path / "results" / "2027-h200.jsonl", image(1.25))
    assert main([*arguments, "--check"]) == 1


def test_the_plot_is_the_same_for_the_same_results(tmp_path: Path) -> None:
    document = put_document(tmp_path)
    write(tmp_path / "results" / "2027-h200.jsonl", image(1.25), image(0.9, quantization="fp8"), image(6.5, side=2048))
    plots = []
    for _ in range(2):
        assert main([str(tmp_path / "results"), "--root", str(tmp_path)]) == 0
        plots.append((tmp_path / "docs" / "results.svg").read_text())
    assert plots[0] == plots[1]
    assert "<svg" in plots[0]
    assert "](results.svg)" in document.read_text()


def test_without_matplotlib_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    document = put_document(tmp_path)
    write(tmp_path / "results" / "2027-h200.jsonl", image(1.25))
    assert main([str(tmp_path / "results"), "--root", str(tmp_path)]) == 1
    assert "pip install -e '.[bench]'" in capsys.readouterr().err
    assert document.read_text() == DOCUMENT


def test_a_damaged_line_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "2027-h200.jsonl"
    for damage in ('{"benchmark": "image"', "[1]", '{"benchmark": "image"}'):
        file.write_text(f"{json.dumps(image(1.0))}\n\n{damage}\n")
        with pytest.raises(ReportError, match=r"2027-h200.jsonl, line 3 is no result"):
            read_results(tmp_path)
    assert main([str(tmp_path)]) == 1
    assert "line 3 is no result" in capsys.readouterr().err


@pytest.mark.parametrize("document", ["", f"{END}{BEGIN}", f"{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_a_document_needs_both_markers_once(document: str) -> None:
    with pytest.raises(ReportError, match="once each, in this order"):
        with_table(document, "table")
