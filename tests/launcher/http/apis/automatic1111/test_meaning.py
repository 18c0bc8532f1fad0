"""What A1111's parameters mean to the engine, and what is said of those that mean nothing."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from engine.config.engine_config import EngineConfig
from engine.config.model_config import ModelConfig
from engine.errors import ArgumentError
from launcher.http.answers.drawing import Studio
from launcher.http.answers.engine_link import EngineLink
from launcher.http.apis.automatic1111.body import IGNORED, PRIVATE, Txt2ImgBody
from launcher.http.apis.automatic1111.meaning import read_loras, to_parameters
from launcher.http.apis.automatic1111.neighbours import Neighbours
from launcher.http.apis.automatic1111.watching import Watching
from launcher.messages.configs import HttpConfig
from launcher.messages.limits import Limits
from launcher.messages.message_parts import LoraChoice

# What SillyTavern's settings send where nobody has changed them.
BY_HABIT = {
    "restore_faces": False, "enable_hr": False, "hr_upscaler": "Latent", "hr_scale": 2, "denoising_strength": 0.7,
    "hr_second_pass_steps": 0, "override_settings": {"CLIP_stop_at_last_layers": 1}, "clip_skip": 1, "tiling": False,
    "override_settings_restore_afterwards": True, "send_images": True, "do_not_save_grid": False, "eta": 1.0,
    "do_not_save_samples": False, "subseed": -1, "subseed_strength": 0.0, "seed_resize_from_h": 0, "styles": [],
    "s_churn": 0, "s_noise": 1, "script_args": [], "script_name": None, "alwayson_scripts": {}, "sampler_name": "Euler",
    "scheduler": "Automatic", "save_images": False, "hr_sampler_name": None, "hr_prompt": "", "refiner_checkpoint": "",
}  # fmt: skip


def meant(model: ModelConfig, **body: Any) -> tuple[dict[str, Any], list[str]]:
    config = HttpConfig(engine=EngineConfig(), limits=Limits(), model_names=("krea", "alias"))
    return to_parameters(Txt2ImgBody.model_validate(body), Studio(config, model, EngineLink("", None)))


def warned(model: ModelConfig, **body: Any) -> list[str]:
    return meant(model, **body)[1]


@pytest.fixture
def raw(demo: ModelConfig) -> ModelConfig:
    return replace(demo, is_distilled=False, stated_guidance=3.5)


@pytest.mark.parametrize("scale", [None, 0, 1])
def test_turbo_draws_without_guidance(demo: ModelConfig, scale: float | None) -> None:
    given, warnings = meant(demo, cfg_scale=scale)
    assert (given["guidance"], warnings) == (None, [])


@pytest.mark.parametrize("scale", [1.5, 7, 30])
def test_turbo_ignores_a_scale_that_would_spoil_the_picture_and_says_so(demo: ModelConfig, scale: float) -> None:
    given, warnings = meant(demo, cfg_scale=scale)
    assert given["guidance"] is None
    assert [warning.partition(":")[0] for warning in warnings] == [f"cfg_scale {scale:g} was ignored"]


def test_more_steps_than_turbo_was_made_for_are_drawn_and_what_they_cost_is_said(
    demo: ModelConfig, raw: ModelConfig
) -> None:
    given, warnings = meant(demo, steps=20)
    assert (given["steps"], warnings) == (20, ["20 steps take 2.5 times as long as the 8 that Turbo was made for"])
    assert warned(demo, steps=8) == warned(demo, steps=4) == warned(raw, steps=100) == []


@pytest.mark.parametrize(("scale", "guidance"), [(0, 0), (1, 0), (1.5, 0.5), (4.5, 3.5), (21, 20)])
def test_the_scale_is_one_more_than_kreas_guidance(raw: ModelConfig, scale: float, guidance: float) -> None:
    given, warnings = meant(raw, cfg_scale=scale)
    assert (given["guidance"], warnings) == (guidance, [])


def test_the_scale_that_clients_send_by_habit_is_the_checkpoints_own(raw: ModelConfig) -> None:
    given, (warning,) = meant(raw, cfg_scale=7)
    assert given["guidance"] is None
    assert "taken for the checkpoint's own, 4.5; guidance 6 says it" in warning


def test_a_scale_that_cannot_be_is_refused_by_its_own_name(raw: ModelConfig) -> None:
    with pytest.raises(ArgumentError, match=r"cfg_scale must be between 0 and 21, got 21\.5") as refused:
        meant(raw, cfg_scale=21.5)
    assert refused.value.parameter == "cfg_scale"


@pytest.mark.parametrize("kind", ["demo", "raw"])
def test_kreas_own_guidance_is_taken_as_it_is(kind: str, request: pytest.FixtureRequest) -> None:
    given, warnings = meant(request.getfixturevalue(kind), cfg_scale=7, guidance=6)
    assert (given["guidance"], warnings) == (6, [])


def test_what_clients_send_by_habit_brings_no_warning(demo: ModelConfig) -> None:
    assert warned(demo, **BY_HABIT) == []


@pytest.mark.parametrize(
    ("body", "warning"),
    [
        ({"sampler_name": "DPM++ 2M"}, "sampler 'DPM++ 2M' was replaced by Euler, the only one here"),
        ({"sampler_index": "Euler a"}, "sampler 'Euler a' was replaced by Euler, the only one here"),
        ({"scheduler": "Karras"}, "scheduler 'Karras' was replaced by Automatic, the checkpoint's own"),
        ({"enable_hr": True}, "enable_hr was ignored: the picture is drawn at width × height at once"),
        ({"save_images": True}, "save_images was ignored: the server keeps no pictures"),
        ({"alwayson_scripts": {"ControlNet": {}}}, "alwayson_scripts were ignored: this server has no extensions"),
        ({"styles": ["ink"], "tiling": True}, "styles, tiling were ignored: that changes nothing here"),
        ({"override_settings": {"sd_model_checkpoint": "x"}}, "sd_model_checkpoint 'x' was ignored: krea is what is"),
        ({"override_settings": {"CLIP_stop_at_last_layers": 2}}, "override_settings: CLIP_stop_at_last_layers was"),
        ({"adetailer": True, "x": 1}, "adetailer, x were ignored: nobody here knows what that is"),
        ({"prompt": "a (red:1.3) fox"}, "weights in the prompt, as (word:1.3), were read as text"),
    ],
)
def test_what_changes_nothing_is_said(demo: ModelConfig, body: dict[str, Any], warning: str) -> None:
    (told,) = warned(demo, **body)
    assert told.startswith(warning)


@pytest.mark.parametrize("name", ["krea", "alias", "krea.safetensors", "krea.safetensors [0123abcdef]", "alias [01ab]"])
def test_the_served_model_may_be_named_as_a1111_lists_files(demo: ModelConfig, name: str) -> None:
    assert warned(demo, override_settings={"sd_model_checkpoint": name}) == []


@pytest.mark.parametrize(
    ("sent", "nearest"), [("stpes", "steps"), ("promt", "prompt"), ("negativePrompt", "negative_prompt")]
)
def test_a_mistyped_name_is_an_error(demo: ModelConfig, sent: str, nearest: str) -> None:
    with pytest.raises(ArgumentError, match=f"unknown parameter '{sent}': did you mean {nearest}?") as refused:
        meant(demo, **{sent: 4})
    assert refused.value.parameter == sent


def test_no_parameter_that_is_ignored_is_taken_for_a_mistyped_one(demo: ModelConfig) -> None:
    assert warned(demo, **dict.fromkeys(IGNORED)) == []


SLOW = 20_000  # characters, over some of which a search once went for each of them


@pytest.mark.parametrize("text", [" " * SLOW, "(a:" + "1" * SLOW, "(a:" + " " * SLOW])
def test_no_text_is_searched_again_and_again(demo: ModelConfig, text: str) -> None:
    def seconds(text: str) -> float:
        """What this thread computes, at best: the garbage collector may come now and then."""
        took = []
        for _ in range(3):
            began = time.thread_time()
            meant(demo, prompt=f"{text}x", override_settings={"sd_model_checkpoint": f"{text}x"})
            took.append(time.thread_time() - began)
        return min(took)

    assert seconds(text) < 50 * seconds("x" * len(text))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", sorted({*Txt2ImgBody.model_fields, *IGNORED}))
def test_no_number_is_too_long_to_be_refused_or_ignored(demo: ModelConfig, name: str, sign: int) -> None:
    with suppress(ArgumentError, ValidationError):
        meant(demo, **{name: sign * 10**400})


def test_many_unknown_names_are_not_all_compared(demo: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []
    monkeypatch.setattr("difflib.get_close_matches", lambda name, *_, **__: compared.append(name))
    (told,) = warned(demo, **{f"name {index}": 1 for index in range(1000)})
    assert told.endswith("and 992 more were ignored: nobody here knows what that is")
    assert 8 < len(compared) < 100


def test_a_script_is_refused(demo: ModelConfig) -> None:
    told = "script_name must be empty, since this server has no scripts, got 'x/y/z plot'"
    with pytest.raises(ArgumentError, match=f"{told}$"):
        meant(demo, script_name="x/y/z plot")


def test_loras_are_taken_out_of_the_prompt() -> None:
    prompt, loras = read_loras("a fox <lora:ink:0.8>, in <lora:Ink é>snow <lora:wide:-1:0.5>")
    assert prompt == "a fox, in snow"
    assert loras == (
        LoraChoice(name="ink", strength=0.8),
        LoraChoice(name="Ink é"),
        LoraChoice(name="wide", strength=-1.0),
    )
    with pytest.raises(
        ArgumentError, match="the strength of a LoRA in prompt must be a number in <lora:'ink':STRENGTH>"
    ):
        read_loras("a fox <lora:ink:much>")


def test_images_are_batches_times_their_size(demo: ModelConfig) -> None:
    assert meant(demo)[0]["num_images"] == 1
    assert meant(demo, batch_size=2, n_iter=3)[0]["num_images"] == 6
    with pytest.raises(ArgumentError, match="batch_size × n_iter must be at most 10 images, got 12"):
        meant(demo, batch_size=4, n_iter=3)


@pytest.mark.parametrize(
    ("asked", "own"),
    [((512, 512), (128, 128)), ((512, 768), (128, 192)), ((1216, 832), (192, 128)), ((64, 64), (128, 128))],
)
def test_a_size_that_the_model_was_not_made_for_gives_way(
    demo: ModelConfig, asked: tuple[int, int], own: tuple[int, int]
) -> None:
    given, (warning,) = meant(demo, width=asked[0], height=asked[1])
    assert (given["width"], given["height"]) == own
    told = (
        f"{asked[0]} × {asked[1]} was drawn as {own[0]} × {own[1]}, since it is outside of what the model was made for"
    )
    assert warning.startswith(told)


def test_a_size_that_the_model_was_made_for_is_drawn_and_one_that_cannot_be_is_left_to_be_refused(
    demo: ModelConfig,
) -> None:
    any_size = replace(demo, size_domain=None)
    for model, width, height in (
        (demo, 128, 256),
        (demo, None, 200),
        (any_size, 512, 768),
        (demo, 63, 128),
        (demo, 128, 4097),
    ):
        given, warnings = meant(model, width=width, height=height)
        assert (given["width"], given["height"], warnings) == (width, height, [])


def test_forms_send_numbers_as_texts_and_empty_ones(demo: ModelConfig) -> None:
    given, warnings = meant(demo, prompt="x", steps="4", seed="", width="96", cfg_scale="1.0", send_images="true")
    assert (given["steps"], given["seed"], given["width"], given["guidance"], warnings) == (4, None, 96, None, [])


def test_every_parameter_is_described_but_the_servers_own_secrets() -> None:
    described = set(Txt2ImgBody.model_json_schema()["properties"])
    assert described == {*Txt2ImgBody.model_fields, *IGNORED} - {*PRIVATE}
    assert Txt2ImgBody.model_validate({"auth": "a:b", "url": "http://x", "steps": 2}).echo() == {"steps": 2}


def test_who_asks_how_far_nothing_is_is_not_remembered() -> None:
    watching = Watching(Neighbours("", None))
    before = repr(vars(watching))
    assert asyncio.run(watching.progress("address 10.0.0.1", with_image=True))["progress"] == 0
    assert repr(vars(watching)) == before
