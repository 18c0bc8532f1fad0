"""The last table of bench/gpu.sh: each part's figures, read from the lines that it added."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.summary.__main__ import main
from bench.summary.figures import figures
from bench.summary.table import Table, table


def of(benchmark: str, *results: dict[str, Any]) -> list[tuple[str, str, str]]:
    return figures([json.dumps({"benchmark": benchmark, **result}) for result in results])


def image(**fields: Any) -> dict[str, Any]:
    return {
        **{"side": 1024, "quantization": "fp8", "wall_s": {"median": 0.9}, "denoise_floor_s": 0.6, "target_s": 0.95},
        **{"peers": {}, "unseen_length": None},
        **fields,
    }


def test_steps_show_the_first_case_of_each_version() -> None:
    def step(case: str, quantization: str, seconds: float) -> dict[str, Any]:
        version = {"case": case, "quantization": quantization, "attention": "fa3", "cuda_graphs": True}
        return version | {"engine": {"step_s": {"median": seconds}}, "floor_s": 0.145, "of_floor": 0.82}

    (row,) = of("step", step("64²", "none", 0.178) | {"dtype": "float32"})
    assert row[0].startswith("64², float32, "), "as on a CPU"
    shown = of("step", step("1024²", "none", 0.178), step("256²", "none", 0.015), step("1024²", "fp8", 0.11))
    assert shown == [
        ("1024², bfloat16, fa3: 178.00 ms a step", "floor 145.00 ms", "82% of the floor's speed"),
        ("1024², fp8, fa3: 110.00 ms a step", "floor 145.00 ms", "82% of the floor's speed"),
    ]


def test_images_show_their_targets_peers_and_new_lengths() -> None:
    unseen = {"difference_s": 0.4, "unseen_s": {"median": 1.25}, "seen_s": {"median": 1.0}, "plan_s": {"median": 0.3}}
    peers = {"eager": {"wall_s": {"median": 1.8}, "ratio": 2.0}}
    assert of("image", image(), image(target_s=0.8), image(target_s=None, peers=peers, unseen_length=unseen)) == [
        ("1024², fp8: 0.900 s an image (target ≤ 0.95 s: met)", "floor 0.600 s", "67% of the floor's speed"),
        ("1024², fp8: 0.900 s an image (target ≤ 0.80 s: MISSED)", "floor 0.600 s", "67% of the floor's speed"),
        ("1024², fp8: 0.900 s an image", "floor 0.600 s", "67% of the floor's speed"),
        ("1024², fp8, diffusers eager: 1.800 s", "engine 0.900 s", "2.00× as long as the engine"),
        ("1024², fp8, a length not seen before: +0.400 s", "seen 1.000 s", "1.25× as long as a length seen"),
        ("1024², fp8, its attention plan: 0.300 s", "", "in idle time"),
    ]


def test_loads_show_images_a_second_and_their_target() -> None:
    load = {"load": "20×1024²", "images": 20, "quantization": "fp8", "images_per_s": 1.0, "of_floor": 0.8}
    load |= {"floor_s": 16.0, "target": {"images_per_s": 1.08}}
    assert of("throughput", load, load | {"target": None}) == [
        ("20×1024², fp8: 1.000 images/s (target ≥ 1.08: MISSED)", "floor 1.250 images/s", "80% of the floor's speed"),
        ("20×1024², fp8: 1.000 images/s", "floor 1.250 images/s", "80% of the floor's speed"),
    ]


def test_checks_show_the_worst_or_what_is_wrong() -> None:
    good = {"kernel": "gate", "error": 1e-3, "bound": 4e-3, "holds": True}
    near = {"kernel": "norm", "error": 3e-3, "bound": 4e-3, "holds": True}
    wrong = {"kernel": "rope", "error": float("inf"), "bound": 0.0, "holds": False}
    assert of("kernel_check", good, near) == [
        ("2 of 2 checks hold, the worst: norm, relative error 3.0e-03", "4.0e-03 allowed", "75% of what is allowed")
    ]
    assert of("kernel_check", good, wrong, wrong) == [("1 of 3 checks hold; WRONG: rope", "", "")]


def test_kernels_show_the_least_of_each_ceiling() -> None:
    elementwise = {"moved": 1, "tokens": 4160}
    assert of(
        "kernel",
        elementwise | {"kernel": "norm", "share": 0.7, "bytes_per_s": 2.8e12},
        elementwise | {"kernel": "gate", "share": 0.9, "bytes_per_s": 3.6e12},
        {"kernel": "out bfloat16", "tokens": 4096, "share": 0.65, "flops_per_s": 4.55e14},
    ) == [
        (
            "elementwise, the least of 2: norm, 4160 rows, 2800 GB/s",
            *("a copy, 4000 GB/s", "70% of a copy's speed"),
        ),
        (
            "products and attention, the least of 1: out bfloat16, 4096 rows, 455 TFLOP/s",
            *("a large product, 700 TFLOP/s", "65% of a large product's speed"),
        ),
    ]


def test_tests_are_counted_over_their_files() -> None:
    results = [
        {"file": "tests/test_a.py", "status": 0, "summary": "18 passed, 2 skipped, 1 warning in 1.39s"},
        {"file": "tests/test_b.py", "status": 1, "summary": "2 failed, 9 passed in 10.34s"},
        {"file": "tests/test_c.py", "status": None, "summary": "stopped: the time was up"},
    ]
    assert of("kernel_tests", *results) == [
        (
            "27 passed, 2 skipped, 2 failed, in 3 files; not well: test_b.py, test_c.py (stopped: the time was up)",
            *("", ""),
        )
    ]
    assert of("kernel_tests", results[2])[0][0].startswith("no test ran to its end, in 1 file; not well: test_c.py")


def test_parity_shows_the_worst_precision_of_each_mode() -> None:
    exact = {"mode": "tp2", "precision": "float32", "error": 1e-5, "allowed": 1e-4, "holds": True}
    fp8 = {"mode": "tp2", "precision": "fp8", "error": 0.05, "allowed": 0.1, "holds": True}
    assert of("shared_gpu", exact, fp8, fp8 | {"mode": "sp2", "error": 0.2, "holds": False}) == [
        ("tp2: parity holds, the worst in fp8: latents differ by 5.0e-02", "1.0e-01 allowed", "50% of what is allowed"),
        ("sp2: NO PARITY, the worst in fp8: latents differ by 2.0e-01", "1.0e-01 allowed", "200% of what is allowed"),
    ]


def test_fidelity_scaling_loading_and_blocks() -> None:
    demo = [{"variant": "bfloat16", "latents_error": 5e-3}, {"variant": "attention x", "latents_error": 9e-2}]
    (row,) = of("fidelity_demo", *demo)
    assert row[0] == "error of the demo's latents, 2 variants: bfloat16 5.0e-03, attention x 9.0e-02"
    sp2 = {"mode": "sp2", "side": 1024, "quantization": "none", "step_s": 0.095, "of_one": 1.8}
    assert of("scaling", sp2, sp2 | {"side": 512}) == [
        ("sp2, 1024², bfloat16: 95.00 ms a step, modelled", "", "1.80× one rank's speed")
    ]
    load = {"bytes": 24e8, "cache": "warm", "load_rate": 2e9, "read_rate": 4e9, "of_read": 0.5}
    assert of("load", load) == [
        ("2.4 GB of weights, warm cache: 2.00 GB/s loaded", "4.00 GB/s read", "50% of the read's speed")
    ]
    block = {"side": 1024, "fp8": True, "block_s": 0.004}
    assert of("kernel_sum", block) == [("1024², fp8: 4.00 ms a block, by its kernels", "", "")]


def test_what_is_no_figure_and_what_cannot_be_read() -> None:
    assert of("ceilings", {}) == of("gpu", {}) == []
    assert of("new", {}, {}) == [("new: 2 results", "", "")]
    (row,) = of("step", {"case": "1024²"})
    assert row[0] == "step: 1 results that this table cannot read: KeyError('quantization')"
    assert figures(['{"benchmark": "im', "[]", "3"]) == [("3 damaged lines", "", "")]


def test_a_part_has_the_lines_that_it_added(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    lines = [json.dumps({"benchmark": name}) + "\n" for name in ("earlier", "one", "two", "ceilings")]
    file.write_text("".join(lines))
    at = [sum(map(len, lines[:count])) for count in range(5)]
    parts = [
        ("first", at[1], at[3], "ok, 3 s"),
        ("second", at[3], at[4], "ok, 4 s"),
        ("third", at[4], at[4], "FAILED: exit status 1, 2 s"),
        ("fourth", at[4], at[4], "skipped: 2 s of 9 s are left"),
    ]
    assert table(file, parts) == Table(
        [
            ("first", "ok, 3 s", "one: 1 results", "", ""),
            ("", "", "two: 1 results", "", ""),
            ("second", "FAILED: no number, 4 s", "no number", "", ""),
            ("third", "FAILED: exit status 1, 2 s", "no number", "", ""),
            ("fourth", "skipped", "2 s of 9 s are left", "", ""),
        ],
        any_figure=True,
        lacks_figures=True,
    )


def test_what_there_was_no_time_for_is_told_and_is_no_figure(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    line = json.dumps({"benchmark": "left_out", "what": ["nvfp4", "mxfp8"], "of": 14}) + "\n"
    file.write_text(line)
    made = table(file, [("fidelity", 0, len(line), "ok, 9 s")])
    assert made == Table(
        [
            ("fidelity", "FAILED: no number, 9 s", "no number", "", ""),
            ("", "", "the time was up for 2 of 14: nvfp4, mxfp8", "", ""),
        ],
        any_figure=False,
        lacks_figures=True,
    )


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        ("INFO loads\nFAILED: 64²: the disk\nFAILED: later", "FAILED: 64²: the disk"),
        ("python -m bench.step: error: argument --cases", "python -m bench.step: error: argument --cases"),
        ("FAILED: a: Traceback (most recent call last):\n  File x\n    y\nOSError: full", "FAILED: a: OSError: full"),
        (
            "Traceback (most recent call last):\n  File x\nRuntimeError: CUDA error: lost",
            "RuntimeError: CUDA error: lost",
        ),
        ("error: " + "x" * 200, "error: " + "x" * 92 + "…"),
        ("all is said to be well: no error", None),
    ],
)
def test_why_a_part_failed_is_read_from_the_log(tmp_path: Path, said: str, cause: str | None) -> None:
    log = tmp_path / "results.log"
    earlier = "== step (at most 9 s): x\nFAILED: yesterday\n== step: FAILED: exit status 1, 1 s\n"
    log.write_text(
        f"{earlier}\n== step (at most 9 s): x\n{said}\n== step: FAILED: 1, 1 s\n\n== image (at most 9 s): y\n"
    )
    made = table(tmp_path / "none", [("step", 0, 0, "FAILED: exit status 1, 1 s")], log)
    assert made.rows[1:] == ([] if cause is None else [("", "", cause, "", "")])


def test_the_command_prints_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "results.jsonl"
    file.write_text(json.dumps({"benchmark": "image", **image()}) + "\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"image\t0\t{file.stat().st_size}\tok, 9 s\n"))
    assert main([str(file)]) == 0
    header, _, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["part", "outcome", "key", "figure", "compared", "with", "which", "makes"]
    assert row.startswith("image  ok, 9 s  1024², fp8: 0.900 s an image")
    monkeypatch.setattr(sys, "stdin", io.StringIO("image\t0\t9\tok, 9 s\n"))
    assert main([str(tmp_path / "none")]) == 3
    assert "FAILED: no number, 9 s" in capsys.readouterr().out
    assert main([]) == 2
