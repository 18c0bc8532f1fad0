"""What it takes to have image files say where they come from: by XMP, and by a C2PA manifest that is signed.

    python -m bench.disclosure [--c2pa-certificate FILE --c2pa-key FILE] [--side 1024] [--repeats 9] [--json FILE]

Files are written as a server does, from pixels that are a smooth picture with a little noise: bare, with XMP, and with
a manifest where there is a certificate. They take turns, in each format. What is timed is the CPU's work, which others
on the machine lengthen the least.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial

import torch

from bench.engines.runner import run_main
from bench.measure.arguments import json_file, positive
from bench.measure.output import append_json, print_json, print_table
from bench.measure.timing import Spread
from launcher.disclosure.disclosure import Disclosure
from launcher.messages.configs import DisclosureConfig
from launcher.requests.check import OUTPUT_FORMATS, CheckedRequest
from launcher.requests.image_files import encode_image


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.disclosure", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--c2pa-certificate", metavar="FILE", help="as krea2 serve takes it (no manifests)")
    parser.add_argument("--c2pa-key", metavar="FILE", help="its key")
    parser.add_argument("--side", type=positive, default=1024, help="of the square pictures, in pixels (1024)")
    parser.add_argument("--repeats", type=positive, default=9, help="files of each kind (9)")
    parser.add_argument("--json", type=json_file, metavar="FILE", help="add a line for each result to this file, too")
    return run_main(_run, parser, sys.argv[1:] if words is None else words)


def _run(arguments: argparse.Namespace) -> None:
    signed = DisclosureConfig(c2pa_certificate=arguments.c2pa_certificate, c2pa_key=arguments.c2pa_key)
    kinds = {"bare": Disclosure(xmp=False), "xmp": Disclosure()}
    if (signing := Disclosure.of(signed)).signer is not None:
        kinds["c2pa"] = signing
    pixels = _pixels(arguments.side)
    rows = []
    for output_format in OUTPUT_FORMATS:
        request = _request(arguments.side, output_format)
        writes = {
            kind: partial(encode_image, pixels, request, seed=0, made_with={"model": "Krea-2-Turbo"}, disclosure=each)
            for kind, each in kinds.items()
        }
        spreads, sizes = _in_turns(writes, arguments.repeats)
        for kind, spread in spreads.items():
            more_s, more_bytes = spread.median - spreads["bare"].median, sizes[kind] - sizes["bare"]
            line = {"format": output_format, "kind": kind, "side": arguments.side, "more_bytes": more_bytes}
            print_json("disclosure", line | {"write": asdict(spread), "more_s": more_s})
            if arguments.json is not None:
                append_json(arguments.json, "disclosure", line | {"write": asdict(spread), "more_s": more_s})
            rows.append((output_format, kind, f"{spread.median * 1e3:.1f}", f"{more_s * 1e3:+.1f}", f"{more_bytes:+}"))
    print(f"\nbench.disclosure: files of {arguments.side}²")
    print_table(("format", "says by", "CPU ms", "more", "bytes more"), rows)


def _in_turns(writes: Mapping[str, Callable[[], bytes]], repeats: int) -> tuple[dict[str, Spread], dict[str, int]]:
    """Time each of these, in seconds of the CPU, after one that does not count. Returns their files' sizes, too."""
    sizes = {kind: len(write()) for kind, write in writes.items()}
    times: dict[str, list[float]] = {kind: [] for kind in writes}
    for _ in range(repeats):
        for kind, write in writes.items():
            began = time.process_time()
            write()
            times[kind].append(time.process_time() - began)
    return {kind: Spread.of(each) for kind, each in times.items()}, sizes


def _pixels(side: int) -> bytes:
    """A picture that is about as hard to compress as a photograph."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, max(2, side // 32), max(2, side // 32), generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")[0].permute(1, 2, 0)
    noise = torch.randn(side, side, 3, generator=generator) * 0.015
    return ((smooth + noise).clamp(0, 1) * 255).to(torch.uint8).numpy().tobytes()


def _request(side: int, output_format: str) -> CheckedRequest:
    return CheckedRequest(
        prompt="a red fox in the snow", negative_prompt=None, seed=0, steps=8, asked_steps=8, guidance=0.0, mu=None,
        width=side, height=side, num_images=1, priority=0, timeout_s=None, output_format=output_format, metadata=True,
        preview_every=None, loras=(), warnings=(),
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
