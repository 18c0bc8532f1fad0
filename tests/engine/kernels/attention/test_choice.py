"""Which backend is chosen, given what is available and what it measured."""

from __future__ import annotations

import itertools

import pytest
import torch

from engine.config.engine_config import ATTENTIONS
from engine.errors import ArgumentError
from engine.kernels.attention import choice as attention_choice
from engine.kernels.attention.backends import BACKENDS
from engine.kernels.attention.choice import AttentionShape, Timing, choose_attention, unavailable

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SHAPE = AttentionShape(heads=4, kv_heads=1, head_dim=128, lengths=(4160,))


def _choose(name: str, calls: int = 224) -> attention_choice.AttentionChoice:
    return choose_attention(name, SHAPE, GPU, torch.bfloat16, calls=calls)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[str, Timing | Exception]:
    """What each backend available on a pretended GPU measures, or raises."""
    table: dict[str, Timing | Exception] = {}

    def measure(backend: str, *_: object) -> Timing:
        result = table[backend]
        if isinstance(result, Exception):
            raise result
        return result

    def pretend(backend: str, *_: object) -> str | None:
        return None if backend in table else "it is not here"

    monkeypatch.setattr(attention_choice, "measure", measure)
    monkeypatch.setattr(attention_choice, "unavailable", pretend)
    return table


def test_auto_takes_the_cheapest_and_for_graphs_the_cheapest_varlen(measured: dict[str, Timing | Exception]) -> None:
    measured.update(cudnn=Timing(400, 0.6), flash=Timing(1, 1), triton=Timing(1, 0.9), fa2=Timing(1, 0.7))
    choice = _choose("auto")
    assert (choice.backend, choice.captured_backend) == ("cudnn", "fa2")
    assert choice.timings == measured
    assert choice.refused == dict.fromkeys(("fa3", "fa3-fp8", "fa4", "torch"), "it is not here")


def test_a_slow_first_call_counts_by_its_share_of_an_image(measured: dict[str, Timing | Exception]) -> None:
    measured.update(fa4=Timing(20, 0.6), fa3=Timing(1, 0.7))
    assert _choose("auto", calls=192).backend == "fa4"  # 134.6 ms in all against 134.7
    assert _choose("auto", calls=190).backend == "fa3"  # 133.4 ms against 133.3


def test_where_flash_attention_3_runs_nobody_waits_for_plans(measured: dict[str, Timing | Exception]) -> None:
    measured.update(cudnn=Timing(400, 0.5), flash=Timing(1, 1), fa3=Timing(0.7, 0.7))
    assert _choose("auto").backend == "fa3"
    assert _choose("cudnn").backend == "cudnn"
    measured["fa3"] = RuntimeError("no kernel image")
    assert _choose("auto").backend == "cudnn"


def test_cudnn_costs_what_flash_does_for_a_part_and_no_plans(measured: dict[str, Timing | Exception]) -> None:
    """Whether a plan takes long does not matter where it is built between images."""
    measured.update(cudnn=Timing(4000, 0.6), flash=Timing(1, 1), fa2=Timing(0.67, 0.67))
    assert _choose("auto").backend == "cudnn"  # 0.85 · 0.6 + 0.15 · 1 = 0.66
    measured["fa2"] = Timing(0.65, 0.65)
    assert _choose("auto").backend == "fa2"


@pytest.mark.parametrize("is_measured", [True, False])
def test_fp8_attention_is_taken_by_name_alone(measured: dict[str, Timing | Exception], is_measured: bool) -> None:
    measured.update({"fa3-fp8": Timing(0.1, 0.1), "flash": Timing(1, 1), "triton": Timing(3, 3)})

    def choose(name: str) -> tuple[str, str | None]:
        choice = choose_attention(name, SHAPE, GPU, torch.bfloat16, calls=224, measured=is_measured)
        return choice.backend, choice.captured_backend

    assert choose("auto") == ("flash", "triton")
    assert choose("flash") == ("flash", "triton")
    assert choose("fa3-fp8") == ("fa3-fp8", "fa3-fp8")


def test_what_raises_is_left_out_with_its_reason(measured: dict[str, Timing | Exception]) -> None:
    measured.update(cudnn=RuntimeError("no plan\nat line 5"), fa3=ImportError("libcudart"), triton=Timing(2, 2))
    choice = _choose("auto")
    assert (choice.backend, choice.captured_backend) == ("triton", "triton")
    assert choice.refused["cudnn"] == "RuntimeError: no plan"
    assert choice.refused["fa3"] == "ImportError: libcudart"


def test_torch_is_measured_only_where_its_own_kernels_do_not_run(measured: dict[str, Timing | Exception]) -> None:
    measured.update(cudnn=Timing(1, 1), torch=Timing(0.1, 0.1))
    assert _choose("auto").backend == "cudnn"
    measured["cudnn"] = RuntimeError("no plan")
    choice = _choose("auto")
    assert (choice.backend, choice.captured_backend) == ("torch", None)


