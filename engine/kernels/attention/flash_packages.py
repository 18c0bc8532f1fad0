"""FlashAttention's own packages: releases 2, 3 and 4, each for some generations of GPUs, all called in one way."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import torch

from engine.kernels.packing import LONG_SEGMENT, Packing


@dataclass(frozen=True)
class FlashPackage:
    """One release.

    generations: major compute capabilities that it has kernels for. modules: where its functions may be, of which the
    first that is installed counts. install: how to get it. distribution: pip's name of what must be installed, where
    modules do not tell: flash-attn 2.8 brings a flash_attn.cute older than flash-attn-4's. oldest: the first version
    that will do. dense: whether equally long segments go to its function for these. chooses_packing: whether it can be
    told not to treat the query heads of a key/value head as rows, which pays for short segments alone.
    """

    generations: range
    modules: tuple[str, ...]
    install: str
    distribution: str | None = None
    oldest: tuple[int, ...] = ()
    dense: bool = False
    chooses_packing: bool = False


# What is called was compared with the sources of flash-attn 2.5.0 to 2.8.3.post2, in which it does not differ, of
# fa3-fwd 0.0.3 and of flash-attn-4 4.0.0b36. Before 2.7.3 flash-attn refuses GPUs newer than Hopper. Only 3 is called
# for equally long segments too: 2 splits keys then by rules of its own, and 4 would stop to compile a second kernel.
FLASH_PACKAGES = {
    "fa2": FlashPackage(
        generations=range(8, 13),
        modules=("flash_attn.flash_attn_interface",),
        install="pip install --no-build-isolation -e '.[fa2]'",
        distribution="flash-attn",
        oldest=(2, 7, 3),
    ),
    "fa3": FlashPackage(
        generations=range(9, 10),
        modules=("fa3_fwd_interface", "flash_attn_interface"),
        install="pip install -e '.[fa3]'",
        dense=True,
        chooses_packing=True,
    ),
    "fa4": FlashPackage(
        generations=range(9, 13),
        modules=("flash_attn.cute.interface",),
        install="pip install -e '.[fa4]'",
        distribution="flash-attn-4",
    ),
}


@cache
def package_function(name: str, function: str) -> Callable[..., Any]:
    """Imports a function of one of `FLASH_PACKAGES`. Raises `ImportError`, or what the import raises."""
    package = FLASH_PACKAGES[name]
    missing = f"no FlashAttention {name.removeprefix('fa')} is installed ({package.install})"
    if package.distribution is not None:
        try:
            installed = version(package.distribution)
        except PackageNotFoundError:
            raise ImportError(missing) from None
        if tuple(map(int, re.findall(r"\d+", installed)[:3])) < package.oldest:
            oldest = ".".join(map(str, package.oldest))
            raise ImportError(f"it needs {package.distribution} {oldest} or newer, {installed} is installed")
    for module in package.modules:
        if find_spec(module) is not None:
            found: Callable[..., Any] = getattr(import_module(module), function)
            return found
    raise ImportError(missing)


def flash_attention(
    name: str, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packing: Packing, **options: Any
) -> torch.Tensor:
    """Attends as `packed_attention` without `causal`, by one of `FLASH_PACKAGES`, on a GPU: (tokens, heads, head_dim),
    key and value with kv_heads, → (tokens, heads · head_dim). Head dims are multiples of 8. options: of both."""
    package = FLASH_PACKAGES[name]
    lengths = () if packing.captured else packing.lengths
    if package.dense and packing.tokens and len(set(lengths)) == 1:
        batches = (part.unflatten(0, (packing.segments, packing.longest)) for part in (query, key, value))
        output = package_function(name, "flash_attn_func")(*batches, **options)
    else:
        # Unpacked, a segment leaves less than one tile's rows empty for each head: little beside a long one's.
        if package.chooses_packing and lengths and min(lengths) >= LONG_SEGMENT:
            options["pack_gqa"] = False
        longest = max(packing.longest, 2)  # 2 takes a 1 to mean that every segment has one row, and none is empty
        output = package_function(name, "flash_attn_varlen_func")(
            query,
            key,
            value,
            cu_seqlens_q=packing.offsets,
            cu_seqlens_k=packing.offsets,
            max_seqlen_q=longest,
            max_seqlen_k=longest,
            **options,
        )
    if isinstance(output, tuple):  # 4 and some builds of 3 add the log of the softmax's sum
        output = output[0]
    return output.reshape(packing.tokens, query.shape[1] * query.shape[2])
