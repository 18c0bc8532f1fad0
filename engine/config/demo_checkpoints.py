"""The checkpoints and LoRAs that come with the engine, by the names that stand for their paths."""

from __future__ import annotations

from pathlib import Path

_DEMO = Path(__file__).parent.parent / "demo"
DEMO_CHECKPOINT = _DEMO / "turbo"
DEMO_CHECKPOINTS = {"demo": DEMO_CHECKPOINT, "demo-turbo": DEMO_CHECKPOINT, "demo-raw": _DEMO / "raw"}
DEMO_LORAS = {"demo-outlined": _DEMO / "outlined.safetensors"}
