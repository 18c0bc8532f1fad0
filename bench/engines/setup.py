"""What the options that the benchmarks of the whole engine share come to."""

from __future__ import annotations

import argparse
import itertools
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.engines.real_size import PROMPT_TOKENS, SIZES, model_of_size, random_prompt
from bench.measure.arguments import check_positive, duration, json_file, parse_list
from bench.measure.timing import Budget
from engine.config.chat_template import MAX_PROMPT_TOKENS, PREFIX_TOKENS
from engine.config.engine_config import ATTENTIONS, DEVICES, DTYPES, EngineConfig
from engine.config.model_config import ModelConfig
from engine.device.devices import pick_device, pick_dtype
from engine.errors import ArgumentError

# The floors know no other: int8 is for memory, not for speed.
QUANTIZATIONS = ("none", "fp8")
PEERS = ("none", "diffusers")


@dataclass(frozen=True)
class Version:
    """How an engine is built."""

    quantization: str = "none"
    attention: str = "auto"
    cuda_graphs: bool = True

    def __str__(self) -> str:
        graphs = "" if self.cuda_graphs else ", without CUDA graphs"
        return f"quantization {self.quantization}, attention {self.attention}{graphs}"


@dataclass(frozen=True)
class Setup:
    """What the options that all of these benchmarks come to. `size` is "real" only with the real model's layers."""

    model: ModelConfig
    size: str
    device: torch.device
    dtype: torch.dtype
    versions: tuple[Version, ...]
    prompt_tokens: int
    peer: str
    budget: Budget
    json: Path | None

    @property
    def bytes_per_element(self) -> int:
        return self.dtype.itemsize

    def text_tokens(self) -> int:
        """Of a segment: prompt and suffix."""
        return len(random_prompt(self.model, 0, self.prompt_tokens)) - PREFIX_TOKENS

    def segment_tokens(self, side: int) -> int:
        return self.text_tokens() + self.model.image_tokens(side, side)

    @property
    def title(self) -> str:
        return (
            f"random weights, size {self.size}, {self.model.transformer.num_layers} DiT blocks, "
            f"{str(self.dtype).removeprefix('torch.')} on {self.device.type}, {self.prompt_tokens} prompt tokens"
        )


def add_options(parser: argparse.ArgumentParser, *, quantization: str) -> None:
    """The options of `Setup`."""
    parser.add_argument("--size", choices=SIZES, default="real", help="whose sizes the model has (real)")
    parser.add_argument("--layers", type=int, help="DiT blocks, in place of the size's own")
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument("--dtype", choices=DTYPES, default="auto")
    parser.add_argument(
        "--quantization", default=quantization, help=f"comma-separated, of {', '.join(QUANTIZATIONS)} ({quantization})"
    )
    parser.add_argument("--attention", default="auto", help=f"comma-separated, of {', '.join(ATTENTIONS)} (auto)")
    parser.add_argument("--graphs", default="on", help="CUDA graphs: on, off, or on,off (on)")
    parser.add_argument("--prompt-tokens", type=int, default=PROMPT_TOKENS, help=f"({PROMPT_TOKENS})")
    parser.add_argument("--peer", choices=PEERS, default="none", help="measure it too, on the same weights (none)")
    parser.add_argument("--seconds", type=duration, help="begin nothing more after this time")
    parser.add_argument(
        "--json", type=json_file, metavar="FILE", help="add a line for each result to this file as well"
    )


def read_options(arguments: argparse.Namespace) -> Setup:
    """Raises `ArgumentError`."""
    if arguments.layers is not None:
        check_positive("layers", arguments.layers)
    if not 1 <= arguments.prompt_tokens <= MAX_PROMPT_TOKENS:
        raise ArgumentError.of("prompt-tokens", f"between 1 and {MAX_PROMPT_TOKENS}", arguments.prompt_tokens)
    config = EngineConfig(device=arguments.device, dtype=arguments.dtype)
    device = pick_device(config, 0, 1)
    versions = itertools.product(
        parse_list("quantization", arguments.quantization, QUANTIZATIONS),
        parse_list("attention", arguments.attention, ATTENTIONS),
        [graphs == "on" for graphs in parse_list("graphs", arguments.graphs, ("on", "off"))],
    )
    return Setup(
        model=model_of_size(arguments.size, arguments.layers),
        size=arguments.size if arguments.layers is None else f"{arguments.size} with other layers",
        device=device,
        dtype=pick_dtype(config, device),
        versions=tuple(Version(*version) for version in versions),
        prompt_tokens=arguments.prompt_tokens,
        peer=arguments.peer,
        budget=Budget(arguments.seconds),
        json=arguments.json,
    )
