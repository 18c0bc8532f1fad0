"""Pictures to the latents that images begin from: the VAE's encoder, and what is kept of them by every rank."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager

import torch

from engine.config.model_config import ModelConfig
from engine.device.devices import to_device
from engine.model.patches import pack_latents
from engine.model.tiles import SMALLEST_TILE
from engine.model.vae_encoder import VAEEncoder
from engine.parallel.group import Group
from engine.pictures.encoded_picture import EncodedPicture
from engine.pictures.pixels import Pixels
from engine.planning.step_memory import DecodeMemory, picture_encode_bytes, picture_tile_side
from engine.step import Picture


class PictureEncoder:
    """Encodes each picture once, on rank 0 or by all ranks together, for all ranks, which hold it until it is
    forgotten.

    On a GPU that is a rank's alone in a stream of its own: a step's pictures are encoded while the step before it still
    denoises, since a rank is told of a step one step ahead.
    """

    def __init__(
        self,
        encoder: VAEEncoder | None,
        config: ModelConfig,
        world: Group,
        device: torch.device,
        *,
        on_device: AbstractContextManager[None],
        memory: DecodeMemory,
        together: bool,
        beside: bool,
    ) -> None:
        """encoder: None on a rank that encodes nothing. on_device: within it the encoder is. memory: what encoding may
        take, as decoding. together: all ranks have the encoder, and share large pictures. beside: whether there may be
        such a stream. It does not wait for what the current one has begun, so the encoder must be on the device at all
        times."""
        self._encoder, self._config, self._world, self._device = encoder, config, world, device
        self._on_device, self._memory, self._together = on_device, memory, together
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" and beside else None
        self._held: dict[int, EncodedPicture] = {}
        self.room: int | None = None  # the bytes that a picture may take beside a step; None where that is not known

    @property
    def held(self) -> int:
        """The number of pictures that are held."""
        return len(self._held)

    def encode(self, picture: Picture, pixels: Pixels | None, *, small: bool = False) -> None:
        """Encode a picture and hold it. pixels: None on other ranks than the first. small: in the least memory there
        is."""
        width, height = picture.width, picture.height
        tile, stream = SMALLEST_TILE if small else self._tile_side(width, height), self._stream
        if self.room is not None and self._bytes(width, height) > self.room:
            stream = None  # in turn with steps
        with torch.cuda.stream(stream):
            encoded = self._encode(picture, pixels, tile)
        if stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(stream)
            for tensor in (encoded.latents, encoded.mask):
                if tensor is not None:
                    tensor.record_stream(current)
        self._held[picture.picture_id] = encoded

    def get(self, picture: Picture) -> EncodedPicture:
        """Return a picture that is held."""
        return self._held[picture.picture_id]

    def forget(self, picture_ids: Iterable[int]) -> None:
        """Let pictures go, but for what jobs still need of them."""
        for picture_id in picture_ids:
            self._held.pop(picture_id, None)

    def warm_up(self, width: int, height: int) -> None:
        """Encode a picture of this size where such are encoded, letting cuDNN choose the fastest ways to compute the
        convolutions."""
        tile = self._tile_side(width, height)
        together = self._is_shared(height, tile)
        if self._encoder is None or not (together or self._world.rank == 0):
            return
        with torch.cuda.stream(self._stream), self._on_device:
            pixels = torch.zeros((1, 3, height, width), device=self._device)
            self._encoder.warm_up(pixels, tile=tile, group=self._world if together else None)

    def _encode(self, picture: Picture, pixels: Pixels | None, tile: int | None) -> EncodedPicture:
        """Encode a picture on the ranks that do it, and broadcast what others need to hold it too."""
        vae, world = self._config.vae, self._world
        size = picture.height // vae.scale_factor, picture.width // vae.scale_factor
        together = self._is_shared(picture.height, tile)
        latents = torch.empty((vae.z_dim, *size), device=self._device)
        if together or world.rank == 0:
            rgb = self._placed(None if pixels is None else pixels.rgb, (picture.height, picture.width, 3))
            if together:
                world.broadcast(rgb)
            assert self._encoder is not None, "this engine was started without image_input"
            with self._on_device:
                values = rgb.permute(2, 0, 1)[None].float().div_(255).mul_(2).sub_(1)  # as diffusers, to the last bit
                latents = self._encoder(values, tile=tile, group=world if together else None)[0]
        if not together:
            world.broadcast(latents)
        patch = self._config.patch_size
        if not picture.masked:
            return EncodedPicture(pack_latents(latents, patch))
        mask = world.broadcast(self._placed(None if pixels is None else pixels.mask, size)).float().div_(255)
        return EncodedPicture(pack_latents(latents, patch), pack_latents(mask.expand(vae.z_dim, *size), patch))

    def _tile_side(self, width: int, height: int) -> int | None:
        """Choose the side of the tiles in which a picture is encoded, in latent pixels; None for whole."""
        return picture_tile_side(self._config, width, height, self._memory.bytes_per_element, self._memory.limit)

    def _bytes(self, width: int, height: int) -> int:
        """Reckon what encoding a picture takes."""
        return picture_encode_bytes(self._config, width, height, self._memory.bytes_per_element, self._memory.limit)

    def _is_shared(self, height: int, tile: int | None) -> bool:
        """Whether all ranks encode a picture of this height together."""
        if self._encoder is None or not self._together or tile is not None:
            return False
        return self._encoder.divides(height // self._config.vae.scale_factor, self._world)

    def _placed(self, values: bytes | None, shape: tuple[int, ...]) -> torch.Tensor:
        """Put bytes on the device of rank 0, uint8 of this shape. Elsewhere it is for a broadcast to fill."""
        if self._world.rank > 0:
            return torch.empty(shape, dtype=torch.uint8, device=self._device)
        assert values is not None, "the pixels of a picture come with the step that encodes it"
        return to_device(torch.frombuffer(bytearray(values), dtype=torch.uint8).view(shape), self._device)
