"""A filter that is an image classifier in transformers' layout: `classifier:FOLDER[,device=cpu]…`.

ViT, CLIP with a linear head, SigLIP, SigLIP 2, and whatever else transformers has as `…ForImageClassification`. What it
scores is what transformers' own pipeline scores. Weights are read from safetensors alone, and no code that a folder
brings is run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from engine.errors import ArgumentError, CheckpointError, Krea2Error, LaunchError, printable
from launcher.filters.built_in.classifier_folder import HARMFUL, HARMLESS, ClassifierFolder, category_of
from launcher.filters.protocol import Picture, Scores
from launcher.filters.spec import must
from launcher.hub.classifiers import find_classifier

if TYPE_CHECKING:
    import torch
    from PIL import Image

OPTIONS = ("device", "threads", "dtype", "safe")
_NAME = "classifier"
THRESHOLD = 0.85  # of labels that are known for something harmful
DTYPES = ("float32", "bfloat16", "float16")
MOST_THREADS = 256
KEEPS = 4  # times the pixels a side that the model sees are left of a large picture before it is prepared
_DEVICE = re.compile(r"cpu|cuda(:\d{1,3})?")
_NEAREST = 0  # Pillow's method that takes single pixels, for which a picture cannot be made smaller before
_SIZES = ("width", "height", "shortest_edge", "longest_edge", "max_width", "max_height")  # of processors
_LONGEST_REASON = 300


@dataclass(frozen=True)
class Settings:
    """The options of a classifier. safe: categories that are harmless, beside those known as such."""

    device: str = "cpu"
    threads: int = 0
    dtype: str = "float32"
    safe: frozenset[str] = frozenset()

    @classmethod
    def read(cls, options: Mapping[str, str]) -> Settings:
        """Read them as they are typed. Raises `ArgumentError`."""
        own: dict[str, Any] = dict(options)
        if "device" in own and not _DEVICE.fullmatch(own["device"]):
            raise must(_NAME, "device=", "cpu, cuda or cuda:N", own["device"])
        if "dtype" in own and own["dtype"] not in DTYPES:
            raise must(_NAME, "dtype=", f"one of {', '.join(DTYPES)}", own["dtype"])
        if "threads" in own:
            text = own["threads"]
            number = int(text) if text.isascii() and text.isdigit() and len(text) < 5 else 0
            if not 1 <= number <= MOST_THREADS:
                raise must(_NAME, "threads=", f"a whole number from 1 to {MOST_THREADS}", text)
            own["threads"] = number
        if "safe" in own:
            own["safe"] = frozenset(category_of(label) for label in own["safe"].split("/"))
        return cls(**own)


def check_options(value: str, options: Mapping[str, str]) -> str:
    """Return the classifier's folder, which is downloaded if it is a Hugging Face repository that is not in the cache.
    Raises `ArgumentError` or `CheckpointError` for what is no classifier, and where transformers is not installed."""
    settings = Settings.read(options)
    if not value or "\0" in value:
        raise must(_NAME, "its value", "a folder in transformers' layout, or a Hugging Face repository", value)
    if find_spec("transformers") is None:
        raise ArgumentError(
            "filter classifier needs transformers, which is not installed: pip install 'krea2-engine[filters]'",
            parameter="filters",
        )
    path = find_classifier(value)
    if not os.path.isdir(path):
        raise must(_NAME, "its value", "a folder that is there, or a Hugging Face repository, as owner/name", value)
    folder = ClassifierFolder.read(path)
    if unknown := settings.safe - {*map(category_of, folder.labels)}:
        raise must(_NAME, "safe=", f"of its labels, with / between them: {_listed(folder)}", sorted(unknown)[0])
    return os.path.abspath(path)


def make(value: str, options: Mapping[str, str]) -> Classifier:
    """Load the classifier."""
    return Classifier(ClassifierFolder.read(value), Settings.read(options))


class Classifier:
    """Scores pictures, uploads and previews by the labels of an image classifier, but for those that are harmless.

    categories: what it scores. thresholds: of those among them that are known for something harmful. Raises
    `CheckpointError` for a folder that transformers cannot read whole, and `ArgumentError` for a device that is not
    there.
    """

    def __init__(self, folder: ClassifierFolder, settings: Settings) -> None:
        self._folder = folder
        self._device, self._dtype = _prepare_torch(settings)
        self._categories = tuple(map(category_of, folder.labels))
        harmless = HARMLESS | settings.safe
        self.categories = tuple(dict.fromkeys(each for each in self._categories if each not in harmless))
        self.thresholds = {each: THRESHOLD for each in self.categories if each in HARMFUL}
        self._model, self._processor = _load(folder, self._device, self._dtype)
        self._sides = _sides(self._processor)
        self.check_images([Picture(64, 64, b"\x80" * (64 * 64 * 3), "image", "")])  # fails now if it ever will

    def check_images(self, pictures: Sequence[Picture]) -> list[Scores]:
        """Score pictures. They are prepared one by one, so that few large ones are in memory at a time."""
        import torch

        inputs = [self._prepared(picture) for picture in pictures]
        shapes = {tuple(value.shape for value in each.values()) for each in inputs}
        batches = [inputs] if len(shapes) == 1 else [[each] for each in inputs]
        try:
            return [scores for batch in batches for scores in self._scores(batch)]
        except torch.OutOfMemoryError as error:
            raise MemoryError(f"{self._device} has too little memory left: {error}") from None

    def _prepared(self, picture: Picture) -> dict[str, torch.Tensor]:
        from PIL import Image

        image = Image.frombuffer("RGB", (picture.width, picture.height), picture.rgb, "raw", "RGB", 0, 1)
        return dict(self._processor(images=[halved(image, self._sides)], return_tensors="pt"))

    def _scores(self, inputs: Sequence[Mapping[str, torch.Tensor]]) -> Iterator[Scores]:
        """Score what all has the same shape."""
        import torch

        with torch.inference_mode():
            batch = {name: self._to_device(torch.cat([each[name] for each in inputs])) for name in inputs[0]}
            logits = self._model(**batch).logits.float()
            scores = (
                logits.sigmoid() if self._folder.by_sigmoid else logits.softmax(dim=-1)
            ).cpu()  # (pictures, labels)
        if scores.shape[1:] != (len(self._categories),):
            problem = f"names {len(self._categories)} labels, but its model has {scores.shape[-1]} outputs"
            raise CheckpointError.of(self._folder.path, problem)
        if not scores.isfinite().all():
            raise ArithmeticError("the classifier's outputs are not finite numbers")
        for row in scores.cpu().tolist():
            found: dict[str, float] = {}
            for category, score in zip(self._categories, row, strict=True):
                if category in self.categories:
                    found[category] = max(found.get(category, 0.0), min(score, 1.0))
            yield found

    def _to_device(self, values: torch.Tensor) -> torch.Tensor:
        return values.to(self._device, self._dtype if values.is_floating_point() else None)


def halved(image: Image.Image, sides: tuple[int, int] | None) -> Image.Image:
    """Halve a large picture until less than `KEEPS` times the width and height that the model sees would be left.

    Only sides that can be halved are, so that every pixel counts as much as before: what the model sees changes by at
    most some 2 % of the brightest, where a picture is noise, and less than 1 % on average. sides: None where nothing
    may be changed.
    """
    factor = 1
    while sides is not None and image.width % (2 * factor) == image.height % (2 * factor) == 0:
        if image.width < 2 * factor * KEEPS * sides[0] or image.height < 2 * factor * KEEPS * sides[1]:
            break
        factor *= 2
    return image if factor == 1 else image.reduce(factor)


def _sides(processor: Any) -> tuple[int, int] | None:
    """The width and height to which a processor makes pictures smaller, or more; None if it does not, or picks single
    pixels."""
    if not getattr(processor, "do_resize", False) or getattr(processor, "resample", None) == _NEAREST:
        return None
    size = getattr(processor, "size", None) or {}
    given = {name: size[name] for name in _SIZES if size.get(name)}
    if "width" in given and "height" in given:
        return given["width"], given["height"]
    return (max(given.values()), max(given.values())) if given else None


def _prepare_torch(settings: Settings) -> tuple[torch.device, torch.dtype]:
    """Set torch up for a process in which nothing else uses it."""
    # Threads that spin while they wait make it several times slower where ranks or others want the cores, too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # which is read when torch is imported
    import torch

    torch.set_num_threads(settings.threads or min(4, _cpus()))
    device = torch.device(settings.device)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        there = f"there are {torch.cuda.device_count()}" if torch.cuda.device_count() else "torch sees none here"
        raise must(_NAME, "device=", f"a GPU of this machine ({there}) or cpu", settings.device)
    return device, getattr(torch, settings.dtype)


def _load(folder: ClassifierFolder, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """The model, and what prepares pictures for it: with Pillow, whether torchvision is installed or not."""
    with _explained(folder):
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        own = {"local_files_only": True, "trust_remote_code": False}
        model, found = transformers.AutoModelForImageClassification.from_pretrained(
            folder.path,
            output_loading_info=True,
            use_safetensors=True,
            variant=folder.weights.variant or None,
            dtype=dtype,
            **own,
        )
        wrong = sorted(map(str, [*found["missing_keys"], *found["mismatched_keys"]]))
        if wrong:  # which would be random numbers
            raise CheckpointError.of(
                folder.path, f"{len(wrong)} of the model's tensors are not in its files", name=wrong[0]
            )
        return model.eval().to(device), transformers.AutoImageProcessor.from_pretrained(
            folder.path, backend="pil", **own
        )


@contextmanager
def _explained(folder: ClassifierFolder) -> Iterator[None]:
    """Say in a sentence what transformers raises over a folder."""
    import torch

    try:
        yield
    except (Krea2Error, MemoryError):
        raise
    except torch.OutOfMemoryError as error:
        raise LaunchError(f"filter classifier: too little memory is left for {folder.path}: {error}") from None
    except Exception as error:
        told = printable(" ".join(str(error).split()))[:_LONGEST_REASON]
        raise CheckpointError.of(
            folder.path, f"transformers cannot load it as it is ({type(error).__name__}: {told})"
        ) from error


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _listed(folder: ClassifierFolder) -> str:
    return ", ".join(map(category_of, folder.labels))
