"""What every training of the demo shares: learning rate, averaged weights, states to resume from."""

import json
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from tqdm import tqdm

from demo.writing import write_tensors

SAVE_EVERY_S = 120.0


def rate(step: int, steps: int, peak: float, warmup: int = 100) -> float:
    """The learning rate of a step: a linear rise, a flat half, a linear fall to nothing at `steps`."""
    return peak * min(1.0, (step + 1) / warmup, 2 * (steps - step) / steps)


@contextmanager
def exit_at_termination() -> Iterator[None]:
    """SIGTERM raises `SystemExit` inside, and does what it did before afterwards. For the main thread."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Averaged:
    """An exponential moving average of weights, which draws better than the weights themselves.

    horizon: the number of steps, about, that it averages; fewer at the beginning.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], horizon: int = 400) -> None:
        self.parameters = parameters
        self.horizon = horizon
        self.tensors = {name: p.detach().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        share = max(1 / self.horizon, 1 / (step + 10) * 2)
        torch._foreach_lerp_(list(self.tensors.values()), list(self.parameters.values()), min(1.0, share))

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the weights and their averages: once to use the averages, once more to go on."""
        for name, parameter in self.parameters.items():
            weights = parameter.detach().clone()
            parameter.copy_(self.tensors[name])
            self.tensors[name] = weights


class Run:
    """A training that can be stopped and resumed: weights, their averages, the optimizers' states and the step lie in
    one safetensors file, written every two minutes, at the end, and when it is interrupted.

    parameters: what is trained, by name. optimizers: over these parameters.
    """

    def __init__(
        self,
        file: Path,
        parameters: Mapping[str, nn.Parameter],
        optimizers: Iterable[torch.optim.Optimizer],
        horizon: int = 400,
    ) -> None:
        self.file = file
        self.parameters = parameters
        self.optimizers = list(optimizers)
        self.average = Averaged(parameters, horizon)
        self.step = 0
        self.loss = 0.0
        if file.exists():
            self._load()

    def steps(self, total: int, until: float = float("inf")) -> Iterator[int]:
        """The steps that are left, with a progress bar, saving what has been reached; also when the process is
        interrupted or terminated.

        until: stop early at this time (of `time.monotonic`), as if interrupted.
        """
        saved = time.monotonic()
        with exit_at_termination(), tqdm(total=total, initial=self.step, mininterval=5, desc=self.file.stem) as bar:
            try:
                while self.step < total and time.monotonic() < until:
                    yield self.step
                    self.step += 1
                    self.average.update(self.step)
                    bar.set_postfix_str(f"loss {self.loss:.4f}", refresh=False)
                    bar.update()
                    if time.monotonic() - saved > SAVE_EVERY_S:
                        self.save()
                        saved = time.monotonic()
            finally:
                self.save()

    def descend(self, loss: Tensor, learning_rate: float) -> None:
        """One step of the optimizers down the loss's gradient, which is clipped. Raises `SystemExit` if there is no
        loss to speak of: then the weights stay as they were."""
        if not loss.isfinite():
            sys.exit(f"{self.file.stem}: the loss is {loss.item()} at step {self.step}; try a lower --rate")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = learning_rate
            optimizer.step()
            optimizer.zero_grad()
        self.loss += (loss.item() - self.loss) * (0.02 if self.loss else 1.0)

    def save(self) -> None:
        tensors = {f"weights/{name}": p.detach() for name, p in self.parameters.items()}
        tensors |= {f"average/{name}": tensor for name, tensor in self.average.tensors.items()}
        for i, optimizer in enumerate(self.optimizers):
            for parameter, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer/{i}/{parameter}/{name}": torch.as_tensor(v) for name, v in state.items()}
        write_tensors(tensors, self.file, {"step": json.dumps(self.step)})

    def _load(self) -> None:
        states: list[dict[int, dict[str, Tensor]]] = [{} for _ in self.optimizers]
        with safe_open(self.file, "pt") as file, torch.no_grad():
            self.step = int(json.loads(file.metadata()["step"]))
            for key in file.keys():  # noqa: SIM118
                kind, name = key.split("/", 1)
                if kind == "weights":
                    self.parameters[name].copy_(file.get_tensor(key))
                elif kind == "average":
                    self.average.tensors[name].copy_(file.get_tensor(key))
                else:
                    i, parameter, field = name.split("/")
                    states[int(i)].setdefault(int(parameter), {})[field] = file.get_tensor(key)
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
