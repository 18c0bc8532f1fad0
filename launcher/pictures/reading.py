"""Has pictures read by a process of its own, one after the other, under limits."""

from __future__ import annotations

from collections.abc import Mapping

from engine.config.model_config import ModelConfig
from engine.errors import ArgumentError
from launcher.messages.client_messages import Generate
from launcher.messages.limits import Limits
from launcher.pictures.prepared import PreparedPicture


class PictureReader:
    """Reads the pictures of requests. To be made in the event loop that it is used in."""

    async def read(
        self, request: Generate, files: Mapping[str, bytes], model: ModelConfig, limits: Limits
    ) -> PreparedPicture:
        """Read the files of a request, by their names in `request.pictures`, and lay them out as it asks.

        Raises `ArgumentError` about image, mask, or what does not fit them.
        """
        raise ArgumentError("image cannot be read yet", parameter="image")

    def close(self) -> None:
        """End the process."""
