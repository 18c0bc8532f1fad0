"""FlashAttention's packages as stand-ins: what they are called with, and which of them count as installed."""

from __future__ import annotations

import importlib
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.kernels.checks import ATTENTION_BOUND, check_all
from bench.kernels.rates import attention_backends
from engine.config.demo_checkpoints import DEMO_CHECKPOINT, DEMO_LORAS
from engine.errors import ArgumentError
from engine.kernels.attention import choice as attention_choice
from engine.kernels.attention import flash_packages as flash_attention
from engine.kernels.attention.backends import VARLEN, GatedAttentionKernel
from engine.kernels.attention.choice import AttentionShape, choose_attention, unavailable
from engine.kernels.attention.flash_packages import FLASH_PACKAGES, package_function
from engine.kernels.fp8 import Fp8Rows
from engine.kernels.packing import CapturedPacking, Packing
from engine.step import Adapter
from tests.engine.kernels.attention import flash_packages
from tests.engine.kernels.tolerances import FP8_ERROR, relative_error
from tests.engine_runs import jobs_of, run_jobs
from tests.oracle import Request

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SHAPE = AttentionShape(heads=12, kv_heads=3, head_dim=128, lengths=(4160,))
TOP_LEVEL = ("flash_attn", "flash_attn_interface", "fa3_fwd_interface")
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs packages by name, and version, for one test, on a machine that has none of them."""
    if any(map(find_spec, TOP_LEVEL)):
        pytest.skip("a real one is installed")
    monkeypatch.syspath_prepend(tmp_path)

    def forget() -> None:
        package_function.cache_clear()
        importlib.invalidate_caches()
        for module in list(sys.modules):
            if module.partition(".")[0] in TOP_LEVEL:
                del sys.modules[module]

    def install(name: str, version: str | None = None) -> None:
        flash_packages.install(name, tmp_path, version)
        forget()

    forget()
    yield install
    forget()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Pretends a GPU of some compute capability."""
    return lambda *capability: monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)


def _draw(tokens: int, heads: int, kv_heads: int, head_dim: int) -> list[torch.Tensor]:
    """query, key, value, gate as in the qkvg matrix."""
    widths = [number * head_dim for number in (heads, kv_heads, kv_heads, heads)]
    *qkv, gate = torch.randn(tokens, sum(widths)).bfloat16().split(widths, dim=-1)
    return [*(part.unflatten(-1, (-1, head_dim)) for part in qkv), gate]


@pytest.mark.parametrize("name", FLASH_PACKAGES)
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(48, 12, 24), (12, 3, 128), (2, 2, 64)])
@pytest.mark.parametrize("lengths", [(30,), (16, 16), (1, 77, 0, 31, 3), (1, 0, 1), (1,), (0, 0)])
def test_a_packed_batch(
    install: Install, name: str, lengths: tuple[int, ...], heads: int, kv_heads: int, head_dim: int
) -> None:
    install(name)
    parts, packing = _draw(sum(lengths), heads, kv_heads, head_dim), Packing(lengths, CPU)
    expected = GatedAttentionKernel("torch")(*(part.float() for part in parts), packing)
    actual = GatedAttentionKernel(name)(*parts, packing)
    assert isinstance(actual, torch.Tensor)
    assert isinstance(expected, torch.Tensor)
    assert actual.dtype == torch.bfloat16
    assert relative_error(actual, expected) < 8e-3
    rows = GatedAttentionKernel(name)(*parts, packing, fp8=True)
    assert isinstance(rows, Fp8Rows)
    assert relative_error(rows.dequantize(), expected) < FP8_ERROR


