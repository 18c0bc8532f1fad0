"""Keeps the pixels of pictures that jobs begin from: ranks that are lost are sent them again."""

from __future__ import annotations

from engine.pictures.pixels import Pixels
from engine.step import Job, Step


class HeldPixels:
    """Holds the pixels of each picture until all of its jobs have ended."""

    def __init__(self) -> None:
        self._pixels: dict[int, Pixels] = {}  # by picture
        self._jobs: dict[int, int] = {}  # the picture of each job

    def __len__(self) -> int:
        return len(self._pixels)

    def add(self, job: Job, pixels: Pixels | None) -> None:
        """Hold the pixels of the picture that a job begins from, if it does."""
        if job.picture is not None:
            assert pixels is not None
            self._jobs[job.job_id] = job.picture.picture_id
            self._pixels[job.picture.picture_id] = pixels

    def end(self, job_id: int) -> None:
        """Let go what only this job needed. Unknown jobs are ignored."""
        picture_id = self._jobs.pop(job_id, None)
        if picture_id is not None and picture_id not in self._jobs.values():
            del self._pixels[picture_id]

    def of(self, step: Step) -> dict[int, Pixels]:
        """Give the pixels of the pictures that a step encodes, by id."""
        ids = (picture.picture_id for picture in step.encode)
        return {picture_id: self._pixels[picture_id] for picture_id in ids}
