"""The filter that is an image classifier: against transformers' pipeline, over small real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from engine.errors import ArgumentError
from launcher.filters.built_in.classifier import KEEPS, THRESHOLD, check_options, halved, make
from launcher.filters.protocol import Picture
from tests.launcher.filters.built_in.classifier.folders import FAMILIES, Folder, picture

SIZES = ((64, 48), (301, 500), (33, 256), (256, 256))  # of pictures, of which the last is halved before


def image(of: Picture) -> Image.Image:
    return Image.frombytes("RGB", (of.width, of.height), of.rgb)


def by_transformers(folder: Path, pictures: list[Picture]) -> list[dict[str, float]]:
    """What its pipeline scores."""
    pipeline = transformers.pipeline("image-classification", model=str(folder), device="cpu")
    return [{each["label"]: each["score"] for each in pipeline(image(one), top_k=100)} for one in pictures]


# ---- equal to transformers


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_the_pipeline_of_transformers(folder: Folder, family: str) -> None:
    path = folder(family, "porn", "sexy", "gore")
    pictures = [picture(*size, seed) for seed, size in enumerate(SIZES)]
    expected = by_transformers(path, pictures)
    scores = make(str(path), {}).check_images(pictures)
    assert [list(each) for each in scores] == [["porn", "sexy", "gore"]] * len(pictures)
    for one, other, size in zip(scores, expected, SIZES, strict=True):
        close = 2e-2 if size == SIZES[-1] and family != "siglip2" else 1e-6
        assert one == pytest.approx(other, abs=close)
    assert len({round(each["porn"], 5) for each in scores}) == len(pictures)  # whose scores differ


def test_where_a_picture_may_have_several_labels_each_is_scored_by_itself(folder: Folder) -> None:
    several = folder("vit", "porn", "gore", problem_type="multi_label_classification")
    one = folder("vit", "nsfw")
    for path in (several, one):
        pictures = [picture(64, 64, seed) for seed in range(4)]
        scores = make(str(path), {}).check_images(pictures)
        for found, expected in zip(scores, by_transformers(path, pictures), strict=True):
            assert found == pytest.approx(expected, abs=1e-6)
            assert sum(found.values()) != pytest.approx(1, abs=1e-3)


def test_a_picture_scores_the_same_alone_and_in_a_batch_of_all_sizes(folder: Folder) -> None:
    classifier = make(str(folder("siglip2")), {})
    pictures = [picture(*size, seed) for seed, size in enumerate(SIZES)]
    together = classifier.check_images(pictures)
    for one, scores in zip(pictures, together, strict=True):
        (alone,) = classifier.check_images([one])
        assert scores == pytest.approx(alone, abs=1e-6)
    assert classifier.check_images([]) == []


def test_other_dtypes_score_nearly_the_same(folder: Folder) -> None:
    (exact,) = make(str(folder()), {}).check_images([picture(64, 64)])
    (rounded,) = make(str(folder()), {"dtype": "bfloat16", "threads": "1"}).check_images([picture(64, 64)])
    assert rounded == pytest.approx(exact, abs=0.02)
    assert rounded != exact
    assert torch.get_num_threads() == 1


@pytest.mark.gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_a_gpu_scores_nearly_the_same(folder: Folder, family: str) -> None:
    pictures = [picture(*size, seed) for seed, size in enumerate(SIZES)]
    path = str(folder(family))
    for options, close in (({"device": "cuda"}, 1e-3), ({"device": "cuda:0", "dtype": "bfloat16"}, 0.03)):
        scores = make(path, options).check_images(pictures)
        for one, expected in zip(scores, make(path, {}).check_images(pictures), strict=True):
            assert one == pytest.approx(expected, abs=close)


@pytest.mark.parametrize("resample", [1, 2, 3], ids=["lanczos", "bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(512, 512), (1024, 2048), (1032, 514)], ids=str)
def test_what_the_model_sees_of_a_large_picture_stays_as_good_as_the_same(size: tuple[int, int], resample: int) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    rows, columns = np.mgrid[: size[1], : size[0]]
    edges = Image.fromarray(((columns // 23 + rows // 17) % 2 * 255).astype(np.uint8)).convert("RGB")
    sides = 64, 64
    for whole in (noise, edges):
        small = halved(whole, sides)
        assert small.width <= whole.width // 2
        assert min(small.size) >= KEEPS * 64
        seen, expected = (
            np.asarray(each.resize(sides, Image.Resampling(resample))).astype(float) for each in (small, whole)
        )
        assert np.abs(seen - expected).max() <= 6
        assert np.abs(seen - expected).mean() <= 1.5


@pytest.mark.parametrize(
    ("size", "sides", "becomes"),
    [
        ((2048, 2048), (224, 224), (1024, 1024)),
        ((4096, 4096), (224, 224), (1024, 1024)),
        ((1024, 1024), (224, 224), (1024, 1024)),  # four times what the model sees is kept
        ((4096, 1024), (224, 224), (4096, 1024)),
        ((2050, 2046), (224, 224), (1025, 1023)),
        ((4099, 4096), (224, 224), (4099, 4096)),  # of which a column would count otherwise than the others
        ((4096, 4096), None, (4096, 4096)),
    ],
)
def test_a_picture_is_halved_while_it_is_far_larger_than_what_the_model_sees(
    size: tuple[int, int], sides: tuple[int, int] | None, becomes: tuple[int, int]
) -> None:
    assert halved(Image.new("RGB", size), sides).size == becomes


# ---- which labels count


def test_harmless_labels_are_not_scored_and_harmful_ones_block_without_being_asked(folder: Folder) -> None:
    classifier = make(str(folder("vit", "drawings", "Hentai", "Neutral", "Porn", "SEXY", "cats, or dogs")), {})
    assert classifier.categories == ("hentai", "porn", "sexy", "cats_or_dogs")
    assert classifier.thresholds == dict.fromkeys(("hentai", "porn", "sexy"), THRESHOLD)
    (scores,) = classifier.check_images([picture(64, 64)])
    assert [*scores] == [*classifier.categories]


def test_labels_can_be_said_to_be_safe(folder: Folder) -> None:
    path = str(folder("vit", "LABEL_0", "LABEL 1", "nsfw"))
    classifier = make(check_options(path, {"safe": "Label_0/label 1"}), {"safe": "Label_0/label 1"})
    assert classifier.categories == ("nsfw",)
    with pytest.raises(ArgumentError, match=r"safe= must be of its labels, .*: label_0, label_1, nsfw, got 'dogs'"):
        check_options(path, {"safe": "label_0/dogs"})


def test_labels_that_are_the_same_as_categories_count_by_the_higher(folder: Folder) -> None:
    path = folder("vit", "nsfw", "NSFW", "normal")
    (scores,) = make(str(path), {}).check_images([picture(64, 64)])
    (expected,) = by_transformers(path, [picture(64, 64)])
    assert scores == pytest.approx({"nsfw": max(expected["nsfw"], expected["NSFW"])}, abs=1e-6)
