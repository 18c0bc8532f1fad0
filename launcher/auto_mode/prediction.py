"""Predicts how long a denoise step takes in each mode, and chooses the fastest that fits: `--parallel auto`. Pure.

The model adds up matrix products, in waves of tiles as on a GPU, attention, the bytes read and written between them,
and the bytes that ranks send. Nothing is taken to overlap, but for the gate's product and the exchange before
attention. Computing is corrected by what was measured on this machine before.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from engine.checkpoint.files.stored import WeightFormat
from engine.checkpoint.weight_format import Weights, in_blocks, parameter_formats
from engine.config.components import TransformerConfig
from engine.config.degrees import PARALLEL_DEGREES, Degrees
from engine.config.engine_config import EngineConfig
from engine.config.model_config import ModelConfig
from engine.errors import ArgumentError
from engine.planning.memory_plan import plan_checkpoint, shown
from engine.planning.work_division import forward_passes, sent_in_step

TEXT_TOKENS = 64  # of a typical prompt
# An H200: its multiprocessors, and the rows and columns of a matrix product that one of them makes at a time.
_MULTIPROCESSORS = 132
_TILE_ROWS, _TILE_COLUMNS = 64, 256
# Elements that a block reads or writes between its products, for each token and each column of the model's width: 21.5,
# or 18.7 where a product's input is written in 8 bits. Ranks that share tokens write v once more for the others.
_PASSES, _PASSES_FP8, _PASSES_OF_VALUES = 21.5, 18.7, 0.5


@dataclass(frozen=True)
class Rates:
    """What a device does in a second, by default an H200: within 4 % of its measured matrix products, published
    attention and NCCL's rates over NVLink 4.

    matrices, matrices_fp8: FLOP of matrix products in 16 and 8 bits, where every multiprocessor has a tile; attention:
    its FLOP. memory, link, exchange, host: bytes from its memory, to another rank by a ring, to all others at once, and
    from the host. latency_s: seconds of an operation that waits for other ranks. slowness: the factor by which
    computing takes longer than these rates predict.
    """

    matrices: float = 800e12
    matrices_fp8: float = 1275e12
    attention: float = 620e12
    memory: float = 4.3e12
    link: float = 340e9
    exchange: float = 250e9
    latency_s: float = 13e-6
    host: float = 50e9
    slowness: float = 1.0


@dataclass(frozen=True)
class Devices:
    """Equal devices of one machine. memory: free bytes of each, None where ranks share the host's. ranks: the number of
    them, where they have been started already."""

    name: str
    count: int
    memory: int | None = None
    ranks: int | None = None


@dataclass(frozen=True)
class Prediction:
    """A mode's times, in seconds of one denoise step of one image (the mean of the sizes asked for), and the bytes that
    a rank needs. copy_s: copying weights from the host, beside the rest. misfit: why the mode cannot be used."""

    degrees: Degrees
    compute_s: float
    communication_s: float
    copy_s: float
    needed: int
    misfit: str | None = None

    @property
    def step_s(self) -> float:
        return max(self.compute_s + self.communication_s, self.copy_s)


@dataclass(frozen=True)
class Workload:
    """Images that are to be fast: their (width, height) in pixels, and whether they are guided."""

    sizes: tuple[tuple[int, int], ...]
    guided: bool

    @classmethod
    def default(cls, model: ModelConfig, *sizes: tuple[int, int]) -> Workload:
        """Take images of the checkpoint's own size and of others, guided as the checkpoint would have it."""
        every = dict.fromkeys([(model.default_width, model.default_height), *sizes])
        return cls(tuple(every), model.default_guidance > 0)


