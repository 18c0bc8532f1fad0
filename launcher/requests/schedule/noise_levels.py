"""Decides the steps and the guidance of a request: its own, what its LoRAs were made for, or the checkpoint's. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from engine.config.model_config import ModelConfig
from engine.errors import ArgumentError
from engine.lora.schedule import LoraSchedule
from engine.sigmas import SIGMAS_ALLOWED, are_sigmas, without_last_zero
from launcher.messages.client_messages import Generate
from launcher.messages.limits import Limits


@dataclass(frozen=True)
class LoraSchedules:
    """What LoRAs were made for whose files say it: loaded ones by name, merged ones by file."""

    named: Mapping[str, LoraSchedule] = field(default_factory=dict)
    merged: Mapping[str, LoraSchedule] = field(default_factory=dict)

    def of(self, loras: Iterable[tuple[str, float]]) -> dict[str, LoraSchedule]:
        """Give those of all LoRAs that change images with these names and strengths, by what people call them."""
        chosen = {f"LoRA {name}": self.named[name] for name, strength in loras if strength and name in self.named}
        return chosen | {f"merged LoRA {file}": schedule for file, schedule in self.merged.items()}


@dataclass(frozen=True)
class Schedule:
    """How images are denoised, as `CheckedRequest` has it. of_loras: what LoRAs have decided of it, if anything."""

    steps: int
    sigmas: tuple[float, ...] | None
    mu: float | None
    guidance: float
    warnings: tuple[str, ...] = ()
    of_loras: LoraSchedule | None = None

    def preview_every(self, asked: int, steps: int) -> int:
        """Give the steps between previews of images of which so many are run: who asked may have expected more than
        LoRAs say, and would see none."""
        is_less = self.of_loras is not None and self.of_loras.steps is not None and asked >= steps
        return max(1, steps // 2) if is_less else asked


def decide_schedule(
    request: Generate, made_for: Mapping[str, LoraSchedule], model: ModelConfig, limits: Limits
) -> Schedule:
    """Take what the request says. Where it says neither steps nor sigmas nor mu, they are those that its LoRAs were
    made for, and so is guidance, if it says none; else they are the checkpoint's.

    made_for: as `LoraSchedules.of` gives it. What cannot be of it is passed over with a warning. Raises `ArgumentError`
    for sigmas that cannot be. Steps, mu and guidance of the request are still to be checked.
    """
    sigmas = _check_sigmas(request, limits)
    own = LoraSchedule(request.steps if sigmas is None else len(sigmas), sigmas, request.mu, request.guidance)
    warnings: list[str] = []
    noise, guided = LoraSchedule(), LoraSchedule()
    if not own.decides_steps:
        of_steps = {lora: replace(each, guidance=None) for lora, each in made_for.items() if each.decides_steps}
        noise = _agreed(of_steps, "steps, sigmas or mu", request, limits, warnings)
    if own.guidance is None:
        of_guidance = {
            lora: LoraSchedule(guidance=each.guidance)
            for lora, each in made_for.items()
            if each.guidance not in (None, model.default_guidance)
        }
        guided = _agreed(of_guidance, "guidance", request, limits, warnings)
    levels = own if own.decides_steps else noise
    guidance = guided.guidance if own.guidance is None else own.guidance
    of_loras = replace(noise, guidance=guided.guidance)
    return Schedule(
        steps=model.default_steps if levels.steps is None else levels.steps,
        sigmas=levels.sigmas,
        mu=levels.mu,
        guidance=model.default_guidance if guidance is None else guidance,
        warnings=tuple(warnings),
        of_loras=None if of_loras == LoraSchedule() else of_loras,
    )


def _check_sigmas(request: Generate, limits: Limits) -> tuple[float, ...] | None:
    if not request.sigmas:
        return None
    sigmas = without_last_zero(request.sigmas)
    if len(sigmas) > limits.max_steps:
        raise ArgumentError.of("sigmas", f"at most {limits.max_steps} numbers, one a step", len(sigmas))
    if not are_sigmas(sigmas):
        raise ArgumentError.of("sigmas", SIGMAS_ALLOWED, list(request.sigmas))
    if request.steps not in (None, len(sigmas)):
        raise ArgumentError(f"steps {request.steps} contradicts sigmas, which are {len(sigmas)}", parameter="steps")
    if _runs_all_steps(request):
        told = "strength_steps must be partial with sigmas, of which the strength takes the last ones"
        raise ArgumentError(f"{told}, got 'full'", parameter="strength_steps")
    return tuple(map(float, sigmas))


def _agreed(
    made_for: Mapping[str, LoraSchedule], own: str, request: Generate, limits: Limits, warnings: list[str]
) -> LoraSchedule:
    """Give the one schedule that LoRAs were made for, or none, and warn of what becomes of it. own: the parameters of
    the request that decide otherwise."""
    if not made_for:
        return LoraSchedule()
    loras, (first, *others) = " and ".join(made_for), set(made_for.values())
    if others:
        warnings.append(f"{loras} were made for different {own}, of which none were taken: give the request its own")
        return LoraSchedule()
    said = f"{first.describe()}, for which {loras} {'was' if len(made_for) == 1 else 'were'} made"
    if problem := _problem(first, request, limits):
        warnings.append(f"not drawn with {said}: {problem}")
        return LoraSchedule()
    warnings.append(f"drawn with {said}; give {own} to decide otherwise")
    return first


def _problem(schedule: LoraSchedule, request: Generate, limits: Limits) -> str:
    """Say why images cannot be made so; empty if they can."""
    if schedule.steps is not None and schedule.steps > limits.max_steps:
        return f"here images have at most {limits.max_steps} steps"
    if schedule.guidance is not None and schedule.guidance > limits.max_guidance:
        return f"here guidance is at most {limits.max_guidance:g}"
    if schedule.sigmas is not None and _runs_all_steps(request):
        return "strength_steps is full, and sigmas are as many as they are"
    return ""


def _runs_all_steps(request: Generate) -> bool:
    return bool(request.pictures) and request.strength_steps == "full"
