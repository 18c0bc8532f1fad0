"""`krea2 convert`: writes a checkpoint in another layout."""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from engine.config.engine_config import PARTS, EngineConfig
from engine.config.model_config import ModelConfig
from engine.errors import ArgumentError, printable
from launcher.cli.options.command import Command
from launcher.cli.options.engine_options import given, table_options
from launcher.cli.options.numbers import WHOLE_NUMBER
from launcher.cli.progress import ConvertProgress
from launcher.cli.stdout import say_path

_SUFFIXES = {".safetensors": "native", ".gguf": "gguf"}  # which say of a file, or a folder, that it has this layout


@click.command(cls=Command)
@click.argument("output", type=click.Path(path_type=Path))
@table_options("model", help="What to convert, as for generate.  [default: demo, if no part of a model is given]")
@table_options(*PARTS, "variant")
@click.option(
    "--layout",
    default="diffusers",
    help="diffusers or sharded, a folder; native (the official single files' names) or gguf, a file of one component.",
)
@click.option(
    "--weights",
    help="keep, bfloat16 or float32; native also fp8, int8-convrot, mxfp8 or nvfp4; sharded also fp8 or int8; gguf "
    "q8_0, q6_k, q5_k, q4_k, q3_k, q2_k, q5_1, q5_0, q4_1, q4_0, bf16, f16 or f32.  [default: keep, or q8_0]",
)
@click.option("--component", default="transformer", help="transformer, text_encoder or vae, for a native file.")
@click.option("--prefix", help="Of every name in a native file, as model.diffusion_model.")
@click.option("--tp", type=WHOLE_NUMBER, default=1, help="Ranks, for sharded.")
@table_options("loras", help="A LoRA file, or demo-outlined, to add to the weights for good. May be repeated.")
@table_options("lora_lenient")
def convert(
    output: Path,
    *,
    model: str | None,
    layout: str,
    weights: str | None,
    component: str,
    prefix: str | None,
    tp: int,
    loras: tuple[str, ...],
    **options: Any,
) -> None:
    """Write a checkpoint to OUTPUT in another layout, quantised, split for ranks, or with LoRAs in it. Prints OUTPUT
    when it is whole."""
    from engine.checkpoint.checkpoint_files import CheckpointFiles
    from engine.checkpoint.convert.convert import COMPONENTS, LAYOUTS, count_tensors, quantization_of
    from engine.checkpoint.convert.convert import convert as write
    from engine.lora.merge import merged
    from launcher.hub.models import locate

    component = component.replace("-", "_")  # as in --text-encoder
    for name, value, allowed in (("layout", layout, LAYOUTS), ("component", component, COMPONENTS)):
        if value not in allowed:
            raise ArgumentError.of(name, f"one of {', '.join(allowed)}", value)
    if _SUFFIXES.get(output.suffix, layout) != layout:
        other = _SUFFIXES[output.suffix]
        fits = f"without {output.suffix} for the layout {layout}; for such a file, add --layout {other}"
        raise ArgumentError.of("output", fits, str(output))
    for suffix, its_layout in _SUFFIXES.items():
        if its_layout == layout and output.suffix != suffix:
            fits = f"a file's name that ends in {suffix} for the layout {layout}"
            raise ArgumentError.of("output", fits, str(output))
    if loras and component != "transformer" and layout == "native":
        raise ArgumentError(f"lora changes the transformer, and {component} is what is written", parameter="lora")
    weights = weights or ("q8_0" if layout == "gguf" else "keep")
    engine = locate(EngineConfig(model=model, tp=tp, quantization=quantization_of(layout, weights), **given(options)))
    with ExitStack() as cleanup:
        checkpoint = cleanup.enter_context(closing(CheckpointFiles.open(engine, as_it_is=True)))
        described: list[dict[str, Any]] = []
        if loras:
            engine, described = _with_loras(engine, loras, checkpoint.config)
            checkpoint = cleanup.enter_context(merged(checkpoint, engine))
        total = count_tensors(checkpoint, layout, component, tp)
        with ConvertProgress(total) as progress:
            notes = write(
                checkpoint,
                output,
                layout=layout,
                weights=weights,
                component=component,
                prefix=prefix or "",
                tp=tp,
                merged=described,
                report=progress.advance,
            )
    for note in notes:
        click.echo(f"note: {note}", err=True)
    say_path(output)


def _with_loras(
    engine: EngineConfig, loras: tuple[str, ...], model: ModelConfig
) -> tuple[EngineConfig, list[dict[str, Any]]]:
    """Check LoRA files, and return the configuration that merges them, and what will be said of them. Warns of what is
    left out."""
    from engine.lora.folders import file_in
    from launcher.provenance.file_hashes import find_hash
    from launcher.requests.lora_files import located, open_lora, parse_lora

    files = [located(parse_lora(lora)) for lora in loras]
    for file in files:
        opened = open_lora(file.path, model, lenient=engine.lora_lenient)
        if opened.left_out:
            click.echo(printable(f"warning: {file.path}: {opened.left_out}"), err=True)
        if opened.schedule is not None:
            told = f"was made for {opened.schedule.describe()}, which the merged checkpoint does not say"
            click.echo(printable(f"note: {file.path}: {told}: each request has to"), err=True)
    described = [
        {"name": file.name, "strength": file.strength, "sha256": find_hash(file_in(file.path))} for file in files
    ]
    return replace(engine, merge_loras=tuple((file.path, file.strength) for file in files)), described
