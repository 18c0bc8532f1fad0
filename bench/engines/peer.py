"""diffusers' own pipeline with the same random weights as the engine, eager and compiled.

Compiled means the DiT's blocks, by `compile_repeated_blocks`, as diffusers documents it: anew for every shape, so that
no kernel is made for sizes that are not known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
import transformers
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    Krea2Pipeline,
    Krea2Transformer2DModel,
)
from torch import nn
from transformers import BatchEncoding, Qwen3VLConfig, Qwen3VLModel

from bench.engines.real_size import RandomWeights, random_prompt
from bench.measure.timing import Timestamps, time_calls
from engine.checkpoint.convert.config_json import config_files
from engine.config.chat_template import PREFIX, PREFIX_TOKENS, SUFFIX, SUFFIX_TOKENS
from engine.config.model_config import ModelConfig

TEXT_TOKENS = 512  # that the pipeline pads every prompt to


@dataclass(frozen=True)
class PeerImage:
    """Seconds of the stages, the last of which ends with the pixels in host memory; the picture, a PIL image, and its
    final latents, (image tokens, in_channels) float32."""

    encode_s: float
    denoise_s: float
    decode_s: float
    picture: Any
    latents: torch.Tensor


class Peer:
    """The whole pipeline. Needs diffusers."""

    modes = ("eager", "compiled")

    def __init__(self, weights: RandomWeights, dtype: torch.dtype) -> None:
        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()
        self._config, self._device = weights.config, weights.device
        self.pipeline = build_pipeline(weights, dtype)
        self.pipeline.set_progress_bar_config(disable=True)
        compile_blocks(self.pipeline.transformer)

    def step_timers(self, images: int, side: int, text_tokens: int) -> dict[str, Callable[[int], list[float]]]:
        """Return for each mode a function that takes a number of denoise steps of a batch of square images, and returns
        the seconds of each."""
        call = _step_call(self.pipeline.transformer, self._config, images, side, text_tokens)

        def timer(mode: str) -> Callable[[int], list[float]]:
            def time_steps(count: int) -> list[float]:
                with running(mode):
                    return time_calls(call, count, self._device)

            return time_steps

        return {mode: timer(mode) for mode in self.modes}

    def make_images(
        self, prompts: list[tuple[int, ...]], side: int, steps: int, seeds: list[int], mode: str
    ) -> list[PeerImage]:
        """Square images in one batch; each has the times of the whole. prompts: as `random_prompt` makes them."""
        timestamps, latents = Timestamps(self._device), torch.empty(0)

        def look(_pipeline: object, step: int, _time: object, tensors: dict[str, torch.Tensor]) -> dict[str, object]:
            nonlocal latents
            if step == steps - 1:
                latents = tensors["latents"]
                timestamps.record()
            return {}

        with running(mode):
            timestamps.record()
            states, mask = self.pipeline.encode_prompt(
                [" ".join(map(str, ids[PREFIX_TOKENS:-SUFFIX_TOKENS])) for ids in prompts], self._device
            )
            timestamps.record()
            pictures = self.pipeline(
                prompt_embeds=states,
                prompt_embeds_mask=mask,
                width=side,
                height=side,
                num_inference_steps=steps,
                guidance_scale=0.0,
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
                callback_on_step_end=look,
            ).images
            timestamps.record()
        encode_s, denoise_s, decode_s = timestamps.seconds()
        return [
            PeerImage(encode_s, denoise_s, decode_s, picture, latents[index].float())
            for index, picture in enumerate(pictures)
        ]


def _step_call(
    transformer: Krea2Transformer2DModel, config: ModelConfig, images: int, side: int, text_tokens: int
) -> Callable[[], object]:
    """A denoise step of a batch of square images, as the pipeline does it: every text padded to 512 tokens, of which
    `text_tokens` are real."""
    weight = transformer.img_in.weight
    dit, grid = config.transformer, side // config.size_multiple
    like = {"device": weight.device, "dtype": weight.dtype}
    latents = torch.randn((images, grid * grid, dit.in_channels), **like)
    states = torch.randn((images, TEXT_TOKENS, dit.num_text_layers, dit.text_hidden_size), **like)
    mask = torch.zeros((images, TEXT_TOKENS), dtype=torch.bool, device=weight.device)
    mask[:, : text_tokens - SUFFIX_TOKENS] = mask[:, TEXT_TOKENS - SUFFIX_TOKENS :] = True
    positions = Krea2Pipeline.prepare_position_ids(TEXT_TOKENS, grid, grid, weight.device)
    timestep = torch.full((images,), 0.7, **like)

    @torch.no_grad()
    def call() -> object:
        return transformer(latents, states, timestep, positions, mask, return_dict=False)

    return call


def running(mode: str) -> AbstractContextManager[object]:
    """Compiled blocks run as they are, or as if they had never been compiled."""
    return torch.compiler.set_stance("force_eager" if mode == "eager" else "default")


def compile_blocks(transformer: Krea2Transformer2DModel) -> None:
    """When they are first called: see `running`."""
    torch._dynamo.config.cache_size_limit = max(64, torch._dynamo.config.cache_size_limit)  # one entry a shape
    transformer.compile_repeated_blocks(dynamic=False)


def build_pipeline(weights: RandomWeights, dtype: torch.dtype) -> Krea2Pipeline:
    """The pipeline, whose prompts are ids, written in decimal with blanks between them."""
    config = weights.config
    return Krea2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            base_shift=config.schedule.base_shift,
            max_shift=config.schedule.max_shift,
            base_image_seq_len=config.schedule.base_image_seq_len,
            max_image_seq_len=config.schedule.max_image_seq_len,
            num_train_timesteps=config.schedule.num_train_timesteps,
        ),
        vae=_build_vae(weights, dtype),
        text_encoder=_build_text_encoder(weights, dtype),
        tokenizer=_IdsTokenizer(config),
        transformer=build_transformer(weights, dtype),
        text_encoder_select_layers=config.text_encoder_taps,
        is_distilled=config.is_distilled,
        patch_size=config.patch_size,
    )


def build_transformer(weights: RandomWeights, dtype: torch.dtype) -> Krea2Transformer2DModel:
    """The DiT with its text fusion. Norm weights are float32 whatever the dtype, as `from_pretrained` leaves them."""
    config = config_files(weights.config)["transformer/config.json"]
    with _defaults(weights.device, dtype):
        transformer = Krea2Transformer2DModel.from_config(config)
    _fill(transformer, weights, "transformer", dtype, float32=Krea2Transformer2DModel._keep_in_fp32_modules)
    return transformer


def _build_vae(weights: RandomWeights, dtype: torch.dtype) -> AutoencoderKLQwenImage:
    with _defaults(weights.device, dtype):
        module = AutoencoderKLQwenImage.from_config(config_files(weights.config)["vae/config.json"])
    _fill(module, weights, "vae", dtype)
    return module


def _build_text_encoder(weights: RandomWeights, dtype: torch.dtype) -> Qwen3VLModel:
    text = weights.config.text_encoder
    half = text.head_dim // 2
    rows = half * 5 // 16  # of the rotations; text gives all three axes the same position, so the split is of no matter
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": text.vocab_size,
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "num_hidden_layers": text.num_layers,
            "num_attention_heads": text.num_heads,
            "num_key_value_heads": text.num_kv_heads,
            "head_dim": text.head_dim,
            "rms_norm_eps": text.norm_eps,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": text.rope_theta,
                "mrope_section": [half - 2 * rows, rows, rows],
                "mrope_interleaved": True,
            },
        },
        vision_config={  # never run
            "depth": 1,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": text.hidden_size,
            "patch_size": 4,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
    )
    with _defaults(weights.device, dtype):
        module = Qwen3VLModel(config)
    _fill(module, weights, "text_encoder", dtype)
    return module


@contextmanager
def _defaults(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def _fill(
    module: nn.Module, weights: RandomWeights, component: str, dtype: torch.dtype, float32: list[str] | None = None
) -> None:
    kept = set(float32 or ())
    for name, parameter in module.named_parameters():
        tensor = weights.draw(component, name.removeprefix("language_model."), tuple(parameter.shape))
        parameter.data = tensor if kept & set(name.split(".")) else tensor.to(dtype)
    module.eval().requires_grad_(False)


class _IdsTokenizer:
    """Stands in for the tokenizer: there is none that random weights would understand."""

    def __init__(self, config: ModelConfig) -> None:
        ids = random_prompt(config, 0)
        self._prefix, self._suffix = ids[:PREFIX_TOKENS], ids[-SUFFIX_TOKENS:]

    def __call__(self, texts: list[str], max_length: int | None = None, **_: object) -> BatchEncoding:
        if texts[0] == SUFFIX:
            rows = [list(self._suffix) for _ in texts]
        else:
            rows = [[*self._prefix, *map(int, text.removeprefix(PREFIX).split())] for text in texts]
        length = max_length or len(self._suffix)
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
        return BatchEncoding({"input_ids": ids, "attention_mask": mask})
