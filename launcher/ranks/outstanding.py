"""Keeps what a rank group has been told and has not done, and by when each is due. Pure: no clock, no sockets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from engine.errors import Krea2Error, LaunchError, RankError
from engine.scheduling.cost import Work
from engine.step import Step, StepTimes
from launcher.messages.rank_messages import DoneStep

# A step hangs if it takes 20 times its estimate, but not before 60 s: kernels may have to be compiled for a new shape.
_HANG_FACTOR, _HANG_S = 20, 60.0


@dataclass
class _SentStep:
    step: Step
    work: Work
    unanswered: set[int]
    bound_s: float
    due: float
    sent: float
    behind: bool
    by_rank: dict[int, tuple[float, StepTimes]] = field(default_factory=dict)

    @property
    def slowest(self) -> StepTimes:
        every = [times for _, times in self.by_rank.values()]
        return replace(
            every[-1],
            encode_s=max(times.encode_s for times in every),
            picture_s=max(times.picture_s for times in every),
            encoded_pixels=max(times.encoded_pixels for times in every),
            denoise_s=max(times.denoise_s for times in every),
        )


class Outstanding:
    """Keeps the group's start, the steps that it was sent, and the images that are being decoded.

    Times are seconds of any one clock, which should stand still while ranks cannot be heard.
    """

    def __init__(self, ranks: Iterable[int], start_timeout_s: float, step_timeout_s: float, now: float) -> None:
        self._ranks = tuple(ranks)
        self._start_timeout_s, self._step_timeout_s = start_timeout_s, step_timeout_s
        self._start_due = now + start_timeout_s
        self._sent: list[_SentStep] = []  # the oldest first
        self._decoding: dict[int, float] = {}  # when the image of a job is due; never, before its last step is done

    @property
    def steps(self) -> int:
        """Steps that not all ranks have answered."""
        return len(self._sent)

    @property
    def images(self) -> frozenset[int]:
        """Jobs whose last step was sent and whose image has not come."""
        return frozenset(self._decoding)

    def add(self, step: Step, work: Work, *, expected_s: float | None, now: float, sent: float) -> None:
        """Note a step that was sent to every rank. expected_s: what it is thought to take, if that is known. sent: when
        it was, by the clock of those who asked for its images."""
        bound_s = self._step_timeout_s
        if expected_s is not None:
            bound_s = min(bound_s, max(_HANG_S, _HANG_FACTOR * expected_s))
        self._sent.append(_SentStep(step, work, set(self._ranks), bound_s, now + bound_s, sent, bool(self._sent)))
        self._decoding.update(dict.fromkeys(step.decode, math.inf))

    def answer(self, rank: int, number: int, times: StepTimes, now: float, heard: float) -> DoneStep | None:
        """Note that a rank has executed a step. Returns it once all ranks have. heard: now, by the clock of `sent`.

        Ranks answer in order, so this is the oldest step.
        """
        sent = next(sent for sent in self._sent if sent.step.number == number)
        sent.unanswered.remove(rank)
        sent.by_rank[rank] = heard, times
        if sent.unanswered:
            return None
        self._sent.remove(sent)
        if self._sent:
            self._sent[0].due = now + self._sent[0].bound_s
        for job_id in self._decoding.keys() & set(sent.step.decode):  # an image may come before the step's answer
            self._decoding[job_id] = now + self._step_timeout_s
        return DoneStep(sent.step, sent.slowest, sent.work, sent.sent, sent.behind, sent.by_rank)

    def image_came(self, job_id: int) -> None:
        """Note that an image has come, or never will."""
        self._decoding.pop(job_id, None)

    def overdue(self, now: float, *, missing: Sequence[int]) -> Krea2Error | None:
        """Return the error of what should have been done by now, if any. missing: ranks that are not ready."""
        if missing:
            if now <= self._start_due:
                return None
            who, were = ("rank", "was") if len(missing) == 1 else ("ranks", "were")
            slow = f"{who} {_listed(missing)} {were} not ready within {self._start_timeout_s:g} s"
            return LaunchError(f"{slow}: a slow disk, or a large model, needs a longer --start-timeout")
        if self._sent and now > self._sent[0].due:
            late, bound = self._sent[0], f"within {self._sent[0].bound_s:g} s"
            silent, number = _listed(sorted(late.unanswered)), late.step.number
            if len(late.unanswered) == 1:
                return RankError(f"rank {silent} did not finish step {number} {bound}")
            waiting = "one that hangs keeps the others waiting"
            return RankError(f"step {number} was not finished {bound} by ranks {silent}; {waiting}")
        if any(now > due for due in self._decoding.values()):
            return RankError(f"rank 0 did not decode an image within {self._step_timeout_s:g} s")
        return None


def _listed(ranks: Sequence[int]) -> str:
    """`0`, `0 and 1`, `0, 1 and 2`."""
    *first, last = map(str, ranks)
    return f"{', '.join(first)} and {last}" if first else last
