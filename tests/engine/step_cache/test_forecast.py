from __future__ import annotations

import pytest
import torch

from engine.step_cache.forecast import forecast
from engine.step_cache.memory import StepMemory
from engine.step_cache.settings import StepCache
from engine.step_cache.step_plan import StepKind

C, F, OUT = StepKind.COMPUTED, StepKind.FORECAST, StepKind.LEFT_OUT


@pytest.mark.parametrize("known", [1, 2, 3])
def test_a_polynomial_of_the_degree_is_continued_as_it_is(known: int) -> None:
    def value(place: float) -> torch.Tensor:
        return sum((torch.tensor([2.0, -1.0]) * place**power for power in range(known)), torch.tensor([1.0, 3.0]))

    places = [1.0, 0.9, 0.7][:known]
    torch.testing.assert_close(forecast([(place, value(place)) for place in places], 0.45), value(0.45))


def test_of_equal_places_the_last_counts() -> None:
    """Noise levels that lie close are one in float32, once a large mu has shifted them."""
    ones, twos = torch.ones(2), torch.full((2,), 2.0)
    assert torch.equal(forecast([(1.0, ones), (1.0, twos)], 0.9), twos)
    torch.testing.assert_close(forecast([(1.0, ones), (1.0, twos), (0.5, ones)], 0.75), torch.full((2,), 1.5))


def test_nothing_cannot_be_continued() -> None:
    with pytest.raises(ValueError, match="nothing to forecast from"):
        forecast([], 0.5)


@pytest.fixture
def memory() -> StepMemory:
    """A half that is forecast by a line in its third step, and one that is left out in the last two."""
    plan = [[C, C, F, C], [C, C, OUT, OUT]]
    return StepMemory(plan, StepCache("velocity", 2, 1, 1, 9), reuses_difference=True)


def take(memory: StepMemory, step: int, *computed: torch.Tensor) -> torch.Tensor:
    memory.begin(step, blocks=6)
    return memory.velocity(step, 1.0 - step / 4, 2.0, iter(computed))


def test_what_is_kept_is_no_part_of_the_batch_and_goes_when_nothing_is_forecast_from_it_any_more(
    memory: StepMemory,
) -> None:
    batch = torch.randn(1000, 4)
    for step in range(4):
        take(memory, step, *batch[: 4 * len(memory.running(step))].split(4))
        memory.commit()
        kept = [velocity for half in memory.halves for _, velocity in half.kept.velocities]
        assert len(kept) == (1, 2, 2, 0)[step]
        assert all(velocity.untyped_storage().nbytes() == 64 for velocity in kept)


def test_a_step_that_was_broken_off_leaves_nothing_and_is_the_same_when_it_is_taken_again(memory: StepMemory) -> None:
    first, second = torch.randn(2, 4, 4), torch.randn(2, 4, 4)
    take(memory, 0, *first)
    memory.commit()
    kept = [half.kept for half in memory.halves]
    take(memory, 1, *torch.randn(2, 4, 4))
    memory.abandon()
    assert [half.kept for half in memory.halves] == [half.next for half in memory.halves] == kept
    take(memory, 1, *second)
    memory.commit()
    assert memory.blocks_run == (6, 6)
    line = 2 * second[0] - first[0]  # three even steps
    torch.testing.assert_close(take(memory, 2), line + 2.0 * (second[0] - second[1]))
    memory.commit()
    assert memory.blocks_run == (0, 0)


def test_no_difference_is_kept_for_steps_that_are_all_guided() -> None:
    guided = StepMemory([[C, C, F, C]] * 2, StepCache("velocity", 2, 1, 1, 9), reuses_difference=True)
    for step in range(4):
        take(guided, step, *torch.randn(len(guided.running(step)), 4, 4))
        guided.commit()
        assert guided._difference is None


def test_before_there_was_any_difference_none_is_added() -> None:
    late = StepMemory([[C, C], [OUT, C]], reuses_difference=True)
    velocity = torch.randn(4, 4)
    assert torch.equal(take(late, 0, velocity), velocity)
