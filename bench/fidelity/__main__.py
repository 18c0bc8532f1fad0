"""What each choice costs in exactness: precisions, attention backends and kernels, against float32.

    python -m bench.fidelity [--images 8] [--size real|tiny] [--layers 3] [--side 512] [--seconds N] [--json FILE]

On the demo checkpoint: relative error ‖a − b‖ / ‖b‖ of the final latents, and PSNR of the images, of several prompts
and seeds from prompt to pixels. On random blocks of the real model's shape (on a CPU the tiny one's, unless `--size`
says otherwise): relative error of the velocity at several sigmas, the mean over them and each. The reference computes
in float32 by plain PyTorch, from the same noise. Two lines say what is no choice: `float32` is the engine's float32,
and `bfloat16 timesteps` is that reference with the timesteps rounded as every bfloat16 run has them, after the model's
own references; the sigmas of the blocks are such that nothing is rounded.

fp8 is ranked by quantising one class of matrices at a time. Lines of files have the demo's transformer read from a file
in one of the formats that people download, its 8-bit matrices staying so. A kernel's line replaces it alone by plain
PyTorch; on a CPU, where kernels are plain PyTorch, and for a backend that does not run here, there is the reason in
place of a line.
"""

from __future__ import annotations

import argparse
import math
import queue
import statistics
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from bench.engines.denoising import final_latents
from bench.engines.real_size import RandomWeights, model_of_size
from bench.fidelity.plain import PLAIN, plain_kernels
from bench.kernels.checks import relative_error
from bench.kernels.rates import attention_backends
from bench.measure.arguments import duration, end_with, image_side, json_file, positive
from bench.measure.lost import LOST, DeviceLost, raise_if_lost
from bench.measure.output import print_table, publish, publish_left_out
from bench.measure.timing import Budget
from bench.survive import Attempts
from engine.checkpoint.checkpoint_files import CheckpointFiles
from engine.checkpoint.load import LoadOptions, load_weights
from engine.checkpoint.weight_format import BLOCK_MATRICES, in_blocks
from engine.config.chat_template import PREFIX, SUFFIX
from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from engine.config.engine_config import EngineConfig
from engine.config.model_config import ModelConfig
from engine.kernels.attention.backends import GatedAttentionKernel
from engine.kernels.fp8 import quantize_rows
from engine.kernels.rope import image_rotations
from engine.model.batch import Layout, Segment
from engine.model.transformer import TimeModulation, Transformer
from engine.parallel.group import LocalGroup
from engine.parallel.linear import ParallelMatrix
from engine.parallel.mesh import Mesh
from engine.rank.image_decoder import DecodedImage
from engine.rank.rank import Rank
from engine.step import Job

PROMPTS = (
    "a red circle on a blue background",
    "a small yellow star at the left on a black background",
    "a green heart above a white ring on a purple background",
    "a large orange diamond on a gray background",
)
SIGMAS = (1.0, 0.75, 0.5, 0.25)
TEXT_TOKENS = 64
# The formats of people's files that round weights.
FILES = {
    "fp8 (scaled)": ("native", "fp8"),
    "int8 ConvRot": ("native", "int8-convrot"),
    "mxfp8": ("native", "mxfp8"),
    "nvfp4": ("native", "nvfp4"),
    "GGUF Q8_0": ("gguf", "q8_0"),
    "GGUF Q5_0": ("gguf", "q5_0"),
    "GGUF Q4_0": ("gguf", "q4_0"),
}
BLOCKS = {"real": (3, 512), "tiny": (3, 256)}  # layers, and the image's side


@dataclass(frozen=True)
class Variant:
    """A way of computing. fp8: matrices that are quantised; plain: kernels that plain PyTorch replaces; file: layout
    and weights, as `krea2 convert` calls them, of the file that the demo's transformer is read from."""

    name: str
    dtype: str = "bfloat16"
    fp8: tuple[str, ...] = ()
    attention: str = "torch"
    plain: tuple[str, ...] = ()
    rounds_timesteps: bool = False
    file: tuple[str, str] | None = None


REFERENCE = Variant("reference", "float32", plain=tuple(PLAIN))


@dataclass(frozen=True)
class DemoErrors:
    """Against the reference, over all images: of final latents, and dB of the images (None: no pixel differs)."""

    variant: str
    images: int
    latents_error: float
    largest_latents_error: float
    psnr_db: float | None
    smallest_psnr_db: float | None


