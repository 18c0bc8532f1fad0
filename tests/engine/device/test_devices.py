"""What a GPU must be able to do, with GPUs that are only said to be there."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from engine.config.engine_config import EngineConfig
from engine.device import devices as device
from engine.errors import ArgumentError


@pytest.fixture(autouse=True)
def _one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    monkeypatch.setattr(device, "missing_for_kernels", lambda: None)


def test_a_rank_takes_the_gpu_of_its_number() -> None:
    assert device.pick_device(EngineConfig(), 0, 1) == torch.device("cuda", 0)
    assert device.pick_device(EngineConfig(share_gpu=True), 1, 2) == torch.device("cuda", 0)


def test_more_ranks_than_gpus_are_refused_where_a_process_sees_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ArgumentError, match="4 ranks need 4 GPUs, but this machine has 2"):
        device.pick_device(EngineConfig(), 0, 4)


def test_a_rank_that_sees_one_gpu_takes_it_whatever_others_there_are() -> None:
    assert device.pick_device(EngineConfig(), 3, 4) == torch.device("cuda", 0)


def test_a_gpu_that_cannot_launch_kernels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "missing_for_kernels", lambda: "a C compiler (gcc, clang or CC)")
    with pytest.raises(ArgumentError, match=r"device cuda needs a C compiler \(gcc, clang or CC\), which is not there"):
        device.pick_device(EngineConfig(), 0, 1)
    assert device.pick_device(EngineConfig(device="cpu"), 0, 1) == torch.device("cpu")


DRIVER = "Found no NVIDIA driver on your system.  Please check that you have an NVIDIA GPU and installed a driver."


@pytest.mark.parametrize(
    ("built", "visible", "says", "reason"),
    [
        (
            False,
            None,
            None,
            "was built without CUDA; install one that has it (https://pytorch.org/get-started/locally)",
        ),
        (True, "", None, "CUDA_VISIBLE_DEVICES='' hides all GPUs"),
        (True, "-1", None, "CUDA_VISIBLE_DEVICES='-1' hides all GPUs"),
        (True, "0", DRIVER, "cuda is not available: Found no NVIDIA driver on your system. Please check that you have"),
        (True, None, None, "torch finds no CUDA device; nvidia-smi lists those"),
    ],
)
def test_why_there_is_no_gpu_is_said(
    monkeypatch: pytest.MonkeyPatch, built: bool, visible: str | None, says: str | None, reason: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: built)
    monkeypatch.setattr(torch.cuda, "init", Mock(side_effect=says and RuntimeError(says)))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(ArgumentError) as error:
        device.pick_device(EngineConfig(device="cuda"), 0, 1)
    assert reason in error.value.message
    assert error.value.message.endswith("r --device cpu does without")


@pytest.mark.parametrize(
    ("capability", "dtype", "message"),
    [
        ((8, 9), "auto", None),
        ((9, 0), "bfloat16", None),
        (
            (8, 0),
            "auto",
            "quantization fp8 needs a GPU of compute capability 8.9, and cuda:0 is of 8.0: use int8",
        ),
        ((9, 0), "float32", "quantization fp8 needs dtype bfloat16 on a GPU, got float32"),
    ],
)
def test_fp8_is_refused_where_a_gpu_cannot_multiply_it(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: str, message: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    config = EngineConfig(quantization="fp8", dtype=dtype)
    if message is None:
        device.check_quantization(config, torch.device("cuda", 0))
    else:
        with pytest.raises(ArgumentError, match=message):
            device.check_quantization(config, torch.device("cuda", 0))


def test_the_uuids_of_all_gpus_are_told_in_cudas_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid="ab"[index]))
    assert device.gpu_uuids(torch.device("cuda", 1)) == ("a", "b")
    assert device.gpu_uuids(torch.device("cpu")) == ()
