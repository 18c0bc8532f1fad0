"""All checks of one model, in the order of the stages: what comes first of what does not hold is where the two part."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch

from bench.verify import ours
from bench.verify.judging import (
    BETWEEN,
    BETWEEN_RANKS,
    CONVOLUTION,
    LATENTS,
    STAGE,
    ULP,
    WHOLE,
    Check,
    failed,
    judge_equal,
    judge_mean,
    judge_pixels,
    judge_stage,
    judge_whole,
    largest_error,
    mean_error,
)
from bench.verify.oracle.asking import ask
from bench.verify.oracle.loading import CannotJudge
from bench.verify.oracle.pipeline import Say, release
from bench.verify.oracle.recording import Answers, Made
from bench.verify.ours import Results, Steps
from bench.verify.ranks import Plan, run_group, run_one
from bench.verify.subject import stages
from bench.verify.subject.models import Model, Request, jobs_for
from bench.verify.subject.stages import Traced
from engine.config.degrees import Degrees
from engine.config.model_config import ModelConfig
from engine.rank.sampling import default_mu, make_sigmas

ONE = Degrees()
SIGMAS = "sigmas"


@dataclass(frozen=True)
class How:
    """device: of the engine and of diffusers. reference: of what diffusers computes in float32 for bfloat16 to be
    compared with, None if there is no room for it. modes: of several ranks, besides the one. seconds: of a group of
    ranks, at most. notes: filled in as the engine computes, how it does."""

    device: torch.device
    reference: torch.device | None
    modes: Sequence[Degrees]
    seconds: float
    notes: list[str] = field(default_factory=list)


def ask_diffusers(model: Model, requests: Sequence[Request], dtype: str, how: How, say: Say) -> Asked:
    """diffusers' answers, in bfloat16 beside those of float32 to the same noise."""
    if dtype == "float32":
        return Asked(ask(model, requests, dtype, how.device, say), None)
    exact, failure = None, "there is no room for it, so nothing is judged that has passed through the whole model"
    if how.reference is not None:
        try:
            exact = ask(model, requests, "float32", how.reference, say, noise_dtype=dtype)
        except CannotJudge:
            raise
        except Exception:
            failure = traceback.format_exc()
            release(how.reference)
    answers = ask(model, requests, dtype, how.device, say, reference=exact)
    if exact is None:
        answers.failures["float32"] = failure
    return Asked(answers, exact)


@dataclass(frozen=True)
class Asked:
    """answers: in the dtype that is verified. exact: in float32, from the same noise, where that is another dtype."""

    answers: Answers
    exact: Answers | None

    @property
    def judges_whole(self) -> bool:
        """Whether what has passed through the whole model can be judged: in bfloat16 not without float32."""
        return self.exact is not None or not self.answers.low


def verify_dtype(model: Model, requests: Sequence[Request], dtype: str, how: How, say: Say) -> Iterator[Check]:
    """The checks of one dtype. What fails is told with its traceback, and the rest goes on. Raises `CannotJudge`."""
    try:
        asked = ask_diffusers(model, requests, dtype, how, say)
    except CannotJudge:
        raise
    except Exception:
        yield failed("diffusers' side", dtype, "one", traceback.format_exc())
        return
    yield from compare(model, asked, how, say)


def compare(model: Model, asked: Asked, how: How, say: Say) -> Iterator[Check]:
    """The engine, in every mode, with what diffusers has said."""
    answers = asked.answers
    for part, failure in answers.failures.items():
        yield failed(f"diffusers' {part}", answers.dtype, ONE.name, failure)
    plan = make_plan(model, answers, how)
    try:
        result = run_one(plan, say)
        how.notes.append(f"{answers.dtype}: {result.note}")
        yield from judge(model, asked, [result], ONE)
    except Exception:
        yield failed("the engine", answers.dtype, ONE.name, traceback.format_exc())
    release(how.device)
    for degrees in how.modes:
        say(f"the engine in {answers.dtype}, {degrees.name}: {degrees.ranks} processes")
        began = time.monotonic()
        try:
            results = run_group(plan, degrees, how.seconds)
        except Exception:
            yield failed("the engine's ranks", answers.dtype, degrees.name, traceback.format_exc())
            continue
        how.notes.append(f"{answers.dtype}, {degrees.name}: {results[0].note}")
        say(f"the engine in {answers.dtype}, {degrees.name}: done in {time.monotonic() - began:.0f} s")
        yield from judge(model, asked, results, degrees)


