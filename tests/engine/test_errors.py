"""Errors show what was given, however long it is, such that a file's name is seen."""

from __future__ import annotations

import pytest

from engine.errors import ArgumentError, CheckpointError, shortened


@pytest.mark.parametrize("length", [0, 79, 80, 81, 1000])
@pytest.mark.parametrize("most", [2, 80])
def test_what_is_too_long_is_cut_in_its_middle(length: int, most: int) -> None:
    text = "".join(chr(ord("a") + number % 26) for number in range(length))
    cut = shortened(text, most)
    assert len(cut) == min(length, most)
    if length > most:
        first, last = cut.split("…")
        assert text.startswith(first)
        assert text.endswith(last)
        assert len(last) > len(first)
    else:
        assert cut == text


def test_a_long_path_shows_the_file_s_name() -> None:
    path = f"/models/{'deep/' * 50}turbo-fp8.safetensors"
    message = ArgumentError.of("output", "new", path).message
    assert message.startswith("output must be new, got '/models/deep/")
    assert message.endswith("/deep/turbo-fp8.safetensors'")
    assert len(message) == len("output must be new, got ") + 80
    assert len(ArgumentError.of("output", "new", "\n" * 90).message) == len("output must be new, got ") + 80
    error = CheckpointError.of("file", "is missing", name=f"{'block.' * 99}weight")
    assert error.message.endswith("block.weight: is missing")
