"""CPUs with and without bfloat16, on which images are decoded in different dtypes."""

from __future__ import annotations

import pytest

from engine.device import devices as device

# The dtype of a model, and whether the CPU is treated as one with bfloat16. One that has it can do as if it had not.
# The other way round images are right too, but take more memory.
DECODINGS = [
    pytest.param("float32", False, id="float32"),
    pytest.param("bfloat16", False, id="bfloat16-on-any-cpu"),
    pytest.param(
        "bfloat16",
        True,
        id="bfloat16-where-it-is-native",
        marks=pytest.mark.skipif(not device._convolves_bfloat16(), reason="needs a CPU with bfloat16"),
    ),
]


def pretend(monkeypatch: pytest.MonkeyPatch, *, native_bfloat16: bool) -> None:
    """Decode as on a CPU with bfloat16, or as on one without it."""
    monkeypatch.setattr(device, "_convolves_bfloat16", lambda: native_bfloat16)
