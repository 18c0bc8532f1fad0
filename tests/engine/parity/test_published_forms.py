"""A folder whose matrices are quantised as people publish them, against diffusers with what these stand for."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

import pytest
import torch

from tests.damage import copy_checkpoint
from tests.engine.checkpoint.layouts.layouts import load_text_encoder, load_transformer, save
from tests.engine.checkpoint.layouts.published import FORMS, publish
from tests.engine.parity.test_parity import LATENT_TOLERANCE, TEXT_TOKENS
from tests.engine_runs import RankGroups
from tests.oracle import Request, expected_latents, relative_error

FILES = {"transformer/diffusion_pytorch_model.safetensors": load_transformer}
FILES |= {"text_encoder/model.safetensors": load_text_encoder}
REQUEST = Request("a small yellow star", width=64, height=64, steps=2)
LEAST_COLUMNS = 64  # of what every form can hold


@pytest.fixture(scope="module")
def folders(turbo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Quantised, every matrix in another form than the last, and dequantised."""
    quantized, plain = (copy_checkpoint(turbo, tmp_path_factory.mktemp("forms") / name) for name in ("one", "two"))
    forms, used = cycle(FORMS), set()
    for file, load in FILES.items():
        stored, values = {}, {}
        for name, tensor in load(turbo).items():
            stored[name] = values[name] = tensor
            if name.endswith("_proj.weight") or ("blocks." in name and name.endswith(".weight") and tensor.ndim == 2):
                if tensor.shape[1] % LEAST_COLUMNS:
                    continue
                form = next(forms)
                used.add(form)
                layer = name.removesuffix(".weight")
                published = publish(form, layer, tensor)
                del stored[name]
                stored |= published.tensors
                values[name] = published.values
        for folder, tensors in ((quantized, stored), (plain, values)):
            (folder / file).unlink()
            save(tensors, folder / file, {"format": "pt"})
    assert used == set(FORMS)
    return quantized, plain


# Of four ranks each cuts every matrix that the others do not; what a matrix stands for is the same at every degree.
@pytest.mark.parametrize("tp", [pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow), 4])
def test_images_are_those_of_diffusers_with_what_the_weights_stand_for(
    folders: tuple[Path, Path], rank_groups: RankGroups, tp: int
) -> None:
    quantized, plain = folders
    (expected,) = expected_latents(plain, REQUEST, text_tokens=TEXT_TOKENS)
    (picture,) = rank_groups.run_requests(quantized, [REQUEST], tp=tp)
    assert relative_error(picture.latents, expected) <= LATENT_TOLERANCE
    assert torch.isfinite(picture.latents).all()
