"""python -m bench.kernels: what it counts, that it sees wrong kernels, and the command at a tiny size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.engines.real_size import KREA2, TINY
from bench.kernels import block_operations, vae_operations
from bench.kernels import checks as kernel_checks
from bench.kernels.__main__ import main
from bench.kernels.cases import Operation, Random, Shape, bytes_moved
from bench.kernels.checks import check_all, relative_error
from bench.kernels.elementwise import Timed, elementwise_operations
from bench.kernels.rates import Attention, Product, Rate, block_matrices
from bench.kernels.sweep import block_seconds
from bench.kernels.timing import time_kernel
from bench.measure.lost import LOST
from engine.kernels.packing import Packing

CPU = torch.device("cpu")
DTYPE = torch.bfloat16


def shape_of(*lengths: int, tp: int = 1) -> Shape:
    return Shape.of(TINY, Packing(lengths, CPU), 32, tp)


def moved(operation: Operation, shape: Shape) -> int:
    inputs = operation.draw(shape, Random.fresh(CPU, DTYPE))
    return bytes_moved(operation, inputs, operation.run(shape, inputs))


def test_bytes_are_each_input_and_each_output_once() -> None:
    shape = shape_of(10, 3)
    rows, width, inner = 13, 128, 256
    heads = (8 + 4) * 16
    vector = 2 * width * 4  # of two segments, float32
    expected = {
        "norm, modulate": 2 * rows * width * 2 + 2 * vector,
        "residual, norm, modulate": 4 * rows * width * 2 + 3 * vector,
        "sigmoid(gate) · x": 3 * rows * width * 2,
        "silu(gate) · up": 3 * rows * inner * 2,
        "silu(gate) · up → fp8": 2 * rows * inner * 2 + rows * inner + rows * 4,
        "q, k norm and rotation": 2 * rows * heads * 2 + 2 * 16 * 4 + rows * 8 * 8,
        "VAE: upsample": 5 * 16 * 16 * 16 * 2,
    }
    counted = {operation.name: moved(operation, shape) for operation in elementwise_operations()}
    assert expected.items() <= counted.items()


def test_shapes_are_those_of_one_rank() -> None:
    shape = Shape.of(KREA2, Packing([4160], CPU), 1024, tp=4)
    assert block_matrices(shape) == {
        "q|k|v|gate": (3840, 6144),
        "out": (6144, 1536),
        "gate|up": (8192, 6144),
        "down": (6144, 4096),
    }
    one = Attention.draw(shape_of(64, 16), Random.fresh(CPU, DTYPE))
    assert one.flops == 4 * 128 * (64**2 + 16**2)


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_every_kernel_is_right_on_odd_segments(tp: int) -> None:
    with torch.inference_mode():
        checks = list(check_all(shape_of(1, 7, 0, 33, tp=tp), CPU, tp))
    assert len(checks) > 15
    assert not [check for check in checks if not check.holds]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: x[:, :256] * 1.01 * x[:, 256:],
        lambda x: torch.empty_like(x[:, :256]),  # forgets to write
        lambda x: torch.full_like(x[:, :256], float("nan")),
    ],
)
def test_a_wrong_kernel_is_named(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_operations, "silu_mul", lambda gate_up, fp8: wrong(gate_up))
    checks = [check for check in check_all(shape_of(5), CPU, 1) if not check.holds]
    assert {check.kernel for check in checks} == {"silu(gate) · up", "silu(gate) · up → fp8"}


def test_a_kernel_that_raises_is_wrong_and_the_others_are_checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no such plan")

    monkeypatch.setattr(vae_operations, "upsample", broken)
    assert main(["--check-only", "--sides", "64"]) == 1
    output = capsys.readouterr().out
    assert output.count("WRONG: VAE: upsample") == 2
    assert "RuntimeError: no such plan" in output


def test_a_check_with_which_the_gpu_is_lost_is_the_last_of_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    file, attempts = tmp_path / "results.jsonl", tmp_path / "attempts"
    monkeypatch.setenv("KREA2_BENCH_ATTEMPTS", str(attempts))
    words = ["--check-only", "--sides", "64", "--json", str(file)]
    with monkeypatch.context() as planted:
        planted.setattr(vae_operations, "upsample", broken)
        assert main(words) == LOST
    output = capsys.readouterr().out
    assert "FAILED: the GPU is lost, and whatever it would compute in this process: RuntimeError: CUDA" in output
    *_, last = attempts.read_text().splitlines()
    with attempts.open("a") as lines:
        lines.write(last.replace("begun", "died of") + "\n")
    assert main(words) == 0, "what is left"
    checks = [json.loads(line) for line in file.read_text().splitlines()]
    assert [check["kernel"] for check in checks if not check["holds"]] == ["VAE: upsample"]
    by_shape: dict[tuple[int, ...], list[str]] = {}
    for check in checks:
        by_shape.setdefault(tuple(check["tokens"]), []).append(check["kernel"])
    first, second = by_shape.values()
    assert sorted(first) == sorted(second), "each check once, whatever process it was in"


@pytest.mark.parametrize("fp8", [False, True])
def test_a_product_in_pieces_is_the_product(fp8: bool) -> None:
    product = Product.draw(20, (32, 64), fp8=fp8, random=Random.fresh(CPU, DTYPE))
    out = torch.full((20, 32), float("nan"), dtype=DTYPE)
    product.run_in_pieces((16, 4), out)
    torch.testing.assert_close(out, product.run())


def test_relative_errors() -> None:
    expected = torch.tensor([3.0, 4.0])
    assert relative_error(expected + torch.tensor([0.0, 0.5]), expected) == pytest.approx(0.1)
    assert relative_error(torch.tensor([3.0, float("nan")]), expected) == float("inf")
    assert relative_error(torch.empty(0), torch.empty(0)) == 0.0


def test_memory_is_poisoned_only_inside() -> None:
    with kernel_checks.poisoned():
        assert torch.empty(3).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_calls_take_turns() -> None:
    turns: list[int] = []
    spread = time_kernel([lambda: turns.append(0), lambda: turns.append(1)], CPU, repeats=5)
    assert turns == [0, 1, 0, 1, 0, 1]  # the first does not count
    assert spread.count == 5
    assert 0 < spread.p10 <= spread.median <= spread.p90


def test_the_command_prints_tables_and_writes_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "results.jsonl"
    assert main(["--size", "tiny", "--sides", "128", "--tp", "2", "--json", str(file)]) == 0
    output = capsys.readouterr().out
    assert "checks of kernels hold" in output
    assert "attention fa3 is not here: it needs a CUDA device" in output
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert {line["benchmark"] for line in lines} == {
        *("kernel_check", "ceilings", "kernel", "kernel_pieces", "kernel_sum")
    }
    timed = [line for line in lines if line["benchmark"] == "kernel" and "moved" in line]
    assert len(timed) == len(list(elementwise_operations()))
    for line in timed:
        assert (line["tokens"], line["tp"], line["size"]) == (64 + 64, 2, "tiny")
        assert line["bytes_per_s"] == line["moved"] / line["median_s"]
    rates = [line["kernel"] for line in lines if line["benchmark"] == "kernel" and "flops_per_s" in line]
    assert {"attention torch", "out bfloat16", "out fp8"} <= set(rates)
    pieces = [line["kernel"] for line in lines if line["benchmark"] == "kernel_pieces"]
    assert {f"down fp8, {rows} rows" for rows in ("20", "16", "16 + 4")} <= set(pieces)


def test_what_a_blocks_kernels_add_up_to() -> None:
    def timed(kernel: str, seconds: float) -> Timed:
        return Timed(kernel, 128, 128, 1, seconds, seconds, seconds, 1, 1, 1.0, 1.0, 1.0)

    def rate(kernel: str, seconds: float, tokens: int = 128) -> Rate:
        return Rate(kernel, tokens, None, 1, seconds, seconds, seconds, 1, 1.0, 1.0)

    elementwise = [
        *(timed("residual, norm, modulate", 1.0), timed("silu(gate) · up", 3.0), timed("q, k norm and rotation", 4.0)),
        timed("norm, modulate", 1000.0),
    ]
    rates = [rate("attention torch", 200.0), rate("attention triton", 100.0), rate("down bfloat16", 1000.0, 64)]
    rates += [rate(f"{matrix} bfloat16", 10.0) for matrix in ("q|k|v|gate", "out", "gate|up")]
    assert block_seconds(elementwise, rates, 128, fp8=False) is None
    rates.append(rate("down bfloat16", 10.0))
    assert block_seconds(elementwise, rates, 128, fp8=False) == 100 + 4 * 10 + 2 * 1 + 3 + 4
    assert block_seconds(elementwise, rates, 128, fp8=True) is None


def test_without_time_only_small_shapes_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--size", "tiny", "--seconds", "0"]) == 0
    output = capsys.readouterr().out
    assert "not checked at 128 tokens: the time was up" in output
    assert "32 of 32 checks of kernels hold" in output
