"""A small tokenizer in the form of Qwen's older repositories: vocab.json and merges.txt, and json files beside them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from engine.config.chat_template import PREFIX, SUFFIX

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
PLAIN = ("<tool_call>", "<think>")  # which Qwen's files do not call special
_TEXTS = ("the fox's don't we'll a red circle on a blue background", "größe naïve é ü", "你好世界狐狸 雪の中", "12 345")
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"


def write_vocabulary(folder: Path) -> int:
    """Write vocab.json and merges.txt, in which each word of the template is one token, and return how many there
    are."""
    trained = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(_WORDS), behavior="isolated")
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=4096, min_frequency=1, show_progress=False, initial_alphabet=alphabet, special_tokens=[]
    )
    trained.train_from_iterator([*re.split("|".join(map(re.escape, SPECIAL)), PREFIX + SUFFIX), *_TEXTS], trainer)
    folder.mkdir(parents=True, exist_ok=True)
    trained.model.save(str(folder))
    return int(trained.get_vocab_size())


def settings_of(first: int, **changes: Any) -> dict[str, Any]:
    """tokenizer_config.json as Qwen has it, whose added tokens have the ids from `first` on."""
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(first + n): {"content": token, **flags, "special": token in SPECIAL}
            for n, token in enumerate(SPECIAL + PLAIN)
        },
        "additional_special_tokens": list(SPECIAL[1:]),
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
        **changes,
    }


def write_json(folder: Path, **files: Mapping[str, Any]) -> Path:
    """Write json files by their names without the suffix."""
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder
