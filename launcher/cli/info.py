"""`krea2 info`: shows what a model holds and what it takes. Reads headers and json files, no weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from engine.checkpoint.checkpoint_files import CheckpointFiles
from engine.checkpoint.layouts.presharded import split_degrees
from engine.checkpoint.weight_format import ComponentSummary, summarize
from engine.config.engine_config import PARTS, EngineConfig
from engine.errors import ArgumentError, CheckpointError
from engine.planning.memory_plan import plan_checkpoint
from launcher.auto_mode.choice import choose_mode, is_auto
from launcher.auto_mode.prediction import Workload
from launcher.cli.described.components import describe_component, describe_file, is_lone_file, megabytes, said_by
from launcher.cli.made import describe_picture, is_picture
from launcher.cli.options.command import Command
from launcher.cli.options.engine_options import given, model_argument, table_options
from launcher.cli.options.numbers import WHOLE_NUMBER
from launcher.cli.stdout import say
from launcher.hub.models import locate
from launcher.licence.notice import licence_of
from launcher.messages.limits import Limits
from launcher.provenance.file_hashes import find_hash
from launcher.requests.infotext import model_hash
from launcher.setup.configure import engine_config


@click.command(cls=Command)
@model_argument
@table_options("model", help="The same as MODEL.")
@table_options(*PARTS)
@table_options("tp", help="Ranks to split the checkpoint over.  [default: 1]")
@table_options("sp", help="Ranks to split the tokens of a step over.  [default: 1]")
@table_options("cfg_parallel", help="Twice as many ranks, for the two halves of guided images.")
@table_options("parallel", help="What would be chosen of these, and how long each mode's step takes.")
@click.option(
    "--gpus", type=WHOLE_NUMBER, help="With --parallel auto: choose for this many H200s, not for this machine."
)
@click.option(
    "--size",
    "sizes",
    multiple=True,
    metavar="WIDTHxHEIGHT",
    help="With --parallel auto: of images to choose for; may be repeated.  [default: the checkpoint's]",
)
@table_options("device", help="With --parallel auto: auto, cuda or cpu.")
@table_options("dtype", default="bfloat16", help="bfloat16 or float32.")
@table_options("quantization", help="auto, none, fp8 or int8, as for serve.")
@table_options("variant", help="raw or turbo.")
@table_options("offload", "prefetch", "memory_budget", "lora_memory", "vae_memory", "image_input")
@table_options("loras", help="A LoRA file to check, too. May be repeated.")
@table_options("lora_lenient", help="Skip what fits nothing in a LoRA file.")
@click.option("--hashes", is_flag=True, help="Read all files, and show their SHA-256, which pictures then tell, too.")
def info(
    *, gpus: int | None, sizes: tuple[str, ...], loras: tuple[str, ...], hashes: bool, **engine_options: Any
) -> None:
    """Show what a model holds, in which files and formats, and the bytes of each rank; with --memory-budget or
    --offload also the plan of what lies where, with --parallel auto the time of each mode's step.

    MODEL and the options are as for serve; MODEL may also be a single file of any part of a model, by itself, or a
    picture, of which is shown what made it.
    """
    options = given(engine_options)
    if is_picture(options.get("model")):
        say(describe_picture(Path(options["model"])))
        return
    choose = is_auto(options)
    for name, value in (("gpus", gpus), ("size", sizes or None)):
        if value is not None and not choose:
            raise ArgumentError(f"{name} says what --parallel auto chooses for, which is not given", parameter=name)
    config = locate(engine_config(options))
    if "tp" not in options and not choose and config.model and (degrees := split_degrees(Path(config.model))):
        config = replace(config, tp=degrees[0])  # its files are those of this many ranks
    if config.model is not None and not loras and is_lone_file(config):
        say(describe_file(Path(config.model)))
        if hashes:
            say("\n".join(_hashes({"file": (Path(config.model),)})))
        return
    checked = [_check_lora(lora, config) for lora in loras]
    if checked and config.memory_budget is not None and config.lora_memory is None:
        config = replace(config, lora_memory=sum(size for _, size in checked))
    lines: tuple[str, ...] = ()
    if choose:
        config, chosen = _choose_mode(config, sizes, gpus)
        lines = ("", *chosen)
    say("\n".join((describe_checkpoint(config), *lines, *(line for line, _ in checked))))
    if hashes:
        from launcher.provenance.made_with import component_files

        say("\n".join(_hashes(component_files(_read(config)) | {"lora": tuple(map(_lora_file, loras))})))


def describe_checkpoint(config: EngineConfig) -> str:
    """Tell the architecture, the parameters, and the bytes of each rank at the config's degrees and dtype, and plan its
    memory if a budget or `offload` is given.

    Raises `CheckpointError` if the checkpoint is not whole or its tokenizer does not fit, and `ArgumentError` if it
    cannot be split so.
    """
    from launcher.requests.tokenizer import PromptTokenizer

    checkpoint = _read(config)
    model = checkpoint.config
    model.check_parallel(config.tp, config.sp)
    tokenizer = PromptTokenizer(checkpoint.tokenizer, model.text_encoder.vocab_size)
    bytes_per_element = 4 if config.dtype == "float32" else 2
    components = summarize(checkpoint, config, bytes_per_element)
    files = []
    for name, component in checkpoint.components.items():
        formats = (checkpoint.stored(name, source).format for source in checkpoint.sources_in_files_of(name))
        first, *more = describe_component(name, component, formats)
        files += [f"  {name.replace('_', ' '):<14}{first}", *(f"  {'':<14}{line}" for line in more)]
    plan_lines: list[str] = []
    if config.memory_budget is not None or config.offload:
        nccl = config.dtype != "float32"  # which stands for a CPU here
        budget = config.memory_budget
        plan = plan_checkpoint(checkpoint, config, bytes_per_element, budget=budget, nccl=nccl)
        heading = "memory plan of a rank that has a device to itself"
        plan_lines = ["", heading, *(f"  {line}" for line in plan.describe())]

    licence = licence_of(config.demo)
    dit, text, vae, sizes = model.transformer, model.text_encoder, model.vae, model.size_domain
    variant = "Turbo" if model.is_distilled else "Raw"
    lines = [
        f"Krea 2 {variant}{said_by(model.variant_said_by)}: {config.name}",
        *([] if model.variant_note is None else [f"  note          {model.variant_note}"]),
        f"  licence       {licence.name}, version {licence.version}: {licence.url}",
        f"  defaults      {model.default_width} × {model.default_height}, {model.default_steps} steps, "
        f"guidance {model.default_guidance:g}",
        *([] if sizes is None else [f"  made for      sides from {sizes.least} to {sizes.most} pixels"]),
        f"  transformer   {dit.num_layers} blocks, width {dit.hidden_size}, {dit.num_heads} heads, "
        f"{dit.num_kv_heads} kv heads, SwiGLU {dit.intermediate_size}",
        f"  text encoder  {text.num_layers} layers, width {text.hidden_size}, {text.num_heads} heads, "
        f"{text.num_kv_heads} kv heads, SwiGLU {text.intermediate_size}, taps {_listed(model.text_encoder_taps)}",
        f"  vae           {vae.z_dim} channels, 1/{vae.scale_factor} of the image's sides",
        f"  tp            possible: {_listed(model.possible_tp())}",
        f"  sp            possible: {_listed(model.possible_sp(config.tp))}, with tp {config.tp} and no cfg-parallel",
        "",
        *files,
        f"  {'tokenizer':<14}{checkpoint.tokenizer}",
        f"  {'':<14}{', '.join(tokenizer.files.by_name())}: {tokenizer.tokens:,} tokens",
        "",
        f"{'parameters that inference needs':<34}" + "".join(f"{f'rank {rank}':>12}" for rank in range(config.ranks)),
    ]
    totals = tuple(sum(column) for column in zip(*(each.bytes_per_rank for each in components), strict=True))
    total = ComponentSummary("total", sum(each.parameters for each in components), totals)
    return "\n".join((*lines, *map(_row, (*components, total)), *plan_lines))


def _choose_mode(config: EngineConfig, sizes: Sequence[str], gpus: int | None) -> tuple[EngineConfig, Sequence[str]]:
    """Do what `choose_mode` does for images of these sizes, as WIDTHxHEIGHT, or of the checkpoint's default size."""
    from launcher.requests.check import parse_size

    if gpus is not None and gpus < 1:
        raise ArgumentError.of("gpus", "at least 1", gpus)
    checkpoint = _read(config)
    workload = Workload.default(checkpoint.config)
    if sizes:
        given_sizes = (parse_size("size", size, checkpoint.config, Limits()) for size in sizes)
        workload = replace(workload, sizes=tuple(dict.fromkeys(given_sizes)))
    return choose_mode(checkpoint, config, workload, gpus=gpus)


