"""Compiles kernels for an H200 where there is none: a JSON line a kernel.

    python -m tests.engine.kernels.attention.hopper

What the compiler says of a kernel costs no GPU: whether it compiles, its registers and spills, the width of its
loads. In a process of its own, since Triton's interpreter and its compiler do not go together.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from engine.kernels import gate, image_norm, int8, norm, rope, upsample
from engine.kernels.attention import (
    chunked as chunked_attention,
)
from engine.kernels.attention import (
    fa3_fp8 as fp8_attention,
)
from engine.kernels.attention import (
    triton_kernel as attention_triton,
)
from engine.kernels.jit import Kernel, launch_shape
from engine.kernels.packing import TILE_ROWS

WIDTH, SWIGLU, HEAD_DIM = 6144, 16384, 128
DEMO_HEAD_DIMS = (16, 24)
VAE_CHANNELS = (16, 96, 192, 384)  # the demo's fewest, and the real ones


@dataclass(frozen=True)
class Compiled:
    """registers: of a thread; spills: bytes that they overflow by; shared: bytes of a program's shared memory;
    wide_loads: 16-byte loads in the code; wgmma: products on Hopper's tensor cores."""

    name: str
    warps: int
    registers: int
    spills: int
    shared: int
    wide_loads: int
    wgmma: int


def compile_for_hopper(
    name: str, kernel: Kernel, arguments: Mapping[str, str | bool | int], *, warps: int, stages: int = 3
) -> Compiled:
    """arguments: a type such as "*bf16" or "i32" for what is passed, a value for a constant.

    Pointers and integers count as divisible by 16, as the launcher finds them at the real size.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = kernel.compiled
    types = {name: value if isinstance(value, str) else "constexpr" for name, value in arguments.items()}
    constants = {name: value for name, value in arguments.items() if not isinstance(value, str)}
    aligned = {
        (function.arg_names.index(name),): [["tt.divisibility", 16]]
        for name, kind in types.items()
        if kind.startswith("*") or kind == "i32"
    }
    source = ASTSource(function, types, constants, attrs=aligned)
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    binary = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    registers, spills = _resources(binary.asm["cubin"])
    ptx = binary.asm["ptx"]
    wide = len(re.findall(r"ld\.global\S*\.v4\.b32|cp\.async\S*.*, 16|ld\.global\S*\.v2\.b64", ptx))
    return Compiled(name, warps, registers, spills, binary.metadata.shared, wide, ptx.count("wgmma.mma_async"))


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack, which is where spilled registers go, from the dump of Triton's own cuobjdump."""
    import triton

    (tool,) = (Path(triton.__file__).parent / "backends" / "nvidia" / "bin").glob("cuobjdump")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        dump = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", dump)
    assert found is not None, dump
    return int(found[1]), int(found[2])


