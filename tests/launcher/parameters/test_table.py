"""Parameters of other programs are taken for ours, passed over with a warning, or answered with what to give."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from engine.errors import ArgumentError
from launcher.client.parameters import INSTEAD, KNOWN
from launcher.http.apis.openai_body import ImageRequest
from launcher.messages.parameter_names import ALIASES, in_own_names, read
from launcher.parameters.other_programs import OtherParameter
from launcher.parameters.table import OTHERS, TABLE
from launcher.parameters.values import PICTURES
from tests.docs.documents import ROOT

DOCUMENT = (ROOT / "docs" / "parameters.md").read_text()
IGNORED_AS_OPENAI = {"quality", "style", "complexity", "background"}

IMAGE, AROUND = {"image": ["a"], "mask": b"b"}, {"mask_feather": 4, "mask_crop": 32}
BLOCKS = {"method": "blocks"}
SGLANGS = {
    "Fn_compute_blocks": 2, "Bn_compute_blocks": 1, "max_warmup_steps": "4", "residual_diff_threshold": 0.24,
    "max_continuous_cached_steps": 3, "max_cached_steps": -1, "enable_taylorseer": False,
}  # fmt: skip
SGLANGS_HERE = BLOCKS | {
    "first_blocks": 2, "last_blocks": 1, "warmup_steps": 4, "threshold": 0.24,
    "max_consecutive": 3, "max_cached": 200, "order": 0,
}  # fmt: skip
VALUES = (
    "blocks",
    "quality",
    "cache_dit_params",
    "last",
    "maximum",
    "high",
    "medium",
    "low",
    "scale",
    "path",
    "square_hd",
)  # of other programs


def row(other: OtherParameter) -> str:
    here = f"ignored: {other.here}" if other.ignored and not other.quiet else other.here
    here = f"ignored: {other.here}, and nothing is said" if other.quiet else here
    here = here if other.ignored or other.own is not None else f"refused: {other.here}"
    return f"| {', '.join(f'`{name}`' for name in other.names)} | {other.programs} | {here} |"


def test_the_document_has_all_of_them_in_this_order() -> None:
    assert "\n".join(map(row, TABLE)) in DOCUMENT


def test_each_name_is_there_once_and_is_none_of_ours() -> None:
    assert len(OTHERS) == sum(len(other.names) for other in TABLE)
    known = {*KNOWN, *PICTURES, "strength", "mask_crop", "mask_feather"}
    own = {*known, *ALIASES, *INSTEAD, *ImageRequest.model_fields}
    assert not OTHERS.keys() & (own - IGNORED_AS_OPENAI)
    assert {other.own for other in TABLE} - {None} <= known
    for other in TABLE:
        assert {*re.findall(r"`(\w+)`", other.here)} <= {*known, "prompt", *VALUES}, other.names


@pytest.mark.parametrize(
    ("given", "own"),
    [
        ({"num_outputs": 3}, {"num_images": 3}),
        ({"batch_size": "2", "n": 2}, {"num_images": 2}),
        ({"sampling_steps": "20"}, {"steps": 20}),
        ({"neg_prompt": "red"}, {"negative_prompt": "red"}),
        ({"noise_seed": 2**64 - 1}, {"seed": 2**64 - 1}),
        ({"output_quality": 80}, {"output_compression": 80}),
        ({"output_quality": "High"}, {"output_compression": 90}),
        ({"output_quality": "default"}, {}),
        ({"image_format": "WEBP"}, {"output_format": "webp"}),
        ({"image_size": "landscape_16_9"}, {"width": 1024, "height": 576}),
        ({"image_size": {"width": 640, "height": "480"}}, {"width": 640, "height": 480}),
        ({"resolution": "768x512"}, {"width": 768, "height": 512}),
        ({"cfg_scale": 1}, {"guidance": 0.0}),
        ({"true_cfg_scale": "4.5"}, {"guidance": 3.5}),
        ({"true_cfg_scale": "1.0", "guidance": 0}, {"guidance": 0}),
        ({"aspect_ratio": "1:1", "megapixels": "1", "n_iter": 1, "num_frames": 1, "frame_count": "1"}, {}),
        ({"images": [], "mask_image": "", "init_image": {}, "subseed": -1, "subseed_strength": 0.0}, {}),
        ({"quality": "ultra", "style": "", "complexity": ["x"]}, {}),
        ({"user": 3, "moderation": "Low"}, {"user": "3", "moderation": "low"}),
        ({"user": "a", "safety_identifier": "b", "moderation": None}, {"user": "b"}),
        ({"user": "a", "safety_identifier": ""}, {"user": "a"}),
        ({"background": "opaque", "enable_teacache": False, "go_fast": "false", "acceleration": "none"}, {}),
        ({"generator_device": "CPU", "max_sequence_length": 512, "scheduler": "Euler", "clip_skip": 0}, {}),
        ({"disable_safety_checker": True, "save_output": True}, {}),
        ({"lora": {"name": "ink", "scale": 0.5, "int_id": 7}}, {"loras": [{"name": "ink", "strength": 0.5}]}),
        ({"lora": {"lora_name": "ink", "lora_path": "/a"}}, {"loras": [{"name": "ink"}]}),
        ({"image_loras": [{"path": "ink", "scale": 2}]}, {"loras": [{"name": "ink", "strength": 2}]}),
        ({"loras": [{"path": "ink", "weight": 2}, "öl"]}, {"loras": [{"name": "ink", "strength": 2}, "öl"]}),
        ({"extra_body": {"steps": "4", "seed": 1}, "seed": 1}, {"steps": 4, "seed": 1}),
        ({"init_images": ["a"], "mask_image": b"b", "denoising_strength": "0"}, IMAGE | {"strength": 0.0}),
        ({"prompt_strength": 0.8, "mask_blur": "4", "padding_mask_crop": 32.0}, {"strength": 0.8} | AROUND),
        ({"outpaint": "left=256, top=64"}, {"outpaint": {"left": 256, "top": 64}}),
        ({"outpaint": {"right": "8", "top": None, "left": ""}, "strength": None}, {"outpaint": {"right": 8}}),
        ({"inpaint_full_res": False, "inpaint_full_res_padding": 32, "inpainting_mask_invert": 0}, {}),
        ({"input_fidelity": "low", "resize_mode": 0, "inpainting_fill": 1}, {}),
        ({"cache": "Fast", "enable_teacache": True, "enable_cache_dit": "true"}, {"cache": "fast"}),
        ({"cache_dit_params": SGLANGS, "enable_cache_dit": True, "enable_teacache": True}, {"cache": SGLANGS_HERE}),
        ({"cache_dit_params": SGLANGS | {"taylorseer_order": 1}}, {"cache": SGLANGS_HERE}),
        ({"cache_dit_params": SGLANGS, "enable_cache_dit": False}, {}),
        ({"extra_body": {"cache_dit_params": SGLANGS, "enable_cache_dit": "False"}}, {}),
        ({"cache_dit_params": SGLANGS, "enable_cache_dit": False, "cache": "fast"}, {"cache": "fast"}),
        (
            {"cache_dit_params": {"enable_taylorseer": "true", "taylorseer_order": "1"}},
            {"cache": BLOCKS | {"order": 1}},
        ),
        (
            {"cache_dit_params": {"scm_preset": "none", "warmup_interval": 1, "Fn_compute_blocks": None}},
            {"cache": BLOCKS},
        ),
        ({"cfg_gate_step": "0.5"}, {"guidance_until": 0.5, "guidance_outside": "last"}),
        ({"cfg_gate_step": 0.5, "guidance_outside": "off"}, {"guidance_until": 0.5, "guidance_outside": "off"}),
        ({"cfg_gate_step": 0}, {"guidance_until": 1e-6, "guidance_outside": "last"}),  # the first step guides there
        ({"cfg_gate_step": 1.0, "enable_cache_dit": False, "cache_dit_params": {}}, {}),
    ],
)
def test_what_means_one_of_ours_is_it_and_what_asks_for_nothing_is_passed_over(
    given: dict[str, Any], own: dict[str, Any]
) -> None:
    assert in_own_names(given) == (own, ())


@pytest.mark.parametrize(
    ("given", "warning"),
    [
        ({"background": "transparent"}, "background was ignored: images are opaque"),
        (
            {"sampler_name": "DPM++ 2M"},
            "sampler_name was ignored: there is one sampler, Euler's, on the checkpoint's sch",
        ),
        ({"go_fast": True}, "go_fast was ignored: cache says whether steps are saved"),
        ({"generator_device": "cuda"}, "generator_device was ignored: noise is drawn on the CPU"),
        ({"vae_use_tiling": True}, "vae_use_tiling was ignored: krea2 serve --vae-memory decides"),
        ({"enhance_prompt": True}, "enhance_prompt was ignored: prompts are drawn as they are"),
        ({"input_fidelity": "high"}, "input_fidelity was ignored: strength says how much of the picture is drawn anew"),
        ({"resize_mode": 2}, "resize_mode was ignored: the picture is covered and cropped at its centre"),
    ],
)
def test_what_changes_nothing_is_told(given: dict[str, Any], warning: str) -> None:
    own, (told,) = in_own_names(given)
    assert own == {}
    assert told.startswith(warning)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cfg_scale": 4.5, "guidance": 4.5}, "guidance 4.5 contradicts cfg_scale, which says 3.5"),
        ({"true_cfg_scale": 0.5}, "true_cfg_scale must be 1, which is off, or more, got 0.5"),
        ({"cfg_scale": "x"}, "cfg_scale must be a number, got 'x'"),
        ({"cfg": 1}, "cfg is not taken: give guidance, which is that script's cfg"),
        ({"flow_shift": 3}, "flow_shift is not taken: mu is its logarithm: for 3 give mu 1.099"),
        ({"aspect_ratio": "16:9"}, "aspect_ratio is not taken: give size, as 1360x768 for 16:9"),
        ({"aspect_ratio": "wide"}, "aspect_ratio is not taken: give size, or width and height"),
        ({"aspect_ratio": "9" * 5000 + ":1"}, "aspect_ratio is not taken: give size, or width and height"),
        (
            {"neg_prompt": "a secret", "negative_prompt": "y"},
            "negative_prompt contradicts neg_prompt, which has another",
        ),
        (
            {"size": "x" * 99, "image_size": "1x1"},
            "size xxxxxxxxxxxxx…xxxxxxxxxxxxxxxxxxxxxxxxxx contradicts image_size",
        ),
        ({"aspect_ratio": "0:0"}, "aspect_ratio is not taken: give size, or width and height"),
        ({"image_size": "2K"}, "image_size must be WIDTHxHEIGHT, as 512x768, got '2K'"),
        ({"output_quality": "so-so"}, "output_quality must be a whole number, got 'so-so'"),
        ({"reference_image": "a"}, "reference_image is not taken: pictures that only guide are not taken yet"),
        ({"control_image": np.ones((2, 2))}, "control_image is not taken: pictures that only guide are not taken"),
        (
            {"image_strength": "0.35"},
            "image_strength is not taken: strength is 1 less it, what is drawn anew: for 0.35",
        ),
        ({"image_strength": 7}, "image_strength is not taken: strength is 1 less it, what is drawn anew"),
        ({"denoising_strength": 0.7, "strength": 0.6}, "strength 0.6 contradicts denoising_strength, which says 0.7"),
        ({"init_image": "a" * 99, "image": "b" * 99}, "image contradicts init_image, which has another"),
        ({"init_image": np.ones((2, 2)), "images": [np.ones((2, 2))]}, "image contradicts images, which has another"),
        ({"inpaint_full_res": True}, "inpaint_full_res is not taken: give mask_crop, pixels around the mask"),
        ({"inpainting_mask_invert": 1}, "inpainting_mask_invert is not taken: what is white in the mask is repainted"),
        ({"outpaint": "left"}, "outpaint must be pixels to add by side, as left=256,top=64, got 'left'"),
        ({"outpaint": "up=3"}, "outpaint must be pixels to add by side, as left=256,top=64, of left, top, right and"),
        ({"outpaint": 5}, "outpaint must be pixels to add by side, as left=256,top=64, got 5"),
        ({"cache": "taylor=1"}, "cache has the fields method, warmup_steps, max_consecutive, order, max_cached, "),
        ({"cache": {"order": "one"}}, "cache.order must be a whole number, got 'one'"),
        ({"num_frames": 81}, "num_frames is not taken: there are images, and no videos"),
        ({"n_iter": 2}, "n_iter is not taken: num_images says how many"),
        ({"lora_path": "a"}, "lora_path is not taken: loaded LoRAs are chosen by loras, as"),
        ({"num_outputs": 2, "batch_size": 3}, "num_images 2 contradicts batch_size, which says 3"),
        ({"n": 3, "num_outputs": 2}, "num_images 2 contradicts n, which says 3"),
        ({"cfg_scale": 1, "guidance": 2}, "guidance 2 contradicts cfg_scale, which says 0.0"),
        ({"steps": 3, "extra_body": {"steps": 4}}, "steps 3 contradicts extra_body, which says 4"),
        ({"cache": "fast", "cache_dit_params": SGLANGS}, "cache fast contradicts cache_dit_params, which says {"),
        ({"cache_dit_params": "fast"}, "cache_dit_params must be an object of Fn_compute_blocks, Bn_compute_blocks, "),
        ({"cache_dit_params": {"scm_preset": "fast"}}, "cache_dit_params must be an object of Fn_compute_blocks, "),
        ({"cache_dit_params": {"taylorseer_order": 1.5}}, "cache_dit_params.taylorseer_order must be a whole number, "),
        ({"enable_teacache": 3}, "enable_teacache must be true or false, got 3"),
        ({"cfg_gate_step": "late"}, "cfg_gate_step must be a number, got 'late'"),
        ({"cfg_gate_step": 0.5, "guidance_until": 0.6}, "guidance_until 0.6 contradicts cfg_gate_step, which says 0.5"),
    ],
)
def test_what_would_be_mistaken_is_answered_with_what_to_give(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError) as error:
        in_own_names(given)
    assert error.value.message.startswith(message)
    assert error.value.parameter is not None


@pytest.mark.parametrize(
    ("given", "warning"),
    [
        ({"enable_teacache": True}, "enable_teacache was taken for cache quality, which is ours and not TeaCache"),
        ({"enable_cache_dit": "true"}, "enable_cache_dit was taken for cache quality, which is ours: cache_dit_params"),
    ],
)
def test_what_only_resembles_one_of_ours_is_it_with_a_warning(given: dict[str, Any], warning: str) -> None:
    own, (told,) = in_own_names(given)
    assert own == {"cache": "quality"}
    assert told.startswith(warning)


def test_names_that_nobody_has_stay_for_the_door_to_refuse() -> None:
    assert read({"sede": 1, "loras": [{"nam": "a"}]}) == ({"sede": 1, "loras": [{"nam": "a"}]}, ())
