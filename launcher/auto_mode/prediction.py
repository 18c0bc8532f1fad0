"""How long a denoise step takes in each mode, and which is the fastest that fits. Pure: what `--parallel auto` does.

The model is that of the matrix products by the waves of tiles that they come to on a GPU, attention, what is read and
written between them, and what ranks send, nothing overlapping anything but the gate's product the exchange before
attention. What was measured here before corrects it.
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
from engine.config.degrees import MOST_RANKS, PARALLEL_DEGREES, Degrees
from engine.config.engine_config import EngineConfig
from engine.config.model_config import ModelConfig
from engine.errors import ArgumentError
from engine.planning.memory_plan import plan_checkpoint, shown
from engine.planning.traffic import exchanged_in_step, sent_in_step
from engine.planning.work_division import forward_passes

TEXT_TOKENS = 64  # of a typical prompt
# An H200: its multiprocessors, and the rows and columns of the products that one of them makes at a time.
_MULTIPROCESSORS = 132
_TILE_ROWS, _TILE_COLUMNS = 64, 256
# Activations of a block that are read or written between its products, in rows of the model's width: 21.5 of them, and
# 18.7 where those that are multiplied next are written in 8 bits. Ranks that share tokens write v anew for the others.
_PASSES, _PASSES_FP8, _PASSES_OF_VALUES = 21.5, 18.7, 0.5


@dataclass(frozen=True)
class Rates:
    """What a device does in a second: FLOP of matrix products in 16 and 8 bits, where every multiprocessor has a tile,
    and of attention; bytes of its memory, to another rank and from the host. latency_s: of an operation that waits for
    other ranks.

    The defaults are an H200's: with them the model is within 4 % of its measured matrix products, published attention
    and NCCL's rates over NVLink 4. slowness: how many times as long computing took as they say.
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
    """Equal devices of one machine. memory: bytes of each, None where ranks share the host's. ranks: if so many must be
    used, because somebody started them."""

    name: str
    count: int
    memory: int | None = None
    ranks: int | None = None


@dataclass(frozen=True)
class Prediction:
    """Of a mode. Seconds of one denoise step of one image, the mean of the sizes asked for; bytes that a rank needs.
    copy_s: of weights from the host, while the rest goes on. misfit: why the mode cannot be used, if it cannot."""

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
    """Images that are to be fast: their width and height, and whether they are guided."""

    sizes: tuple[tuple[int, int], ...]
    guided: bool

    @classmethod
    def default(cls, model: ModelConfig, *sizes: tuple[int, int]) -> Workload:
        """Images of the checkpoint's own size and of others, guided as the checkpoint would have it."""
        every = dict.fromkeys([(model.default_width, model.default_height), *sizes])
        return cls(tuple(every), model.default_guidance > 0)

    def segments(self, model: ModelConfig, size: tuple[int, int]) -> list[tuple[int, int]]:
        """(text tokens, image tokens) of the segments of one image."""
        return [(TEXT_TOKENS, model.image_tokens(*size))] * (1 + self.guided)


def predict_step(
    config: TransformerConfig,
    segments: Sequence[tuple[int, int]],
    degrees: Degrees,
    rates: Rates,
    *,
    bytes_per_element: int = 2,
    fp8: bool = False,
) -> tuple[float, float]:
    """Seconds that a denoise step of segments of so many (text, image) tokens takes to compute and to communicate, on
    the rank that has the most to do."""
    lengths = [sum(segment) for segment in segments]
    compute_s = max(
        _forward_s(
            config, [lengths[i] for i in part.segments], degrees.tp, part.ranks, rates, bytes_per_element, fp8=fp8
        )
        for part in forward_passes(config, lengths, degrees)
    )
    sent = sent_in_step(config, segments, degrees, bytes_per_element, fp8=fp8)
    inwards, outwards = exchanged_in_step(config, segments, degrees, bytes_per_element)
    exchange, latency_s = rates.exchange, rates.latency_s
    communication_s = (sent - inwards - outwards).seconds(rates.link, latency_s) + outwards.seconds(exchange, latency_s)
    if inwards.operations:
        part = forward_passes(config, lengths, degrees)[0]
        rows = _rows(sum(lengths[i] for i in part.segments), part.ranks)
        gates_s = config.num_layers * _gate_s(config, rows, degrees.tp, rates, fp8=fp8)
        communication_s += max(0.0, inwards.seconds(exchange, latency_s) - gates_s)
    return compute_s * rates.slowness, communication_s


