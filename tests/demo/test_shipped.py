"""What ships: both of the pair, small, and with the grammar there is."""

from __future__ import annotations

import json

from demo.captions import WORDS
from demo.release import LARGEST_PAIR
from engine.config import DEMO_CHECKPOINTS


def test_the_pair_is_small_enough_for_the_wheel_and_knows_the_grammar() -> None:
    folders = set(DEMO_CHECKPOINTS.values())
    indices = [json.loads((folder / "model_index.json").read_text()) for folder in folders]
    assert {index["is_distilled"] for index in indices} == {True, False}
    assert all(set(index["prompt_words"]) == WORDS for index in indices)
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < LARGEST_PAIR
