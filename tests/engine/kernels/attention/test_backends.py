"""Packed attention against the formula in float64, segment by segment."""

from __future__ import annotations

from functools import partial
from itertools import accumulate

import pytest
import torch

from engine.kernels.attention import backends as attention
from engine.kernels.attention.backends import BACKENDS, VARLEN, GatedAttentionKernel, packed_attention
from engine.kernels.attention.choice import AttentionShape, choose_attention, unavailable
from engine.kernels.attention.triton_kernel import attention_triton
from engine.kernels.fp8 import Fp8Rows
from engine.kernels.gate import gate_mul_triton, sigmoid_mul
from engine.kernels.packing import TILE_ROWS, CapturedPacking, Packing
from tests.engine.kernels.tolerances import assert_fp8_close, poisoned, relative_error

CPU = torch.device("cpu")
LENGTHS = [(1,), (17,), (5, 5, 5), (1, 3, 36), (33, 0, 1, 32, 0), (0,), (0, 0)]
HEADS = [(1, 1), (4, 4), (8, 4), (6, 2), (12, 3)]  # 48/12 at TP 1 and 4 have the ratio of the last
# lengths, heads, kv_heads, head_dim; the model's heads at TP 1, 2 and 4, the demo's head dims and the real one
TRITON = [
    ((1,), 1, 1, 16),
    ((TILE_ROWS + 1,), 2, 1, 24),
    ((1, 0, 64, 3, 0, 65), 4, 2, 16),
    ((5,) * 9, 2, 2, 24),
    ((12,), 48, 12, 16),
    ((7,), 24, 6, 24),
    ((3, 2), 12, 3, 24),
    ((140, 1), 4, 1, 128),
    ((35,), 3, 3, 6),
    ((70,), 1, 1, 256),
    ((0,), 2, 1, 16),
]


def _views(
    lengths: tuple[int, ...], heads: int, kv_heads: int, head_dim: int, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, ...]:
    """query, key, value, gate: strided views as in the qkvg matrix, with NaN in the columns beside them."""
    widths = [n * head_dim for n in (heads, kv_heads, kv_heads, heads)]
    packed = torch.full((sum(lengths), sum(widths) + 2 * head_dim), torch.nan, device=device, dtype=dtype)
    used = packed[:, head_dim:-head_dim]
    *qkv, gate = used.copy_(torch.randn(used.shape)).split(widths, dim=-1)
    return (*(part.unflatten(-1, (-1, head_dim)) for part in qkv), gate)


def _expected(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: tuple[int, ...], *, causal: bool = False
) -> torch.Tensor:
    query, key, value = query.double().cpu(), key.double().cpu(), value.double().cpu()
    group = query.shape[1] // key.shape[1]
    output = torch.empty_like(query)
    for stop, length in zip(accumulate(lengths), lengths, strict=True):
        rows = slice(stop - length, stop)
        for head in range(query.shape[1]):
            q, k, v = query[rows, head], key[rows, head // group], value[rows, head // group]
            scores = q @ k.T / q.shape[-1] ** 0.5
            if causal:
                scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), float("-inf"))
            output[rows, head] = scores.softmax(-1) @ v
    return output.flatten(1)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_every_row_attends_to_its_own_segment(
    lengths: tuple[int, ...], heads: int, kv_heads: int, causal: bool
) -> None:
    query, key, value, _ = _views(lengths, heads, kv_heads, 24, CPU, torch.float32)
    with poisoned(CPU):
        actual = packed_attention(query, key, value, Packing(lengths, CPU), causal=causal)
    expected = _expected(query, key, value, lengths, causal=causal)
    torch.testing.assert_close(actual.double(), expected, atol=2e-6, rtol=2e-6)


def _lay_out_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = torch.nn.functional.scaled_dot_product_attention

    def as_on_a_gpu(*arguments: torch.Tensor, **options: bool) -> torch.Tensor:
        return dense(*arguments, **options).transpose(1, 2).contiguous().transpose(1, 2)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", as_on_a_gpu)


