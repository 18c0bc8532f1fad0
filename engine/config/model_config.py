"""Puts together and checks what a checkpoint is, from the configs of its components.

Imports no torch: the front-end and `krea2 info` need these numbers without waiting for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from engine.config.components import (
    ScheduleConfig,
    TextEncoderConfig,
    TransformerConfig,
    VAEConfig,
    read_schedule,
    read_text_encoder,
    read_transformer,
    read_vae,
)
from engine.config.degrees import MOST_RANKS, PARALLEL_DEGREES, Degrees
from engine.config.json_fields import JsonFields
from engine.config.prompt_domain import PromptDomain, read_prompt_domain
from engine.config.size_domain import SizeDomain, read_size_domain
from engine.errors import ArgumentError, CheckpointError

MOST_STEPS, MOST_GUIDANCE = 200, 20.0
PIPELINE_CLASS = "Krea2Pipeline"
DEFAULT_TAPS = (2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32, 35)


@dataclass(frozen=True)
class ModelConfig:
    """A whole checkpoint: what its components' configs and its model_index.json say, one field a fact, so 15.

    text_encoder_taps: the layers whose outputs the transformer takes, 0 being the embeddings. patch_size: latent pixels
    along a side of a token. is_distilled: Turbo, not Raw. variant_said_by: who says so, for people, None if it is
    assumed; variant_note: on whoever says otherwise. default_width, default_height: pixels. stated_steps,
    stated_guidance: the checkpoint's own defaults, None where those of Turbo or Raw hold. prompt_domain, size_domain:
    None if it draws any prompt, or of any size.
    """

    transformer: TransformerConfig
    text_encoder: TextEncoderConfig
    vae: VAEConfig
    schedule: ScheduleConfig
    text_encoder_taps: tuple[int, ...]
    patch_size: int
    is_distilled: bool
    default_width: int
    default_height: int
    stated_steps: int | None = None
    stated_guidance: float | None = None
    prompt_domain: PromptDomain | None = None
    size_domain: SizeDomain | None = None
    variant_said_by: str | None = field(default=None, compare=False)
    variant_note: str | None = field(default=None, compare=False)

    @property
    def variant_is_assumed(self) -> bool:
        return self.variant_said_by is None

    @property
    def default_steps(self) -> int:
        return self.stated_steps if self.stated_steps is not None else 8 if self.is_distilled else 52

    @property
    def default_guidance(self) -> float:
        return self.stated_guidance if self.stated_guidance is not None else 0.0 if self.is_distilled else 3.5

    @property
    def size_multiple(self) -> int:
        """Image pixels along one side of a token: sizes are rounded up to a multiple of it."""
        return self.vae.scale_factor * self.patch_size

    @property
    def text_layers(self) -> int:
        """Layers of the text encoder that are needed: none above the last tap."""
        return max(self.text_encoder_taps)

    def image_tokens(self, width: int, height: int) -> int:
        """Count the tokens of an image; width and height in pixels."""
        return (width // self.size_multiple) * (height // self.size_multiple)

    def divides_guidance(self, degrees: Degrees) -> bool:
        """Whether images are guided by default, and two groups of ranks compute a half each."""
        return degrees.cfg > 1 and self.default_guidance > 0

    def possible_tp(self) -> list[int]:
        """List the tensor parallel degrees that divide everything that is split."""
        sizes = self._split_sizes().values()
        return [tp for tp in PARALLEL_DEGREES if all(size % tp == 0 for size in sizes)]

    def possible_sp(self, tp: int) -> list[int]:
        """List the sequence parallel degrees beside tp: attention splits a tensor parallel rank's heads once more."""
        fitting = (sp for sp in PARALLEL_DEGREES if tp * sp <= MOST_RANKS)
        return [sp for sp in fitting if not self.transformer.undivided_heads(tp * sp)]

    def check_parallel(self, tp: int, sp: int = 1) -> None:
        """Raise `ArgumentError` naming what does not divide and the degrees that would work."""
        for name, size in self._split_sizes().items():
            if size % tp:
                raise ArgumentError(
                    f"tp {tp} is not possible for this checkpoint: {name} is {size}, which {tp} does not divide; "
                    f"possible: {', '.join(map(str, self.possible_tp()))}",
                    parameter="tp",
                )
        for name, heads in self.transformer.undivided_heads(tp * sp):
            raise ArgumentError(
                f"sp {sp} is not possible for this checkpoint with tp {tp}: {name} of the transformer is {heads}, "
                f"which {tp * sp} does not divide; possible: {', '.join(map(str, self.possible_sp(tp)))}",
                parameter="sp",
            )

    def _split_sizes(self) -> dict[str, int]:
        """What tensor parallel ranks split, by its name for people."""
        dit, text = self.transformer, self.text_encoder
        return {
            "num_attention_heads of the transformer": dit.num_heads,
            "num_key_value_heads of the transformer": dit.num_kv_heads,
            "intermediate_size of the transformer": dit.intermediate_size,
            "text_num_attention_heads of the transformer": dit.text_num_heads,
            "text_num_key_value_heads of the transformer": dit.text_num_kv_heads,
            "text_intermediate_size of the transformer": dit.text_intermediate_size,
            "num_attention_heads of the text encoder": text.num_heads,
            "num_key_value_heads of the text encoder": text.num_kv_heads,
            "intermediate_size of the text encoder": text.intermediate_size,
        }

    @classmethod
    def from_folder(cls, folder: Path) -> ModelConfig:
        """Read the json files of a folder in the diffusers layout. Raises `CheckpointError` as `build` does."""
        index = JsonFields.read(folder / "model_index.json")
        schedule = JsonFields.read(folder / "scheduler" / "scheduler_config.json")
        names = ("transformer", "text_encoder", "vae")
        configs = {name: JsonFields.read(folder / name / "config.json") for name in names}
        stated = index.boolean("is_distilled", default=None)
        if stated is None:
            stated = configs["transformer"].boolean("is_distilled", default=None)
        said_by = None if stated is None else index.file.name
        return cls.build(index, configs, schedule, is_distilled=stated is not False, said_by=said_by)

    @classmethod
    def build(
        cls,
        index: JsonFields,
        configs: Mapping[str, JsonFields],
        schedule: JsonFields,
        *,
        is_distilled: bool,
        said_by: str | None,
        note: str | None = None,
    ) -> ModelConfig:
        """Put together model_index.json, the components' configs by their names, and the scheduler's.

        is_distilled, said_by, note: whether it is Turbo, as in the class. Raises `CheckpointError` for a config that is
        wrong or does not fit the others, naming the file, the key, what was expected and what was found.
        """
        index.expect("_class_name", PIPELINE_CLASS)
        transformer = read_transformer(configs["transformer"])
        text_encoder, vae = read_text_encoder(configs["text_encoder"]), read_vae(configs["vae"])
        patch_size = index.integer("patch_size", default=2, most=16)
        taps = index.integers("text_encoder_select_layers", default=DEFAULT_TAPS, least=0)

        if transformer.in_channels != vae.z_dim * patch_size**2:
            expected = f"{vae.z_dim} latent channels × {patch_size}² patch pixels"
            raise configs["transformer"].error("in_channels", expected, transformer.in_channels)
        if transformer.text_hidden_size != text_encoder.hidden_size:
            expected = f"the text encoder's {text_encoder.hidden_size}"
            raise configs["transformer"].error("text_hidden_dim", expected, transformer.text_hidden_size)
        if len(taps) != transformer.num_text_layers:
            if not index.has("text_encoder_select_layers"):
                raise _no_taps(index, transformer.num_text_layers)
            expected = f"{transformer.num_text_layers} layers, as num_text_layers says"
            raise index.error("text_encoder_select_layers", expected, taps)
        if max(taps) > text_encoder.num_layers:
            if not index.has("text_encoder_select_layers"):
                raise _no_taps(index, transformer.num_text_layers)
            raise index.error("text_encoder_select_layers", f"layers 0 to {text_encoder.num_layers}", taps)

        multiple = vae.scale_factor * patch_size
        stated_steps, stated_guidance = _read_defaults(index, is_distilled)
        width, height = (
            index.integer(f"default_{side}", default=1024, multiple_of=multiple) for side in ("width", "height")
        )
        return cls(
            transformer=transformer,
            text_encoder=text_encoder,
            vae=vae,
            schedule=read_schedule(schedule),
            text_encoder_taps=taps,
            patch_size=patch_size,
            is_distilled=is_distilled,
            default_width=width,
            default_height=height,
            stated_steps=stated_steps,
            stated_guidance=stated_guidance,
            prompt_domain=read_prompt_domain(index),
            size_domain=read_size_domain(index, width, height),
            variant_said_by=said_by,
            variant_note=note,
        )


def _no_taps(index: JsonFields, layers: int) -> CheckpointError:
    """The error of a model that is not of the published one's size, and of which nothing says more."""
    return CheckpointError.of(
        index.file,
        f"takes what {layers} layers of the text encoder say, and no model_index.json tells which these are; give as "
        "model the checkpoint that it was made from (demo for a demo's), and this file as transformer",
    )


def _read_defaults(index: JsonFields, is_distilled: bool) -> tuple[int | None, float | None]:
    """Read the steps and the guidance that model_index.json states. Where it is of Raw and this is Turbo, as an option
    or another transformer says, or the other way round, they do not hold."""
    steps = index.integer("default_steps", most=MOST_STEPS) if index.has("default_steps") else None
    guidance = index.number("default_guidance") if index.has("default_guidance") else None
    if guidance is not None and not 0 <= guidance <= MOST_GUIDANCE:
        raise index.error("default_guidance", f"a number from 0 to {MOST_GUIDANCE:g}", guidance)
    if index.boolean("is_distilled", default=None) not in (None, is_distilled):
        return None, None
    return steps, guidance