def _check_lora(text: str, config: EngineConfig) -> tuple[str, int]:
    """Describe a LoRA file, `[NAME=]PATH[:STRENGTH]`, in a line: its kind, what it changes, bytes on a rank.

    Returns these bytes, too. Raises `ArgumentError`, and `LoraError` for a file that does not fit the checkpoint.
    """
    from launcher.requests.lora_files import describe_scales, located, open_lora, parse_lora

    lora = located(parse_lora(text))
    opened = open_lora(lora.path, _read(config).config, lenient=config.lora_lenient)
    size = opened.bytes_on_rank(config.tp, 4 if config.dtype == "float32" else 2)
    vectors = sum(change.is_vector for change in opened.changes.values())
    layers = opened.modules - vectors
    counts = [f"{layers} layer{'' if layers == 1 else 's'}"] if layers or not vectors else []
    counts += [f"{vectors} of the norms and modulation tables"] if vectors else []
    parts = [
        opened.family,
        f"changes {' and '.join(counts)}",
        describe_scales(opened),
        f"{megabytes(size)} on each rank",
    ]
    made_for = "" if opened.schedule is None else f"made for {opened.schedule.describe()}"
    line = f"{lora.path}: {', '.join(filter(None, parts))}"
    return "; ".join(filter(None, (line, made_for, opened.left_out))), size


