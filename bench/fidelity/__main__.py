"""What each choice costs in exactness: precisions, attention backends and kernels, against float32.

    python -m bench.fidelity [--images 8] [--size real|tiny] [--layers 3] [--side 512] [--seconds N] [--json FILE]

On the demo checkpoint: relative error ‖a − b‖ / ‖b‖ of the final latents, and PSNR of the images, of several prompts
and seeds from prompt to pixels. On random blocks of the real model's shape (on a CPU the tiny one's, unless `--size`
says otherwise): relative error of the velocity at several sigmas, the mean over them and each. The reference computes
in float32 by plain PyTorch, from the same noise. Two lines say what is no choice: `float32` is the engine's float32,
and `bfloat16 timesteps` is that reference with the timesteps rounded as every bfloat16 run has them, after the model's
own references; the sigmas of the blocks are such that nothing is rounded.

fp8 is ranked by quantising one class of matrices at a time. Lines of files have the demo's transformer read from a file
in one of the formats that people download, its 8-bit matrices staying so; of a K-quant, whose 256 columns the demo's
matrices lack, it has what their rows are when they are quantised one after the other. A kernel's line replaces it alone
by plain PyTorch; on a CPU, where kernels are plain PyTorch, and for a backend that does not run here, there is the
reason in place of a line.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from bench.fidelity.blocks import BLOCKS, compare_blocks
from bench.fidelity.demo import compare_demo
from bench.fidelity.tries import Tries
from bench.measure.arguments import duration, end_with, image_side, json_file, positive
from bench.measure.lost import LOST, DeviceLost
from bench.measure.timing import Budget


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.fidelity", description=(__doc__ or "").split("\n")[0])
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--images", type=positive, default=8, help="of the demo")
    parser.add_argument("--size", choices=sorted(BLOCKS), default="real" if on_gpu else "tiny")
    parser.add_argument("--layers", type=positive, help="of the random blocks")
    parser.add_argument("--side", type=image_side, help="of the image that they see")
    parser.add_argument("--seconds", type=duration, help="leave out what does not fit")
    parser.add_argument("--json", type=json_file, metavar="FILE", help="append the JSON lines to it")
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if on_gpu else "cpu")
    torch.backends.cudnn.allow_tf32 = False  # or float32 would not be
    budget = Budget(options.seconds)
    first_half = Budget(None if options.seconds is None else options.seconds / 2)
    tries = Tries()
    left_out: list[str] = []
    status = 0
    try:
        with tries.telling("demo, the reference"):
            left_out += compare_demo(options, device, first_half, tries)
        with tries.telling("blocks, the reference"):
            left_out += compare_blocks(options, device, budget, tries)
    except DeviceLost as error:
        status = LOST
        tries.failures.append(f"the GPU is lost, and whatever it would compute in this process: {error}")
    if left_out:
        print(f"left out, since the time was up: {', '.join(left_out)}")
    for failure in tries.failures:
        print(f"FAILED: {failure}")
    return status or int(bool(tries.failures))


if __name__ == "__main__":
    end_with(main)