@dataclass(frozen=True)
class BlockErrors:
    """Against the reference: relative error of the velocity by sigma."""

    variant: str
    size: str
    layers: int
    tokens: int
    velocity_error: float
    by_sigma: dict[str, float]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.fidelity", description=(__doc__ or "").split("\n")[0])
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--images", type=positive, default=8, help="of the demo")
    parser.add_argument("--size", choices=sorted(BLOCKS), default="real" if on_gpu else "tiny")
    parser.add_argument("--layers", type=positive, help="of the random blocks")
    parser.add_argument("--side", type=image_side, help="of the image that they see")
    parser.add_argument("--seconds", type=duration, help="leave out what does not fit")
    parser.add_argument("--json", type=json_file, metavar="FILE", help="append the JSON lines to it")
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if on_gpu else "cpu")
    torch.backends.cudnn.allow_tf32 = False  # or float32 would not be
    budget = Budget(options.seconds)
    first_half = Budget(None if options.seconds is None else options.seconds / 2)
    tries = _Tries()
    left_out: list[str] = []
    status = 0
    try:
        for part, its_budget in ((_demo, first_half), (_blocks, budget)):
            with tries.telling(f"{part.__name__.strip('_')}, the reference"):
                left_out += part(options, device, its_budget, tries)
    except DeviceLost as error:
        status = LOST
        tries.failures.append(f"the GPU is lost, and whatever it would compute in this process: {error}")
    if left_out:
        print(f"left out, since the time was up: {', '.join(left_out)}")
    for failure in tries.failures:
        print(f"FAILED: {failure}")
    return status or int(bool(tries.failures))


class _Tries:
    """Compares one variant after the other, whatever happens to one of them."""

    def __init__(self) -> None:
        self.failures: list[str] = []
        self._attempts = Attempts()

    @contextmanager
    def telling(self, what: str) -> Iterator[None]:
        """Tell what fails in here, and go on after it. Raises `DeviceLost`."""
        try:
            yield
        except DeviceLost:
            raise
        except Exception as error:
            print(f"FAILED: {what}: {traceback.format_exc()}", flush=True)
            self.failures.append(what)
            raise_if_lost(error)

    def begin(self, what: str) -> bool:
        """Whether no earlier process began it."""
        return self._attempts.begin(what)


def _demo(options: argparse.Namespace, device: torch.device, budget: Budget, tries: _Tries) -> list[str]:
    """Returns what there was no time for. Raises `DeviceLost`."""
    model = ModelConfig.from_folder(DEMO_CHECKPOINT)
    variants, reasons = available_variants(device, model.transformer.head_dim)
    variants.append(Variant("bfloat16 timesteps alone", "float32", plain=REFERENCE.plain, rounds_timesteps=True))
    if find_spec("gguf") is None:
        reasons["files"] = "the package gguf is not there"
    else:
        variants += [Variant(f"file: {name}", file=file) for name, file in FILES.items()]
    try:
        jobs = demo_jobs(model, options.images)
    except ImportError as error:
        print_reasons({"demo checkpoint": str(error)})
        return []
    exact = make_images(REFERENCE, jobs, device)
    results, left_out = [], []
    for variant in variants:
        if budget.spent:
            left_out.append(f"demo: {variant.name}")
            continue
        what = f"demo, {variant.name}"
        with tries.telling(what):
            if tries.begin(what):
                results.append(compare_images(variant.name, make_images(variant, jobs, device), exact))
                publish("fidelity_demo", asdict(results[-1]), options.json)
    print_demo(results)
    print_reasons(reasons)
    publish_left_out(left_out, len(variants), options.json)
    return left_out


def _blocks(options: argparse.Namespace, device: torch.device, budget: Budget, tries: _Tries) -> list[str]:
    """Returns what there was no time for. Raises `DeviceLost`."""
    layers, side = BLOCKS[options.size]
    side = options.side or side
    model = model_of_size(options.size, options.layers or layers)
    variants, reasons = available_variants(device, model.transformer.head_dim)
    exact = velocities(REFERENCE, model, side, device)
    results, left_out = [], []
    for variant in variants:
        if budget.spent:
            left_out.append(f"blocks: {variant.name}")
            continue
        what = f"blocks, {variant.name}"
        with tries.telling(what):
            if tries.begin(what):
                ours = velocities(variant, model, side, device)
                results.append(_compare_blocks(variant.name, options.size, model, side, ours, exact))
                publish("fidelity_blocks", asdict(results[-1]), options.json)
    print_blocks(results, model)
    print_reasons(reasons)
    publish_left_out(left_out, len(variants), options.json)
    return left_out


