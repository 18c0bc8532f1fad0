"""Adapter files for tests that have no ranks to read them: JSON that says what opening the file finds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from engine.config import ModelConfig
from engine.errors import LoraError
from launcher import lora_files


@dataclass(frozen=True)
class FakeAdapter:
    """What `engine.lora.AdapterFile` tells."""

    path: str
    size: int = 1000
    modules: int = 7
    family: str = "LoRA"
    skipped: tuple[str, ...] = ()
    is_finite: bool = True

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
