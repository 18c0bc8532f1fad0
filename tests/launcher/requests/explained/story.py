"""A request, for tests of its explanation: what ranks report of it, and what is told of that."""

from __future__ import annotations

import itertools
from dataclasses import replace

from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from engine.config.engine_config import EngineConfig
from engine.config.model_config import ModelConfig
from engine.pictures.pixels import Pixels
from engine.scheduling.cost import Work
from engine.scheduling.step_work import DoneWork
from engine.step import Picture, Step, StepTimes
from launcher.client.explanation import ResultExplanation
from launcher.client.trace import trace_events
from launcher.explanation import Explanation, Stage
from launcher.messages.client_messages import Generate
from launcher.messages.limits import Limits
from launcher.messages.rank_messages import DoneStep
from launcher.pictures.prepared import PreparedPicture
from launcher.requests.check import check
from launcher.requests.explained.life import Life
from launcher.requests.plan import make_plan
from launcher.requests.tokenizer import Prompt
from tests.launcher.client.explained import expect_trace, expect_whole

DEMO = ModelConfig.from_folder(DEMO_CHECKPOINT)
TOKENS = 42  # of the prompt
OTHER = 99  # a job of another request


class Story:
    """A life, and its jobs, which are 0 to the number of images."""

    def __init__(
        self,
        *,
        ranks: int = 1,
        steps: int = 2,
        num_images: int = 1,
        pictured: bool = False,
        filtered: float | None = None,
        **fields: float,
    ) -> None:
        asked = Generate(request_id="r", prompt="", steps=steps or 1, num_images=num_images, **fields)  # type: ignore[arg-type]
        picture = PreparedPicture((128, 128), Pixels(128, 128, bytes(128 * 128 * 3))) if pictured else None
        checked = replace(check(asked, DEMO, Limits(), drawn_seed=0), steps=steps, picture=picture)
        self.plan = make_plan(checked, DEMO, lambda _: Prompt((1,) * TOKENS, cut=False), itertools.count(), {})
        read = 10.25 if pictured else None
        times = {"came": 10.0, "accepted": 10.5, "read": read, "filtered": filtered}
        self.life = Life(checked, self.plan, DEMO, EngineConfig(tp=ranks), **times)  # type: ignore[arg-type]

    def step(
        self,
        number: int,
        *by_rank: tuple[float, StepTimes],
        sent: float,
        jobs: tuple[int, ...] = (0,),
        starts: tuple[int, ...] = (),
        others: int = 0,
        behind: bool = False,
        decode: tuple[int, ...] = (),
        encode: tuple[Picture | None, ...] = (),
        did: DoneWork | None = None,
    ) -> None:
        other_jobs = tuple(range(OTHER, OTHER + others))
        denoised = () if any(self.plan.jobs[job].steps == 0 for job in jobs) else jobs
        pictures = tuple(picture for picture in encode if picture is not None)
        started = tuple(self.plan.jobs[job] for job in starts)
        step = Step(number, started, (*denoised, *other_jobs), decode, encode=pictures)
        tokens = 72 * (len(jobs) + others)
        times = by_rank[0][1]
        self.life.stepped(
            [*jobs], DoneStep(step, times, Work(tokens, 72 * tokens), sent, behind, dict(enumerate(by_rank)), did)
        )

    def explain(self) -> Explanation:
        told = self.life.explain()
        expect_whole(told)
        expect_trace(trace_events([ResultExplanation("r", told)]), ResultExplanation("r", told))
        return told


def of(told: Explanation, name: str, rank: int | None = None) -> list[Stage]:
    return [stage for stage in told.stages if stage.name == name and stage.rank == rank]


def when(stages: list[Stage]) -> list[tuple[float, float]]:
    return [(stage.begin_s, stage.end_s) for stage in stages]


def parts(told: Explanation) -> dict[str, float]:
    return {part: seconds for part, seconds in told.parts.items() if seconds}
