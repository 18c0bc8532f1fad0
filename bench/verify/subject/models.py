"""What is verified: checkpoints that both diffusers and the engine can load, and the images to make of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.verify.subject.paths import check_folder, check_formats
from engine.checkpoint.checkpoint_files import CheckpointFiles
from engine.config.demo_checkpoints import DEMO_CHECKPOINTS
from engine.config.engine_config import EngineConfig
from engine.config.model_config import ModelConfig
from engine.step import Job
from launcher.hub.models import find_model
from launcher.requests.tokenizer import PromptTokenizer

BYTES = {"float32": 4, "bfloat16": 2}
IMAGES_IN_BFLOAT16 = 16  # over which the design states bfloat16's tolerance
# Of words that the demo knows too; each size has the next.
PROMPTS = (
    "a red circle on a blue background",
    "a small yellow star left of a purple heart on a white background",
    "two large green squares above a white ring on a black background",
)
NEGATIVE_PROMPTS = ("", "a black cross", "")
_LARGE = 512  # pixels; from this default size on, as that of the published models


@dataclass(frozen=True)
class Model:
    """A checkpoint. name: what it is called in a report, without the folder's path. disk_bytes: of each component's
    files; parameters: that inference needs of each component."""

    name: str
    folder: Path
    config: ModelConfig
    disk_bytes: dict[str, int]
    parameters: dict[str, int]
    formats: tuple[str, ...]

    @property
    def variant(self) -> str:
        return "Turbo" if self.config.is_distilled else "Raw"

    def engine_bytes(self, dtype: str) -> int:
        """Of the engine's weights on one rank, all at once."""
        return sum(self.parameters.values()) * BYTES[dtype]

    def diffusers_bytes(self, dtype: str) -> dict[str, int]:
        """Of the two parts that diffusers loads one after the other. Its text encoder has layers and a vision tower
        that are never run, so it is counted by its files, as bfloat16 ones."""
        both = self.parameters["transformer"] + self.parameters["vae"]
        return {
            "text encoder": self.disk_bytes["text_encoder"] // 2 * BYTES[dtype],
            "transformer and VAE": both * BYTES[dtype],
        }


@dataclass(frozen=True)
class Request:
    """One image, as both sides are asked for it."""

    prompt: str
    negative_prompt: str
    width: int
    height: int
    steps: int
    guidance: float
    seed: int

    @property
    def name(self) -> str:
        guided = f", guidance {self.guidance:g}" if self.guidance > 0 else ""
        return f"{self.width}×{self.height}{guided}, seed {self.seed}"


def find_models(names: Sequence[str]) -> list[Model]:
    """All that the names stand for; `demo` is both of the demo's checkpoints. Raises `ArgumentError` and
    `CheckpointError` for what the engine or diffusers cannot load."""
    expanded = [each for name in names for each in (("demo-turbo", "demo-raw") if name == "demo" else (name,))]
    return [_find(name) for name in dict.fromkeys(expanded)]


def _find(name: str) -> Model:
    found = find_model(name)
    assert found is not None
    folder = DEMO_CHECKPOINTS.get(found, Path(found))
    shown = name if found != name or name in DEMO_CHECKPOINTS else folder.resolve().name
    check_folder(folder, name)
    checkpoint = CheckpointFiles.open(EngineConfig(model=str(folder)))
    try:
        tensors = [
            checkpoint.stored(component, source) for component, all_ in checkpoint.sources.items() for source in all_
        ]
        formats = tuple(sorted({tensor.format for tensor in tensors}))
        check_formats(formats, name)
        return Model(
            shown,
            folder,
            checkpoint.config,
            {part: _size(folder / part) for part in checkpoint.components},
            dict(checkpoint.parameters),
            formats,
        )
    finally:
        checkpoint.close()


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def default_sizes(config: ModelConfig) -> list[tuple[int, int]]:
    """A square and two that are not, as wide and high."""
    side = min(_LARGE, config.default_width)
    half, multiple = side // 2, config.size_multiple
    return [(side, side), (_rounded(side * 5 // 4, multiple), _rounded(side * 3 // 4, multiple)), (half, side)]


def _rounded(side: int, multiple: int) -> int:
    return max(multiple, side // multiple * multiple)


def requests_for(
    model: Model, dtype: str, sizes: Sequence[tuple[int, int]], *, steps: int, images: int | None
) -> list[Request]:
    """One image of each size, in bfloat16 `IMAGES_IN_BFLOAT16` in all, or as many as are asked for. The undistilled
    model's are guided."""
    count = images or (IMAGES_IN_BFLOAT16 if dtype == "bfloat16" else len(sizes))
    return [
        Request(
            prompt=PROMPTS[index % len(PROMPTS)],
            negative_prompt=NEGATIVE_PROMPTS[index % len(NEGATIVE_PROMPTS)],
            width=sizes[index % len(sizes)][0],
            height=sizes[index % len(sizes)][1],
            steps=steps,
            guidance=0.0 if model.config.is_distilled else model.config.default_guidance or 3.5,
            seed=index,
        )
        for index in range(count)
    ]


def traced_request(requests: Sequence[Request]) -> Request:
    """The one whose stages are compared: the first that is not square, if there is one."""
    return next((request for request in requests if request.width != request.height), requests[0])


def jobs_for(model: Model, requests: Sequence[Request]) -> list[Job]:
    """As the front-end makes them."""
    tokenizer = PromptTokenizer(model.folder, model.config.text_encoder.vocab_size)
    return [
        Job(
            job_id=index,
            prompt_ids=tokenizer.encode(request.prompt).ids,
            negative_ids=tokenizer.encode(request.negative_prompt).ids if request.guidance > 0 else None,
            width=request.width,
            height=request.height,
            steps=request.steps,
            guidance=request.guidance,
            mu=None,
            seed=request.seed,
        )
        for index, request in enumerate(requests)
    ]


def describe_shapes(config: ModelConfig) -> str:
    """In one line."""
    dit, text = config.transformer, config.text_encoder
    return (
        f"{dit.num_layers} blocks of width {dit.hidden_size}, {dit.num_heads}/{dit.num_kv_heads} heads of "
        f"{dit.head_dim}, SwiGLU {dit.intermediate_size}; text encoder {text.num_layers} layers of width "
        f"{text.hidden_size}, taps {', '.join(map(str, config.text_encoder_taps))}; VAE base {config.vae.base_dim}"
    )


def operations(model: Model, requests: Sequence[Request]) -> float:
    """That diffusers' transformer, whose texts are filled up to 512 tokens, takes for them; the engine takes fewer."""
    tokens = [
        (model.config.image_tokens(one.width, one.height) + 512) * one.steps * (1 + (one.guidance > 0))
        for one in requests
    ]
    return 2.0 * model.parameters["transformer"] * sum(tokens)


def describe_loading(model: Model, dtypes: Sequence[str], device: str) -> str:
    """What will be loaded, for people, before anything is."""
    lines = [f"{model.name} ({model.variant}) on {device}; one after the other, each released before the next:"]
    for dtype in dict.fromkeys(("float32", *dtypes) if "bfloat16" in dtypes else dtypes):
        parts = ", then ".join(f"{part} {size / 1e9:.3g} GB" for part, size in model.diffusers_bytes(dtype).items())
        lines.append(f"  diffusers in {dtype}: {parts}, in host memory first")
    lines += [f"  the engine in {dtype}: {model.engine_bytes(dtype) / 1e9:.3g} GB" for dtype in dtypes]
    return "\n".join(lines)
