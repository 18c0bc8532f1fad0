"""The engine against diffusers' `Krea2Pipeline`: the same prompt, seed and weights, in turn, in one process.

    python -m bench.vs_diffusers [--sizes 256,512,1024] [--steps 8] [--repeats N] [--profile]

The checkpoint is random, in Krea 2's proportions at width 512 (see `SPEC`), float32, on the CPU, one rank. diffusers
pads every prompt to 512 tokens and runs text fusion in every step; the engine does neither. Final latents are compared
in every repeat. The two sides take turns (A B A B …) and the median of each counts. Every repeat has a prompt and a
seed of its own, so the engine's cache of text features does not help it; what depends only on size and step count
(RoPE tables, the modulation of a schedule) is kept from the first, uncounted repeat, as it would be in a server.
"""

from __future__ import annotations

import argparse
import queue
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import Krea2Pipeline
from torch.profiler import ProfilerActivity, profile

from bench.engines.checkpoints import CheckpointSpec, build_checkpoint
from bench.measure.output import print_json, print_table
from engine.config.chat_template import PREFIX_TOKENS
from engine.config.engine_config import EngineConfig
from engine.parallel.mesh import Mesh
from engine.rank.image_decoder import DecodedImage
from engine.rank.rank import Rank
from engine.step import Job, Step
from launcher.requests.tokenizer import PromptTokenizer

# Krea 2 has width 6144 = 48 · 128 with 12 key/value heads and SwiGLU 8/3 as wide; text width 2560 with 12 taps of a
# text encoder of 36 layers, 32 heads, 8 kv heads; a VAE of base 96. Here everything is a twelfth as wide, rounded to
# what divides (so the same ratios of heads), with 8 of the 28 and 12 of the 36 layers:
SPEC = CheckpointSpec(
    layers=8,
    heads=8,
    kv_heads=2,
    head_dim=64,
    axes=(16, 24, 24),
    intermediate=1408,
    timestep_dim=256,
    text_width=256,
    fusion_heads=4,
    fusion_kv_heads=4,
    fusion_intermediate=704,
    encoder_layers=12,
    encoder_heads=8,
    encoder_kv_heads=2,
    encoder_head_dim=64,
    encoder_intermediate=1024,
    mrope_section=(12, 10, 10),
    taps=tuple(range(12)),
    vae_base=8,
    vae_mult=(1, 2, 4, 4),
    vae_res_blocks=2,
)
PROMPT = "a fox in the snow, oil on canvas, {} {}"
TARGETS = {256: 4.0, 512: 1.7, 1024: 1.2}
TOLERANCE = 1e-4
DEADLINE_S = 600.0


@dataclass(frozen=True)
class Timed:
    """Seconds from the prompt to the final latents and to the pixels; the engine also says what its stages took."""

    latents_s: float
    total_s: float
    latents: torch.Tensor
    encode_s: float = 0.0
    denoise_s: float = 0.0
    decode_s: float = 0.0


class Peer:
    """diffusers, as its documentation uses it."""

    def __init__(self, folder: Path) -> None:
        self.pipeline = Krea2Pipeline.from_pretrained(folder)
        self.pipeline.set_progress_bar_config(disable=True)

    def run(self, prompt: str, size: int, steps: int, seed: int) -> Timed:
        latents = torch.empty(0)
        latents_at = began = time.perf_counter()

        def look(_pipeline: object, _step: int, _time: object, tensors: dict[str, torch.Tensor]) -> dict[str, object]:
            nonlocal latents, latents_at
            latents, latents_at = tensors["latents"][0], time.perf_counter()
            return {}

        self.pipeline(
            prompt,
            width=size,
            height=size,
            num_inference_steps=steps,
            guidance_scale=0.0,
            generator=torch.Generator("cpu").manual_seed(seed),
            callback_on_step_end=look,
        )
        return Timed(latents_at - began, time.perf_counter() - began, latents)


class Ours:
    """One rank of the engine, driven as the front-end drives it."""

    def __init__(self, folder: Path) -> None:
        self.images: queue.Queue[DecodedImage] = queue.Queue()
        config = EngineConfig(model=str(folder), device="cpu")
        self.rank = Rank(config, Mesh(), torch.device("cpu"), self.images.put)
        self.tokenizer = PromptTokenizer(folder, self.rank.model.config.text_encoder.vocab_size)
        self.number = 0

    def run(self, prompt: str, size: int, steps: int, seed: int) -> Timed:
        began = time.perf_counter()
        job = Job(0, self.tokenizer.encode(prompt).ids, None, size, size, steps, 0.0, None, seed)
        times = [self._execute(start=(job,), denoise=(0,))]
        times += [self._execute(denoise=(0,)) for _ in range(steps - 1)]
        latents, latents_at = self.rank.jobs[0].latents, time.perf_counter()
        self._execute(decode=(0,))
        decode_s = self.images.get(timeout=DEADLINE_S).decode_s
        ended = time.perf_counter()
        encode_s, denoise_s = sum(t[0] for t in times), sum(t[1] for t in times)
        return Timed(latents_at - began, ended - began, latents, encode_s, denoise_s, decode_s)

    def _execute(
        self, start: tuple[Job, ...] = (), denoise: tuple[int, ...] = (), decode: tuple[int, ...] = ()
    ) -> tuple[float, float]:
        times = self.rank.execute(Step(self.number, start=start, denoise=denoise, decode=decode)).wait()
        self.number += 1
        return times.encode_s, times.denoise_s


