"""Compares the ids of prompts with the ids that diffusers' pipeline feeds its text encoder."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from diffusers import Krea2Pipeline

from bench.verify.judging import Check, failed
from bench.verify.subject.models import Model
from launcher.requests.tokenizer import PromptTokenizer

PROMPTS = {
    "plain": "a red circle on a blue background",
    "empty": "",
    "spaces at both ends": "  a red circle  ",
    "one space": " ",
    "newlines": "a red circle\n\non a\r\nblue background\n",
    "tabs and several spaces": "a\t\tred   circle",
    "punctuation and numbers": "It's 12:30 — 3,141.59% (a \"quote\"); don't & won't!?",
    "upper case": "A RED CIRCLE",
    "Chinese": "雪地里的一只狐狸，油画",
    "Japanese": "雪の中の狐、油絵 ＡＢＣ１２３ ｶﾀｶﾅ",
    "Korean": "눈 속의 여우 \u1112\u1161\u11ab",
    "Arabic, from right to left": "\u202bثعلب في الثلج\u202c",
    "Hindi": "बर्फ में लोमड़ी",
    "emoji": "a 🦊 in ❄️ with 👩‍👩‍👧‍👦 and 🏳️‍🌈",
    "combining marks": "cafe\u0301 n\u0303 A\u030a e\u0323\u0302",
    "composed marks": "café ñ Å \u1ec7",
    "ligatures and odd spaces": "ﬁne\u00a0print\u2009and\u3000more\u200bzero",
    "a special token": "a <|im_end|> b <|endoftext|> c",
    "a turn of its own": "<|im_end|>\n<|im_start|>assistant\n",
    "part of a special token": "<|im_ <|im_end <im_start>",
    "vision's tokens": "<|vision_start|><|image_pad|><|vision_end|>",
    "code": "def f(x):\n    return x ** 2  # <b>&amp;</b>",
    "as long as there is room": "red " * 505,
    "too long": "a fox in the snow " * 300,
    "too long, without spaces": "狐" * 1200,
    "too long, with a special token where it is cut": "red " * 505 + "<|im_end|>" * 4,
}


def compare_tokens(model: Model) -> Check:
    """Names the first prompt that has other ids, and where."""
    ours = PromptTokenizer(model.folder, model.config.text_encoder.vocab_size)
    theirs = _Fed(model)
    different = []
    for name, prompt in PROMPTS.items():
        mine, expected = ours.encode(prompt).ids, theirs.ids(prompt)
        if mine != expected:
            different.append(f"prompt {name!r} ({prompt[:40]!r}): {_difference(mine, expected)}")
    detail = f"{len(PROMPTS)} prompts"
    if different:
        detail = different[0]
    return Check("tokens", "", "", float(len(different)), 0.0, "prompts that differ", detail)


def tokens_failed(detail: str) -> Check:
    return failed("tokens", "", "", detail)


def _difference(ours: tuple[int, ...], theirs: tuple[int, ...]) -> str:
    for position, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        if one != other:
            return f"token {position} is {one}, diffusers' {other}"
    return f"{len(ours)} tokens, diffusers' {len(theirs)}"


class _Fed:
    """diffusers' pipeline without a model, which says what its text encoder would be given."""

    def __init__(self, model: Model) -> None:
        without = dict.fromkeys(("text_encoder", "transformer", "vae"))
        self._pipeline = Krea2Pipeline.from_pretrained(model.folder, local_files_only=True, **without)
        self._pipeline.text_encoder = self._take
        self._seen: dict[str, torch.Tensor] = {}

    def ids(self, prompt: str) -> tuple[int, ...]:
        """Without the padding."""
        self._pipeline.get_text_hidden_states(prompt, device=torch.device("cpu"))
        (row,), (mask,) = self._seen["input_ids"], self._seen["attention_mask"]
        return tuple(row[mask].tolist())

    def _take(self, **given: Any) -> Any:
        self._seen = given
        nothing = torch.zeros((*given["input_ids"].shape, 1))
        return SimpleNamespace(hidden_states=[nothing] * (1 + max(self._pipeline.text_encoder_select_layers)))
