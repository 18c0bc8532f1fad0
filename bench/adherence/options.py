"""The command line of `python -m bench.adherence`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from bench.adherence.edits import TASKS
from bench.adherence.rates import ALL
from bench.measure.arguments import (
    PICTURE_FILES,
    image_side,
    json_file,
    not_negative,
    picture_file,
    positive,
    share_of,
)
from demo.judge import ATTRIBUTES
from engine.pictures.strength import STRENGTH_STEPS

PROMPTS, TABLE_PROMPTS = 500, 100
TABLES = ("ways", "cache")
BAR = 0.6  # the lower end of the interval of what the demo had when it shipped, docs/demo.md says how much


def parse(arguments: Sequence[str] | None, description: str) -> argparse.Namespace:
    """Read the command line, or end with what is wrong with it."""
    parser = argparse.ArgumentParser(prog="python -m bench.adherence", description=description)
    parser.add_argument("--model", default="demo", help="one that knows the demo's prompts")
    parser.add_argument("--prompts", type=positive, help=f"how many (default: {PROMPTS}, with --table {TABLE_PROMPTS})")
    parser.add_argument("--steps", type=positive, help="(default: the model's own)")
    parser.add_argument("--guidance", type=not_negative, help="(default: the model's own)")
    parser.add_argument("--width", type=image_side, help="of every picture, with --height")
    parser.add_argument("--height", type=image_side)
    parser.add_argument("--tp", type=positive, default=1)
    for name in ("device", "dtype", "quantization", "attention"):
        parser.add_argument(f"--{name}", default="auto")
    parser.add_argument(
        "--table",
        choices=TABLES,
        nargs="?",
        const=TABLES[0],
        help="compare ways to draw, or to save steps (default, given alone: %(const)s)",
    )
    parser.add_argument("--ways", nargs="+", metavar="WAY", help="of --table cache, by name (default: all)")
    parser.add_argument("--task", choices=TASKS, help="draw from pictures (default: from prompts alone)")
    parser.add_argument("--strength", type=share_of, help="with --task (default: the engine's own)")
    parser.add_argument("--strength-steps", choices=STRENGTH_STEPS, default=STRENGTH_STEPS[0], help="with --task")
    parser.add_argument(
        "--fail-under",
        type=_bar,
        nargs="+",
        metavar="[ATTRIBUTE=]SHARE",
        help=f"of the pictures in which all, or an attribute, is right; 0 to 1 (default: {BAR})",
    )
    parser.add_argument(
        "--sheet", type=picture_file, metavar="FILE", help=f"write a contact sheet, as {', '.join(PICTURE_FILES)}"
    )
    parser.add_argument("--wrong-sheet", type=picture_file, metavar="FILE", help="another of wrong pictures")
    parser.add_argument("--json", type=json_file, metavar="FILE", help="append the JSON lines to it")
    options = parser.parse_args(arguments)
    if (options.width is None) != (options.height is None):
        parser.error("--width and --height go together")
    if options.task is not None and options.table:
        parser.error("--task does not go with --table")
    if options.task is None and options.strength is not None:
        parser.error("--strength needs a --task")
    if options.table == "cache" and (options.steps is not None or options.guidance is not None):
        parser.error("--table cache goes with neither --steps nor --guidance")
    if options.ways is not None and options.table != "cache":
        parser.error("--ways goes with --table cache")
    if options.table and (options.fail_under is not None or options.wrong_sheet is not None):
        parser.error("--table goes with neither --fail-under nor --wrong-sheet")
    return options


def _bar(text: str) -> tuple[str, float]:
    name, equals, share = text.rpartition("=")
    if equals and name not in (ALL, *ATTRIBUTES):
        raise argparse.ArgumentTypeError(f"must be of {', '.join((ALL, *ATTRIBUTES))}, got {name}")
    return name or ALL, share_of(share)