@dataclass(frozen=True)
class Result:
    """Medians in seconds at one size. `error` is the largest of the final latents, as the design's tolerances. One
    field for each value of the JSON line."""

    size: int
    steps: int
    repeats: int
    text_tokens: int  # of the engine's segments: prompt and suffix; diffusers always has 512
    diffusers_s: float
    engine_s: float
    ratio: float
    target: float | None
    diffusers_with_vae_s: float
    engine_with_vae_s: float
    ratio_with_vae: float
    error: float
    engine_stages_s: dict[str, float]
    engine_profile: dict[str, float]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.vs_diffusers", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sizes", default="256,512,1024", help="sides of the square images, comma-separated")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, help="counted repeats a size (default: 7, from 1024 on 3)")
    parser.add_argument("--profile", action="store_true", help="also say which operators the engine's time goes to")
    arguments = parser.parse_args()

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="krea2-bench-") as name:
        folder = build_checkpoint(Path(name), SPEC)
        peer, ours = Peer(folder), Ours(folder)
        results = []
        for size in map(int, arguments.sizes.split(",")):
            repeats = arguments.repeats or (3 if size >= 1024 else 7)
            results.append(compare(peer, ours, size, arguments.steps, repeats, with_profile=arguments.profile))
        ours.rank.close()
    report(results)
    return 0 if all(result.error <= TOLERANCE for result in results) else 1


def compare(peer: Peer, ours: Ours, size: int, steps: int, repeats: int, *, with_profile: bool) -> Result:
    """Medians of both sides at one size, after one uncounted repeat."""
    theirs_runs, our_runs, errors = [], [], []
    for repeat in range(repeats + 1):
        prompt = PROMPT.format(size, repeat)
        theirs = peer.run(prompt, size, steps, seed=repeat)
        mine = ours.run(prompt, size, steps, seed=repeat)
        scale = max(1.0, theirs.latents.abs().max().item())
        errors.append((mine.latents - theirs.latents).abs().max().item() / scale)
        if repeat:
            theirs_runs.append(theirs)
            our_runs.append(mine)
        times = f"diffusers {theirs.latents_s:.2f} s, engine {mine.latents_s:.2f} s"
        print(f"{size}², repeat {repeat} of {repeats}: {times}", file=sys.stderr)

    def median(runs: list[Timed], field: str) -> float:
        return statistics.median(getattr(run, field) for run in runs)

    return Result(
        size=size,
        steps=steps,
        repeats=repeats,
        text_tokens=len(ours.tokenizer.encode(PROMPT.format(size, repeats)).ids) - PREFIX_TOKENS,
        diffusers_s=median(theirs_runs, "latents_s"),
        engine_s=median(our_runs, "latents_s"),
        ratio=median(theirs_runs, "latents_s") / median(our_runs, "latents_s"),
        target=TARGETS.get(size) if steps == 8 else None,
        diffusers_with_vae_s=median(theirs_runs, "total_s"),
        engine_with_vae_s=median(our_runs, "total_s"),
        ratio_with_vae=median(theirs_runs, "total_s") / median(our_runs, "total_s"),
        error=max(errors),
        engine_stages_s={stage: median(our_runs, f"{stage}_s") for stage in ("encode", "denoise", "decode")},
        engine_profile=profile_shares(ours, size, steps) if with_profile else {},
    )


def profile_shares(ours: Ours, size: int, steps: int) -> dict[str, float]:
    """Which share of the operators' own time from prompt to pixels goes where; the named ones are the largest."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        ours.run(PROMPT.format(size, "a"), size, steps, seed=0)
    seconds: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        if event.key.startswith("aten::"):
            seconds[_category(event.key)] += event.self_cpu_time_total / 1e6
    total = sum(seconds.values())
    largest = sorted(seconds.items(), key=lambda item: -item[1])[:10]
    return {name: round(value / total, 4) for name, value in largest}


def _category(operator: str) -> str:
    if operator in ("aten::mm", "aten::addmm", "aten::bmm"):
        return "matrix products"
    if "attention" in operator:
        return "attention"
    if "conv" in operator:
        return "convolutions"
    return operator.removeprefix("aten::")


def report(results: list[Result]) -> None:
    print_table(
        ("size", "diffusers", "engine", "ratio", "target", "with VAE", "error", "text", "denoise", "VAE"),
        [
            (
                f"{result.size}²",
                f"{result.diffusers_s:.2f} s",
                f"{result.engine_s:.2f} s",
                f"{result.ratio:.2f}×",
                f"{result.target}×" if result.target else "",
                f"{result.ratio_with_vae:.2f}×",
                f"{result.error:.0e}",
                *(f"{seconds:.3f} s" for seconds in result.engine_stages_s.values()),
            )
            for result in results
        ],
    )
    for result in results:
        if result.engine_profile:
            shares = ", ".join(f"{name} {share:.0%}" for name, share in result.engine_profile.items() if share > 0.005)
            print(f"{result.size}²: {shares}")
    for result in results:
        print_json("vs_diffusers", asdict(result))


if __name__ == "__main__":
    sys.exit(main())