def make_plan(model: Model, answers: Answers, how: How) -> Plan:
    jobs = jobs_for(model, answers.requests)
    job, made = jobs[answers.traced], answers.made[answers.traced]
    before = torch.stack([made.noise, *made.latents[:-1]])
    velocities = torch.stack([torch.stack(each) for each in made.velocities])
    return Plan(
        folder=str(model.folder),
        device=how.device.type,
        dtype=answers.dtype,
        jobs=jobs,
        traced=Traced(answers.trace.ids or job.prompt_ids, job.width, job.height),
        stages=tuple(answers.trace.expected),
        inputs=answers.trace.inputs,
        steps=Steps(job, before, velocities, answers.at, answers.before),
    )


def judge(model: Model, asked: Asked, ranks: Sequence[Results], degrees: Degrees) -> Iterator[Check]:
    """The checks of one mode, from what its ranks have computed."""
    each, results, expected = _Mode(asked, ranks[0], degrees.name), ranks[0], asked.answers.trace.expected
    made_all = ours.IMAGES not in results.failures
    if made_all:
        yield each.noise()
    for name in stages.before_the_decoder(model.config):
        if name in expected and not _is_tap(name):
            yield each.stage(name, model.config)
        elif name in expected and asked.judges_whole:
            yield each.tap(name)
    if degrees == ONE:
        yield from each.schedules(model)
    yield from each.steps()
    if asked.judges_whole and asked.answers.velocity.numel():
        yield each.velocity()
    if not made_all:
        yield failed(LATENTS, asked.answers.dtype, degrees.name, results.failures[ours.IMAGES])
    elif asked.judges_whole:
        yield from each.latents()
    if len(ranks) > 1:
        yield each.between(ranks)
    elif stages.SCALED in expected:
        yield from each.decoder(model)


def _is_tap(name: str) -> bool:
    return name.startswith(stages.TAP.format(""))


