"""One image from prompt ids to its file, at the real size with random weights, stage by stage, and diffusers' pipeline.

    python -m bench.image [--sides 1024,512,2048] [--quantization none,fp8] [--peer diffusers] [--seconds N]
                          [--unseen-length [PAIRS]]

A rank is driven as the front-end drives it. Stages have timers of their own: text encoding and denoising by the device,
decoding from the last step's end to the pixels' arrival in host memory, and the JPEG file; what the wall clock says
beyond their sum is "outside". A PNG of the same picture is timed beside it. Files are encoded as the server does, but
here the request waits for them; pictures of random weights are noise, which PNG compresses worse than photographs.

Burst: each image after some idle seconds, when a GPU is cool; the median counts. Sustained: back to back; the mean
counts. A peer takes turns with the images of the first kind, A B C C B A.

All of these have prompts of one length. --unseen-length makes more images then, in pairs: one whose prompt has a length
that no image had before, for which an attention may have no plan yet, so that another serves it, and one as long as
that, A B B A. What their medians differ by is what a new length costs; the plan is built between them, as a server does
while it has nothing to do, and timed by itself.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bench.engines.engine import Engine
from bench.engines.results import Results
from bench.engines.runner import Run, run_main
from bench.engines.setup import add_options, read_options
from bench.image.measuring import STEPS, ImageResult, measure_image
from bench.measure.arguments import check_positive, duration, end_with, parse_sides

SIDES = {"real": "1024,512,2048"}
SMALL_SIDES = "64,128"
UNSEEN_PAIRS = 4


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.image", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sides", help="of the square images, comma-separated, most important first")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"({STEPS})")
    parser.add_argument("--burst", type=int, default=3, help="images of the burst (3)")
    parser.add_argument("--idle", type=duration, default=5.0, help="seconds before each of them (5)")
    parser.add_argument("--sustained", type=duration, default=10.0, help="seconds of images back to back; 0: none (10)")
    parser.add_argument(
        "--unseen-length", type=int, nargs="?", const=UNSEEN_PAIRS, default=0, metavar="PAIRS",
        help=f"measure PAIRS of a new prompt length and a known one, too ({UNSEEN_PAIRS})",
    )  # fmt: skip
    add_options(parser, quantization="none")
    return run_main(_run, parser, sys.argv[1:] if words is None else words)


def _run(arguments: argparse.Namespace) -> Results:
    setup = read_options(arguments)
    check_positive("steps", arguments.steps)
    check_positive("burst", arguments.burst)
    if arguments.unseen_length:
        check_positive("unseen-length", arguments.unseen_length)
    sides = parse_sides("sides", arguments.sides or SIDES.get(arguments.size, SMALL_SIDES), setup.model.size_multiple)
    columns = ("image", "weights in", "wall", "encode", "denoise", "of floor", "decode", "JPEG", "outside", "PNG")
    more = ("sustained", "unseen length", "target", "eager", "ratio", "compiled", "ratio")
    run: Run[int, ImageResult] = Run("image", setup, (*columns, *more))

    def measure(engine: Engine, side: int) -> ImageResult:
        return measure_image(
            engine,
            side,
            run.ceilings,
            steps=arguments.steps,
            burst=arguments.burst,
            idle_s=arguments.idle,
            sustained_s=arguments.sustained,
            unseen_pairs=arguments.unseen_length,
            peer=run.peer,
        )

    return run.measure_all(sides, measure, _row)


def _row(result: ImageResult) -> list[str]:
    stages = result.stages
    row = [f"{result.side}²", result.quantization, _seconds(result.wall_s.median), _seconds(stages.encode_s)]
    row += [_seconds(stages.denoise_s), f"{result.denoise_of_floor:.0%}", _seconds(stages.decode_s)]
    row += [_seconds(value) for value in (stages.file_s, result.outside_s, stages.png_s, result.sustained_s)]
    row.append("" if result.unseen_length is None else f"{result.unseen_length.difference_s:+.3f} s")
    row.append("" if result.target_s is None else f"≤ {result.target_s:.2f} s")
    for mode in ("eager", "compiled"):
        peer = result.peers.get(mode)
        row += ["", ""] if peer is None else [_seconds(peer.wall_s.median), f"{peer.ratio:.2f}×"]
    return row


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3f} s"


if __name__ == "__main__":
    end_with(main)
