"""Which degrees there may be, and what a checkpoint's heads allow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.config.engine_config import EngineConfig
from engine.config.model_config import ModelConfig
from engine.errors import ArgumentError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sp": 3}, "sp must be one of 1, 2, 4, got 3"),
        ({"sp": True}, "sp must be one of 1, 2, 4, got True"),
        ({"tp": 2, "sp": 4}, "sp must be at most 2 with tp 2, got 4"),
        ({"tp": 4, "sp": 2}, "sp must be at most 1 with tp 4, got 2"),
        ({"sp": 4, "cfg_parallel": True}, "sp must be at most 2 with tp 1 and cfg_parallel, got 4"),
        ({"tp": 4, "cfg_parallel": True}, "cfg_parallel must be False with tp 4: at most 4 ranks, got True"),
        ({"cfg_parallel": 1}, "cfg_parallel must be True or False, got 1"),
    ],
)
def test_what_the_modes_may_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        EngineConfig(**options)
    assert (caught.value.parameter, caught.value.message) == (message.split()[0], message)


def test_heads_that_do_not_divide_name_what_does(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint(heads=6, kv_heads=2, head_dim=24, axes=(4, 12, 8))
    model = ModelConfig.from_folder(folder)
    assert model.possible_sp(1) == [1, 2]
    assert model.possible_sp(2) == [1]
    with pytest.raises(
        ArgumentError, match=r"^sp 4 is not possible .* num_attention_heads .* is 6, .* possible: 1, 2$"
    ):
        model.check_parallel(1, 4)
