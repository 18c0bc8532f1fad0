"""LoRAs for tests without real ranks: files of JSON that says what opening them finds, and ranks that count them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from engine.config.model_config import ModelConfig
from engine.errors import LoraError
from engine.lora.schedule import LoraSchedule, read_schedule
from engine.step import Job, Step
from launcher.client.async_client import AsyncClient
from launcher.requests import lora_files
from tests.launcher.fake_ranks import DEADLINE_S, FakeRank, Fakes, fake_engine


@dataclass(frozen=True)
class FakeAdapter:
    """What `engine.lora.AdapterFile` tells."""

    path: str
    size: int = 1000
    modules: int = 7
    family: str = "LoRA"
    skipped: tuple[str, ...] = ()
    is_finite: bool = True
    scales: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    header: Mapping[str, str] = field(default_factory=dict)

    @property
    def schedule(self) -> LoraSchedule | None:
        return read_schedule(self.header)[0]

    @property
    def left_out(self) -> str:
        return f"lora_lenient leaves out {', '.join(self.skipped)}" if self.skipped else ""

    def bytes_on_rank(self, tp: int, bytes_per_element: int) -> int:
        return self.size // tp

    def check_finite(self) -> None:
        if not self.is_finite:
            raise LoraError(f"{self.path}: a.lora_A.weight: holds values that are not finite")

    def close(self) -> None:
        pass


def write_adapter(path: Path, **fields: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(fields))
    return path


def open_fake(path: str, config: ModelConfig, *, lenient: bool = False) -> FakeAdapter:
    try:
        found = json.loads(Path(path).read_text())
    except ValueError:
        raise LoraError(f"{path}: is not a Krea 2 LoRA") from None
    skipped = tuple(found.pop("skipped", ()))
    if skipped and not lenient:
        raise LoraError(f"{path}: has tensors that are for no layer of Krea 2: {skipped[0]}")
    return FakeAdapter(path, **found, skipped=skipped)


@pytest.fixture
def fake_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora_files, "open_adapter", open_fake)


class LoraRank(FakeRank):
    """Insists on what a step promises: that jobs name what is loaded, and nothing is unloaded that one names."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.loaded: dict[int, str] = {}
        self._in_flight: dict[int, Job] = {}

    def _answer(self, step: Step) -> None:
        for adapter in step.load:
            assert adapter.adapter_id not in self.loaded
            self.loaded[adapter.adapter_id] = Path(adapter.path).stem
            if Path(adapter.path).stem == "explodes":
                self.fail(LoraError.code, f"{adapter.path}: cannot be read", adapter.path)
                return
            if Path(adapter.path).stem == "too-much":
                self.fail("internal_error", "rank 0: OutOfMemoryError: CUDA out of memory")
                return
        self._in_flight |= {job.job_id: job for job in step.start}
        for job in step.start:
            assert {adapter_id for adapter_id, _ in job.loras} <= self.loaded.keys()
        for job_id in (*step.decode, *step.release):
            self._in_flight.pop(job_id)
        for adapter_id in step.unload:
            assert not any(adapter_id in dict(job.loras) for job in self._in_flight.values())
            del self.loaded[adapter_id]
        super()._answer(step)

    def loras_of(self, job: Job) -> dict[str, float]:
        return {self.loaded[adapter_id]: strength for adapter_id, strength in job.loras}


@asynccontextmanager
async def engine(run_folder: Path, folder: Path | None = None, **config: Any) -> AsyncIterator[tuple[Fakes, Any]]:
    """A front-end whose clients may load from `folder`, and a client."""
    settings = {"make_rank": LoraRank} | config
    if folder is not None:
        settings["lora_dir"] = str(folder)
    async with fake_engine(run_folder, **settings) as fakes, AsyncClient(fakes.address) as client:
        yield fakes, client


def names(loras: Sequence[Any]) -> list[str]:
    return [lora.name for lora in loras]


async def held_by(rank: Any, *expected: str) -> None:
    """Wait until a rank holds these and no others."""
    async with asyncio.timeout(DEADLINE_S):
        while sorted(rank.loaded.values()) != sorted(expected):
            await asyncio.sleep(0.01)
