"""What is told of saved steps, and of those that were computed."""

from __future__ import annotations

from engine.step_cache.settings import StepCache
from launcher.messages.message_parts import Computed
from launcher.requests.schedule.described import describe_computed, describe_evaluations, saved_settings


def test_computed_steps_are_counted_and_named_by_half() -> None:
    steps = ((4, 4), (4, 4), (1, 4), (4, 1), (1, 0), (4, 0))
    computed = Computed(steps=steps, blocks=4)
    assert (computed.block_evaluations, computed.of) == (31, 48)
    assert computed.saved == 1 - 31 / 48
    assert describe_computed(computed) == {
        "prompt": "1-2,4,6",
        "negative_prompt": "1-3",
        "block_evaluations": "31 of 48",
    }
    assert describe_computed(Computed(steps=((4,), (0,)), blocks=4)) == {"prompt": "1", "block_evaluations": "4 of 8"}
    assert Computed(steps=(), blocks=4).saved == 0


def test_a_line_says_what_was_saved_of_one_image_or_of_several() -> None:
    one = Computed(steps=((4, 4), (4, 0), (0, 0), (4, 0)), blocks=4)
    assert describe_evaluations([one]) == (
        "16 of 32 block evaluations, 50 % saved; computed steps: 1-2,4; of the negative prompt 1"
    )
    assert describe_evaluations([Computed(steps=((4,), (1,)), blocks=4)]).endswith("; computed steps: 1")
    never = Computed(steps=((4, 0), (4, 0)), blocks=4)
    assert describe_evaluations([never]).endswith("; computed steps: 1-2; of the negative prompt none")
    assert describe_evaluations([one, never]) == "24 of 48 block evaluations, 50 % saved"


def test_settings_are_told_only_where_something_was_asked_for() -> None:
    assert saved_settings(None, (0.0, 1.0), "last") == {}
    window = {"guidance_from": 0.0, "guidance_until": 0.5, "guidance_outside": "last"}
    assert saved_settings(None, (0.0, 0.5), "last") == window
    fields = {"method": "velocity", "warmup_steps": 5, "max_consecutive": 2, "order": 0, "max_cached": 7}
    assert saved_settings(StepCache(**fields), (0.0, 1.0), "off") == {"cache": fields}  # type: ignore[arg-type]