def _kernels() -> Iterator[Compiled]:
    for fp8 in (False, True):
        kind = "fp8" if fp8 else "bf16"
        y = "*fp8e4nv" if fp8 else "*bf16"
        block, warps = launch_shape(WIDTH)
        arguments = {
            **dict.fromkeys(("x_ptr", "update_ptr", "total_ptr"), "*bf16"),
            "y_ptr": y,
            "scale_ptr": "*fp32",
            **dict.fromkeys(("gate_ptr", "factor_ptr", "shift_ptr"), "*fp32"),
            "segment_ptr": "*i32",
            **dict.fromkeys(("gate_stride", "vector_stride", "width"), "i32"),
            "eps": "fp32",
            "BLOCK": block,
            **dict.fromkeys(("HAS_UPDATE", "HAS_GATE", "HAS_SHIFT", "PER_SEGMENT"), True),
            "FP8": fp8,
        }
        yield compile_for_hopper(f"norm {kind}", norm._norm, arguments, warps=warps)
        for name, width, group in (
            ("silu_mul", SWIGLU, 0),
            ("sigmoid_mul", WIDTH, 0),
            ("sigmoid_mul", WIDTH, HEAD_DIM),
            ("sigmoid_mul", WIDTH, WIDTH // 2),
        ):
            block, warps = launch_shape(width)
            arguments = {
                "x_ptr": "*bf16",
                "gate_ptr": "*bf16",
                "y_ptr": y,
                "scale_ptr": "*fp32",
                **dict.fromkeys(("x_stride", "group_stride", "gate_stride", "width"), "i32"),
                "GROUP": group,
                "BLOCK": block,
                "SILU": name == "silu_mul",
                "FP8": fp8,
            }
            yield compile_for_hopper(f"{name} {kind} {group}", gate._gate_mul, arguments, warps=warps)
    for halves, ranks, per_segment in (
        *((False, 0, False), (True, 0, False), (False, 2, False), (False, 4, False)),
        *((False, 0, True), (False, 4, True)),
    ):
        arguments = {
            **dict.fromkeys(("x_ptr", "y_ptr"), "*bf16"),
            **dict.fromkeys(("query_norm_ptr", "key_norm_ptr", "rotation_ptr"), "*fp32"),
            "segment_ptr": "*i32" if per_segment else "*fp32",
            "row_stride": "i32",
            **dict.fromkeys(("query_heads", "kv_heads", "all_heads"), "i32"),
            **dict.fromkeys(("head_dim", "query_norm_stride", "key_norm_stride"), "i32"),
            "eps": "fp32",
            "HEADS": rope._HEADS_AT_ONCE,
            "PAIRS": HEAD_DIM // 2,
            "ROTATE": True,
            "HALVES": halves,
            "RANKS": ranks,
            "PER_SEGMENT": per_segment,
        }
        name = f"norm_rotate {'halves' if halves else 'neighbours'}{f' to {ranks} ranks' if ranks else ''}"
        name += " by segment" * per_segment
        yield compile_for_hopper(name, rope._norm_rotate, arguments, warps=4)
    for name in ("_find_largest", "_quantize"):
        arguments = {
            **dict.fromkeys(("query_ptr", "key_ptr", "value_ptr"), "*bf16"),
            **dict.fromkeys(("query_stride", "key_stride", "value_stride"), "i32"),
            **dict.fromkeys(("tiles_ptr", "segments_ptr", "largest_ptr"), "*i32"),
            **(dict.fromkeys(("query_out", "key_out", "value_out"), "*fp8e4nv") if name == "_quantize" else {}),
            **({"scales_ptr": "*fp32"} if name == "_quantize" else {}),
            "kv_heads": "i32",
            "GROUP": 4,
            "HEAD_DIM": HEAD_DIM,
            "BLOCK_COLUMNS": 4 * HEAD_DIM,
            "TILE_ROWS": TILE_ROWS,
            "BLOCK_ROWS": fp8_attention._BLOCK_ROWS,
        }
        yield compile_for_hopper(f"fp8 heads {name}", getattr(fp8_attention, name), arguments, warps=8)
    for head_dim in (*DEMO_HEAD_DIMS, 64, HEAD_DIM):
        block_dim, columns, warps, stages = attention_triton.launch_parameters(head_dim, torch.bfloat16)
        arguments = {
            **dict.fromkeys(("query_ptr", "key_ptr", "value_ptr", "gate_ptr", "output_ptr"), "*bf16"),
            "tiles_ptr": "*i32",
            **dict.fromkeys(("query_stride", "key_stride", "value_stride", "gate_stride", "output_stride"), "i32"),
            "scale": "fp32",
            "HEAD_DIM": head_dim,
            "GROUP": 4,
            "HAS_GATE": True,
            "BLOCK_DIM": block_dim,
            "TILE_ROWS": TILE_ROWS,
            "BLOCK_COLUMNS": columns,
        }
        name = f"attention {head_dim}"
        yield compile_for_hopper(name, attention_triton._attention, arguments, warps=warps, stages=stages)
    arguments = {"values_ptr": "*i8", "scales_ptr": "*fp16", "y_ptr": "*bf16", "elements": "i32"}
    tile = {"GROUP": int8.GROUP, "BLOCK": int8._BLOCK}
    yield compile_for_hopper("dequantize int8", int8._dequantize_groups, {**arguments, **tile}, warps=4)
    arguments = {"scores_ptr": "*fp32", "weights_ptr": "*bf16", "sums_ptr": "*fp32", "columns": "i32"}
    arguments |= {"scale": "fp32", "lowest": "fp32", "BLOCK": chunked_attention.BLOCK}
    yield compile_for_hopper("weigh", chunked_attention._weigh, arguments, warps=chunked_attention.WARPS)
    for channels in VAE_CHANNELS:
        block, rows = image_norm.tile_shape(channels)
        tile = {"channels": "i32", "BLOCK": block}
        adds = {**tile, "elements": "i32", "ROWS": rows, "HAS_BIAS": True}
        arguments = {
            **dict.fromkeys(("x_ptr", "residual_ptr", "bias_ptr", "weight_ptr", "y_ptr"), "*bf16"),
            **dict.fromkeys(("scale", "shortest"), "fp32"),
            **adds,
            "SILU": True,
        }
        for residual in (False, True):
            name = f"{'residual, ' if residual else ''}image_norm {channels}"
            yield compile_for_hopper(name, image_norm._image_norm, arguments | {"HAS_RESIDUAL": residual}, warps=4)
        arguments = {**dict.fromkeys(("x_ptr", "residual_ptr", "bias_ptr"), "*bf16"), **adds}
        yield compile_for_hopper(f"residual {channels}", image_norm._add_residual, arguments, warps=4)
        arguments = {"x_ptr": "*bf16", "y_ptr": "*bf16", **tile, "row_size": "i32", "COLUMNS": rows}
        yield compile_for_hopper(f"upsample {channels}", upsample._upsample, arguments, warps=4)


def main() -> int:
    for compiled in _kernels():
        print(json.dumps(asdict(compiled)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