@dataclass(frozen=True)
class StepModel:
    """Predicts the time of denoise steps on devices of these rates. bytes_per_element: of what ranks send and blocks
    pass on; fp8: blocks multiply in 8 bits."""

    config: TransformerConfig
    rates: Rates
    bytes_per_element: int = 2
    fp8: bool = False

    def predict(self, segments: Sequence[tuple[int, int]], degrees: Degrees) -> tuple[float, float]:
        """Predict the seconds that the busiest rank computes in a step of segments of (text, image) tokens, and those
        that it communicates."""
        config, rates = self.config, self.rates
        lengths = [sum(segment) for segment in segments]
        parts, ranks = forward_passes(config, lengths, degrees)
        passes = [[lengths[i] for i in part] for part in parts]
        compute_s = max(self._forward_s(shared, degrees.tp, ranks) for shared in passes)
        inwards, outwards, others = sent_in_step(config, segments, degrees, self.bytes_per_element, fp8=self.fp8)
        communication_s = others.seconds(rates.link, rates.latency_s)
        communication_s += outwards.seconds(rates.exchange, rates.latency_s)
        if inwards.operations:
            gates_s = config.num_layers * self._gate_s(math.ceil(sum(passes[0]) / ranks), degrees.tp)
            communication_s += max(0.0, inwards.seconds(rates.exchange, rates.latency_s) - gates_s)
        return compute_s * rates.slowness, communication_s

    def _forward_s(self, lengths: Sequence[int], tp: int, ranks: int) -> float:
        """Seconds of the blocks on `ranks` groups that share the segments' tokens, of `tp` ranks that share weights."""
        config = self.config
        width, inner = config.hidden_size, config.intermediate_size
        rows = math.ceil(sum(lengths) / ranks)
        heads = width + 2 * config.num_kv_heads * config.head_dim
        # (columns, depth) of attention's output, of the SwiGLU, and of q, k, v and, where it is not apart, the gate
        shapes = [(width, width // tp), (2 * inner // tp, width), (width, inner // tp)]
        shapes.append(((heads if ranks > 1 else heads + width) // tp, width))
        products_s = sum(_product_flop(rows, columns, depth) for columns, depth in shapes) / self._flop_per_s
        if ranks > 1:
            products_s += self._gate_s(rows, tp)
        attention_s = 4 * sum(length * length for length in lengths) * width / (tp * ranks) / self.rates.attention
        passes = (_PASSES_FP8 if self.fp8 else _PASSES) + (_PASSES_OF_VALUES if ranks > 1 else 0)
        elements = passes * (sum(lengths) / (tp * ranks)) * width
        return config.num_layers * (products_s + attention_s + elements * self.bytes_per_element / self.rates.memory)

    def _gate_s(self, rows: int, tp: int) -> float:
        """Seconds of attention's gate in one block, where it is a product of its own."""
        return _product_flop(rows, self.config.hidden_size // tp, self.config.hidden_size) / self._flop_per_s

    @property
    def _flop_per_s(self) -> float:
        return self.rates.matrices_fp8 if self.fp8 else self.rates.matrices


def _product_flop(rows: int, columns: int, depth: int) -> int:
    """FLOP of (rows, depth) @ (depth, columns), with what the multiprocessors that are left without a tile could do."""
    tiles = math.ceil(rows / _TILE_ROWS) * math.ceil(columns / _TILE_COLUMNS)
    waves = math.ceil(tiles / _MULTIPROCESSORS)
    return waves * _MULTIPROCESSORS * 2 * _TILE_ROWS * _TILE_COLUMNS * depth


def block_format(checkpoint: Weights, engine: EngineConfig) -> WeightFormat:
    """Tell the weight format of most of the blocks' matrices."""
    formats = parameter_formats(checkpoint, 1, 2, engine.quantization)
    counts = Counter(each.weight_format for name, each in formats["transformer"].items() if in_blocks(name))
    return counts.most_common(1)[0][0]


def predict_modes(
    checkpoint: Weights, engine: EngineConfig, devices: Devices, workload: Workload, rates: Rates
) -> list[Prediction]:
    """Predict every mode that the devices can serve, fewer ranks first; modes that divide guidance only where images
    are guided. engine: its own degrees do not matter."""
    model = checkpoint.config
    element = 4 if engine.dtype == "float32" else 2
    steps = StepModel(model.transformer, rates, element, block_format(checkpoint, engine) == "fp8")
    memory = devices.memory
    if engine.memory_budget is not None:
        memory = engine.memory_budget if memory is None else min(memory, engine.memory_budget)
    nccl = devices.memory is not None and not engine.share_gpu
    largest = max(workload.sizes, key=math.prod)
    images = [[(TEXT_TOKENS, model.image_tokens(*size))] * (1 + workload.guided) for size in workload.sizes]
    predictions = []
    for degrees in _modes(model, devices, guided=workload.guided):
        options = replace(engine, tp=degrees.tp, sp=degrees.sp, cfg_parallel=degrees.cfg > 1)
        plan = partial(plan_checkpoint, checkpoint, options, element, fp8_products=steps.fp8, nccl=nccl, size=largest)
        misfit = None
        chosen = plan(budget=None)
        if engine.memory_budget is not None:
            try:
                chosen = plan(budget=memory)
            except ArgumentError as error:
                misfit = error.message
        elif memory is not None and chosen.needed > memory:
            misfit = f"needs {shown(chosen.needed)} of {shown(memory)}"
        times = [steps.predict(segments, degrees) for segments in images]
        compute_s, communication_s = (sum(column) / len(times) for column in zip(*times, strict=True))
        copy_s = chosen.copied_per_step / rates.host
        predictions.append(Prediction(degrees, compute_s, communication_s, copy_s, chosen.needed, misfit))
    return predictions


def _modes(model: ModelConfig, devices: Devices, *, guided: bool) -> Iterable[Degrees]:
    for ranks in PARALLEL_DEGREES:
        if ranks > devices.count or (devices.ranks or ranks) != ranks:
            continue
        for cfg in (1, 2) if guided else (1,):
            for tp in model.possible_tp():
                sp, rest = divmod(ranks, tp * cfg)
                if not rest and sp in model.possible_sp(tp):
                    yield Degrees(tp, sp, cfg)


def choose(predictions: Sequence[Prediction], devices: Devices) -> Prediction:
    """Choose the fastest mode that fits; one that copies weights in each step only if there is no other, since nobody
    has measured how several devices share the host's memory. Raises `ArgumentError` if none fits."""
    if not predictions:
        raise ArgumentError(
            f"parallel auto finds no mode for {devices.ranks or devices.count} ranks: heads do not divide",
            parameter="parallel",
        )
    fitting = [each for each in predictions if each.misfit is None]
    if not fitting:
        listed = "; ".join(f"{each.degrees.name}: {each.misfit}" for each in predictions)
        raise ArgumentError(
            f"parallel auto finds no mode that fits into {devices.count} × {devices.name} ({listed}): see "
            "--memory-budget, --offload and --quantization",
            parameter="parallel",
        )
    return min(fitting, key=lambda each: (each.copy_s > 0, each.step_s))
