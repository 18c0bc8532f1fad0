"""Which jobs go into one step: those that denoise in it, those that start, and what is encoded for these."""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass, field

from engine.scheduling.cost import NO_WORK, CostModel
from engine.scheduling.planned_jobs import PlannedJobs
from engine.scheduling.policy import QueuedJob
from engine.step import Picture


@dataclass
class Packed:
    """The jobs of a step in the order of the policy, and the prompt tokens and pictures that starting them encodes."""

    denoise: list[QueuedJob] = field(default_factory=list)
    start: list[QueuedJob] = field(default_factory=list)
    pictures: dict[int, Picture] = field(default_factory=dict)  # by id
    prompt_tokens: int = 0
    pixels: int = 0  # of the pictures

    def seconds(self, costs: CostModel) -> float:
        """Estimate what the step takes, as far as speeds are known."""
        work = sum((queued.expected for queued in self.denoise), NO_WORK)
        encode_s = (costs.encode_s(self.prompt_tokens) or 0.0) + (costs.encode_picture_s(self.pixels) or 0.0)
        return encode_s + (costs.denoise_s(work) or 0.0)


def pack(
    ordered: Iterable[QueuedJob],
    *,
    held: Container[int],
    token_budget: int,
    prompt_budget: int,
    picture_budget: int,
    places: int,
    planned: PlannedJobs,
) -> Packed:
    """Pack jobs in this order, up to the budgets that `Scheduler` describes. held: pictures that the ranks have encoded
    already, by id. places: the number of jobs that may begin. planned: what jobs that have begun hold, and may hold."""
    packed = Packed()
    prompts: dict[int, int] = {}
    state, blocked = planned.held, False
    room = token_budget - planned.lost_tokens(state)
    for queued in ordered:
        steps = queued.steps_left > 0
        if queued.is_denoised or (steps and packed.denoise and queued.work.tokens > room):
            continue
        if steps and not packed.denoise and planned.must_wait(queued, state, token_budget):
            blocked = True
            continue
        if not queued.begun:
            tokens = sum(tokens for prompt, tokens in queued.prompts.items() if prompt not in prompts)
            picture = picture_to_encode(queued, held)
            if picture is not None and picture.picture_id in packed.pictures:
                picture = None
            pixels = 0 if picture is None else picture.pixels
            too_many_tokens = packed.start and packed.prompt_tokens + tokens > prompt_budget
            too_many_pixels = pixels and packed.pixels and packed.pixels + pixels > picture_budget
            if places <= 0 or too_many_tokens or too_many_pixels:
                continue
            if queued.state_bytes:
                blocked = blocked or not planned.may_begin(queued, state, token_budget)
                if blocked:  # nor may one that comes later and holds less, or the one passed over might wait for ever
                    continue
                room -= planned.lost_tokens(state + queued.state_bytes) - planned.lost_tokens(state)
                state += queued.state_bytes
            packed.start.append(queued)
            places -= 1
            prompts |= queued.prompts
            packed.prompt_tokens += tokens
            packed.pixels += pixels
            if picture is not None:
                packed.pictures[picture.picture_id] = picture
        if steps:
            packed.denoise.append(queued)
            room -= queued.work.tokens
    return packed


def picture_to_encode(queued: QueuedJob, held: Container[int]) -> Picture | None:
    """Return the picture that is to be encoded before a job can begin, where it is not `held` already."""
    picture = queued.job.picture
    return None if queued.begun or picture is None or picture.picture_id in held else picture


def picture_s(queued: QueuedJob, held: Container[int], costs: CostModel) -> float:
    """Estimate the seconds of encoding that picture: 0 while no speeds are known."""
    picture = picture_to_encode(queued, held)
    return 0.0 if picture is None or not costs.known else costs.encode_picture_s(picture.pixels) or 0.0


def pictures_to_come(jobs: Iterable[QueuedJob]) -> set[int]:
    """Return the ids of the pictures that jobs are yet to begin from."""
    pictures = (queued.job.picture for queued in jobs if not queued.begun)
    return {picture.picture_id for picture in pictures if picture is not None}
