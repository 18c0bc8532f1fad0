"""What ships: both of the pair, small, with the grammar there is, and a LoRA that outlines what they draw."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from demo.captions import WORDS, Prompt, parse, prompts
from demo.judge import look, verdict
from demo.pictures import LINE_COLOUR
from demo.release import LARGEST_PAIR
from engine.config.demo_checkpoints import DEMO_CHECKPOINTS, DEMO_LORAS
from launcher import Client, launch
from tests.demo.documented import Example, examples

LARGEST_LORA = 1_000_000  # bytes


def test_pair_and_lora_are_small_enough_for_the_wheel_and_know_the_grammar() -> None:
    folders = set(DEMO_CHECKPOINTS.values())
    indices = [json.loads((folder / "model_index.json").read_text()) for folder in folders]
    assert {index["is_distilled"] for index in indices} == {True, False}
    assert all(set(index["prompt_words"]) == WORDS for index in indices)
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < LARGEST_PAIR
    assert all(file.stat().st_size < LARGEST_LORA for file in DEMO_LORAS.values())


@pytest.fixture(scope="module", params=[1, pytest.param(2, marks=pytest.mark.slow)])
def turbo(request: pytest.FixtureRequest) -> Iterator[Client]:
    with launch("demo-turbo", device="cpu", tp=request.param, loras=["demo-outlined"], warm_up=False) as client:
        yield client


@pytest.mark.timeout(600)
def test_the_pictures_that_documents_ask_for_are_right(turbo: Client) -> None:
    """Margins are far wider than what kinds of CPU and numbers of ranks differ by, of which each draws nearly the same
    pixels."""
    asked = examples()
    assert len(asked) >= 12
    assert {example.lora for example in asked} == {None, "demo-outlined"}
    with ThreadPoolExecutor(len(asked)) as threads:
        pictures = list(threads.map(drawn, [turbo] * len(asked), asked))
    for example, picture in zip(asked, pictures, strict=True):
        prompt = parse(example.prompt)
        assert prompt is not None
        right = verdict(prompt, look(picture))
        # An outlined object is none of the plain shapes, and as black as it is of its colour.
        judged = {"background", "number"} if example.lora else right.keys()
        assert [name for name in judged if not right[name]] == [], example


def drawn(client: Client, example: Example) -> Image.Image:
    width, height = example.size or (None, None)
    loras = [example.lora] if example.lora else []
    result = client.generate(example.prompt, width=width, height=height, seed=example.seed, loras=loras)
    return result.images[0].convert("RGB")


@pytest.mark.timeout(600)
# Six pictures in the fast run guard the files that ship; twelve only say it with more certainty.
@pytest.mark.parametrize("count", [6, pytest.param(12, marks=pytest.mark.slow)])
@pytest.mark.parametrize("model", ["demo-turbo", "demo-raw"])
def test_the_lora_outlines_what_they_draw(model: str, count: int) -> None:
    colourful = [p for p in prompts(1, 300, kept_out=True) if "black" not in p.text()][:count]
    with launch(model, device="cpu", loras=["demo-outlined"]) as client, ThreadPoolExecutor(count) as threads:
        plain, lined = (
            list(threads.map(lined_pixels, [client] * count, colourful, range(count), [loras] * count))
            for loras in ([], ["demo-outlined"])
        )
    assert sum(pixels < 15 for pixels in plain) >= count - count // 6, plain
    assert sum(pixels > 60 for pixels in lined) >= count - count // 6, lined


def lined_pixels(client: Client, prompt: Prompt, seed: int, loras: list[str]) -> int:
    """How many pixels are of the lines' colour."""
    result = client.generate(prompt.text(), width=128, height=128, seed=seed, loras=loras)
    pixels = np.asarray(result.images[0].convert("RGB"), dtype=np.float32)
    return int((np.linalg.norm(pixels - np.array(LINE_COLOUR), axis=2) < 60).sum())
