"""What an adapter's change of a layer is multiplied by, and which place says so. Imports no torch.

It is alpha / rank (arXiv 2106.09685, section 4.1), and each trainer writes alpha in a place of its own.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from engine.checkpoint.files.stored import TensorFile
from engine.config.bounded_json import read_json
from engine.config.json_fields import read_json_object
from engine.errors import LoraError, printable
from engine.lora.families import rank_of
from engine.lora.folders import PEFT_CONFIG, PEFT_WEIGHTS, safetensors_in
from engine.lora.names import shorten, strip_prefixes

# By dtype: the integer type of the same width, and its exponent bits, which are all set in a number that is not finite.
EXPONENTS: dict[str, tuple[str, int]] = {
    "F64": ("<u8", 0x7FF0000000000000),
    "F32": ("<u4", 0x7F800000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F8_E5M2": ("u1", 0x7C),
    "F8_E4M3": ("u1", 0x7F),  # its mantissa's too: there is no infinity
}
# Of alphas: trainers that are given a whole number may write it as one.
INTEGERS = {"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1"}
_HEADERS_CONFIG = "lora_adapter_metadata"
# What a header says itself, as text. Krea's trainer has the first of each, and a factor `lora_scale` (docs/
# lora_conversion.md of github.com/krea-ai/krea-2). Kohya's ss_network_alpha does not count: its files have tensors,
# and tools that change these leave it as it was.
_HEADER_ALPHAS, _HEADER_RANKS, _HEADER_FACTOR = (
    ("lora_alpha", "network_alpha", "alpha"),
    ("rank", "lora_rank", "r"),
    "lora_scale",
)
_LONGEST_NUMBER = 64  # characters
_NOT_GIVEN = ("", "None", "null")
# With these PEFT takes off the model's weights what an adapter begins with, which its file does not say.
_INITS_THAT_CHANGE_THE_MODEL = ("pissa", "olora", "corda", "loftq", "lora_ga")


class Alphas:
    """Finds the scale of each layer in the first place that says it: the layer's own alpha tensor, PEFT's config in the
    header, the header itself, PEFT's config beside the file. Where none does, alpha is the rank.

    The rank is the tensors', layer by layer. scales: what each place gave, by its name for people. unused: layers of
    PEFT's alpha_pattern that the file does not have.
    """

    def __init__(self, file: TensorFile, groups: Mapping[str, Mapping[str, str]]) -> None:
        """groups: by path the names of tensors by role. Raises `LoraError` for a config that cannot be."""
        self._file, self._groups = file, groups
        self.scales: dict[str, list[float]] = defaultdict(list)
        self._config, self._place = _peft_config(file, groups)
        init = self._config.get("init_lora_weights")
        if isinstance(init, str) and init.startswith(_INITS_THAT_CHANGE_THE_MODEL):
            found = (
                f"init_lora_weights in {self._place} is {shorten(init)!r}, with which PEFT changes the model's weights"
            )
            raise _error(file, f"{found} too: have PEFT convert it to a plain LoRA as it saves it")
        self._alphas = self._pattern("alpha_pattern")
        self._ranks = self._pattern("rank_pattern") if self._is_of_lycoris_kinds() else {}
        self.unused = set(self._alphas)

    def scale(self, path: str, tensors: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> float:
        """Returns a layer's scale. tensors, shapes: of a complete family, by role. Raises `LoraError` for what is no
        finite number, and for a rank in the header that no layer has."""
        path = strip_prefixes(path)
        named = _match(self._alphas, path)
        self.unused.discard(named)
        rank: float | None = rank_of(shapes)
        if rank is None and "lokr_w1" in shapes and self._is_of_lycoris_kinds():
            # where both factors are whole, PEFT still divides by its config's rank, and LyCORIS by nothing
            ranked = _match(self._ranks, path)
            rank = self._number("r", self._config.get("r"), self._place) if ranked is None else self._ranks[ranked]
            if rank <= 0:
                raise _error(self._file, f"r in {self._place} is {rank:g}, not above 0")
        if rank is None:
            return 1.0
        if "alpha" in tensors:
            place, scale = "alpha tensors", self._read(tensors["alpha"]) / rank
        else:
            if self._place == PEFT_CONFIG:
                found = self._by_header(rank) or self._by_config(named, rank)
            else:
                found = self._by_config(named, rank) or self._by_header(rank)
            place, scale = found or ("", 1.0)
        self.scales[place].append(scale)
        return scale

    def _by_config(self, named: str | None, rank: float) -> tuple[str, float] | None:
        key = "alpha" if self._is_of_lycoris_kinds() else "lora_alpha"
        alpha = self._config.get(key) if named is None else self._alphas[named]
        if alpha is None:
            return None
        divisor = math.sqrt(rank) if self._config.get("use_rslora") is True else rank
        return self._place, self._number(key, alpha, self._place) / divisor

    def _by_header(self, rank: float) -> tuple[str, float] | None:
        if self._of_header is None:
            return None
        key, alpha, factor = self._of_header
        return f"the header's {key}", factor * (1.0 if alpha is None else alpha / rank)

    @cached_property
    def _of_header(self) -> tuple[str, float | None, float] | None:
        """The key that counts, alpha and the factor, if the header says any."""
        alphas = {key: number for key in _HEADER_ALPHAS if (number := self._in_header(key)) is not None}
        factor = self._in_header(_HEADER_FACTOR)
        if not alphas and factor is None:
            return None
        if len(set(alphas.values())) > 1:
            said = " and ".join(f"{key} {number:g}" for key, number in alphas.items())
            raise _error(self._file, f"the header says {said}: it may say one")
        # Another rank than the tensors' is said of other tensors, and alpha with it: whether these were multiplied with
        # that when they were made smaller, nobody can tell. Krea's converter refuses it as well.
        headers = self._file.headers
        downs = [headers[tensors["down"]].shape for tensors in self._groups.values() if "down" in tensors]
        ranks = {shape[0] for shape in downs if shape}
        for key in _HEADER_RANKS:
            rank = self._in_header(key)
            if alphas and ranks and rank is not None and rank not in ranks:
                found = f"{key} in the header is {rank:g}, and the tensors' is {', '.join(map(str, sorted(ranks)[:8]))}"
                raise _error(self._file, f"{found}: what its alpha is to be divided by cannot be told")
        key, alpha = next(iter(alphas.items()), (_HEADER_FACTOR, None))
        return key, alpha, 1.0 if factor is None else factor

    def _in_header(self, key: str) -> float | None:
        text = self._file.metadata.get(key)
        if text is None or text.strip() in _NOT_GIVEN:
            return None
        try:
            number: object = float(text) if len(text) <= _LONGEST_NUMBER else text
        except ValueError:
            number = text
        return self._number(key, number, "the header")

    def _is_of_lycoris_kinds(self) -> bool:
        return self._config.get("peft_type") in ("LOKR", "LOHA")

    def _pattern(self, key: str) -> dict[str, float]:
        patterns = self._config.get(key) or {}
        if not isinstance(patterns, dict):
            raise _error(self._file, f"{key} in {self._place} is not an object")
        if len(patterns) > len(self._groups):  # one of them would be unused, which takes long to find out
            found = f"{key} in {self._place} has {len(patterns)} keys for {len(self._groups)} layers"
            raise _error(self._file, found)
        return {strip_prefixes(name): self._number(key, number, self._place) for name, number in patterns.items()}

    def _number(self, key: str, value: object, place: str) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e30:
            raise _error(self._file, f"{key} in {place} is {shorten(repr(value))}, not a number")
        return float(value)

    def _read(self, name: str) -> float:
        dtype = self._file.headers[name].dtype
        if dtype in INTEGERS:
            return float(self._file.octets(name).view(INTEGERS[dtype])[0])
        kind, _ = EXPONENTS[dtype]
        bits: np.ndarray = self._file.octets(name).view(kind)
        if dtype == "BF16":  # the upper half of a float32
            kind, bits = "<u4", bits.astype("<u4") << 16
        elif dtype == "F8_E5M2":  # the upper half of a float16
            kind, bits = "<u2", bits.astype("<u2") << 8
        number = _e4m3(int(bits[0])) if dtype == "F8_E4M3" else float(bits.view(kind.replace("u", "f"))[0])
        if not math.isfinite(number):
            raise _error(self._file, f"{shorten(name)}: is not finite")
        return number


def _e4m3(bits: int) -> float:
    """A number of four bits of exponent and three of mantissa (arXiv 2209.05433)."""
    sign, exponent, mantissa = bits >> 7, bits >> 3 & 15, bits & 7
    if bits & 127 == 127:
        return math.nan
    size = (1 + mantissa / 8) * 2.0 ** (exponent - 7) if exponent else mantissa / 8 * 2.0**-6
    return -size if sign else size


def _match(pattern: Mapping[str, float], path: str) -> str | None:
    """Returns the key of PEFT's that is for a layer: the end of its path."""
    return next((key for key in pattern if path == key or path.endswith(f".{key}")), None)


def _peft_config(file: TensorFile, groups: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """Returns PEFT's config of an adapter, from the header or the file beside it, and where it is from."""
    written = file.metadata.get(_HEADERS_CONFIG)
    if written is not None:
        try:
            fields, why = read_json(written), ""
        except ValueError as error:
            fields, why = None, f": {error}"
        if not isinstance(fields, dict):
            raise _error(file, f"{_HEADERS_CONFIG} in the header is not a json object{why}")
        prefix = "transformer."
        return {key.removeprefix(prefix): value for key, value in fields.items()}, f"the header's {_HEADERS_CONFIG}"
    # a config that belongs to another file of the folder must not change this one's strength
    config = file.path.parent / PEFT_CONFIG
    is_from_peft = file.path.name == PEFT_WEIGHTS or any(path.startswith("base_model.model.") for path in groups)
    if os.path.lexists(config) and (is_from_peft or safetensors_in(config.parent) == [file.path.name]):
        return read_json_object(config), PEFT_CONFIG
    return {}, ""


def _error(file: TensorFile, message: str) -> LoraError:
    return LoraError(printable(f"{file.path}: {message}"))