def test_torch_may_lay_its_result_out_as_it_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU the heads of a group come one after the other, on a GPU the tokens."""
    _lay_out_as_on_a_gpu(monkeypatch)
    for lengths in [(40,), (20, 20), (15, 25)]:
        query, key, value, _ = _views(lengths, 8, 4, 24, CPU, torch.float32)
        actual = packed_attention(query, key, value, Packing(lengths, CPU))
        torch.testing.assert_close(actual.double(), _expected(query, key, value, lengths), atol=2e-6, rtol=2e-6)


def test_bfloat16_is_near_float64() -> None:
    query, key, value, _ = _views((15, 25), 4, 4, 32, CPU, torch.bfloat16)
    actual = packed_attention(query, key, value, Packing((15, 25), CPU))
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual.double(), _expected(query, key, value, (15, 25)), atol=2**-6, rtol=2**-6)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize(("lengths", "heads", "kv_heads", "head_dim"), TRITON)
def test_gated_attention(
    backend: str, lengths: tuple[int, ...], heads: int, kv_heads: int, head_dim: int, device: torch.device
) -> None:
    query, key, value, gate = _views(lengths, heads, kv_heads, head_dim, device, torch.float32)
    packing = Packing(lengths, device)
    with poisoned(device):
        actual = GatedAttentionKernel(backend)(query, key, value, gate, packing)
    expected = _expected(query, key, value, lengths) * gate.double().cpu().sigmoid()
    torch.testing.assert_close(actual.double().cpu(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("triton_gate", [False, True])
@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("as_on_a_gpu", [False, True])
@pytest.mark.parametrize("lengths", [(4, 4), (1, 0, 5, 2)])
def test_the_gate_writes_each_segments_rows_as_it_would_those_of_a_copy(
    monkeypatch: pytest.MonkeyPatch, lengths: tuple[int, ...], as_on_a_gpu: bool, fp8: bool, triton_gate: bool
) -> None:
    if as_on_a_gpu:
        _lay_out_as_on_a_gpu(monkeypatch)
    if triton_gate and torch.cuda.is_available():
        pytest.skip("these tensors are on the CPU")
    gate_mul = partial(gate_mul_triton, silu=False) if triton_gate else sigmoid_mul
    monkeypatch.setattr(attention, "sigmoid_mul", gate_mul)
    query, key, value, gate = _views(lengths, 4, 2, 24, CPU, torch.bfloat16)
    kernel, packing = GatedAttentionKernel("torch"), Packing(lengths, CPU)
    expected = gate_mul(kernel.attend(query, key, value, packing), gate, fp8=fp8)
    monkeypatch.setattr(attention, "_packed", None)  # what copies each segment's result
    with poisoned(CPU):
        actual = kernel(query, key, value, gate, packing, fp8=fp8)
    assert isinstance(actual, Fp8Rows) == fp8
    both = zip(actual[:2], expected[:2], strict=True) if fp8 else [(actual, expected)]
    assert all(torch.equal(part.float(), expected_part.float()) for part, expected_part in both)


def test_triton_without_a_gate(device: torch.device) -> None:
    query, key, value, _ = _views((9, 70), 4, 2, 24, device, torch.float32)
    actual = attention_triton(query, key, value, Packing((9, 70), device))
    torch.testing.assert_close(actual.double().cpu(), _expected(query, key, value, (9, 70)), atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("large", [1e4, -1e4])
def test_triton_softmax_does_not_overflow(large: float, device: torch.device) -> None:
    query, key, value, _ = _views((70,), 1, 1, 16, device, torch.float32)
    query.zero_()
    query[:, 0, 0] = large
    key[:, 0, 0].round_()  # scores are equal or far apart: float32 rounds away what would weigh scores that are near
    actual = attention_triton(query, key, value, Packing((70,), device))
    torch.testing.assert_close(actual.double().cpu(), _expected(query, key, value, (70,)), atol=2e-6, rtol=2e-6)


def test_triton_keeps_a_broken_segment_to_itself(device: torch.device) -> None:
    lengths = (20, 40, 5)
    query, key, value, gate = _views(lengths, 2, 1, 16, device, torch.float32)
    for part in (query, key, value):
        part[20:60] = torch.nan
    actual = GatedAttentionKernel("triton")(query, key, value, gate, Packing(lengths, device))
    assert actual[20:60].isnan().all()
    assert actual[:20].isfinite().all()
    assert actual[60:].isfinite().all()


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_fp8_rows_hold_the_gated_result(backend: str, device: torch.device) -> None:
    query, key, value, gate = _views((40,), 4, 2, 16, device, torch.float32)
    rows = GatedAttentionKernel(backend)(query, key, value, gate, Packing((40,), device), fp8=True)
    expected = _expected(query, key, value, (40,)) * gate.double().cpu().sigmoid()
    assert_fp8_close(rows, expected, torch.float32)


def test_a_packing_without_bounds_goes_to_the_captured_backend(device: torch.device) -> None:
    query, key, value, gate = _views((30, 11), 4, 2, 16, device, torch.float32)
    packing = Packing((30, 11), device)
    captured = CapturedPacking(41, 4, device)
    captured.overwrite(Packing((30, 11, 0, 0), device))
    actual = GatedAttentionKernel("torch", "triton")(query, key, value, gate, captured)
    expected = GatedAttentionKernel("triton")(query, key, value, gate, packing)
    torch.testing.assert_close(actual, expected, atol=0, rtol=0)


@pytest.fixture(params=BACKENDS)
def cuda_backend(request: pytest.FixtureRequest) -> str:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    if reason := unavailable(request.param, torch.device("cuda"), torch.bfloat16, 128):
        pytest.skip(reason)
    return request.param


@pytest.mark.gpu
@pytest.mark.parametrize("head_dim", [24, 128])
@pytest.mark.parametrize(("heads", "kv_heads"), [(48, 12), (12, 3), (2, 2)])
@pytest.mark.parametrize("lengths", [(300,), (256, 256), (1, 129, 0, 700)])
def test_backends_in_bfloat16(
    cuda_backend: str, lengths: tuple[int, ...], heads: int, kv_heads: int, head_dim: int, device: torch.device
) -> None:
    if reason := unavailable(cuda_backend, device, torch.bfloat16, head_dim):
        pytest.skip(reason)
    query, key, value, gate = _views(lengths, heads, kv_heads, head_dim, device, torch.bfloat16)
    packing = Packing(lengths, device)
    with poisoned(device):
        actual = GatedAttentionKernel(cuda_backend)(query, key, value, gate, packing)
    assert actual.dtype == torch.bfloat16
    bound = 0.1 if cuda_backend == "fa3-fp8" else 8e-3
    assert relative_error(actual, _expected(query, key, value, lengths) * gate.double().cpu().sigmoid()) < bound


# torch's flash is in a namespace pytorch_flash
KERNEL_NAMES = {"cudnn": "cudnn", "flash": "flash_fwd", "fa2": " flash::flash_fwd", "triton": "_attention"}


@pytest.mark.gpu
def test_the_named_backend_is_what_ran(cuda_backend: str, device: torch.device) -> None:
    if cuda_backend not in KERNEL_NAMES:
        pytest.skip("not told apart by its kernels' names")
    query, key, value, _ = _views((300,), 4, 2, 128, device, torch.bfloat16)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        GatedAttentionKernel(cuda_backend).attend(query, key, value, Packing((300,), device))
        torch.cuda.synchronize()
    kernels = [event.key for event in profile.key_averages()]
    assert any(KERNEL_NAMES[cuda_backend] in kernel for kernel in kernels), kernels


@pytest.mark.gpu
def test_varlen_backends_replay_with_other_segments(cuda_backend: str, device: torch.device) -> None:
    if cuda_backend not in VARLEN:
        pytest.skip("needs bounds on the host")
    query, key, value, gate = _views((400,), 8, 2, 128, device, torch.bfloat16)

    captured = CapturedPacking(400, 3, device)
    kernel = GatedAttentionKernel(cuda_backend)
    kernel(query, key, value, gate, captured)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = kernel(query, key, value, gate, captured)
    for lengths in [(300, 100, 0), (1, 398, 1), (133, 133, 134), (400, 0, 0)]:
        captured.overwrite(Packing(lengths, device))
        output.fill_(torch.nan)
        graph.replay()
        bound = 0.1 if cuda_backend == "fa3-fp8" else 8e-3
        assert relative_error(output, _expected(query, key, value, lengths) * gate.double().cpu().sigmoid()) < bound


@pytest.mark.gpu
def test_auto_measures_what_runs_here(device: torch.device) -> None:
    shape = AttentionShape(heads=12, kv_heads=3, head_dim=128, lengths=(1088,))
    choice = choose_attention("auto", shape, device, torch.bfloat16, calls=224)
    assert choice.backend in choice.timings
    assert choice.captured_backend is None or choice.captured_backend in VARLEN
    assert all(timing.steady_ms > 0 for timing in choice.timings.values())
    assert "triton" in choice.timings, choice.refused
