"""The text encoder against transformers' Qwen3-VL."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from engine.kernels.packing import Packing
from engine.rank.rank import Rank
from tests.engine_runs import on_ranks
from tests.oracle import load_pipeline, relative_error

TOLERANCE = 1e-5
EVERY_LAYER = (0, 1, 2, 3, 4, 5, 6)
LENGTHS = (40, 39, 7, 546, 40, 1)


@pytest.mark.parametrize(("kv_heads", "tp"), [(4, 1), (4, 2), (4, 4), (2, 1), (2, 2)])
def test_every_hidden_state_equals_transformers(checkpoint: Callable[..., Path], kv_heads: int, tp: int) -> None:
    folder = checkpoint(taps=EVERY_LAYER, encoder_kv_heads=kv_heads)
    reference = load_pipeline(folder).text_encoder
    vocabulary = reference.config.text_config.vocab_size
    ids = torch.randint(vocabulary, (sum(LENGTHS),), generator=torch.Generator().manual_seed(0))
    packing = Packing(LENGTHS, torch.device("cpu"))

    def encode(rank: Rank) -> torch.Tensor:
        return rank.model.text_encoder(ids, packing)

    for states in on_ranks(folder, encode, tp=tp):
        assert states.shape == (len(ids), len(EVERY_LAYER), 64)
        for start, stop in pairwise(packing.bounds):
            with torch.inference_mode():
                theirs = reference(ids[None, start:stop], output_hidden_states=True).hidden_states
            for layer in EVERY_LAYER:
                assert relative_error(states[start:stop, layer], theirs[layer][0]) <= TOLERANCE, f"layer {layer}"


def test_taps_come_in_the_order_of_the_config(checkpoint: Callable[..., Path]) -> None:
    ids = torch.arange(20)

    def encode(rank: Rank) -> torch.Tensor:
        return rank.model.text_encoder(ids, Packing([20], torch.device("cpu")))

    (three,) = on_ranks(checkpoint(taps=(5, 0, 3)), encode)
    (every,) = on_ranks(checkpoint(taps=EVERY_LAYER), encode)
    # the two checkpoints draw their text encoders alike: the taps only change the transformer, drawn after it
    assert torch.equal(three, every[:, [5, 0, 3]])