@pytest.mark.parametrize("name", FLASH_PACKAGES)
def test_a_recording_takes_other_segments_from_the_device_alone(install: Install, name: str) -> None:
    install(name)
    parts = _draw(40, 8, 2, 64)
    captured = CapturedPacking(40, 4, CPU)
    kernel = GatedAttentionKernel("torch", captured_backend=name)
    for lengths in [(30, 10, 0, 0), (1, 38, 1, 0), (13, 13, 10, 4), (40, 0, 0, 0)]:
        packing = Packing(lengths, CPU)
        captured.overwrite(packing)
        expected = GatedAttentionKernel("torch")(*(part.float() for part in parts), packing)
        assert relative_error(kernel(*parts, captured), expected) < 8e-3  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("lengths", "call"),
    [
        ((40,), ("dense", None)),
        ((40, 40, 40), ("dense", None)),
        ((40, 33), ("varlen", False)),
        ((40, 31), ("varlen", None)),
        ((40, 0, 40), ("varlen", None)),
        ((0,), ("varlen", None)),
    ],
)
def test_equal_segments_are_a_dense_batch_and_long_ones_keep_their_heads_apart_in_fa3(
    install: Install, monkeypatch: pytest.MonkeyPatch, lengths: tuple[int, ...], call: tuple[str, bool | None]
) -> None:
    monkeypatch.setattr(flash_attention, "LONG_SEGMENT", 32)
    *parts, _ = _draw(sum(lengths), 8, 2, 64)
    expected = GatedAttentionKernel("torch").attend(*(part.float() for part in parts), Packing(lengths, CPU))
    for name in FLASH_PACKAGES:
        install(name)
        flash_packages.calls.clear()
        actual = VARLEN[name](*parts, Packing(lengths, CPU))
        assert flash_packages.calls == [call if name == "fa3" else ("varlen", None)]
        assert relative_error(actual, expected) < 8e-3
    captured = CapturedPacking(sum(lengths), len(lengths), CPU)
    captured.overwrite(Packing(lengths, CPU))
    flash_packages.calls.clear()
    VARLEN["fa3"](*parts, captured)
    assert flash_packages.calls == [("varlen", None)]


@pytest.mark.parametrize("degrees", [{}, {"tp": 2, "sp": 2}])
@pytest.mark.parametrize("quantization", ["none", "fp8"])
def test_an_image_of_ranks_with_a_lora(
    install: Install, monkeypatch: pytest.MonkeyPatch, degrees: dict[str, int], quantization: str
) -> None:
    install("fa2")
    monkeypatch.setattr(attention_choice, "unavailable", lambda *_: None)
    jobs = jobs_of(DEMO_CHECKPOINT, [Request("a red circle", 48, 32, 2, seeds=(1, 2)), Request("a star", 64, 64, 1)])
    jobs = [replace(job, loras=((0, 1.0),)) for job in jobs]
    adapters = [Adapter(0, str(DEMO_LORAS["demo-outlined"]))]

    def latents(**options: Any) -> torch.Tensor:
        return torch.cat([picture.latents for picture in run_jobs(DEMO_CHECKPOINT, jobs, adapters=adapters, **options)])

    exact = latents()
    by_torch, by_fa2 = (
        relative_error(latents(attention=name, dtype="bfloat16", quantization=quantization, **degrees), exact)
        for name in ("torch", "fa2")
    )
    assert by_fa2 <= 1.5 * by_torch


