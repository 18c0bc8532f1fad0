"""What a front-end knows of its requests, and who follows each of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from engine.step import Job, Step
from launcher.awake import RealTimer
from launcher.filters.checks import Judged
from launcher.frontend.admission import followers
from launcher.frontend.admission.followers import Follower
from launcher.frontend.admission.repeats import Repeatable
from launcher.frontend.delivery.computed_steps import ComputedSteps
from launcher.messages.client_messages import Failed, Image
from launcher.messages.message_parts import Computed
from launcher.messages.rank_messages import Decoded, DoneStep
from launcher.requests.check import CheckedRequest
from launcher.requests.explained.life import Life
from launcher.requests.plan import Plan
from launcher.requests.timings import Timings

DEATHS_FATAL = 3  # of ranks with a request in flight, after which it fails


@dataclass(eq=False)
class TrackedRequest:
    """A request from its arrival until all who follow it have acknowledged the end.

    caller: the name of the key that it was sent with. repeatable: what a repetition is known by, which then follows it,
    too. life: what is noted if its client asks where the time goes. judged: what filters said of its prompt, if there
    are any, which took filter_prompt_s. A flat record of what was asked, how far it is, and
    what was sent, which is why it has more attributes than others.
    """

    number: int
    followers: list[Follower]  # the first, whose name for it is in the log, and those that joined
    caller: str
    repeatable: Repeatable | None
    checked: CheckedRequest
    plan: Plan
    arrived: float
    life: Life | None = None
    judged: Judged | None = None
    filter_prompt_s: float = 0.0
    started: bool = False
    ended: bool = False
    deaths: int = 0  # of ranks that had it in flight
    steps_done: int = 0
    decoded: set[int] = field(default_factory=set)  # jobs whose image is there
    previewed: dict[int, int] = field(default_factory=dict)  # after which step each job was in the attempt
    position: int | None = None  # as the followers know it
    timings: Timings = field(init=False)
    timer: RealTimer | None = None
    lingering: asyncio.TimerHandle | None = None  # until it ends, since nobody follows it
    outcome: list[tuple[Image | Failed, tuple[bytes, ...]]] = field(default_factory=list)  # kept until acknowledged
    request_id: str = ""
    computed: ComputedSteps = field(init=False)
    _told: asyncio.Event = field(default_factory=asyncio.Event)  # of steps of images that have come

    def __post_init__(self) -> None:
        self.timings = Timings(self.arrived, self.filter_prompt_s)
        self.request_id = self.followers[0].request_id
        self.computed = ComputedSteps(self.plan)

    def begin(self, now: float) -> None:
        """Note that its first step is sent."""
        self.started = True
        self.timings.begin(now)
        if self.life is not None:
            self.life.begin(now)

    def stepped(self, job_ids: list[int], done: DoneStep, now: float, *, encoded: bool) -> None:
        """Note that a step has denoised its jobs, or started them if they have no steps, and encoded its prompts if it
        did."""
        denoised = self.checked.steps > 0
        self.steps_done += len(job_ids) if denoised else 0
        pictured = self.plan.jobs[0].picture in done.step.encode
        self.timings.stepped(job_ids, done.times, now, encoded=encoded, pictured=pictured, denoised=denoised)
        self.computed.stepped(done)
        if self.life is not None:
            self.life.stepped(job_ids, done)
        if self._is_told:
            self._told.set()

    def image_came(self, image: Decoded, now: float) -> None:
        """Note that an image has come."""
        self.decoded.add(image.job_id)
        self.computed.image_came(image.job_id)
        self.timings.decoded(image.job_id, image.decode_s, now)
        if self.life is not None:
            self.life.decoded(image.job_id, image.decode_s, now)
        if not self._is_told:  # ranks answer over connections of their own
            self._told.clear()

    def filtered(self, job_id: int, came: float, now: float) -> None:
        """Note that filters have answered about an image that came at `came`."""
        self.timings.filtered(came, now)
        if self.life is not None:
            self.life.filtered(job_id, came, now)

    async def computed_of(self, job: Job) -> Computed | None:
        """Say what was computed for an image that has come, when all its steps are known."""
        if self.computed.is_told:  # as where all was computed: nothing waits then
            return self.computed.of(job.job_id)
        await self._told.wait()
        return self.computed.of(job.job_id)

    async def written(self, job_id: int, began: float, now: float) -> None:
        """Note that a file has been made of an image, since `began`. Returns when something is known of where its time
        went and, if that is asked for, all that is to be told of its life."""
        self.timings.written(began, now)
        if self.life is not None:
            self.life.written(job_id, began, now)
        await self._told.wait()

    def start_over(self, now: float) -> None:
        """Forget what ranks that died had made of it, but for images that are there."""
        self.deaths += 1
        if self.life is not None:
            self.life.start_over(now)
        self.started = False
        self.timings = Timings(self.arrived, self.filter_prompt_s)
        self.computed.start_over(self.decoded)
        self.steps_done = self.checked.steps * len(self.decoded)
        self.previewed = {}

    def is_newest(self, job: Job, attempt: int, step: int) -> bool:
        """Note a preview of a job. Returns whether it is to be sent: one that took long may come after a later one,
        after its attempt, or after its image."""
        index = self.plan.jobs.index(job)
        is_sent = any(isinstance(message, Image) and message.index == index for message, _ in self.outcome)
        is_newest = not is_sent and attempt == self.attempt and step > self.previewed.get(job.job_id, 0)
        if is_newest:
            self.previewed[job.job_id] = step
        return is_newest

    def linger(self, seconds: float, callback: Callable[..., object], *arguments: object) -> None:
        """Call back with this request after `seconds`, counted from the last call of this."""
        if self.lingering is not None:
            self.lingering.cancel()
        self.lingering = asyncio.get_running_loop().call_later(seconds, callback, self, *arguments)

    def forget_picture(self) -> None:
        """Hold the picture that it begins from no longer."""
        self.checked = without_picture(self.checked)

    def stop_waiting(self) -> None:
        """Wait for no rank that has not told of a step."""
        self._told.set()

    def stop_timers(self) -> None:
        """Call nobody back any more."""
        self.stop_waiting()
        for timer in (self.timer, self.lingering):
            if timer is not None:
                timer.cancel()

    @property
    def _is_told(self) -> bool:
        return self.timings.is_told and self.computed.is_told and (self.life is None or self.life.is_told)

    @property
    def attempt(self) -> int:
        """Which attempt to make its images this is, or was the last, from 1."""
        return min(self.deaths + 1, DEATHS_FATAL)

    @property
    def size(self) -> int:
        """Bytes that are kept until they are acknowledged."""
        return sum(len(frame) for _, frames in self.outcome for frame in frames)

    @property
    def picture_size(self) -> int:
        """Bytes of the picture that it begins from, and of what its images are pasted into."""
        return 0 if self.checked.picture is None else self.checked.picture.size


class TrackedRequests:
    """Keeps requests until they have ended, and for each follower until it has acknowledged that."""

    def __init__(self) -> None:
        self._unfinished: dict[int, TrackedRequest] = {}
        self._followed: dict[Follower, TrackedRequest] = {}
        self._jobs: dict[int, tuple[TrackedRequest, Job]] = {}  # of requests that have not ended

    def __iter__(self) -> Iterator[TrackedRequest]:
        """Go through the requests that have not ended, in the order in which they came."""
        return iter([request for request in self._unfinished.values() if not request.ended])

    @property
    def all_acknowledged(self) -> bool:
        """Whether all followers have what they were owed."""
        return not self._followed

    def add(self, request: TrackedRequest) -> None:
        """Keep a new request for those who follow it."""
        self._unfinished[request.number] = request
        self._followed |= dict.fromkeys(request.followers, request)
        self._jobs |= {job.job_id: (request, job) for job in request.plan.jobs}

    def end(self, request: TrackedRequest) -> None:
        """Keep a request for its followers alone: it has ended."""
        self._unfinished.pop(request.number, None)
        for job in request.plan.jobs:
            self._jobs.pop(job.job_id, None)

    def with_job(self, job_id: int) -> tuple[TrackedRequest, Job] | None:
        """Give the request that has this job, and the job; None if there is none that has not ended."""
        return self._jobs.get(job_id)

    def stepped_in(self, step: Step) -> dict[TrackedRequest, list[int]]:
        """List the jobs that a step brings further, by their requests."""
        stepped: dict[TrackedRequest, list[int]] = {}
        for job_id in step.advanced:
            if job_id in self._jobs:
                stepped.setdefault(self._jobs[job_id][0], []).append(job_id)
        return stepped

    def started_in(self, step: Step) -> set[TrackedRequest]:
        """Give the requests whose jobs a step starts."""
        return {self._jobs[job.job_id][0] for job in step.start if job.job_id in self._jobs}

    def followed_by(self, follower: Follower) -> TrackedRequest | None:
        """Give what somebody follows under this name."""
        return self._followed.get(follower)

    def of_client(self, client: bytes) -> dict[Follower, TrackedRequest]:
        """Give what a client follows."""
        return {follower: request for follower, request in self._followed.items() if follower.client == client}

    def join(self, request: TrackedRequest, follower: Follower) -> None:
        """Let somebody else follow a request. Raises `QueueFullError` if many do already."""
        followers.join(request.followers, follower)
        self._followed[follower] = request

    def leave(self, follower: Follower) -> TrackedRequest:
        """Let somebody follow no more what it follows. Returns what that was."""
        request = self._followed.pop(follower)
        request.followers.remove(follower)
        return request


def without_picture(checked: CheckedRequest) -> CheckedRequest:
    """Leave out the picture, for whoever keeps what is known of a request longer than that is needed."""
    return checked if checked.picture is None else replace(checked, picture=None)
