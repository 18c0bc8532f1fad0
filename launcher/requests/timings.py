"""Where the time of a request went, stage by stage."""

from __future__ import annotations

from engine.step import StepTimes

# In the order of a request's life. Those that end in "queue" are waits: for its first step, between its steps while the
# ranks work for others, and from its last step until its image is decoded.
STAGES = (
    "filter_prompt",
    "queue",
    "encode_picture",
    "encode_text",
    "denoise_queue",
    "denoise",
    "decode_queue",
    "decode",
    "filter_image",
    "file",
)


class Timings:
    """Adds up the `seconds` of one request by stage, and in `total`. Times are seconds of any one clock.

    filter_prompt_s: what the filters took since it arrived, before it was queued.

    Of a request for one image the stages make up the total: what a report was late by is part of a wait, and of steps
    of several ranks, each as long as its slowest rank took, no more is counted than has passed. Of several images, one
    may be decoded or wait for that while another is denoised, and the decoding and the files of all are added.
    """

    def __init__(self, arrived: float, filter_prompt_s: float = 0.0) -> None:
        self._arrived = arrived
        self.seconds = dict.fromkeys((*STAGES, "total"), 0.0) | {"filter_prompt": filter_prompt_s}
        self._began = self._decoded = 0.0  # its first step, and its latest image
        self._told = dict.fromkeys(("encode_picture", "encode_text", "denoise"), 0.0)  # of its steps
        self._denoised: dict[int, float] = {}  # the latest step of each job
        self._images: set[int] = set()  # jobs whose image has come

    @property
    def is_told(self) -> bool:
        """Whether a step of each image that has come is known: all that a picture has that is only encoded."""
        return self._images <= self._denoised.keys()

    def begin(self, now: float) -> None:
        """Note that its first step is sent."""
        self._began = now
        self.seconds["queue"] = now - self._arrived - self.seconds["filter_prompt"]

    def stepped(
        self,
        job_ids: list[int],
        times: StepTimes,
        now: float,
        *,
        encoded: bool,
        pictured: bool = False,
        denoised: bool = True,
    ) -> None:
        """Note that a step has denoised its jobs, or started them if they have no steps, and which of its prompts
        and its picture it encoded."""
        self._denoised |= dict.fromkeys(job_ids, now)
        told = {
            "encode_picture": times.picture_s if pictured else 0.0,
            "encode_text": times.encode_s if encoded else 0.0,
            "denoise": times.denoise_s if denoised else 0.0,
        }
        for stage, seconds in told.items():
            self._told[stage] += seconds
        if self._images.issuperset(job_ids):  # told of so late that it counted as a wait for these
            for stage, seconds in told.items():
                self._take_from_waits(stage, seconds)
        else:
            self._steps_ended(now)

    def decoded(self, job_id: int, decode_s: float, now: float) -> None:
        """Note that a job's image has come, which took the decoder `decode_s`."""
        began, told = now - decode_s, self._denoised.get(job_id)
        if told is None or began < told == max(self._denoised.values()):  # its last step was told of late, or not yet
            self._steps_ended(began)
        else:  # while another of its images is decoded, none waits
            self.seconds["decode_queue"] += max(0.0, began - max(told, self._decoded))
        self.seconds["decode"] += decode_s
        self._decoded = now
        self._images.add(job_id)

    def filtered(self, came: float, now: float) -> None:
        """Note that filters have answered about an image that came at `came`."""
        self.seconds["filter_image"] += now - came

    def written(self, began: float, now: float) -> None:
        """Note that a file has been made of an image, since `began`: when it came, or filters had answered."""
        self.seconds["file"] += now - began
        self.seconds["total"] = now - self._arrived

    def _take_from_waits(self, stage: str, seconds: float) -> None:
        for wait in ("decode_queue", "denoise_queue"):
            part = min(seconds, self.seconds[wait])
            self.seconds[wait] -= part
            self.seconds[stage] += part
            seconds -= part
        if len(self._denoised) > 1:  # and another of its images may have been decoded meanwhile
            self.seconds[stage] += seconds

    def _steps_ended(self, at: float) -> None:
        passed_s = max(0.0, at - self._began)
        for stage, seconds in self._told.items():
            self.seconds[stage] = min(seconds, passed_s)
            passed_s -= self.seconds[stage]
        self.seconds["denoise_queue"] = passed_s