def test_the_benchmarks_check_it_too(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.bench.test_kernels import shape_of

    install("fa2")
    assert attention_backends(128, CPU)["fa2"] == "it needs a CUDA device, not cpu"
    monkeypatch.setattr("bench.kernels.checks.attention_backends", lambda *_: {"fa2": None, "fa3": "not here"})
    checks = [check for check in check_all(shape_of(1, 7, 0, 33), CPU, 1) if check.kernel.startswith("attention")]
    assert [(check.kernel, check.holds, check.bound) for check in checks] == [("attention fa2", True, ATTENTION_BOUND)]


@pytest.mark.parametrize(
    ("capability", "available"),
    [
        ((7, 5), set()),
        ((8, 0), {"fa2"}),
        ((8, 9), {"fa2"}),
        ((9, 0), {"fa2", "fa3", "fa4"}),
        ((10, 0), {"fa2", "fa4"}),
        ((12, 0), {"fa2", "fa4"}),
    ],
)
def test_each_is_for_some_gpus(
    install: Install, gpu: Callable[[int, int], None], capability: tuple[int, int], available: set[str]
) -> None:
    for name in FLASH_PACKAGES:
        install(name)
    gpu(*capability)
    assert {name for name in FLASH_PACKAGES if unavailable(name, GPU, torch.bfloat16, 128) is None} == available


def test_why_fa2_does_not_run(install: Install, gpu: Callable[[int, int], None]) -> None:
    def reason(dtype: torch.dtype = torch.bfloat16, head_dim: int = 128, device: torch.device = GPU) -> str | None:
        return unavailable("fa2", device, dtype, head_dim)

    gpu(8, 9)
    missing = "no FlashAttention 2 is installed (pip install --no-build-isolation -e '.[fa2]')"
    assert reason() == f"ImportError: {missing}"
    install("fa4")  # has the same folder
    assert reason() == f"ImportError: {missing}"
    install("fa2")
    assert reason() is None
    assert reason(dtype=torch.float32) == "it takes bfloat16, not float32"
    assert reason(head_dim=20) == "its head dim is a multiple of 8 up to 256, not 20"
    assert reason(device=CPU) == "it needs a CUDA device, not cpu"
    gpu(7, 5)
    assert reason() == "it is for compute capability 8.0 to 12.x, this GPU has 7.5"


@pytest.mark.parametrize("version", ["2.6.3", "1.0.9", "2.7.2.post1", "2.7.3", "2.8.3+cu13torch2.11", "2.10.0"])
def test_versions_that_were_not_checked_are_refused(
    install: Install, gpu: Callable[[int, int], None], version: str
) -> None:
    gpu(8, 9)
    install("fa2", version)
    known = version not in ("2.6.3", "1.0.9", "2.7.2.post1")
    refusal = f"ImportError: it needs flash-attn 2.7.3 or newer, {version} is installed"
    assert unavailable("fa2", GPU, torch.bfloat16, 128) == (None if known else refusal)


def test_a_build_for_another_torch_is_refused_in_its_own_words(
    install: Install, gpu: Callable[[int, int], None], tmp_path: Path
) -> None:
    gpu(8, 9)
    install("fa2")
    flash_packages.write(tmp_path / "flash_attn/__init__.py", "raise ImportError('undefined symbol: _ZN3c10')\n")
    reason = unavailable("fa2", GPU, torch.bfloat16, 128)
    assert reason == "ImportError: undefined symbol: _ZN3c10"


def test_what_flash_attn_brings_of_fa4_is_not_fa4(
    install: Install, gpu: Callable[[int, int], None], tmp_path: Path
) -> None:
    gpu(9, 0)
    install("fa2")
    flash_packages.write(tmp_path / "flash_attn/cute/__init__.py", "")
    flash_packages.write(tmp_path / "flash_attn/cute/interface.py", "def flash_attn_varlen_func(q, k, v): ...\n")
    reason = unavailable("fa4", GPU, torch.bfloat16, 128)
    assert reason == "ImportError: no FlashAttention 4 is installed (pip install -e '.[fa4]')"


def test_unmeasured_it_serves_graphs_where_nothing_better_is_installed(
    install: Install, gpu: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91000)
    gpu(8, 9)
    install("fa2")

    def choose(name: str, dtype: torch.dtype = torch.bfloat16) -> tuple[str, str | None]:
        choice = choose_attention(name, SHAPE, GPU, dtype, calls=224, measured=False)
        return choice.backend, choice.captured_backend

    assert choose("auto") == ("flash", "fa2")
    assert choose("fa2") == ("fa2", "fa2")
    gpu(9, 0)
    install("fa3")
    assert choose("auto") == ("fa3", "fa3")
    with pytest.raises(ArgumentError, match="attention fa2 is not available: it takes bfloat16, not float32"):
        choose("fa2", torch.float32)


def test_pip_gets_a_version_that_will_do_and_only_when_asked() -> None:
    project = tomllib.loads((Path(__file__).parents[4] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert extras["fa2"] == ["flash-attn>=2.7.3,<2.9; platform_system == 'Linux'"]
    assert FLASH_PACKAGES["fa2"].oldest == (2, 7, 3)
    assert not [each for each in project["dependencies"] + extras["test"] if each.startswith("flash")]
    assert all(f"[{name}]" in package.install and name in extras for name, package in FLASH_PACKAGES.items())
    assert VARLEN.keys() >= FLASH_PACKAGES.keys()
