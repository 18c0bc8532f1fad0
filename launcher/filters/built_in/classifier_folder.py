"""Reads what a classifier's folder in transformers' layout says of itself, without transformers: light, and bounded."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from engine.checkpoint.files.file_sets import FileSet
from engine.config.json_fields import JsonFields
from engine.errors import CheckpointError
from launcher.hub.classifiers import CONFIG, PROCESSORS, weights_of

_ARCHITECTURE = "ForImageClassification"
_MOST_LABELS = 1024  # as many categories as a filter may have
_LONGEST = 200  # characters of a label
_BETWEEN_WORDS = re.compile(r"[\s,:=/|]+")

# As published classifiers call what should not be seen, and what may be, by `category_of`.
_HARMFUL = """
    nsfw not_safe_for_work not_safe unsafe harmful explicit explicit_content sexually_explicit sexual sexual_content
    porn pornography pornographic hentai sexy enticing_or_sensual adult adult_content nude nudity naked
    gore gory bloody violence violent violent_content hate hateful self-harm self_harm
"""
_HARMLESS = """
    normal safe sfw safe_for_work neutral drawing drawings general clean ok okay benign harmless appropriate acceptable
    none non_nsfw non-nsfw not_nsfw non_violent non-violent non_violence nonviolence no_violence anime_picture
"""
HARMFUL, HARMLESS = frozenset(_HARMFUL.split()), frozenset(_HARMLESS.split())


@dataclass(frozen=True)
class ClassifierFolder:
    """A folder with an image classifier.

    weights: its safetensors files. labels: of the model's outputs. by_sigmoid: whether each output is a score of its
    own, where a picture may have several labels; else they share 1, by softmax.
    """

    path: Path
    weights: FileSet
    labels: tuple[str, ...]
    by_sigmoid: bool

    @classmethod
    def read(cls, folder: str | Path) -> ClassifierFolder:
        """Look into a folder. Raises `CheckpointError` for one that is no image classifier in safetensors files."""
        path = Path(folder)
        fields = JsonFields.read(path / CONFIG)
        architecture = (fields.texts("architectures", most=8) if fields.has("architectures") else ("",))[0]
        if not architecture.endswith(_ARCHITECTURE):
            raise CheckpointError.of(
                path / CONFIG,
                "is no image classifier's",
                name="architectures",
                expected=f"a class such as ViT{_ARCHITECTURE}",
                found=architecture or "none",
            )
        if not any((path / each).is_file() for each in PROCESSORS):
            raise CheckpointError.of(path / PROCESSORS[0], "the file is missing, which says how pictures are prepared")
        weights = weights_of([entry.name for entry in os.scandir(path)])
        if isinstance(weights, str):
            raise CheckpointError.of(path, weights)
        labels = _labels(fields)
        problem = fields.values.get("problem_type")
        if problem == "regression":
            raise fields.error("problem_type", "that of a classifier, whose outputs are labels", problem)
        return cls(path, weights, labels, problem == "multi_label_classification" or len(labels) == 1)


def category_of(label: str) -> str:
    """What a label is called as a category: in lower case, with _ for spaces and for what separates options."""
    return _BETWEEN_WORDS.sub("_", label.strip().casefold()) or "unnamed"


def _labels(fields: JsonFields) -> tuple[str, ...]:
    """Those of `id2label`, which transformers leaves out where they are those that it gives two outputs."""
    if not fields.has("id2label"):
        return ("LABEL_0", "LABEL_1")
    found = fields.values["id2label"]
    expected = f"1 to {_MOST_LABELS} labels of up to {_LONGEST} printable characters, by 0, 1, 2 and so on"
    if not isinstance(found, dict) or not 1 <= len(found) <= _MOST_LABELS:
        raise fields.error("id2label", expected, found)
    labels = [found.get(str(number)) for number in range(len(found))]
    if not all(isinstance(label, str) and len(label) <= _LONGEST and label.isprintable() for label in labels):
        raise fields.error("id2label", expected, found)
    return tuple(map(str, labels))
