"""The jobs that come of a checked request."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from engine.config.model_config import ModelConfig
from engine.config.prompt_domain import PromptDomain
from engine.pictures.pixels import Pixels
from engine.step import Picture
from launcher.messages.client_messages import Generate
from launcher.messages.limits import Limits
from launcher.messages.message_parts import LoraChoice
from launcher.pictures.prepared import PreparedPicture
from launcher.requests.check import CheckedRequest, check
from launcher.requests.plan import make_plan
from launcher.requests.tokenizer import Prompt

DEMO = ModelConfig.from_folder(DEMO_CHECKPOINT)
ANY_PROMPT = replace(DEMO, prompt_domain=None)


def checked(model: ModelConfig = DEMO, loaded: dict[str, float] | None = None, **parameters: Any) -> CheckedRequest:
    request = Generate(**({"request_id": "r", "prompt": "a fox"} | parameters))
    return check(request, model, Limits(), drawn_seed=77, loras=loaded)


def test_a_request_for_several_images_is_as_many_jobs_with_seeds_in_a_row() -> None:
    ids = {"a fox": Prompt((1,) * 40, cut=True), "": Prompt((2,) * 39, cut=False)}
    request = checked(num_images=3, seed=5, guidance=2.0, width=64, height=100)
    plan = make_plan(request, ANY_PROMPT, ids.__getitem__, itertools.count(10), {})
    assert [(job.job_id, job.seed) for job in plan.jobs] == [(10, 5), (11, 6), (12, 7)]
    assert {(job.prompt_ids, job.negative_ids) for job in plan.jobs} == {((1,) * 40, (2,) * 39)}
    image_tokens = (64 // 16) * (112 // 16)
    assert plan.segments == (40 - 34 + image_tokens, 39 - 34 + image_tokens)
    assert (plan.text_tokens, plan.image_tokens) == (1, image_tokens)  # of the two texts, without the template
    assert plan.warnings == (*request.warnings, "prompt was cut to 507 tokens")


def test_a_prompt_that_the_checkpoint_cannot_draw_gets_its_note() -> None:
    raw = replace(ANY_PROMPT, is_distilled=False)
    domain = PromptDomain(frozenset({"a", "cat", "dog"}), "It draws cats and dogs.")

    def warnings(model: ModelConfig, prompt: str, negative_prompt: str = "a cat") -> tuple[str, ...]:
        request = checked(model, prompt=prompt, negative_prompt=negative_prompt, guidance=1.0)
        return make_plan(request, model, lambda _: Prompt((1,) * 40, cut=False), itertools.count(), {}).warnings

    assert warnings(replace(raw, prompt_domain=domain), "a fox") == (
        'the model does not know "fox". It draws cats and dogs.',
    )
    assert warnings(replace(raw, prompt_domain=domain), "A dog") == ()
    assert warnings(replace(raw, prompt_domain=domain), "A dog", "a fox") == (
        'the model does not know "fox" of the negative prompt, which may spoil the picture',
    )
    assert warnings(raw, "a fox", "a fox") == ()


def test_images_of_a_request_share_the_picture_that_they_begin_from_and_run_the_last_steps() -> None:
    ids = itertools.count(10)
    plans = []
    for mask in (None, bytes(8 * 12)):
        picture = PreparedPicture((60, 90), Pixels(64, 96, bytes(64 * 96 * 3), mask))
        asked = replace(checked(num_images=2, steps=5), width=64, height=96, steps=3, skipped_steps=2, picture=picture)
        plans.append(make_plan(asked, DEMO, lambda _: Prompt((1,) * 40, cut=False), ids, {}))
    first, second = plans
    assert [job.picture for job in first.jobs] == [Picture(10, 64, 96, masked=False)] * 2
    assert [job.picture for job in second.jobs] == [Picture(12, 64, 96, masked=True)] * 2
    assert {(job.steps, job.skipped_steps) for job in first.jobs} == {(3, 2)}
    assert {job.picture for job in make_plan(checked(), DEMO, lambda _: Prompt((1,), cut=False), ids, {}).jobs} == {
        None
    }


def test_without_guidance_there_is_one_prompt() -> None:
    plan = make_plan(checked(), DEMO, lambda _: Prompt((1,) * 40, cut=False), itertools.count(), {})
    assert plan.jobs[0].negative_ids is None
    assert plan.segments == (40 - 34 + 64,)


def test_loras_of_no_strength_are_left_out() -> None:
    choices = (LoraChoice(name="a"), LoraChoice(name="b", strength=0), LoraChoice(name="c", strength=-2))
    request = checked(loaded={"a": 0.5, "b": 1.0, "c": 1.0, "d": 1.0}, loras=choices)
    ids = {"a": 7, "b": 8, "c": 9, "d": 10}
    plan = make_plan(request, DEMO, lambda _: Prompt((1,) * 40, cut=False), itertools.count(), ids)
    assert plan.jobs[0].loras == ((7, 0.5), (9, -2.0))
