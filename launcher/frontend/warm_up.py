"""Warms up: makes steps that nobody asked for, while nobody waits, from which the front-end learns what work costs.

First a growing number of small images at once, until more tokens in a step no longer make more tokens a second; then a
large image, which tells attention's share; then some colourful images to the end, from which rank 0 also learns to draw
previews; then, where pictures may go in, a small one that is encoded.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace

from engine.config.chat_template import PREFIX_TOKENS
from engine.config.model_config import ModelConfig
from engine.pictures.pixels import Pixels
from engine.scheduling.cost import CostModel, Work, choose_budget
from engine.step import Job, Picture, Step, StepTimes
from launcher.messages.configs import FrontendConfig
from launcher.messages.rank_messages import Ready
from launcher.requests.tokenizer import Prompt

# Hears what a warm-up has measured, unless ranks died in it or it was cut off too early: costs of steps in the mode of
# the configuration, and what rank 0 said of itself.
AfterWarmUp = Callable[[FrontendConfig, ModelConfig, CostModel, Ready], None]

LONGEST_S = 10.0
_SMALL = 256  # pixels of a small image's side, unless images are smaller by default
_IMAGE_STEPS = 8  # at most, of the colourful images
_LADDER_STEPS = 64  # of jobs that are measured and never finished
_REPEATS = 3  # of a step that is measured
_GAIN, _VAIN = 1.02, 2  # the factor that twice the tokens should gain in tokens a second, and how often they may not
_PROMPTS = (
    "a red circle on a blue background",
    "a yellow star on a black background",
    "a green square on a white background",
    "a purple heart on an orange background",
    "a white triangle on a red background",
    "a blue circle on a yellow background",
    "an orange star on a green background",
    "a black square on a purple background",
)


class WarmUp:
    """Gives one step at a time, for `LONGEST_S` seconds of its clock at most.

    guided: its images are, as in a mode that divides a guided one, whose steps say nothing of unguided ones. pixels: of
    the picture that it has encoded, if ranks can, by its id. budget: the tokens of a step that it found best, if it
    did. rough: what steps cost is only known from the few that it had made when it was cut off. More attributes than
    others: what is to be measured, how far it is, and what was measured.
    """

    def __init__(
        self,
        model: ModelConfig,
        encode: Callable[[str], Prompt],
        job_ids: Iterator[int],
        costs: CostModel,
        guided: bool,
        clock: Callable[[], float] = time.monotonic,
        *,
        pictures: bool = False,
    ) -> None:
        self._clock = clock
        self.pixels: dict[int, Pixels] = {}
        if pictures:
            side = self._small(model)
            self.pixels[next(job_ids)] = Pixels(side, side, bytes(3 * side * side))
        self._model, self._encode, self._job_ids, self._costs, self._guided = model, encode, job_ids, costs, guided
        self.budget: int | None = None
        self.rough = False
        self._fastest: dict[Work, float] = {}  # seconds of the fastest step of each work that is measured
        self._jobs: dict[int, Job] = {}  # on the ranks
        self._sent: Step | None = None
        self._decoding: int | None = None  # the job whose image is being decoded
        self._steps: Generator[Step, StepTimes, None] | None = None
        self._next: Step | None = None
        self._due = math.inf

    @property
    def over(self) -> bool:
        """Whether it has made all its steps, or was ended."""
        return self._steps is not None and self._next is None

    @property
    def is_due(self) -> bool:
        """Whether its time is up, and it has yet to make the ranks forget its jobs."""
        return self._clock() > self._due

    def end(self) -> None:
        """Make no more steps, and let nobody wait for any."""
        self._steps, self._next, self._sent, self._decoding = self._release(), None, None, None

    def begin(self, most_tokens: int) -> None:
        """Begin with ranks that have memory for steps of `most_tokens` packed tokens."""
        self._due = self._clock() + LONGEST_S
        self._steps = self._run(most_tokens)
        self._next = next(self._steps)

    def next_step(self, empty_step: Callable[[], Step]) -> Step | None:
        """Make a step, numbered by `empty_step`; None while a step or an image is under way, and when it is over."""
        if self._sent is not None or self._next is None or self._decoding is not None:
            return None
        if self.is_due:
            self._break_off()
        assert self._next is not None
        self._sent = replace(self._next, number=empty_step().number)
        self._jobs |= {job.job_id: job for job in self._sent.start}
        for job_id in (*self._sent.decode, *self._sent.release):
            del self._jobs[job_id]
        self._decoding = next(iter(self._sent.decode), None)
        return self._sent

    def step_done(self, step: Step, times: StepTimes) -> bool:
        """Learn from a step. Returns whether it was one of the warm-up's."""
        if self._sent is None or step.number != self._sent.number:
            return False
        assert self._steps is not None
        sent, self._sent, self._next = self._sent, None, None
        if times.one_by_one:  # which says nothing of what such a step costs, but that it is too large
            denoised = [self._jobs[job_id] for job_id in sent.denoise if job_id in self._jobs]
            self.budget = max(1, self._work(denoised).tokens // 2)
            self._break_off()
            return True
        with suppress(StopIteration):
            self._next = self._steps.send(times)
        return True

    def job_ended(self, job_id: int) -> None:
        """Go on once the image under way has come or failed; break off if a job failed before."""
        if job_id == self._decoding:
            self._decoding = None
        if job_id in self._jobs:
            self._due = -math.inf
            self._fastest.clear()  # a step that failed was fast

    def _break_off(self) -> None:
        """Only have its jobs forgotten, and learn from what it has measured where nothing is known yet."""
        if self._fastest and not self._costs.known:
            self._costs.fit(self._fastest.items())
            self.rough = True
        self._due = math.inf
        self._steps = self._release()
        self._next = next(self._steps)

    def _run(self, most_tokens: int) -> Generator[Step, StepTimes, None]:
        small = self._small(self._model)
        large = max(self._model.default_width, 2 * small)
        fastest = self._fastest

        def measure(jobs: list[Job], new: list[Job]) -> Generator[Step, StepTimes, float]:
            """Return the tokens a second of the fastest step: whatever else runs here only makes steps slower."""
            ids, work = tuple(job.job_id for job in jobs), self._work(jobs)
            yield Step(number=0, start=tuple(new), denoise=ids)  # whatever happens once for a shape happens here
            for _ in range(_REPEATS):
                times = yield Step(number=0, denoise=ids)
                fastest[work] = min(fastest.get(work, math.inf), times.denoise_s)
            return work.tokens / fastest[work]

        jobs: list[Job] = []
        best, vain = 0.0, 0
        while vain < _VAIN and self._work(jobs).tokens * 2 <= most_tokens:
            new = [self._job(_PROMPTS[0], small, _LADDER_STEPS) for _ in range(max(1, len(jobs)))]
            jobs += new
            rate = yield from measure(jobs, new)
            vain = 0 if rate > _GAIN * best else vain + 1
            best = max(best, rate)
        self.budget = choose_budget([(work.tokens, seconds) for work, seconds in fastest.items()])
        large_job = self._job(_PROMPTS[0], large, _LADDER_STEPS)
        if self._work([large_job]).tokens <= most_tokens:
            yield from measure([large_job], [large_job])
        self._costs.fit(fastest.items())
        steps = min(_IMAGE_STEPS, self._model.default_steps)
        images = [self._job(prompt, small, steps) for prompt in _PROMPTS]
        images = images[: most_tokens // max(self._work([image]).tokens for image in images)]
        ids = tuple(job.job_id for job in images)
        for step in range(steps):
            yield Step(number=0, start=() if step else tuple(images), denoise=ids)
        for job_id in ids:  # one by one, so that a request that comes now need not wait long for its own
            yield Step(number=0, decode=(job_id,))
        for picture_id, pixels in self.pixels.items():
            picture = Picture(picture_id, pixels.width, pixels.height)
            for _ in range(_REPEATS):
                job = replace(self._job(_PROMPTS[0], small, 0), picture=picture)
                yield Step(number=0, start=(job,), encode=(picture,), forget=(picture_id,))
        yield from self._release()

    @staticmethod
    def _small(model: ModelConfig) -> int:
        return min(_SMALL, model.default_width, model.default_height)

    def _release(self) -> Generator[Step, StepTimes, None]:
        yield Step(number=0, release=tuple(self._jobs))

    def _job(self, prompt: str, side: int, steps: int) -> Job:
        negative = self._encode("").ids if self._guided else None
        guidance = self._model.default_guidance if self._guided else 0.0
        prompt_ids = self._encode(prompt).ids
        return Job(next(self._job_ids), prompt_ids, negative, side, side, steps, guidance, mu=None, seed=0)

    def _work(self, jobs: Iterable[Job]) -> Work:
        """What a step that denoises these jobs has to do."""
        image_tokens = self._model.image_tokens
        return Work.of(
            len(ids) - PREFIX_TOKENS + image_tokens(job.width, job.height) for job in jobs for ids in job.prompts
        )
