"""Prompts to the text features that a denoise step reads: the text encoder, text fusion, and what is kept of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import pairwise

import torch

from engine.config.chat_template import PREFIX_TOKENS
from engine.device.devices import to_device
from engine.kernels.packing import Packing
from engine.lora.adapters import Adapters
from engine.lora.side_path import Loras
from engine.planning.step_memory import ENCODE_AT_ONCE
from engine.rank.build import RankModel
from engine.rank.cuda_graphs import PromptGraphs

# Tokens whose text features are kept for prompts that come again (several images of a request, the empty negative
# prompt): 200 MB at the real size in bfloat16.
_KEPT_TOKENS = 16384

Ids = tuple[int, ...]  # prefix, prompt and suffix
Prompt = tuple[Ids, Loras]  # with the adapters that change text features


class PromptEncoder:
    """Encodes each prompt once, as long as it is kept. graphs: by which prompts are encoded that come alone.

    On a GPU in a stream of its own: a step's prompts are encoded while the step before it still denoises, since a rank
    is told of a step one step ahead.
    """

    def __init__(self, model: RankModel, adapters: Adapters, *, beside: bool) -> None:
        """beside: whether there may be such a stream. It does not wait for what the current one has begun, so the
        weights of text fusion must be on the device at all times."""
        self._model, self._adapters = model, adapters
        self.graphs: PromptGraphs | None = None
        self._stream = torch.cuda.Stream(model.device) if model.device.type == "cuda" and beside else None
        self._kept: OrderedDict[Prompt, torch.Tensor] = OrderedDict()

    @property
    def beside_steps(self) -> bool:
        """Whether prompts are encoded while steps run, so that both take memory at once."""
        return self._stream is not None

    def encode_in_turn(self) -> None:
        """Encode in the stream of the steps from now on."""
        self._stream = None

    def encode(self, prompts: list[Prompt]) -> tuple[dict[Prompt, torch.Tensor], int]:
        """Encode each distinct prompt, new ones packed, some at a time: text features, (text tokens, width) of the
        DiT's, by prompt, and the number of tokens of the new ones."""
        found = {prompt: self._kept[prompt] for prompt in prompts if prompt in self._kept}
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in found]
        for loras in dict.fromkeys(loras for _, loras in missing):
            for new in _chunks([ids for ids, of in missing if of == loras], ENCODE_AT_ONCE):
                features = self._encode(new, loras)
                found.update(zip([(ids, loras) for ids in new], features, strict=True))
        for prompt, tensor in found.items():
            self._kept[prompt] = tensor
            self._kept.move_to_end(prompt)
        kept = sum(features.shape[0] for features in self._kept.values())
        while len(self._kept) > 1 and kept > _KEPT_TOKENS:
            kept -= self._kept.popitem(last=False)[1].shape[0]
        return found, sum(len(ids) for ids, _ in missing)

    def forget(self, adapter_id: int) -> None:
        """Drop what was encoded with this adapter."""
        for prompt in [prompt for prompt in self._kept if any(key == adapter_id for key, _ in prompt[1])]:
            del self._kept[prompt]

    def _encode(self, prompts: list[Ids], loras: Loras) -> list[torch.Tensor]:
        """Text features of each, in the stream for it, if there is one, for whose results the current stream waits."""
        model = self._model
        with torch.cuda.stream(self._stream):
            packing = Packing([len(ids) for ids in prompts], model.device)
            packed = to_device(torch.tensor([token for ids in prompts for token in ids]), model.text_encoder.ids_device)
            if self.graphs is not None and packing.segments == 1 and self.graphs.holds(packing.tokens):
                states = self.graphs.encode(packed)  # (tokens, taps, width of the encoder)
            else:
                states = model.text_encoder(packed, packing)
            kept = torch.cat([states[start + PREFIX_TOKENS : stop] for start, stop in pairwise(packing.bounds)])
            lengths = [len(ids) - PREFIX_TOKENS for ids in prompts]
            with self._adapters.everywhere(loras):
                packed_features = model.transformer.encode_text(kept, Packing(lengths, model.device))
            # copies, so that one kept prompt does not keep the whole batch it came in alive
            features = [part.clone() for part in packed_features.split(lengths)]
        if self._stream is not None:
            current = torch.cuda.current_stream(model.device)
            current.wait_stream(self._stream)
            for tensor in features:
                tensor.record_stream(current)
        return features


def _chunks(prompts: list[Ids], most_tokens: int) -> Iterator[list[Ids]]:
    """The prompts in order, as many at a time as have at most `most_tokens` together; one that has more goes alone."""
    chunk: list[Ids] = []
    for ids in prompts:
        if chunk and sum(map(len, chunk)) + len(ids) > most_tokens:
            yield chunk
            chunk = []
        chunk.append(ids)
    if chunk:
        yield chunk
