"""Which LoRAs an engine has: those that `user_config` declares, loaded and unloaded by what has changed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.config.demo_checkpoints import DEMO_LORAS
from engine.errors import ArgumentError, Krea2Error
from launcher.messages.configs import LoraFile
from launcher.requests.check import check_strength
from launcher.requests.lora_files import check_name, parse_lora

if TYPE_CHECKING:
    from launcher.client.async_client import AsyncClient

_ALLOWED = "a list of [NAME=]PATH[:STRENGTH], or of maps with name, path and strength"
_FIELDS = ("name", "path", "strength")


def declared_loras(user_config: Any, folder: str | None = None) -> dict[str, LoraFile]:
    """Read `{"loras": […]}`, each as `krea2 serve --lora` has it or as a map. Opens no file.

    folder: where relative paths lie, None to allow absolute ones alone, and the demos' own. Raises `ArgumentError`.
    """
    if not isinstance(user_config, Mapping) or set(user_config) - {"loras"}:
        raise ArgumentError.of("user_config", "a map with loras and nothing else", user_config)
    listed = user_config.get("loras") or ()
    if isinstance(listed, str) or not isinstance(listed, Sequence):
        raise ArgumentError.of("loras", _ALLOWED, listed)
    found: dict[str, LoraFile] = {}
    for each in listed:
        lora = parse_lora(each) if isinstance(each, str) else _from_map(each)
        if lora.name in found:
            raise ArgumentError(f"two LoRAs are called {lora.name!r}: name one with NAME=PATH", parameter="loras")
        found[lora.name] = LoraFile(name=lora.name, path=_in_folder(lora.path, folder), strength=lora.strength)
    return found


def _from_map(each: Any) -> LoraFile:
    if not isinstance(each, Mapping) or set(each) - set(_FIELDS) or not isinstance(each.get("path"), str):
        raise ArgumentError.of("loras", _ALLOWED, each)
    path, name = each["path"], each.get("name")
    if not path or not isinstance(name, str | None):
        raise ArgumentError.of("loras", _ALLOWED, each)
    checked = check_strength("the strength of a LoRA", each.get("strength", 1.0), "loras")
    if name is None:
        name = Path(path).stem
    return LoraFile(name=check_name(name, "loras"), path=str(DEMO_LORAS.get(path, path)), strength=checked)


def _in_folder(path: str, folder: str | None) -> str:
    if os.path.isabs(path):
        return path
    if folder is None:
        allowed = "an absolute path, which is the same on every node, where args has no lora_dir"
        raise ArgumentError.of("the path of a LoRA", allowed, path)
    return os.path.join(folder, path)


class LoraSet:
    """Brings an engine from the LoRAs that it has to those that are declared. folder: as in `declared_loras`."""

    def __init__(self, folder: str | None = None) -> None:
        self._folder = folder
        self._loaded: dict[str, LoraFile] = {}

    async def declare(self, user_config: Any, client: AsyncClient) -> None:
        """Unload what is declared no more, or otherwise, and load what is new.

        Raises `ArgumentError` before anything is changed, and for the first file that cannot be used what `load_lora`
        raises, once all others are loaded.
        """
        wanted = declared_loras(user_config, self._folder)
        for name in [name for name, lora in self._loaded.items() if wanted.get(name) != lora]:
            await client.unload_lora(name)
            del self._loaded[name]
        wrong: list[Krea2Error] = []
        for name, lora in wanted.items():
            if name not in self._loaded:
                try:
                    await client.load_lora(name, lora.path, lora.strength)
                    self._loaded[name] = lora
                except Krea2Error as error:
                    wrong.append(error)
        if wrong:
            raise wrong[0]
