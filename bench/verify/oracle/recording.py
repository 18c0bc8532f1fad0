"""What diffusers' modules are given and give, caught by hooks while its pipeline runs."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from bench.verify.subject import stages
from bench.verify.subject.models import Request

T = TypeVar("T")
_CACHES = ("cache", "past_key_values")  # of keys and values: they would be there twice when a layer runs again


@dataclass(frozen=True)
class Call:
    """One forward of a module, on its device."""

    module: nn.Module
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    output: Any

    @property
    def input(self) -> torch.Tensor:
        """The first argument, or what stands for it by name."""
        return self.arguments[0] if self.arguments else self.options["hidden_states"]

    @property
    def result(self) -> torch.Tensor:
        return self.output[0] if isinstance(self.output, tuple) else self.output


@contextmanager
def recorded(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Call]]:
    """The last call of each module, by the name that it is given here. Tensors that were changed in place since are
    not seen as they were: diffusers' stages change none."""
    calls: dict[str, Call] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
            calls[name] = Call(module, arguments, options, output)

        return hook

    handles = [module.register_forward_hook(keep(name), with_kwargs=True) for name, module in modules.items()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def in_float32(call: Call, *, only_first: bool = False, **options: Any) -> torch.Tensor:
    """What the module gives for the same input with its weights, and all that it computes, in float32.

    only_first: leave out all arguments but the first. options: in place of the given ones.
    """
    module = copy.deepcopy(call.module).float()
    arguments = _floats(call.arguments[:1] if only_first else call.arguments)
    given = {} if only_first else {name: value for name, value in call.options.items() if name not in _CACHES}
    output = module(*arguments, **{**_floats(given), **options})
    return output[0] if isinstance(output, tuple) else output


def _floats(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, torch.dtype):
        return torch.float32 if value.is_floating_point else value
    if isinstance(value, (tuple, list)):
        return type(value)(map(_floats, value))
    if isinstance(value, dict):
        return {key: _floats(each) for key, each in value.items()}
    return value


@dataclass
class Trace:
    """The stages of one prompt and image, float32 on the host.

    inputs: what each stage was given, by its name, and what several share. expected: what diffusers made of it. exact:
    what float32 makes of it, where that is not the same. ids: the tokens.
    """

    inputs: dict[str, torch.Tensor] = field(default_factory=dict)
    expected: dict[str, torch.Tensor] = field(default_factory=dict)
    exact: dict[str, torch.Tensor] = field(default_factory=dict)
    ids: tuple[int, ...] = ()

    def add(
        self,
        stage: str,
        given: torch.Tensor | None,
        made: torch.Tensor,
        exactly: Callable[[], torch.Tensor] | None = None,
    ) -> None:
        """exactly: gives what float32 would make, on whatever device."""
        if given is not None:
            self.inputs[stage] = on_host(given)
        self.expected[stage] = on_host(made)
        if exactly is not None:
            self.exact[stage] = on_host(exactly())


@dataclass(frozen=True)
class Made:
    """One image of a request: its noise, latents after every step, (image tokens, in_channels) float32 on the host,
    noise levels, and the velocities of every step: the prompt's and, when guided, the negative prompt's."""

    noise: torch.Tensor
    latents: list[torch.Tensor]
    sigmas: torch.Tensor
    velocities: list[list[torch.Tensor]]


@dataclass
class Answers:
    """What diffusers makes in one dtype.

    traced: the index of the request whose stages `trace` has. at: the step from whose `before` latents `velocity` was
    computed, guidance included. picture: of the traced request, (height, width, 3) uint8. failures: the traceback of
    what could not be recorded; the rest is there.
    """

    dtype: str
    requests: Sequence[Request]
    traced: int
    at: int
    made: list[Made] = field(default_factory=list)
    trace: Trace = field(default_factory=Trace)
    before: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    velocity: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    picture: np.ndarray = field(default_factory=lambda: np.empty(0))
    exact_picture: np.ndarray | None = None  # float: the same latents decoded in float32
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def low(self) -> bool:
        """Whether float32 would make something else."""
        return self.dtype != "float32"

    def attempt(self, what: str, call: Callable[[], T]) -> T | None:
        """The result of a recording; None where it fails, which then is among the failures."""
        try:
            return call()
        except Exception:
            self.failures[what] = traceback.format_exc()
            return None


def on_host(x: torch.Tensor) -> torch.Tensor:
    """A float32 copy of its own."""
    return x.detach().to("cpu", torch.float32, copy=True).contiguous()


def keep_stages(calls: dict[str, Call], trace: Trace, mask: torch.Tensor, timestep: torch.Tensor, *, low: bool) -> None:
    """Of one forward of diffusers' transformer, the rows of tokens that are no padding. mask: of the text tokens. low:
    whether it was not in float32."""
    latents = calls[stages.IMAGE_IN]
    rows = torch.cat([mask, mask.new_ones(latents.input.shape[1])])

    def keep(name: str, take: Callable[[torch.Tensor], torch.Tensor]) -> None:
        call = calls[name]
        trace.add(name, take(call.input), take(call.result), (lambda: take(in_float32(call))) if low else None)

    for name in calls:
        if name.startswith(stages.LAYERWISE.format("")):
            keep(name, lambda x: x[mask].flatten(0, 1))
        elif name.startswith(stages.REFINER.format("")) or name == stages.TEXT_IN:
            keep(name, lambda x: x[0][mask])
        elif name.startswith(stages.BLOCK.format("")):
            keep(name, lambda x: x[0][rows])
    keep(stages.PROJECTOR, lambda x: x[0][mask])
    trace.expected[stages.PROJECTOR].squeeze_(-1)
    if low:
        trace.exact[stages.PROJECTOR].squeeze_(-1)
    keep(stages.FINAL, lambda x: x[0])
    time, modulation = calls[stages.TIME], calls[stages.MODULATION]
    trace.inputs |= {
        stages.TIMESTEP: on_host(timestep),
        stages.BLOCK_MODULATION: on_host(modulation.result[:, 0]),
        stages.TIME_VECTOR: on_host(time.result[:, 0]),
    }
    trace.add(stages.TIME, None, time.result[:, 0], (lambda: in_float32(time)[:, 0]) if low else None)

    def exact_modulation() -> torch.Tensor:
        return copy.deepcopy(modulation.module).float()(stages.gelu(time.result.float()))[:, 0]

    trace.add(stages.MODULATION, None, modulation.result[:, 0], exact_modulation if low else None)
    packed = trace.inputs[stages.BLOCK.format(0)]
    text = packed[: int(mask.sum())]
    trace.inputs[stages.IMAGE_IN], trace.expected[stages.IMAGE_IN] = on_host(latents.input[0]), packed
    if low:
        trace.exact[stages.IMAGE_IN] = torch.cat([text, on_host(in_float32(latents)[0])])