def available_variants(device: torch.device, head_dim: int) -> tuple[list[Variant], dict[str, str]]:
    """What can be compared here, most important first, and why the rest cannot."""
    bfloat16 = Variant("bfloat16")
    variants = [bfloat16, Variant("fp8", fp8=BLOCK_MATRICES)]
    variants += [Variant(f"fp8 of {matrix} alone", fp8=(matrix,)) for matrix in BLOCK_MATRICES]
    reasons = {}
    for backend, reason in attention_backends(head_dim, device).items():
        if reason is not None:
            reasons[f"attention {backend}"] = reason
        elif backend != bfloat16.attention:
            variants.append(replace(bfloat16, name=f"attention {backend}", attention=backend))
    if device.type == "cuda":
        variants += [replace(bfloat16, name=f"plain {kernel}", plain=(kernel,)) for kernel in PLAIN]
        variants.append(Variant("float32", "float32"))
    else:
        reasons["plain kernels"] = "on a CPU all kernels are plain PyTorch"
    return variants, reasons


# ---- the demo


def demo_jobs(model: ModelConfig, images: int) -> list[Job]:
    """Raises `ImportError` without tokenizers, which transformers brings along."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(DEMO_CHECKPOINT / "tokenizer" / "tokenizer.json"))

    def ids(prompt: str) -> tuple[int, ...]:
        return (*tokenizer.encode(PREFIX + prompt).ids, *tokenizer.encode(SUFFIX).ids)

    return [
        Job(
            job_id=image,
            prompt_ids=ids(PROMPTS[image % len(PROMPTS)]),
            negative_ids=None,
            width=model.default_width,
            height=model.default_height,
            steps=model.default_steps,
            guidance=0.0,
            mu=None,
            seed=image,
        )
        for image in range(images)
    ]


def make_images(variant: Variant, jobs: Sequence[Job], device: torch.device) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Final latents and pixels of each job."""
    images: queue.SimpleQueue[DecodedImage] = queue.SimpleQueue()
    config = EngineConfig(device=device.type, dtype=variant.dtype, attention=variant.attention, cuda_graphs=False)
    with plain_kernels(variant.plain), _demo_file(variant.file) as transformer:
        config = replace(config, model="demo", transformer=transformer)
        rank = Rank(config, Mesh(), device, images.put)
        for matrix in variant.fp8:
            quantize(rank.transformer, matrix)
        if variant.rounds_timesteps:
            round_timesteps(rank.transformer)
        latents = final_latents(rank, jobs, decode=True)
        rank.close()
    decoded = {image.job_id: image for image in (images.get() for _ in jobs)}
    pixels = [torch.frombuffer(bytearray(decoded[job.job_id].rgb), dtype=torch.uint8) for job in jobs]
    return list(zip(latents, pixels, strict=True))


@contextmanager
def _demo_file(file: tuple[str, str] | None) -> Iterator[str | None]:
    """The demo's transformer in a file of this layout and these weights, while this is open."""
    if file is None:
        yield None
        return
    from engine.checkpoint.convert.convert import convert  # which needs gguf

    with TemporaryDirectory() as folder:
        path = Path(folder, "transformer")
        checkpoint = CheckpointFiles.open(EngineConfig())
        convert(checkpoint, path, layout=file[0], weights=file[1])
        checkpoint.close()
        yield str(path)


def compare_images(
    name: str,
    ours: Sequence[tuple[torch.Tensor, torch.Tensor]],
    exact: Sequence[tuple[torch.Tensor, torch.Tensor]],
) -> DemoErrors:
    errors = [relative_error(a, b) for (a, _), (b, _) in zip(ours, exact, strict=True)]
    squares = [(a.double() - b.double()).square().mean().item() for (_, a), (_, b) in zip(ours, exact, strict=True)]
    return DemoErrors(
        name, len(errors), statistics.mean(errors), max(errors), _psnr(statistics.mean(squares)), _psnr(max(squares))
    )