def _lora_file(text: str) -> Path:
    from engine.lora.folders import file_in
    from launcher.requests.lora_files import located, parse_lora

    return file_in(located(parse_lora(text)).path)


def _hashes(files: Mapping[str, Sequence[Path]]) -> Iterator[str]:
    """List the hashes of files, and of several that are one component together."""
    yield "\nSHA-256, of which sites and pictures show the first 10 digits"
    for part, each in files.items():
        try:
            found = {file.name: find_hash(file) for file in each}
        except OSError as error:
            raise CheckpointError(f"{error.filename or part}: {error.strerror or error}") from None
        for name, sha256 in found.items():
            yield f"  {part.replace('_', ' '):<14}{sha256}  {name}"
        if len(found) > 1 and part != "lora":
            yield f"  {'':<14}{model_hash(found)}  all of them: sha256sum *{each[0].suffix} | sha256sum"


def _read(config: EngineConfig) -> CheckpointFiles:
    """A checkpoint whose headers have been read and whose files are closed."""
    checkpoint = CheckpointFiles.open(config)
    checkpoint.close()
    return checkpoint


def _row(summary: ComponentSummary) -> str:
    sizes = "".join(f"{megabytes(size):>12}" for size in summary.bytes_per_rank)
    return f"  {summary.name.replace('_', ' '):<16}{summary.parameters:>16,}{sizes}"


def _listed(numbers: tuple[int, ...] | list[int]) -> str:
    return ", ".join(map(str, numbers))
