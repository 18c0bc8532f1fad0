"""Makes small image classifiers with random weights, as transformers writes them to folders, and pictures for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from launcher.filters.protocol import Picture

_SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_VISION = {**_SMALL, "image_size": 32, "patch_size": 8}
_MEAN = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25]}
FAMILIES = ("vit", "clip", "siglip", "siglip2")
Folder = Callable[..., Path]


def make_folder(folder: Path, family: str, labels: Sequence[str] = ("normal", "nsfw"), **config: Any) -> Path:
    """Write a classifier of 32 × 32 pixels with these labels. config: more of its config.json."""
    own = {
        **config,
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
    }
    torch.manual_seed(1)
    if family == "vit":
        model = transformers.ViTForImageClassification(transformers.ViTConfig(**_VISION, **own))
        prepare = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
    elif family == "clip":
        model = transformers.CLIPForImageClassification(transformers.CLIPConfig(vision_config=_VISION, **own))
        prepare = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}}
        prepare |= {"do_center_crop": True, "crop_size": {"height": 32, "width": 32}, "resample": 3}
    elif family == "siglip":
        model = transformers.SiglipForImageClassification(transformers.SiglipConfig(vision_config=_VISION, **own))
        prepare = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 32, "width": 32}, "resample": 3}
    else:
        vision = {**_SMALL, "num_patches": 16, "patch_size": 8}
        model = transformers.Siglip2ForImageClassification(transformers.Siglip2Config(vision_config=vision, **own))
        prepare = {"image_processor_type": "Siglip2ImageProcessor", "patch_size": 8, "max_num_patches": 16}
    with torch.no_grad():  # of a new head nearly all scores would be 1 / labels
        model.classifier.weight.normal_(std=0.5)
        model.classifier.bias.normal_(std=0.1)
    model.save_pretrained(folder)
    prepare |= {"do_resize": True, "do_rescale": True, "do_normalize": True, **_MEAN}
    (folder / "preprocessor_config.json").write_text(json.dumps(prepare))
    return folder


def picture(width: int, height: int, seed: int = 0) -> Picture:
    """Soft shapes with some noise."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((width, height))
    rgb = np.asarray(coarse).astype(int) + random.integers(-20, 21, (height, width, 3))
    return Picture(width, height, rgb.clip(0, 255).astype(np.uint8).tobytes(), "image", "a prompt")
