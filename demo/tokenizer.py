"""The demo's tokenizer: byte-level BPE in Qwen's form, with a token for every word of the grammar and of Krea 2's chat
template, so that the template has the lengths that the model counts on.

    python -m demo.tokenizer --work WORK

writes WORK/tokenizer.
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import Qwen2Tokenizer

from demo.captions import prompts

END_OF_TEXT, START, END = SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# Krea 2's chat template around a prompt: 34 tokens before it, 5 after it.
PREFIX = (
    f"{START}system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, "
    f"spatial relationships of the objects and background:{END}\n{START}user\n"
)
SUFFIX = f"{END}\n{START}assistant\n"

ANY_SIZE = 4096  # more than the words need: merging ends when each of them is one token


def train_tokenizer() -> Qwen2Tokenizer:
    """The tokenizer; the same one every time."""
    form = Qwen2Tokenizer(
        vocab={token: row for row, token in enumerate(SPECIAL_TOKENS)},
        eos_token=END,
        pad_token=END_OF_TEXT,
        unk_token=None,
        extra_special_tokens=[START],
        model_max_length=4096,
    )
    return form.train_new_from_iterator(_corpus(), ANY_SIZE, min_frequency=1, show_progress=False)


def _corpus() -> Iterator[str]:
    """What stands between the template's special tokens, and captions as `Prompt.text` writes them and as sentences."""
    yield from re.split("|".join(map(re.escape, SPECIAL_TOKENS)), PREFIX + SUFFIX)
    for prompt in prompts(0, 5000, kept_out=False):
        yield prompt.text()
        yield sentence(prompt.text())


def sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def adapt_embeddings(old: Tokenizer, new: Tokenizer, rows: Tensor) -> Tensor:
    """Embeddings of a new vocabulary, (new tokens, width), from the rows of an old one, (old tokens or more, width).

    A token that the old vocabulary has keeps its row; any other gets the mean of the rows that the old tokenizer cuts
    its text into.
    """
    old_vocab, new_vocab = old.get_vocab(), new.get_vocab()
    adapted = rows.new_empty(max(new_vocab.values()) + 1, rows.shape[1])
    for token, row in new_vocab.items():
        pieces = [old_vocab[token]] if token in old_vocab else [piece.id for piece in old.model.tokenize(token)]
        adapted[row] = rows[torch.tensor(pieces)].mean(0)
    return adapted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of states and results")
    train_tokenizer().save_pretrained(parser.parse_args().work / "tokenizer")


if __name__ == "__main__":
    main()
