"""Which LoRAs an engine has: those that `user_config` declares, loaded and unloaded by what has changed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from engine.config.demo_checkpoints import DEMO_LORAS
from engine.errors import ArgumentError, Krea2Error
from launcher.hub.names import HubName
from launcher.messages.configs import LoraFile
from launcher.requests.check import check_strength
from launcher.requests.lora_files import check_name, default_name, located, parse_lora
from launcher.threads import in_own_thread

if TYPE_CHECKING:
    from launcher.client.async_client import AsyncClient

_ALLOWED = "a list of [NAME=]PATH[:STRENGTH], or of maps with name, path and strength"
_FIELDS = ("name", "path", "strength")


def declared_loras(user_config: Any, folder: str | None = None) -> dict[str, LoraFile]:
    """Read `{"loras": […]}`, each as `krea2 serve --lora` has it or as a map. Opens no file.

    folder: where relative paths lie, None to allow absolute ones alone, the demos' own, and names of Hugging Face
    repositories, which are left as they are. Raises `ArgumentError`.
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
        name = default_name(path)
    return LoraFile(name=check_name(name, "loras"), path=str(DEMO_LORAS.get(path, path)), strength=checked)


def _in_folder(path: str, folder: str | None) -> str:
    if os.path.isabs(path):
        return path
    inside = None if folder is None else os.path.join(folder, path)
    if HubName.of_lora(path) is not None and (inside is None or not os.path.lexists(inside)):
        return path
    if inside is None:
        allowed = "an absolute path, which is the same on every node, where args has no lora_dir, or a Hugging Face "
        raise ArgumentError.of("the path of a LoRA", f"{allowed}repository's, as owner/name", path)
    return inside


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
                    found = await in_own_thread(partial(located, lora))  # which this node may have to download
                    await client.load_lora(name, found.path, lora.strength)
                    self._loaded[name] = lora
                except Krea2Error as error:
                    wrong.append(error)
        if wrong:
            raise wrong[0]