def test_a_named_backend_is_taken_whatever_it_costs(measured: dict[str, Timing | Exception]) -> None:
    measured.update(cudnn=Timing(1, 1), flash=Timing(9, 9), triton=Timing(3, 3), fa3=Timing(2, 2))
    choice = _choose("triton")
    assert (choice.backend, choice.captured_backend) == ("triton", "triton")
    choice = _choose("flash")  # which cannot be captured: the fastest that can serves the graphs
    assert (choice.backend, choice.captured_backend) == ("flash", "fa3")
    assert choice.timings.keys() == {"flash", "fa3", "triton"}


def test_a_named_backend_that_is_missing_or_fails_is_an_error(measured: dict[str, Timing | Exception]) -> None:
    measured.update(cudnn=RuntimeError("no plan"), triton=Timing(3, 3))
    with pytest.raises(ArgumentError) as error:
        _choose("fa3")
    assert error.value.message == (
        "attention fa3 is not available: it is not here; available here: auto, cudnn, triton"
    )
    assert error.value.parameter == "attention"
    with pytest.raises(ArgumentError, match="RuntimeError: no plan; available here: auto, triton"):
        _choose("cudnn")


def test_when_nothing_runs_every_reason_is_told(measured: dict[str, Timing | Exception]) -> None:
    measured.update(cudnn=RuntimeError("no plan"))
    with pytest.raises(ArgumentError, match=r"cudnn: RuntimeError: no plan.*available here: auto$"):
        _choose("auto")


@pytest.mark.parametrize(("dtype", "chosen"), [(torch.bfloat16, "flash"), (torch.float32, "torch")])
def test_unmeasured_it_is_what_is_usually_fastest(
    measured: dict[str, Timing | Exception], dtype: torch.dtype, chosen: str
) -> None:
    available = ("flash", "triton", "torch") if dtype == torch.bfloat16 else ("triton", "torch")
    measured.update(dict.fromkeys(available, AssertionError("it was measured")))
    choice = choose_attention("auto", SHAPE, GPU, dtype, calls=224, measured=False)
    assert (choice.backend, choice.captured_backend) == (chosen, "triton")


def test_a_cpu_has_torch_without_measuring() -> None:
    choice = choose_attention("auto", SHAPE, CPU, torch.float32, calls=224)
    assert (choice.backend, choice.captured_backend, choice.timings) == ("torch", None, {})
    with pytest.raises(ArgumentError, match="attention fa3 is not available: it needs a CUDA device, not cpu"):
        choose_attention("fa3", SHAPE, CPU, torch.float32, calls=224)


@pytest.mark.parametrize(
    ("backend", "capability", "dtype", "head_dim", "reason"),
    [
        ("fa3", (8, 0), torch.bfloat16, 128, "compute capability 9.0 to 9.x, this GPU has 8.0"),
        ("fa3-fp8", (8, 9), torch.bfloat16, 128, "compute capability 9.0 to 9.x, this GPU has 8.9"),
        ("fa3-fp8", (9, 0), torch.bfloat16, 24, "its head dim is a multiple of 16, not 24"),
        ("fa3-fp8", (9, 0), torch.bfloat16, 128, "no FlashAttention 3 is installed (pip install -e '.[fa3]')"),
        ("cudnn", (9, 0), torch.float32, 128, "takes bfloat16, not float32"),
        ("cudnn", (9, 0), torch.bfloat16, 256, "multiple of 8 up to 128, not 256"),
        ("flash", (9, 0), torch.bfloat16, 20, "multiple of 8 up to 256, not 20"),
        ("triton", (9, 0), torch.bfloat16, 512, "even and up to 256, not 512"),
    ],
)
def test_why_a_backend_is_unavailable(
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    capability: tuple[int, int],
    dtype: torch.dtype,
    head_dim: int,
    reason: str,
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert reason in (unavailable(backend, GPU, dtype, head_dim) or "")


def test_measuring_times_unseen_lengths_apart_from_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, batches = 0.0, []

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = clock

        def synchronize(self) -> None: ...

        def elapsed_time(self, later: Event) -> float:
            return later.at - self.at

    def attend(self: object, *tensors: torch.Tensor, fp8: bool) -> None:
        nonlocal clock
        *parts, packing = tensors
        assert [tuple(part.shape) for part in parts] == [
            (packing.tokens, *rest) for rest in ((4, 8), (2, 8), (2, 8), (32,))
        ]
        clock += 1.0 if packing.lengths in batches else 50.0
        batches.append(packing.lengths)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(attention_choice.GatedAttentionKernel, "__call__", attend)
    shape = AttentionShape(heads=4, kv_heads=2, head_dim=8, lengths=(9, 1, 5))
    assert attention_choice.measure("torch", shape, CPU, torch.float32) == Timing(first_ms=50.0, steady_ms=1.0)
    assert [lengths for lengths, _ in itertools.groupby(batches)] == [(9, 1, 5), (8, 1, 4), (9, 1, 5)]


def test_the_configuration_names_the_same_backends() -> None:
    assert set(ATTENTIONS) == {"auto", *BACKENDS}


def test_every_backend_knows_its_requirements() -> None:
    assert all(unavailable(backend, CPU, torch.float32, 128) for backend in set(BACKENDS) - {"torch", "triton"})
    assert unavailable("torch", CPU, torch.float32, 128) is None