class _Mode:
    """What a mode's first rank has computed, beside what diffusers has."""

    def __init__(self, asked: Asked, results: Results, mode: str) -> None:
        self._answers, self._exact, self._results = asked.answers, asked.exact, results
        self._where = asked.answers.dtype, mode

    def _check(self, name: str, judge: Callable[..., Check], **given: Any) -> Check:
        """Judge one result, or say why there is none."""
        if name in self._results.failures:
            return failed(name, *self._where, self._results.failures[name])
        try:
            return judge(name, *self._where, self._results.stages[name], **given)
        except Exception:
            return failed(name, *self._where, traceback.format_exc())

    def noise(self) -> Check:
        mine = torch.cat([noise.flatten() for noise in self._results.noise])
        theirs = torch.cat([made.noise.flatten() for made in self._answers.made])
        return judge_equal(ours.NOISE, *self._where, mine, theirs=theirs, allowed=0.0)

    def stage(self, name: str, config: ModelConfig) -> Check:
        trace = self._answers.trace
        added_to = trace.inputs[name] if name in stages.residual_stages(config) else None
        exact = trace.exact.get(name)
        return self._check(name, judge_stage, theirs=trace.expected[name], exact=exact, added_to=added_to)

    def tap(self, name: str) -> Check:
        exact = None if self._exact is None else self._exact.trace.expected.get(name)
        return self._check(name, judge_whole, theirs=self._answers.trace.expected[name], exact=exact)

    def velocity(self) -> Check:
        exact = None if self._exact is None else self._exact.velocity
        return self._check(ours.VELOCITY, judge_whole, theirs=self._answers.velocity, exact=exact)

    def schedules(self, model: Model) -> Iterator[Check]:
        """The noise levels of every size."""
        requests, all_made = self._answers.requests, self._answers.made
        by_size = {(request.width, request.height): index for index, request in enumerate(requests)}
        for (width, height), index in by_size.items():
            mu = default_mu(model.config, model.config.image_tokens(width, height))
            sigmas = make_sigmas(requests[index].steps, mu)
            name = f"{SIGMAS} of {width}×{height}"
            yield judge_equal(name, *self._where, sigmas, theirs=all_made[index].sigmas, allowed=ULP)

    def steps(self) -> Iterator[Check]:
        """What each step makes of diffusers' latents and velocities."""
        index = self._answers.traced
        request, made = self._answers.requests[index], self._answers.made[index]
        for step in range(request.steps):
            before = made.latents[step - 1] if step else made.noise
            exact = _euler(made, step, before, request.guidance) if self._answers.low else None
            name = ours.EULER.format(step + 1)
            yield self._check(name, judge_stage, theirs=made.latents[step], exact=exact, added_to=before)

    def latents(self) -> Iterator[Check]:
        """Final latents, from noise on. Where they differ, it says from which step on."""
        pairs = list(zip(self._answers.requests, self._results.latents, self._answers.made, strict=True))
        if self._exact is None:
            for request, mine, made in pairs:
                errors = [largest_error(a, b) for a, b in zip(mine, made.latents, strict=True)]
                first = next((step for step, error in enumerate(errors) if not error <= WHOLE), None)
                detail = "" if first is None else f"from step {first + 1} of {request.steps} on"
                name = f"{LATENTS} of {request.name}"
                yield judge_whole(name, *self._where, mine[-1], theirs=made.latents[-1], detail=detail)
            return
        finals = [made.latents[-1] for made in self._exact.made]
        mine_errors = [mean_error(mine[-1], exact) for (_, mine, _), exact in zip(pairs, finals, strict=True)]
        their_errors = [mean_error(made.latents[-1], exact) for (_, _, made), exact in zip(pairs, finals, strict=True)]
        yield judge_mean(LATENTS, *self._where, (fmean(mine_errors), fmean(their_errors)), images=len(pairs))

    def between(self, ranks: Sequence[Results]) -> Check:
        """All ranks must end with the same latents."""
        first, *others = (torch.cat([each[-1].flatten() for each in one.latents]) for one in ranks)
        errors = [largest_error(other, first) for other in others]
        worst = max(range(len(errors)), key=errors.__getitem__)
        detail = f"rank {worst + 1} against rank 0"
        return Check(BETWEEN, *self._where, errors[worst], BETWEEN_RANKS, "of the largest value", detail)

    def decoder(self, model: Model) -> Iterator[Check]:
        trace, answers = self._answers.trace, self._answers
        for name in stages.of_the_decoder(model.config):
            yield self._check(
                name,
                judge_stage,
                theirs=trace.expected[name],
                exact=trace.exact.get(name),
                added_to=None,
                tolerance=STAGE if name == stages.SCALED else CONVOLUTION,
            )
        exact = None if answers.exact_picture is None else torch.from_numpy(answers.exact_picture)
        yield self._check(ours.PIXELS, judge_pixels, theirs=torch.tensor(answers.picture), exact=exact)


def _euler(made: Made, step: int, before: torch.Tensor, guidance: float) -> torch.Tensor:
    """The step of diffusers' velocities without rounding."""
    velocity, *negative = (each.double() for each in made.velocities[step])
    if negative:
        velocity = velocity + guidance * (velocity - negative[0])
    return before.double() + (made.sigmas[step + 1] - made.sigmas[step]).double() * velocity
