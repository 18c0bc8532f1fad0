"""Devices and number formats are known under the names that torch and others have for them."""

from __future__ import annotations

import pytest

from engine.errors import ArgumentError
from launcher.setup.configure import engine_config


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"dtype": "bf16"}, "bfloat16"),
        ({"dtype": "torch.bfloat16"}, "bfloat16"),
        ({"dtype": "FP32"}, "float32"),
        ({"dtype": "auto"}, "auto"),
        ({"device": "gpu"}, "cuda"),
        ({"device": "cuda:0"}, "cuda"),
        ({"device": "CPU"}, "cpu"),
    ],
)
def test_other_names_of_the_same_are_taken(options: dict[str, str], expected: str) -> None:
    (name,) = options
    assert getattr(engine_config(options), name) == expected


@pytest.mark.parametrize("dtype", ["float16", "fp16", "half", "torch.float16"])
def test_half_precision_is_answered_with_bfloat16(dtype: str) -> None:
    with pytest.raises(ArgumentError, match=r"dtype \w+ is not offered: .*bfloat16 takes as many bytes"):
        engine_config({"dtype": dtype})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "fp8"}, "dtype fp8 is no format to compute in: quantization=fp8 has"),
        ({"dtype": "double"}, "dtype must be one of auto, bfloat16, float32, got 'double'"),
        ({"dtype": 3}, "dtype must be one of auto, bfloat16, float32, got '3'"),
        ({"device": "mps"}, "device mps: there are kernels for Nvidia's GPUs, cuda, and for cpu"),
        ({"device": "xpu:0"}, "device xpu:0: there are kernels for Nvidia's GPUs, cuda, and for cpu"),
        ({"device": "tpu"}, "device must be one of auto, cuda, cpu, got 'tpu'"),
    ],
)
def test_what_there_is_not_is_answered_with_what_there_is(options: dict[str, str], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        engine_config(options)


def test_one_of_several_gpus_is_chosen_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(ArgumentError, match="as CUDA_VISIBLE_DEVICES=1 krea2"):
        engine_config({"device": "cuda:1"})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    with pytest.raises(ArgumentError, match="as CUDA_VISIBLE_DEVICES=6 krea2"):
        engine_config({"device": "cuda:1"})
