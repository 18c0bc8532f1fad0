"""The least time that a rank can take for a part of its work, by what its device reaches; None if unknown. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from engine.config.engine_config import EngineConfig
from engine.config.model_config import ModelConfig
from engine.planning.floor import (
    attention_flops_of_pairs,
    block_parameters,
    decode_flops,
    encode_flops,
    text_encoder_parameters,
)
from engine.scheduling.cost import Work
from engine.step import Picture, Reach


@dataclass
class Floors:
    """Reckons floors for ranks that have said what they reach."""

    model: ModelConfig
    engine: EngineConfig
    reach: dict[int, Reach] = field(default_factory=dict)  # by rank

    def denoise_s(self, rank: int, work: Work) -> float | None:
        """Of a step: the matrix products and attention of the blocks that it ran, or the reading of their weights."""
        reach, config, ranks = self._known(rank), self.model.transformer, self.engine.ranks
        if reach is None:
            return None
        products = 2.0 * block_parameters(config) * work.tokens / ranks
        attention = attention_flops_of_pairs(config, work.pairs) / ranks
        computing_s = products / reach.block_flops + attention / reach.attention_flops
        return max(computing_s, work.passes * reach.block_bytes / reach.memory_bytes)

    def encode_s(self, rank: int, tokens: int) -> float | None:
        """Of prompts of so many tokens: the text encoder's matrix products, or the reading of their weights."""
        reach = self._known(rank)
        if reach is None or not tokens:
            return None
        parameters = text_encoder_parameters(self.model.text_encoder, self.model.text_layers) / reach.text_ranks
        return max(2.0 * parameters * tokens / reach.flops, reach.text_bytes / reach.memory_bytes)

    def encode_picture_s(self, rank: int, pictures: Iterable[Picture]) -> float | None:
        """Of pictures: the encoder's convolutions, on rank 0 or shared by those that decode together."""
        reach = self._known(rank)
        together = self.engine.decodes_together
        if reach is None or not reach.decode_flops or (rank and not together):
            return None
        flops = sum(encode_flops(self.model.vae, picture.width, picture.height) for picture in pictures)
        return flops / (self.engine.ranks if together else 1) / reach.decode_flops

    def decode_s(self, width: int, height: int) -> float | None:
        """Of an image of width × height pixels: the decoder's convolutions."""
        reach = self._known(0)
        if reach is None or not reach.decode_flops:
            return None
        ranks = self.engine.ranks if self.engine.decodes_together else 1
        return decode_flops(self.model.vae, width, height) / ranks / reach.decode_flops

    @property
    def source(self) -> str:
        """How floors are reckoned, or why there are none."""
        reach = self._known(0)
        if reach is None:
            return f"no floor is known for {self.reach[0].device if self.reach else 'this device'}"
        rates = dict.fromkeys(f"{_shown(rate)}FLOP/s" for rate in (reach.flops, reach.block_flops))
        return f"{reach.device}: {' and '.join(rates)}, {_shown(reach.memory_bytes)}B/s, {reach.source}"

    def _known(self, rank: int) -> Reach | None:
        """What a rank reaches, or one with the same device, where that was measured while less else ran."""
        reach = self.reach.get(rank)
        if reach is None or reach.source is None:
            return None
        same = [each for each in self.reach.values() if each.device == reach.device]
        rates = ("flops", "block_flops", "attention_flops", "decode_flops", "memory_bytes")
        return replace(reach, **{rate: max(getattr(each, rate) for each in same) for rate in rates})


def _shown(rate: float) -> str:
    """`61.2 G`, `799 T`."""
    return f"{rate / 1e12:.3g} T" if rate >= 1e12 else f"{rate / 1e9:.3g} G"
