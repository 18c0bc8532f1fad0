"""What a rank's weights take, by block and by component. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from engine.checkpoint.weight_format import ParameterFormat, in_blocks
from engine.config.components import VAE_ENCODER

# Parameters begin at multiples of this many bytes in buffers that are copied, as torch's own allocations on a GPU do.
ALIGNMENT = 256
_BLOCKS = {"transformer": "transformer_blocks", "text_encoder": "layers"}


def is_small(parameter: str) -> bool:
    """Whether a parameter is a norm's weight or a modulation table: they stay on the device, whatever is offloaded."""
    return re.search(r"norm\w*\.weight$|scale_shift_table$", parameter) is not None


def block_of(component: str, parameter: str) -> int | None:
    """Find the index of the DiT's block, or text encoder's layer, that has this matrix; None for other parameters."""
    first, _, rest = parameter.partition(".")
    return int(rest.partition(".")[0]) if first == _BLOCKS.get(component) and not is_small(parameter) else None


def aligned(size: int) -> int:
    """Round up to a multiple of `ALIGNMENT`."""
    return -(-size // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class WeightBytes:
    """Bytes of a rank's weights.

    dit_blocks, text_layers: the matrices of each block of the DiT, and of each layer of the text encoder; dit_rest,
    text_rest: their other matrices. vae: the decoder. small: norms' weights and modulation tables of all. dequantized:
    what the largest 8-bit matrix takes while it is dequantised for a product. vae_encoder: 0 where no pictures go in.
    """

    dit_blocks: tuple[int, ...]
    dit_rest: int
    text_layers: tuple[int, ...]
    text_rest: int
    vae: int
    small: int
    dequantized: int = 0
    vae_encoder: int = 0

    @classmethod
    def of(
        cls,
        parameters: Mapping[str, Mapping[str, ParameterFormat]],
        bytes_per_element: int,
        *,
        fp8_products: bool = False,
    ) -> WeightBytes:
        """Add up parameters by component and name, as `parameter_formats` gives them. fp8_products: no fp8 matrix of
        the DiT's blocks is dequantised, unless its file asks for products in full precision."""
        blocks: dict[str, Counter[int]] = {component: Counter() for component in _BLOCKS}
        rest: Counter[str] = Counter()
        dequantized = 0
        for component, formats in parameters.items():
            for name, (weight_format, elements, size, full_precision) in formats.items():
                as_it_is = weight_format == "fp8" and fp8_products and in_blocks(name) and not full_precision
                if weight_format != "float" and not as_it_is:
                    dequantized = max(dequantized, elements * bytes_per_element)
                size = aligned(size) + ALIGNMENT  # the scales begin at a multiple of it too
                block = block_of(component, name)
                if block is not None:
                    blocks[component][block] += size
                else:
                    rest["small" if is_small(name) else component] += size
        dit, text = (tuple(size for _, size in sorted(blocks[component].items())) for component in _BLOCKS)
        return cls(
            dit_blocks=dit,
            dit_rest=rest["transformer"],
            text_layers=text,
            text_rest=rest["text_encoder"],
            vae=rest["vae"],
            small=rest["small"],
            dequantized=dequantized,
            vae_encoder=rest[VAE_ENCODER],
        )

    @property
    def total(self) -> int:
        """All weights together, without `dequantized`."""
        matrices = sum(self.dit_blocks) + self.dit_rest + sum(self.text_layers) + self.text_rest
        return matrices + self.both_vae_halves + self.small

    @property
    def both_vae_halves(self) -> int:
        return self.vae + self.vae_encoder
