"""What `krea2 info` says about a checkpoint."""

from __future__ import annotations

from engine.checkpoint import CheckpointFiles, summarize
from engine.config import EngineConfig, ModelConfig
from launcher.tokenizer import PromptTokenizer


def describe_checkpoint(config: EngineConfig) -> str:
    """Architecture, parameters, and bytes per rank at the config's degree and dtype. Reads no weights.

    Raises `CheckpointError` if the checkpoint is not whole or its tokenizer does not fit, and `ArgumentError` if it
    cannot be split so.
    """
    folder = config.checkpoint_folder()
    model = ModelConfig.from_folder(folder, config.variant)
    model.check_tp(config.tp)
    PromptTokenizer(folder, model.text_encoder.vocab_size)
    checkpoint = CheckpointFiles(folder, model)
    components = summarize(checkpoint, config.tp, 4 if config.dtype == "float32" else 2, config.quantization)
    checkpoint.close()

    dit, text, vae = model.transformer, model.text_encoder, model.vae
    variant = "Turbo" if model.is_distilled else "Raw"
    lines = [
        f"Krea 2 {variant}{' (assumed)' if model.variant_is_assumed else ''}: {folder}",
        f"  defaults      {model.default_width} × {model.default_height}, {model.default_steps} steps, "
        f"guidance {model.default_guidance:g}",
        f"  transformer   {dit.num_layers} blocks, width {dit.hidden_size}, {dit.num_heads} heads, "
        f"{dit.num_kv_heads} kv heads, SwiGLU {dit.intermediate_size}",
        f"  text encoder  {text.num_layers} layers, width {text.hidden_size}, {text.num_heads} heads, "
        f"{text.num_kv_heads} kv heads, SwiGLU {text.intermediate_size}, taps {_listed(model.text_encoder_taps)}",
        f"  vae           {vae.z_dim} channels, 1/{vae.scale_factor} of the image's sides",
        f"  tp            possible: {_listed(model.possible_tp())}",
        "",
        f"{'parameters that inference needs':<34}" + "".join(f"{f'rank {rank}':>12}" for rank in range(config.tp)),
    ]
    for component in components:
        lines.append(_row(component.name, component.parameters, component.bytes_per_rank))
    totals = tuple(sum(column) for column in zip(*(c.bytes_per_rank for c in components), strict=True))
    lines.append(_row("total", sum(component.parameters for component in components), totals))
    return "\n".join(lines)


def _row(name: str, parameters: int, bytes_per_rank: tuple[int, ...]) -> str:
    return f"  {name:<16}{parameters:>16,}" + "".join(f"{_megabytes(size):>12}" for size in bytes_per_rank)


def _megabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB"


def _listed(numbers: tuple[int, ...] | list[int]) -> str:
    return ", ".join(map(str, numbers))