def quantize(transformer: nn.Module, matrix: str) -> None:
    """What the loader does to one of `BLOCK_MATRICES`, in every block of a model that is loaded already."""
    for name, module in transformer.named_modules():
        if isinstance(module, ParallelMatrix) and in_blocks(f"{name}.weight") and name.endswith(f".{matrix}"):
            rows = quantize_rows(module.weight)
            module.weight = nn.Parameter(rows.values, requires_grad=False)
            module.hold_eight_bit(rows.scales, fp8_product=True)


def round_timesteps(transformer: Transformer) -> None:
    """As a model in bfloat16 has them."""
    encode = transformer.encode_timesteps
    transformer.encode_timesteps = lambda timesteps: encode(timesteps.bfloat16().float())  # type: ignore[method-assign]


def _psnr(mean_square: float) -> float | None:
    return 10 * math.log10(255**2 / mean_square) if mean_square else None


# ---- random blocks


def velocities(variant: Variant, model: ModelConfig, side: int, device: torch.device) -> list[torch.Tensor]:
    """Of one random image at each of `SIGMAS`, on the host. The same weights and inputs for every variant."""
    dit = model.transformer
    dtype = torch.float32 if variant.dtype == "float32" else torch.bfloat16
    with torch.device("meta"):
        transformer = Transformer(dit, LocalGroup(), GatedAttentionKernel(variant.attention), GatedAttentionKernel())
    weights = RandomWeights(model, device)
    load_weights(transformer, weights, "transformer", rank=0, size=1, options=LoadOptions(device, dtype))
    for matrix in variant.fp8:
        quantize(transformer, matrix)

    generator = torch.Generator(device).manual_seed(0)
    grid = side // model.size_multiple
    segment = Segment(0, TEXT_TOKENS, grid, grid)
    layout = Layout([segment], [image_rotations(grid, grid, dit.axes_dims_rope, dit.rope_theta).to(device)])
    text = torch.randn((TEXT_TOKENS, dit.hidden_size), generator=generator, device=device).to(dtype)
    result = []
    with torch.inference_mode(), plain_kernels(variant.plain):
        modulation = transformer.encode_timesteps(torch.tensor(SIGMAS, device=device))
        for step in range(len(SIGMAS)):
            latents = torch.randn((segment.image_tokens, dit.in_channels), generator=generator, device=device)
            now = TimeModulation(modulation.block[step, None], modulation.final[step, None])
            result.append(transformer([text], [latents], now, layout).cpu())
    return result


def _compare_blocks(
    name: str,
    size: str,
    model: ModelConfig,
    side: int,
    ours: Sequence[torch.Tensor],
    exact: Sequence[torch.Tensor],
) -> BlockErrors:
    errors = [relative_error(a, b) for a, b in zip(ours, exact, strict=True)]
    by_sigma = dict(zip(map(str, SIGMAS), errors, strict=True))
    tokens = TEXT_TOKENS + model.image_tokens(side, side)
    return BlockErrors(name, size, model.transformer.num_layers, tokens, statistics.mean(errors), by_sigma)


# ---- tables


def print_demo(results: Sequence[DemoErrors]) -> None:
    def decibels(value: float | None) -> str:
        return "equal" if value is None else f"{value:.1f}"

    print_table(
        ("demo checkpoint", "images", "latents", "worst", "PSNR dB", "worst"),
        [
            (
                one.variant,
                str(one.images),
                f"{one.latents_error:.2e}",
                f"{one.largest_latents_error:.2e}",
                decibels(one.psnr_db),
                decibels(one.smallest_psnr_db),
            )
            for one in results
        ],
    )


def print_blocks(results: Sequence[BlockErrors], model: ModelConfig) -> None:
    if not results:
        return
    dit = model.transformer
    print(
        f"\n{dit.num_layers} random blocks of width {dit.hidden_size} with {dit.num_heads}/{dit.num_kv_heads} heads, "
        f"{results[0].tokens} tokens: relative error of the velocity"
    )
    print_table(
        ("blocks", "mean", *(f"σ = {sigma}" for sigma in SIGMAS)),
        [
            (one.variant, f"{one.velocity_error:.2e}", *(f"{error:.2e}" for error in one.by_sigma.values()))
            for one in results
        ],
    )


def print_reasons(reasons: dict[str, str]) -> None:
    for name, reason in reasons.items():
        print(f"{name}: left out, {reason}")


if __name__ == "__main__":
    end_with(main)
