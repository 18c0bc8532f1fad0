"""What is free on a rank's device for its work."""

from __future__ import annotations

import torch

from engine.device.devices import free_bytes, reserve_bytes
from engine.offload.offload import Offload


class DeviceMemory:
    """Counts bytes, within the plan's budget if there is one. `encoding`: what encoding prompts takes at most."""

    def __init__(self, offload: Offload, device: torch.device, sharing: int, encoding: int) -> None:
        """sharing: the number of ranks that share the device."""
        self.encoding = encoding
        self._offload, self._plan, self._device, self._sharing = offload, offload.plan, device, sharing

    def free_for_steps(self, *, encodes_beside: bool) -> int | None:
        """What is free for steps and decoding; None where that is not known. encodes_beside: prompts are encoded while
        steps run."""
        free = self._free()
        if free is None:
            return None
        return max(0, free - (self.encoding if encodes_beside else 0) - self._plan.sizes.dequantized)

    def has_room_to_encode_beside(self) -> bool:
        """Whether prompts can be encoded while an image of the default size is made, as far as that is known."""
        free = self._free()
        return free is None or free >= self._plan.work + self.encoding

    def left(self) -> int | None:
        """What a rank that has the device to itself can still allocate; None where that is not known."""
        free = free_bytes(self._device)
        if free is not None and self._plan.allocatable is not None and self._device.type == "cuda":
            free = min(free, max(0, self._plan.allocatable - torch.cuda.memory_allocated(self._device)))
        return free

    def _free(self) -> int | None:
        """What is free for all that work takes; None where that is not known."""
        plan, free = self._plan, free_bytes(self._device)
        if free is not None:
            free = max(0, free - reserve_bytes(self._device)) // self._sharing - self._offload.absent
        if plan.usable is not None:
            held = max(plan.weights, torch.cuda.memory_allocated(self._device) if self._device.type == "cuda" else 0)
            free = plan.usable - held if free is None else min(free, plan.usable - held)
        return free
