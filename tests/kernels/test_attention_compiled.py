"""What Triton's compiler makes of the attention kernel for an H200: tensor cores, and no registers spilled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

import pytest
import torch

HEAD_DIMS = (16, 24, 64, 128)


@pytest.fixture(scope="module")
def compiled() -> dict[str, dict[str, int]]:
    """Of each head dim; from a process of its own, because in this one kernels are for the interpreter."""
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    child = subprocess.run(
        [sys.executable, "-m", __name__], env=environment, stdout=subprocess.PIPE, timeout=120, check=True
    )
    return json.loads(child.stdout)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_it_uses_hopper_tensor_cores_and_spills_nothing(compiled: dict[str, dict[str, int]], head_dim: int) -> None:
    figures = compiled[str(head_dim)]
    assert figures["wgmma"] > 0
    assert figures["asynchronous_loads"] > 0
    assert (figures["stack"], figures["local"]) == (0, 0)
    assert figures["shared"] <= 227 * 1024


def _compile(head_dim: int) -> dict[str, int]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from engine.kernels import attention_triton
    from engine.kernels.packing import TILE_ROWS

    kernel = attention_triton._attention.compiled
    block_dim, columns, warps, stages = attention_triton.launch_parameters(head_dim, torch.bfloat16)
    constants = {
        "HEAD_DIM": head_dim,
        "GROUP": 4,
        "HAS_GATE": True,
        "BLOCK_DIM": block_dim,
        "TILE_ROWS": TILE_ROWS,
        "BLOCK_COLUMNS": columns,
    }
    types = {name: "*bf16" if name.endswith("_ptr") else "i32" for name in kernel.arg_names}
    types |= {"tiles_ptr": "*i32", "scale": "fp32"} | dict.fromkeys(constants, "constexpr")
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names)
        if name.endswith(("_ptr", "_stride"))
    }
    result = triton.compile(
        ASTSource(kernel, types, constants, aligned),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True},
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(result.asm["cubin"])
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        usage = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    resources = dict(field.split(":") for field in usage.stdout.split() if field.count(":") == 1)
    return {
        "wgmma": result.asm["ptx"].count("wgmma.mma_async"),
        "asynchronous_loads": result.asm["ptx"].count("cp.async.cg"),
        "shared": result.metadata.shared,
        "registers": int(resources["REG"]),
        "stack": int(resources["STACK"]),
        "local": int(resources["LOCAL"]),
    }


if __name__ == "__main__":
    json.dump({head_dim: _compile(head_dim) for head_dim in HEAD_DIMS}, sys.stdout)
