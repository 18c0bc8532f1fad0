"""What the front-end puts together of the steps of images, as ranks tell of them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace

from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from engine.config.model_config import ModelConfig
from engine.scheduling.cost import Work
from engine.step import Step, StepTimes
from launcher.frontend.delivery.computed_steps import ComputedSteps
from launcher.messages.client_messages import Generate
from launcher.messages.limits import Limits
from launcher.messages.message_parts import CacheChoice, Computed
from launcher.messages.rank_messages import DoneStep
from launcher.requests.check import check
from launcher.requests.plan import Plan, make_plan
from launcher.requests.tokenizer import Prompt

DEMO = ModelConfig.from_folder(DEMO_CHECKPOINT)
BLOCKS = DEMO.transformer.num_layers


def plan(cache: str | CacheChoice, num_images: int = 2) -> Plan:
    request = Generate(request_id="r", prompt="a red circle", steps=3, cache=cache, num_images=num_images)
    checked = check(request, DEMO, Limits(), drawn_seed=0)
    return make_plan(checked, DEMO, lambda _: Prompt((1,) * 40, cut=False), itertools.count(10), {})


def done(blocks_run: Mapping[int, tuple[int, ...]]) -> DoneStep:
    times = StepTimes(blocks_run=tuple(blocks_run.items()))
    slowest = StepTimes()  # which need not be rank 0's
    return DoneStep(
        Step(0, denoise=tuple(blocks_run)), slowest, Work(0, 0), 0.0, False, {1: (0.0, slowest), 0: (0.0, times)}
    )


def test_images_of_which_all_is_computed_have_nothing_to_tell() -> None:
    steps = ComputedSteps(plan("off"))
    steps.stepped(done({}))
    steps.image_came(10)
    assert steps.is_told
    assert steps.of(10) is None


def test_each_image_gets_its_own_steps_when_all_are_known() -> None:
    steps = ComputedSteps(plan(CacheChoice(warmup_steps=1)))
    steps.stepped(done({10: (BLOCKS,), 11: (BLOCKS,)}))
    steps.stepped(done({10: (1,), 99: (BLOCKS,)}))  # and of another request
    steps.stepped(done({11: (BLOCKS,)}))
    assert steps.is_told
    steps.image_came(10)
    assert not steps.is_told  # it came before the last step was told of
    assert steps.of(10) is None
    steps.stepped(done({10: (BLOCKS,), 11: (BLOCKS,)}))
    assert steps.is_told
    assert steps.of(10) == Computed(steps=((BLOCKS,), (1,), (BLOCKS,)), blocks=BLOCKS)
    assert steps.of(11) == Computed(steps=((BLOCKS,),) * 3, blocks=BLOCKS)


def test_ranks_that_do_not_tell_what_they_computed_hold_nothing_up() -> None:
    steps = ComputedSteps(plan(CacheChoice(warmup_steps=1)))
    for _ in range(3):
        steps.stepped(replace(done({}), step=Step(0, denoise=(10,))))
    steps.image_came(10)
    assert steps.is_told
    assert steps.of(10) is None


def test_a_replay_counts_from_its_first_step_and_leaves_images_that_are_there() -> None:
    steps = ComputedSteps(plan(CacheChoice(warmup_steps=1), num_images=3))
    for _ in range(3):
        steps.stepped(done({10: (BLOCKS,), 11: (1,)}))
    steps.stepped(done({12: (1,)}))
    steps.image_came(10)
    steps.image_came(12)  # whose last steps nobody told of before the ranks were lost
    assert not steps.is_told
    steps.start_over({10, 12})
    assert steps.is_told  # so that nothing waits for lost ranks
    assert steps.of(10) == Computed(steps=((BLOCKS,),) * 3, blocks=BLOCKS)
    assert (steps.of(11), steps.of(12)) == (None, None)
    for blocks in (BLOCKS, 1, BLOCKS):
        steps.stepped(done({11: (blocks,)}))
    assert steps.of(11) == Computed(steps=((BLOCKS,), (1,), (BLOCKS,)), blocks=BLOCKS)