def _forward_s(
    config: TransformerConfig,
    lengths: Sequence[int],
    tp: int,
    ranks: int,
    rates: Rates,
    bytes_per_element: int,
    *,
    fp8: bool,
) -> float:
    """Of one of the ranks that share these segments' tokens, and tp times as many their weights."""
    width, inner = config.hidden_size, config.intermediate_size
    rows = _rows(sum(lengths), ranks)
    heads = width + 2 * config.num_kv_heads * config.head_dim
    shapes = [(width, width // tp), (2 * inner // tp, width), (width, inner // tp)]
    shapes.append(((heads if ranks > 1 else heads + width) // tp, width))  # without the gate where that is apart
    rate = rates.matrices_fp8 if fp8 else rates.matrices
    products = sum(_product_flop(rows, columns, depth) for columns, depth in shapes) / rate
    if ranks > 1:
        products += _gate_s(config, rows, tp, rates, fp8=fp8)
    attention = 4 * sum(length * length for length in lengths) * width / (tp * ranks) / rates.attention
    passes = (_PASSES_FP8 if fp8 else _PASSES) + (_PASSES_OF_VALUES if ranks > 1 else 0)
    passes *= sum(lengths) / (tp * ranks)
    return config.num_layers * (products + attention + passes * width * bytes_per_element / rates.memory)


def _rows(tokens: int, ranks: int) -> int:
    """How many of them one of the ranks has at most."""
    return math.ceil(tokens / ranks)


def _gate_s(config: TransformerConfig, rows: int, tp: int, rates: Rates, *, fp8: bool) -> float:
    """Of attention's gate in one block, where it is a product of its own."""
    flop = _product_flop(rows, config.hidden_size // tp, config.hidden_size)
    return flop / (rates.matrices_fp8 if fp8 else rates.matrices)


def _product_flop(rows: int, columns: int, depth: int) -> float:
    """Of a matrix product, with those that multiprocessors without a tile could do meanwhile."""
    tiles = math.ceil(rows / _TILE_ROWS) * math.ceil(columns / _TILE_COLUMNS)
    waves = math.ceil(tiles / _MULTIPROCESSORS)
    return waves * _MULTIPROCESSORS * 2 * _TILE_ROWS * _TILE_COLUMNS * depth


def block_form(checkpoint: Weights, engine: EngineConfig) -> WeightFormat:
    """The weight format of most of the blocks' matrices."""
    formats = parameter_formats(checkpoint, 1, 2, engine.quantization)
    counts = Counter(each.weight_format for name, each in formats["transformer"].items() if in_blocks(name))
    return counts.most_common(1)[0][0]


def predict_modes(
    checkpoint: Weights, engine: EngineConfig, devices: Devices, workload: Workload, rates: Rates
) -> list[Prediction]:
    """Every mode that so many devices can serve, fewer ranks first. Modes that divide guidance are left out where
    nothing is guided. engine: its own degrees do not matter."""
    model = checkpoint.config
    element = 4 if engine.dtype == "float32" else 2
    fp8 = block_form(checkpoint, engine) == "fp8"
    return [
        _predict(checkpoint, engine, degrees, devices, workload, rates, element, fp8=fp8)
        for degrees in _modes(model, devices, guided=workload.guided)
    ]


def _modes(model: ModelConfig, devices: Devices, *, guided: bool) -> Iterable[Degrees]:
    for ranks in PARALLEL_DEGREES:
        if ranks > min(devices.count, MOST_RANKS) or (devices.ranks or ranks) != ranks:
            continue
        for cfg in (1, 2) if guided else (1,):
            for tp in PARALLEL_DEGREES:
                sp, rest = divmod(ranks, tp * cfg)
                if not rest and tp in model.possible_tp() and sp in model.possible_sp(tp):
                    yield Degrees(tp, sp, cfg)


def _predict(
    checkpoint: Weights,
    engine: EngineConfig,
    degrees: Degrees,
    devices: Devices,
    workload: Workload,
    rates: Rates,
    element: int,
    *,
    fp8: bool,
) -> Prediction:
    model = checkpoint.config
    engine = replace(engine, tp=degrees.tp, sp=degrees.sp, cfg_parallel=degrees.cfg > 1)
    plan = partial(
        plan_checkpoint,
        checkpoint,
        engine,
        degrees.tp,
        element,
        fp8_products=fp8,
        nccl=devices.memory is not None and not engine.share_gpu,
        size=max(workload.sizes, key=lambda size: size[0] * size[1]),
    )
    memory = devices.memory
    misfit = None
    chosen = plan(budget=None)
    if engine.memory_budget is not None:
        memory = engine.memory_budget if memory is None else min(memory, engine.memory_budget)
        try:
            chosen = plan(budget=memory)
        except ArgumentError as error:
            misfit = error.message
    elif memory is not None and chosen.needed > memory:
        misfit = f"needs {shown(chosen.needed)} of {shown(memory)}"
    steps = [
        predict_step(
            model.transformer,
            workload.segments(model, size),
            degrees,
            rates,
            bytes_per_element=element,
            fp8=fp8,
        )
        for size in workload.sizes
    ]
    compute_s, communication_s = (sum(column) / len(steps) for column in zip(*steps, strict=True))
    copy_s = chosen.copied_per_step / rates.host
    return Prediction(degrees, compute_s, communication_s, copy_s, chosen.needed, misfit)


def choose(predictions: Sequence[Prediction], devices: Devices) -> Prediction:
    """The fastest mode that fits, of those that copy no weights in a step if there are any, since nobody has measured
    how several devices share the host's memory. Raises `ArgumentError` if none fits."""
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
