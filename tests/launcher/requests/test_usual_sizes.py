"""What a model that was made for small images draws for OpenAI's sizes."""

from __future__ import annotations

from dataclasses import replace

from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from engine.config.model_config import ModelConfig
from launcher.requests.usual_sizes import OPENAI_SIZES, describe_own_size, own_size

DEMO = ModelConfig.from_folder(DEMO_CHECKPOINT)


def test_openais_sizes_that_are_too_large_are_the_models_own_in_about_their_shape() -> None:
    own = {size: own_size(size, DEMO) for size in OPENAI_SIZES}
    assert own == {
        (256, 256): None,
        (512, 512): (128, 128),
        (1024, 1024): (128, 128),
        (1536, 1024): (192, 128),
        (1024, 1536): (128, 192),
        (1792, 1024): (224, 128),
        (1024, 1792): (128, 224),
    }
    assert describe_own_size((1536, 1024), DEMO) == (
        "size 1536x1024 was drawn as 192x128, since it is outside of what the model was made for: sides from 96 to 256 "
        "pixels, by default 128 × 128; width and height are taken as they are"
    )


def test_other_sizes_and_other_models_get_what_was_asked_for() -> None:
    any_size = replace(DEMO, size_domain=None)
    for asked, model in (
        *((size, DEMO) for size in ((256, 256), (1024, 512), (1024, 1040), (64, 64), None)),
        *((size, any_size) for size in OPENAI_SIZES),
    ):
        assert own_size(asked, model) is describe_own_size(asked, model) is None
