"""Says by arithmetic whether a request fits into the ranks' memory, and how many tokens of a step do. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from engine.config.chat_template import MAX_PROMPT_TOKENS
from engine.config.engine_config import EngineConfig
from engine.config.model_config import ModelConfig
from engine.errors import ArgumentError
from engine.lora.files import AdapterFile
from engine.planning.step_memory import (
    DecodeMemory,
    batch_bytes,
    cache_bytes,
    decode_bytes,
    encode_bytes,
    packed_bytes,
    picture_encode_bytes,
)
from engine.planning.work_division import shares_all_tokens
from engine.scheduling.planned_jobs import StateRoom
from engine.step import Job
from engine.step_cache.step_plan import WHOLE
from launcher.requests.check import CheckedRequest
from launcher.requests.plan import Plan

_MANY = 100_000  # tokens of a step, with which bytes grow almost in proportion


@dataclass(frozen=True)
class RankMemory:
    """The memory that each rank has for steps, and what images and LoRAs need of it; all sizes in bytes.

    device_type: "cuda" or "cpu", by which `EngineConfig` chooses the dtype. free: by rank, beside the weights and LoRAs
    that it holds; None where that is not known, and then everything fits. decode: what decoding on rank 0 depends on.
    """

    model: ModelConfig
    engine: EngineConfig
    device_type: str
    free: tuple[int, ...] | None = None
    decode: DecodeMemory = field(default_factory=lambda: DecodeMemory(bytes_per_element=4))

    @property
    def bytes_per_element(self) -> int:
        """Of a tensor in the model's dtype."""
        return 2 if self.engine.dtype_on(self.device_type) == "bfloat16" else 4

    def without(self, size: int) -> RankMemory:
        """Take `size` bytes of every rank. Returns what is left."""
        return self if self.free is None else replace(self, free=tuple(available - size for available in self.free))

    def needed(
        self, segments: Sequence[int], size: tuple[int, int], *, pictured: bool = False, together: bool = False
    ) -> list[int]:
        """Reckon the bytes by rank of an image alone, from its segments' tokens, and its width and height in pixels.
        pictured: it begins from a picture. together: as in `forward_passes`.

        Rank 0 may decode images while the next step runs, the others help it between two steps. Pictures are encoded
        before a step denoises, by the ranks that decode.
        """
        stepping = max(
            batch_bytes(self.model, segments, self.engine.degrees, self.bytes_per_element, together=together),
            encode_bytes(self.model, self.engine.tp, self.bytes_per_element),
        )
        decoding, element, limit = self._decoding(size), self.decode.bytes_per_element, self.decode.limit
        encoding = picture_encode_bytes(self.model, *size, element, limit) if pictured else 0
        elsewhere = max(stepping, decoding, encoding) if self.engine.decodes_together else stepping
        return [max(stepping, encoding) + decoding] + [elsewhere] * (self.engine.ranks - 1)

    def needed_by_default(self) -> list[int]:
        """Reckon the bytes by rank of an image of the default size, whatever its prompt."""
        return self.needed((self.model.image_tokens(*self._default_size) + MAX_PROMPT_TOKENS,), self._default_size)

    def check(self, plan: Plan, checked: CheckedRequest) -> None:
        """Raise `ArgumentError` if an image of the request, alone, needs more than some rank has free."""
        if self.free is None:
            return
        size, pictured, held = (checked.width, checked.height), checked.picture is not None, 0
        if checked.steps:
            held = self.cache_bytes(checked, plan.segments)
        needed = self.needed(plan.segments, size, pictured=pictured, together=shares_all_tokens(checked.cache))
        uncached = self.needed(plan.segments, size, pictured=pictured)
        alone = self.needed(plan.segments, size)
        for rank, available in enumerate(self.free):
            wanted = needed[rank] + held
            if wanted <= available:
                continue
            parameter, what = "width", f"width × height {size[0]} × {size[1]}"
            advice = ": give a smaller size" if pictured else ""
            if uncached[rank] <= available:
                parameter = "guidance_outside" if checked.cache is None else "cache"  # "last" keeps a difference
                what, advice = f"{parameter}, for an image of {size[0]} × {size[1]},", ": without it there is enough"
                if shares_all_tokens(checked.cache):
                    advice = ": method velocity needs less, and without cache there is enough"
            elif alone[rank] <= available:
                parameter, what = "image", f"image, to be encoded as {size[0]} × {size[1]},"
            unit, digits, name = (1e9, 1, "GB") if wanted >= 1e9 else (1e6, 2, "MB")
            has = f"rank {rank}, which has {available / unit:.{digits}f} {name} free"
            told = f"{what} needs about {wanted / unit:.{digits}f} {name} on {has}{advice}"
            raise ArgumentError(told, parameter=parameter)

    def cache_bytes(self, image: Job | CheckedRequest, segments: Sequence[int]) -> int:
        """Reckon the bytes of each rank that an image takes for its steps that are saved. segments: in tokens."""
        reuses = image.guidance_outside == "last" and image.guidance_window != WHOLE and len(segments) > 1
        tokens, degrees = self.model.image_tokens(image.width, image.height), self.engine.degrees
        return cache_bytes(
            self.model, image.cache, segments, tokens, degrees, self.bytes_per_element, reuses_difference=reuses
        )

    def state_room(self, token_budget: int) -> StateRoom | None:
        """Reckon the bytes of each rank that images may take for their saved steps beside a step of so many tokens and
        an image that is decoded; None where that is not known."""
        if self.free is None:
            return None
        step = packed_bytes(self.model, token_budget, self.engine.degrees, self.bytes_per_element)
        room = min(self.free) - self._decoding(self._default_size) - step
        return StateRoom(max(0, room), self._bytes_of_many / _MANY)

    def token_budget(self, most: int) -> int:
        """Reckon the tokens of a step, at most `most`, that all ranks have memory for while an image is decoded."""
        if self.free is None:
            return most
        room = min(self.free) - self._decoding(self._default_size)
        return max(1, min(most, room * _MANY // self._bytes_of_many))

    def lora_bytes(self, opened: AdapterFile) -> int:
        """Reckon the bytes of each rank that a LoRA takes once it is loaded."""
        return opened.bytes_on_rank(self.engine.tp, self.bytes_per_element)

    @property
    def _bytes_of_many(self) -> int:
        return packed_bytes(self.model, _MANY, self.engine.degrees, self.bytes_per_element)

    @property
    def _default_size(self) -> tuple[int, int]:
        return self.model.default_width, self.model.default_height

    def _decoding(self, size: tuple[int, int]) -> int:
        return decode_bytes(self.model, *size, self.decode.bytes_per_element, self.decode.limit)
