"""What a rank is told to do: jobs and numbered steps. Plain data, the same to every rank; imports plain data alone.

A request for several images is several jobs; a job is one image. The front-end decides which jobs step together, a
rank only executes. Every rank gets the same `Step`s in the same order, so their collectives always match.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.step_cache.settings import StepCache
from engine.step_cache.step_plan import WHOLE


@dataclass(frozen=True)
class Adapter:
    """A LoRA, LoHa or LoKr file, which jobs may name by its id once loaded. lenient: skip tensors that fit no layer."""

    adapter_id: int
    path: str
    lenient: bool = False


@dataclass(frozen=True)
class Picture:
    """A picture that jobs begin from, of their size in pixels. masked: parts of it stay.

    Its pixels go to rank 0 beside the step that encodes it: see `engine.pictures.pixels`.
    """

    picture_id: int
    width: int
    height: int
    masked: bool = False

    @property
    def pixels(self) -> int:
        """Count them."""
        return self.width * self.height


@dataclass(frozen=True)
class Job:
    """One image to make. Sizes are already rounded and within limits.

    prompt_ids and negative_ids are whole token sequences (prefix + prompt + suffix); negative_ids is None when
    guidance is 0, so that an unused negative prompt is never encoded. `mu`: the noise schedule's shift,
    None by the checkpoint's rule. A preview is made after every `preview_every` steps but the last; 0 means none.
    `loras`: ids of loaded adapters, each with its strength. Width and height are pixels. explain: the step that starts
    it is to say what the rank reaches, in `StepTimes.reach`. picture: what it begins from, None for noise alone.
    skipped_steps: of the schedule before its own `steps`, which may be none. sigmas: the noise levels of all of them
    before mu's shift, falling, without the 0 that follows; None by the schedule's rule.

    cache: which steps may be saved, None for none. guidance_window: the negative prompt is computed from the first to
    before the second of these fractions of the schedule; outside it the velocity is the prompt's alone, or
    (`guidance_outside` "last" instead of "off") changed once more by the last guided step's difference.
    """

    job_id: int
    prompt_ids: tuple[int, ...]
    negative_ids: tuple[int, ...] | None
    width: int
    height: int
    steps: int
    guidance: float
    mu: float | None
    seed: int
    preview_every: int = 0
    loras: tuple[tuple[int, float], ...] = ()
    explain: bool = False
    picture: Picture | None = None
    skipped_steps: int = 0
    sigmas: tuple[float, ...] | None = None
    cache: StepCache | None = None
    guidance_window: tuple[float, float] = WHOLE
    guidance_outside: str = "off"

    @property
    def halves(self) -> int:
        """How many texts it has, for each of which a step computes a velocity."""
        return len(self.prompts)

    @property
    def prompts(self) -> tuple[tuple[int, ...], ...]:
        """What is to be encoded: the prompt and, when the image is guided, the negative prompt; none without steps."""
        if self.steps == 0:
            return ()
        return (self.prompt_ids,) if self.negative_ids is None else (self.prompt_ids, self.negative_ids)


@dataclass(frozen=True)
class Step:
    """Load adapters, encode pictures, start these jobs, denoise the jobs of `denoise` once, then decode, release,
    forget and unload.

    `number` counts up by one from 0; a gap is an error that ends the rank group. `decode` names jobs whose last
    denoise step has been done (in this step or before); their image comes from rank 0 and they are forgotten.
    `release` names jobs to forget without an image. No job in flight names an adapter of `unload`. encode: pictures
    that jobs of this step and of later ones begin from; forget: the ids of those that no later one does.
    """

    number: int
    start: tuple[Job, ...] = ()
    denoise: tuple[int, ...] = ()
    decode: tuple[int, ...] = ()
    release: tuple[int, ...] = ()
    load: tuple[Adapter, ...] = ()
    unload: tuple[int, ...] = ()
    encode: tuple[Picture, ...] = ()
    forget: tuple[int, ...] = ()

    @property
    def advanced(self) -> tuple[int, ...]:
        """The jobs that it denoises, and those that it starts and that have no steps."""
        return (*self.denoise, *(job.job_id for job in self.start if not job.steps))


@dataclass(frozen=True)
class Reach:
    """What a rank's device reaches, by which the least time of its work is reckoned; all 0 where that is not known.

    device: its name. source: where the rates come from, in words; None where they are not known. flops: a second, of
    matrix products, of those of the DiT's blocks, which may be in fp8, of attention, and of decoding, 0 if that is in
    another dtype. memory_bytes: read a second.
    block_bytes, text_bytes: the rank's share of the matrices of the DiT's blocks, and of the text encoder's layers.
    text_ranks: how many share the text encoder.
    """

    device: str
    source: str | None = None
    flops: float = 0.0
    block_flops: float = 0.0
    attention_flops: float = 0.0
    decode_flops: float = 0.0
    memory_bytes: float = 0.0
    block_bytes: int = 0
    text_bytes: int = 0
    text_ranks: int = 1


@dataclass(frozen=True)
class StepTimes:
    """Seconds that a rank spent in the parts of one step, and the prompt tokens that it encoded.

    picture_s: of encoding pictures, which have `encoded_pixels`; not part of encode_s, that of prompts.

    one_by_one: there was too little memory for all its jobs, and each ran alone; `denoise_s` then includes encoding.
    graph: the step was the replay of a CUDA graph. reach: if a job that it started asked for it; before the step, the
    rank took `reach_s` to find out. late_s: how long ago the step was over when this was told, where a device does not
    say when it is: a CPU may have decoded an image since.

    blocks_run: of each job that it denoised and that has a plan (`engine.step_cache.step_plan`), the id, and how many
    of the DiT's blocks each half of it ran.
    """

    encode_s: float = 0.0
    denoise_s: float = 0.0
    encoded_tokens: int = 0
    one_by_one: bool = False
    graph: bool = False
    reach: Reach | None = None
    reach_s: float = 0.0
    late_s: float = 0.0
    picture_s: float = 0.0
    encoded_pixels: int = 0
    blocks_run: tuple[tuple[int, tuple[int, ...]], ...] = ()


@dataclass(frozen=True)
class BuiltPlan:
    """An attention plan that a rank has built while it had nothing to do, or failed to.

    tokens: the length that it is for; error: why there is none. So far: how many `plans` there are, the `bytes` they
    took, the `images` that were begun, and how many of these `waited` for a plan.
    """

    tokens: int
    seconds: float
    error: str | None
    plans: int
    bytes: int
    waited: int
    images: int
