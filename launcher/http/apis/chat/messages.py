"""What of a chat is to be drawn: the text of its last message from the user, and a picture in it to draw over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, Field

from engine.errors import ArgumentError

_TEXTS = ("text", "input_text")
_IMAGES = ("image_url", "input_image", "image")
_ABOUT_CHATS = "### Task:"  # how Open WebUI's own requests for titles, tags and suggestions begin


class ChatMessage(BaseModel, extra="allow", strict=True):
    """One of the `messages` of a chat."""

    role: str = Field(description="Whose it is: user, assistant, system and so on.")
    content: str | list[Any] | None = Field(
        None,
        description="Its text, or a list of parts, each a text or an object of type text or image_url. Default: null.",
    )


def prompt_of(messages: Sequence[ChatMessage]) -> tuple[str, Any]:
    """Give the text of the last message of role user, and the picture in it, which it then has no more; None for none.

    Raises `ArgumentError` if there is no text, if it has anything else or several pictures, and if it is a front end's
    own question about the chat, which no image answers.
    """
    last = next((message for message in reversed(messages) if message.role == "user"), None)
    if last is None:
        raise _error("messages must have one of role user, whose text is the prompt")
    parts = [last.content] if isinstance(last.content, str) else last.content or []
    shown = [part for part in parts if isinstance(part, dict) and part.get("type") in _IMAGES]
    prompt = "\n".join(_text_of(part) for part in parts if not any(part is each for each in shown))
    if not prompt.strip():
        raise _error("the last message of role user has no text to draw")
    if prompt.lstrip().startswith(_ABOUT_CHATS):
        raise _error(
            f"the message begins with {_ABOUT_CHATS!r}, as a chat front end's own questions about titles, tags or the "
            "next message do, and this model only draws: choose another model for these tasks there, or turn them off"
        )
    if len(shown) > 1:
        told = "one is drawn over, and more, as references, are not taken yet"
        raise _error(f"the last message must have one image at most: {told}, got {len(shown)}")
    return prompt, _picture_of(shown[0]) if shown else None


def _picture_of(part: dict[str, Any]) -> Any:
    """Take the picture out of a part. Raises `ArgumentError` if it is elsewhere, or nowhere: what would be drawn then
    has nothing to do with it."""
    for name in ("image_url", "image"):
        if part.get(name):
            return part.pop(name)
    told = 'give it as {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0…"}}'
    raise _error(f"the last message has an image without a picture that can be taken: {told}")


def _text_of(part: object) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text" if "text" in part else None) if isinstance(part, Mapping) else None
    text = part.get("text") if isinstance(part, Mapping) and kind in _TEXTS else None
    if not isinstance(text, str):
        raise _error(f"the last message must be of text and an image, got a part of type {str(kind)[:60]!r}")
    return text


def _error(message: str) -> ArgumentError:
    return ArgumentError(message, parameter="messages")
