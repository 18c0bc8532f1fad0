"""`krea2 convert`: writes a checkpoint in another layout."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from engine.config.engine_config import PARTS, EngineConfig
from engine.errors import ArgumentError
from launcher.cli.options.command import Command
from launcher.cli.options.engine_options import table_options
from launcher.cli.options.numbers import WHOLE_NUMBER
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
def convert(
    output: Path,
    *,
    model: str | None,
    layout: str,
    weights: str | None,
    component: str,
    prefix: str | None,
    tp: int,
    **parts: Any,
) -> None:
    """Write a checkpoint to OUTPUT in another layout, quantised, or split for ranks. Prints OUTPUT when it is whole."""
    from tqdm import tqdm

    from engine.checkpoint.checkpoint_files import CheckpointFiles
    from engine.checkpoint.convert.convert import COMPONENTS, LAYOUTS, count_tensors
    from engine.checkpoint.convert.convert import convert as write
    from launcher.setup.hub import find_model

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
    engine = EngineConfig(model=find_model(model), tp=tp, **parts)
    with closing(CheckpointFiles.open(engine, as_it_is=True)) as checkpoint:
        total = count_tensors(checkpoint, layout, component, tp)
        shown = sys.stderr is not None and sys.stderr.isatty()
        with tqdm(total=total, unit="tensor", leave=False, disable=not shown) as bar:
            notes = write(
                checkpoint,
                output,
                layout=layout,
                weights=weights or ("q8_0" if layout == "gguf" else "keep"),
                component=component,
                prefix=prefix or "",
                tp=tp,
                report=bar.update,
            )
    for note in notes:
        click.echo(f"note: {note}", err=True)
    say_path(output)
