"""What a server's pictures say of the model and the LoRAs that they were made with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.checkpoint.checkpoint_files import CheckpointFiles
from engine.checkpoint.part_paths import repository_of
from engine.config.engine_config import EngineConfig
from engine.lora.folders import USUAL_NAMES, file_in
from launcher.provenance.file_hashes import FileHash, FileHashes

_IN_HUB_CACHE = re.compile(r"models--.+--(?P<name>.+)/snapshots/[^/]+")


class MadeWith:
    """Knows the name of a model, and finds the hashes of its files. hashes: for those of LoRAs, too."""

    def __init__(self, engine: EngineConfig, checkpoint: CheckpointFiles) -> None:
        self.hashes = FileHashes()
        self._name, self._variant = model_name(engine), "turbo" if checkpoint.config.is_distilled else "raw"
        self._files = {
            part: [self.hashes.want(file) for file in files] for part, files in component_files(checkpoint).items()
        }
        self._merged = [(self.hashes.want(file_in(path)), strength) for path, strength in engine.merge_loras]

    def described(self, loras: Mapping[str, FileHash]) -> dict[str, Any]:
        """Return what `infotext` and readers of the JSON find: `model`, `variant`, `hashes` of the files of each
        component of which all are known, `merged_loras`, and `lora_hashes` of these LoRAs, by name."""
        made: dict[str, Any] = {"model": self._name, "variant": self._variant}
        known = {part: {each.file.name: each.sha256 for each in files} for part, files in self._files.items()}
        if whole := {part: files for part, files in known.items() if None not in files.values()}:
            made["hashes"] = whole
        if self._merged:
            made["merged_loras"] = [
                {
                    "name": _lora_name(each.file),
                    "strength": strength,
                    **({"sha256": each.sha256} if each.sha256 else {}),
                }
                for each, strength in self._merged
            ]
        if own := {name: each.sha256 for name, each in loras.items() if each.sha256 is not None}:
            made["lora_hashes"] = own
        return made


def model_name(engine: EngineConfig) -> str:
    """Name the model as people do: by the file of its transformer, its folder or its repository."""
    given = engine.transformer or engine.model
    if given is None or (engine.transformer is None and engine.demo is not None):
        return engine.name
    path = Path(given).absolute()
    if path.is_file():
        return path.stem
    folder = repository_of(path) or path
    cached = _IN_HUB_CACHE.search(folder.as_posix())
    return cached["name"] if cached else folder.resolve().name or engine.name


def _lora_name(file: Path) -> str:
    """Name a LoRA by its file, or by its folder or repository if all such files are called the same."""
    if file.name not in USUAL_NAMES:
        return file.stem
    folder = file.absolute().parent
    cached = _IN_HUB_CACHE.search(folder.as_posix())
    return cached["name"] if cached else folder.name


def component_files(checkpoint: CheckpointFiles) -> dict[str, tuple[Path, ...]]:
    """List the files of each component, in order; none of a checkpoint that was split for ranks, which read others."""
    if checkpoint.split_for is not None:
        return {}
    return {
        name: tuple(sorted({tensor.file for tensor in component.tensors.values()}))
        for name, component in checkpoint.components.items()
    }
