"""What of Krea 2 a tensor of an adapter is for, whichever trainer named it: a linear layer, a norm or a modulation
table. Pure Python.

A key is [prefixes] path . role. The path is looked up in a table of every name that any trainer has for a layer, and
never taken apart: in flat names (`layerwise_blocks_0_attn_wq`) an underscore cannot be told from a dot.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from functools import lru_cache

from engine.checkpoint.layouts.names import WRAPPERS, linear_modules, vector_parameters
from engine.checkpoint.layouts.tensors import Source, transformer_sources
from engine.config.components import TransformerConfig

# What ends a key, and the role of such a tensor among those of its layer.
_ROLES = {
    **dict.fromkeys(("lora_A", "lora_down", "lora.down"), "down"),
    **dict.fromkeys(("lora_B", "lora_up", "lora.up"), "up"),
    **dict.fromkeys(("dora_scale", "magnitude", "lora_magnitude_vector"), "magnitude"),
    **{role: role for role in ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")},
    **{role: role for role in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")},
    **{role: role for role in ("alpha", "diff", "diff_b", "set_weight")},
    **{"lora_alpha": "alpha", "w_norm": "diff", "b_norm": "diff_b"},  # the last two are LyCORIS' of a norm
}
_BARE = ("alpha", "lora_alpha", "diff", "diff_b", "set_weight", "w_norm", "b_norm")  # nothing follows these
# After others PEFT writes the adapter's name, `default` if it has no other; `weight` comes last where the tensor is a
# module's, and is left out where it is a parameter of the layer's own.
_ENDING = re.compile(
    r"\.(?:(?P<bare>{})|(?P<role>{})(?:\.(?P<adapter>(?!(?:weight|bias)$)[^.]+))?(?:\.weight)?)$".format(
        "|".join(_BARE), "|".join(re.escape(role) for role in sorted(_ROLES.keys() - set(_BARE)))
    )
)

# What trainers wrap a model in, whose names come before a layer's in any order, and in flat names with underscores.
_PREFIXES = ("base_model", "model", "net", "transformer", "diffusion_model", "unet", "dit")
_DOTTED_PREFIXES = re.compile(r"^(?:(?:{})\.)+".format("|".join(_PREFIXES)))
_FLAT_PREFIX = re.compile(r"(?:{})_".format("|".join(_PREFIXES)))
_FLAT_STARTS = re.compile(r"(?:lora_unet|lora|lycoris)_+")
# Any part of a model may be wrapped, also by DDP (`module`) and by Krea's own activation checkpointing (`block`).
_WRAPPERS = re.compile(rf"(?:{WRAPPERS}|(?<![^._])(?:module|block))[._]")
_BLOCK = re.compile(r"(?<=blocks[._])\d+(?=[._])")
LONGEST_KEY = 300  # characters, several times that of any trainer: a hostile file's are not looked into


def split_key(key: str) -> tuple[str, str, str | None] | None:
    """Returns path, role and, if it has one, the adapter's name in the file; None if the key ends in no known role.

    The path may be a parameter's, as in `blocks.0.attn.wq.weight.lora_A` or `first.bias.diff`: what is returned is the
    layer's.
    """
    ending = _ENDING.search(key) if len(key) <= LONGEST_KEY else None
    if ending is None or not ending.start():
        return None
    path, role = key[: ending.start()], _ROLES[ending["bare"] or ending["role"]]
    if role == "diff" and path.endswith(".bias"):
        return path.removesuffix(".bias"), "diff_b", None
    return path.removesuffix(".weight"), role, ending["adapter"]


def strip_prefixes(path: str) -> str:
    """Removes what trainers put before a dotted name, and the names of wrappers in it."""
    return _DOTTED_PREFIXES.sub("", _WRAPPERS.sub("", path))


def shorten(text: str) -> str:
    """Cuts text from a file to at most 120 characters, for an error."""
    return text if len(text) <= 120 else text[:117] + "..."


class LayerNames:
    """Finds one model's linear layers, norms and modulation tables by every name that they have in adapters.

    layers: the weight or table of each as the checkpoint has it, by its name in diffusers without `.weight`.
    """

    def __init__(self, config: TransformerConfig) -> None:
        weights = {source.name: source for source in transformer_sources(config)}
        self.layers: dict[str, Source] = {}
        self._table: dict[str, tuple[str, ...]] = {}
        for layer, native in linear_modules(config):
            self.layers[layer] = weights[f"{layer}.weight"]
            for name in _spellings(layer, native):
                self._add(name, (layer,))
            if layer.endswith(".attn.to_q"):
                q, k, v = (f"{layer.removesuffix('q')}{part}" for part in "qkv")
                for name in {_in_block(layer)[0], _in_block(native)[0]}:
                    self._add(f"{name}.attn.to_qkv", (q, k, v))
        for parameter, native in vector_parameters(config):
            layer = parameter.removesuffix(".weight")
            self.layers[layer] = weights[parameter]
            owner = native.rpartition(".")[0]  # some name what has the parameter: norm1, prenorm, mod
            for name in _spellings(parameter, native) + _spellings(layer, owner):
                self._add(name, (layer,))

    def resolve(self, path: str) -> tuple[str, ...] | None:
        """Returns the layers that a path names: one, or q, k and v, whose rows are stacked. None if it names none."""
        path = strip_prefixes(path)
        flat = _FLAT_STARTS.match(path)
        path = path[flat.end() if flat else 0 :]
        while path not in self._table and (prefix := _FLAT_PREFIX.match(path)):
            path = path[prefix.end() :]
        return self._table.get(path)

    def is_of_another_block(self, path: str) -> bool:
        """Whether a path that names nothing would name a layer in the first block of its kind."""
        path, blocks = _BLOCK.subn("0", path)
        return blocks == 1 and self.resolve(path) is not None

    def closest(self, path: str) -> str | None:
        """Returns the name that is most like a path that names nothing."""
        path = strip_prefixes(path)
        prefix = flat[0] if (flat := _FLAT_STARTS.match(path)) else ""
        matches = get_close_matches(path.removeprefix(prefix), self._table, n=1)
        return f"{prefix}{matches[0]}" if matches else None

    def _add(self, name: str, layers: tuple[str, ...]) -> None:
        for spelling in (name, name.replace(".", "_")):
            assert self._table.setdefault(spelling, layers) == layers, f"{spelling} has two meanings"


layer_names = lru_cache(maxsize=2)(LayerNames)  # one table for all files of a model


def _spellings(layer: str, native: str) -> list[str]:
    """Returns every dotted name of a layer, given two: in a block each name of the block with each of the layer."""
    block, inside = _in_block(layer)
    native_block, native_inside = _in_block(native)
    if not inside:
        return [layer, native]
    names = {inside, native_inside, inside.removesuffix(".0")}  # attn.to_out.0
    return [f"{prefix}.{name}" for prefix in (block, native_block) for name in sorted(names)]


def _in_block(name: str) -> tuple[str, str]:
    """Returns a layer's block and its name in there, which is empty if it is in no block."""
    inside = r"(?:attn|ff|mlp|mod|norm1|norm2|prenorm|postnorm|scale_shift_table)(?:\..+)?"
    parts = re.fullmatch(rf"(.+\.\d+)\.({inside})", name)
    return (parts[1], parts[2]) if parts else (name, "")
