"""Reads which tokens a tokenizer has beside those of its vocabulary and merges, such as `<|im_start|>`: as transformers
does, of the json files beside these."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.checkpoint.tokenizer_files import ADDED_TOKENS, SPECIAL_TOKENS, TokenizerFiles
from engine.config.json_fields import JsonFields

_STATED = "added_tokens_decoder"
_END = "<|endoftext|>"
_DEFAULTS = {"eos_token", "unk_token", "pad_token"}  # which transformers' Qwen2Tokenizer takes it for
_NAMED = (*_DEFAULTS, "bos_token", "sep_token", "cls_token", "mask_token")
_LISTS = ("extra_special_tokens", "additional_special_tokens")
_MOST_TOKENS = 1 << 16  # Qwen has 26; each is looked for in every prompt
_LONGEST = 256  # characters
_FLAGS = ("single_word", "lstrip", "rstrip")


@dataclass(frozen=True)
class StatedToken:
    """A token that is found in a text before it is cut into words: before normalising too, unless it is `normalized`.

    said: the file that names it. id: None where that is the vocabulary's. flags: single_word, lstrip and rstrip.
    """

    content: str
    said: JsonFields
    id: int | None = None
    special: bool = True
    normalized: bool = False
    flags: Mapping[str, bool] = field(default_factory=dict)


def read_added_tokens(files: TokenizerFiles, settings: JsonFields) -> list[StatedToken]:
    """Read them from added_tokens_decoder of the settings, or where that is none from added_tokens.json, and what else
    is named as special. What is named so has no flags, whatever is said of it. Raises `CheckpointError` for what does
    not fit.

    settings: tokenizer_config.json, or no fields where there is none.
    """
    sources = [settings]
    if not settings.has(_STATED) and (file := files.beside(SPECIAL_TOKENS)) is not None:
        sources.append(JsonFields.read(file))
    named = dict(_named(sources))
    stated = list(_decoder(settings) if settings.has(_STATED) else _plain(files))
    known = {token.content for token in stated}
    return [
        *(StatedToken(token.content, token.said, token.id) if token.content in named else token for token in stated),
        *(StatedToken(content, said) for content, said in named.items() if content not in known),
    ]


def _decoder(settings: JsonFields) -> Iterator[StatedToken]:
    by_id = settings.section(_STATED, settings)
    _check_number(settings, _STATED, by_id.values)
    for key in by_id.values:
        if not (key.isascii() and key.isdecimal() and len(key) < 10):
            raise settings.error(_STATED, "ids as keys", key)
        token = by_id.section(key, by_id)
        special = bool(token.boolean("special", default=False))
        normalized = bool(token.boolean("normalized", default=not special))
        flags = {flag: bool(token.boolean(flag, default=False)) for flag in _FLAGS}
        yield StatedToken(token.text("content", most=_LONGEST), settings, int(key), special, normalized, flags)


def _plain(files: TokenizerFiles) -> Iterator[StatedToken]:
    """Of added_tokens.json, which has an id for each text."""
    if (file := files.beside(ADDED_TOKENS)) is None:
        return
    added = JsonFields.read(file)
    _check_number(added, "the number of tokens", added.values)
    for content in added.values:
        if not 0 < len(content) <= _LONGEST:
            raise added.error("a token", f"1 to {_LONGEST} characters", content)
        yield StatedToken(content, added, added.integer(content, least=0), special=False, normalized=True)


def _named(sources: list[JsonFields]) -> Iterator[tuple[str, JsonFields]]:
    """What is named as special, and where: by a later source in place of an earlier one."""
    values = {key: source for source in sources for key in source.values}
    if not values.keys() >= _DEFAULTS:
        yield _END, sources[0]
    for key, source in values.items():
        if key in _NAMED or (key.endswith("_token") and isinstance(source.values[key], str)):
            yield from _texts(source, (key,))
        elif key in _LISTS and source.has(key):
            listed = source.values[key]
            if isinstance(listed, list):
                listed = {str(number): item for number, item in enumerate(listed)}
            if not isinstance(listed, dict):
                raise source.error(key, "a list or an object", listed)
            _check_number(source, key, listed)
            yield from _texts(JsonFields(source.file, listed, f"{key}."), tuple(listed))


def _texts(source: JsonFields, keys: tuple[str, ...]) -> Iterator[tuple[str, JsonFields]]:
    """The tokens under these keys, each a text or an object with one."""
    for key in keys:
        if source.has(key):
            is_text = isinstance(source.values[key], str)
            token, name = (source, key) if is_text else (source.section(key, source), "content")
            yield token.text(name, most=_LONGEST), source


def _check_number(fields: JsonFields, key: str, values: Mapping[str, Any]) -> None:
    if len(values) > _MOST_TOKENS:
        raise fields.error(key, f"at most {_MOST_TOKENS} tokens", len(values))
