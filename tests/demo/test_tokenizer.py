"""The demo's tokenizer: its form, what it does with the template and the grammar, and embeddings carried over to it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, Qwen2Tokenizer

from demo.captions import COLOURS, PLACES, RELATIONS, SHAPES, SIZES, prompts
from demo.tokenizer import PREFIX, SPECIAL_TOKENS, SUFFIX, adapt_embeddings, sentence, train_tokenizer
from engine.config import chat_template as engine_prompt
from launcher.requests.tokenizer import PromptTokenizer


@pytest.fixture(scope="module")
def trained() -> Qwen2Tokenizer:
    return train_tokenizer()


def test_the_template_is_that_of_the_engine() -> None:
    assert (PREFIX, SUFFIX) == (engine_prompt.PREFIX, engine_prompt.SUFFIX)


def test_engine_and_transformers_load_it_and_agree(trained: Qwen2Tokenizer, tmp_path: Path) -> None:
    trained.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(loaded, Qwen2Tokenizer)
    assert (loaded.eos_token, loaded.pad_token) == ("<|im_end|>", "<|endoftext|>")
    ours = PromptTokenizer(tmp_path, vocab_size=len(trained))  # refuses a template of another length
    for text in ("", "two red stars on a blue background", "Größe 42\n\n 🦊 <|im_end|>"):
        assert list(ours.encode(text).ids) == loaded(PREFIX + text)["input_ids"] + loaded(SUFFIX)["input_ids"]


def test_special_tokens_come_first(trained: Qwen2Tokenizer) -> None:
    assert trained.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2]


def test_training_again_gives_the_same_file(trained: Qwen2Tokenizer) -> None:
    assert train_tokenizer().backend_tokenizer.to_str() == trained.backend_tokenizer.to_str()


def test_every_word_of_a_prompt_is_one_token(trained: Qwen2Tokenizer) -> None:
    for prompt in prompts(1, 300, kept_out=True):
        text = prompt.text()
        assert len(trained.tokenize(text)) == len(text.split())
        assert len(trained.tokenize(sentence(text))) == len(text.split()) + 1
    words = " ".join((*COLOURS, *SHAPES, *SIZES, *PLACES, *RELATIONS))
    assert len(trained.tokenize(f" {words}")) == len(words.split())


def test_known_tokens_keep_their_rows_and_new_ones_get_the_mean_of_their_pieces(trained: Qwen2Tokenizer) -> None:
    without = ["red circle", "a red circle on a"]
    old = trained.train_new_from_iterator(without, 4096, min_frequency=1, show_progress=False)
    assert trained.tokenize(" blue") == ["Ġblue"]
    pieces = old.tokenize(" blue")
    assert len(pieces) > 1
    rows = torch.randn(len(old) + 3, 8)
    adapted = adapt_embeddings(old.backend_tokenizer, trained.backend_tokenizer, rows)
    assert adapted.shape == (len(trained), 8)
    for token in ("Ġred", "r", "<|im_start|>"):
        kept = adapted[trained.convert_tokens_to_ids(token)]
        assert torch.equal(kept, rows[old.convert_tokens_to_ids(token)])
    mean = rows[torch.tensor(old.convert_tokens_to_ids(pieces))].mean(0)
    torch.testing.assert_close(adapted[trained.convert_tokens_to_ids("Ġblue")], mean)
