"""What tests of lost ranks ask for, and how they lose them."""

from __future__ import annotations

from tests.launcher.fake_ranks import Fakes

PROMPT = "a red circle on a blue background"


async def lose(fakes: Fakes, reason: str = "rank 1: lost") -> None:
    """Lose the group of now and wait for the next."""
    generation = fakes.generation
    fakes.ranks[0].fail("rank_failed", reason)
    await fakes.has_generation(generation + 1)
