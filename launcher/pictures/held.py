"""Keeps the pixels of pictures that jobs begin from: ranks that are lost are sent them again."""

from __future__ import annotations

from engine.pictures.pixels import Pixels
from engine.step import Job


class HeldPixels:
    """Holds the pixels of each picture, `by_picture`, until all of its jobs have ended."""

    def __init__(self) -> None:
        self.by_picture: dict[int, Pixels] = {}
        self._jobs: dict[int, int] = {}  # the picture of each job

    def add(self, job: Job, pixels: Pixels | None) -> None:
        """Hold the pixels of the picture that a job begins from, if it does."""
        if job.picture is not None:
            assert pixels is not None
            self._jobs[job.job_id] = job.picture.picture_id
            self.by_picture[job.picture.picture_id] = pixels

    def end(self, job_id: int) -> None:
        """Let go what only this job needed. Unknown jobs are ignored."""
        picture_id = self._jobs.pop(job_id, None)
        if picture_id is not None and picture_id not in self._jobs.values():
            del self.by_picture[picture_id]
