"""What a rank's weights take of its device, and what is free there for its work."""

from __future__ import annotations

import torch

from engine.device.devices import free_bytes, reserve_bytes
from engine.offload.offload import Offload


class DeviceMemory:
    """Counts bytes, within the plan's budget if there is one."""

    def __init__(self, offload: Offload, device: torch.device, sharing: int, encoding: int) -> None:
        """sharing: how many ranks share the device. encoding: what encoding prompts takes at most."""
        self.encoding = encoding
        self._offload, self._plan, self._device, self._sharing = offload, offload.plan, device, sharing

    def sizes(self, adapters: int, *, encodes_beside: bool) -> dict[str, int]:
        """As `Rank.memory`. adapters: what they take. encodes_beside: prompts are encoded while steps run."""
        ledger, plan = self._offload.ledger, self._plan
        sizes = {
            "weights": ledger.resident,
            "peak_weights": ledger.peak,
            "host_weights": self._offload.host_bytes,
            "adapters": adapters,
        }
        if plan.decode_limit is not None:
            sizes["decode_limit"] = plan.decode_limit
        free = self.free_for_steps(encodes_beside=encodes_beside)
        return sizes if free is None else sizes | {"free": free}

    def free_for_steps(self, *, encodes_beside: bool) -> int | None:
        """What is free for steps and decoding, where that is known."""
        free = self._free()
        if free is None:
            return None
        if encodes_beside:
            free -= self.encoding
        return max(0, free - self._plan.dequantized)

    def has_room_to_encode_beside(self) -> bool:
        """Whether prompts can be encoded while an image of the default size is made, as far as that is known."""
        free = self._free()
        return free is None or free >= self._plan.work + self.encoding

    def left(self) -> int | None:
        """What a rank that has the device to itself can still allocate, where that is known."""
        free = free_bytes(self._device)
        if free is not None and self._plan.allocatable is not None and self._device.type == "cuda":
            free = min(free, max(0, self._plan.allocatable - torch.cuda.memory_allocated(self._device)))
        return free

    def _free(self) -> int | None:
        """What is free for all that work takes, where that is known."""
        plan, free = self._plan, free_bytes(self._device)
        if free is not None:
            free = max(0, free - reserve_bytes(self._device)) // self._sharing - self._offload.absent
        if plan.usable is not None:
            held = max(plan.weights, torch.cuda.memory_allocated(self._device) if self._device.type == "cuda" else 0)
            free = plan.usable - held if free is None else min(free, plan.usable - held)
        return free
