"""Who may import what: read from the source, and seen in a fresh interpreter."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.fresh_interpreter import modules_after

ROOT = Path(__file__).parent.parent
ENGINE = sorted((ROOT / "engine").rglob("*.py"))
LAUNCHER = sorted((ROOT / "launcher").rglob("*.py"))
DEMO = sorted((ROOT / "demo").rglob("*.py"))

# What the engine may import besides itself and the standard library.
ENGINE_PACKAGES = {"torch", "safetensors", "gguf", "triton", "numpy"}
# Standard modules that have no place in it: it knows nothing of sockets, processes and HTTP.
ENGINE_FORBIDDEN = {"socket", "socketserver", "http", "urllib", "asyncio", "subprocess", "multiprocessing"}
# Nothing anywhere is pickled.
PICKLING_MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "multiprocessing"}
PICKLING_CALLS = {
    "recv_pyobj",
    "send_pyobj",
    "torch.load",
    "torch.save",
    "all_gather_object",
    "broadcast_object_list",
    "gather_object",
    "recv_object_list",
    "scatter_object_list",
    "send_object_list",
}

# engine: rank → model → parallel → kernels → nothing; below are the parts that each part may import.
_PLAIN = {"component_config", "degrees", "engine_config", "errors", "json_fields", "model_config", "step"}
ENGINE_LAYERS: dict[str, set[str]] = {
    "errors": set(),
    "step": set(),
    "json_fields": {"errors"},
    "component_config": {"json_fields"},
    "prompt_domain": {"json_fields"},
    "degrees": {"component_config"},
    "work_division": {"component_config", "degrees"},
    "traffic": {"component_config", "degrees", "work_division"},
    "demo_checkpoints": set(),
    "engine_config": {"degrees", "demo_checkpoints", "errors"},
    "model_config": {"component_config", "degrees", "errors", "json_fields", "prompt_domain"},
    "tiling": set(),
    "memory": {*_PLAIN, "prompt", "tiling", "work_division"},
    "cost": {"step"},
    "policy": {"cost", "step"},
    "forecast": {"cost", "policy"},
    "scheduler": {*_PLAIN, "cost", "policy", "forecast"},
    "kernels": {"errors"},
    "parallel": {*_PLAIN, "kernels"},
    "attention_agreement": {"kernels", "parallel"},
    "checkpoint": {*_PLAIN, "kernels", "parallel"},
    "sampling": _PLAIN,
    "preview": set(),
    "batch": {*_PLAIN, "kernels", "parallel"},
    "prompt": set(),
    "model": {*_PLAIN, "parallel", "kernels", "batch", "tiling"},
    "lora": {*_PLAIN, "checkpoint", "parallel", "kernels"},
    "memory_plan": {*_PLAIN, "checkpoint", "memory", "prompt", "tiling"},
    "mode_choice": {*_PLAIN, "checkpoint", "memory_plan", "traffic", "work_division"},
    "moments": set(),
    "out_of_memory": set(),
    "copying": {"moments"},
    "residency": {"memory_plan"},
    "offload": {*_PLAIN, "checkpoint", "copying", "memory_plan", "moments", "model", "parallel", "residency"},
    "graphs": {*_PLAIN, "kernels", "model"},
    "decoding": {*_PLAIN, "model", "moments", "out_of_memory", "parallel", "preview", "tiling"},
    "prompt_features": {*_PLAIN, "kernels", "model", "parallel", "memory", "prompt", "graphs", "lora"},
    "jobs": {*_PLAIN, "lora", "model"},
    "plan_building": {"kernels", "out_of_memory", "step"},
    "pending": {*_PLAIN, "moments"},
    "velocities": {*_PLAIN, "batch", "graphs", "jobs", "kernels", "lora", "model", "parallel", "work_division"},
    "rank": {
        *_PLAIN,
        "attention_agreement",
        "moments",
        "out_of_memory",
        "velocities",
        "jobs",
        "pending",
        "plan_building",
        "parallel",
        "kernels",
        "batch",
        "sampling",
        "preview",
        "checkpoint",
        "model",
        "lora",
    }
    | {"graphs", "decoding", "prompt_features", "memory", "memory_plan", "offload", "prompt"},
}


def test_engine_imports_only_torch_and_safetensors() -> None:
    allowed = (set(sys.stdlib_module_names) | ENGINE_PACKAGES | {"engine"}) - ENGINE_FORBIDDEN
    for file in ENGINE:
        assert {name.split(".")[0] for name in _imports(file)} <= allowed, file


def test_dependencies_of_the_engine_point_one_way() -> None:
    for file in ENGINE:
        part = file.relative_to(ROOT / "engine").parts[0].removesuffix(".py")
        if part not in ENGINE_LAYERS:
            continue
        inner = {name.split(".")[1] for name in _imports(file) if name.startswith("engine.")}
        assert inner <= ENGINE_LAYERS[part] | {part}, f"{file.relative_to(ROOT)} imports a layer above it"


def test_the_recipe_of_the_demo_and_the_engine_do_not_import_each_other() -> None:
    for file in DEMO:
        assert not {"bench", "engine", "launcher"} & {name.split(".")[0] for name in _imports(file)}
    for file in ENGINE + LAUNCHER:
        assert "demo" not in {name.split(".")[0] for name in _imports(file)}


def test_nothing_is_pickled() -> None:
    assert ENGINE
    assert LAUNCHER
    assert DEMO
    for file in ENGINE + LAUNCHER + DEMO:
        assert not PICKLING_MODULES & {name.split(".")[0] for name in _imports(file)}, file
        for node in _nodes(file):
            if isinstance(node, ast.Attribute):
                assert not PICKLING_CALLS & {node.attr, ast.unparse(node)}, file


def test_packages_and_the_check_of_adapter_files_load_nothing_heavy_and_the_rank_no_sockets_and_no_references() -> None:
    """In one interpreter: what one has loaded is there for the next, which may load it too."""
    parts = ("engine_config", "model_config", "errors", "step", "scheduler", "prompt", "checkpoint.summary")
    packages, adapter_files, rank = modules_after(
        f"import launcher, engine, {', '.join(f'engine.{part}' for part in parts)}",
        "import engine.lora",
        "import engine.rank",
    )
    references = {"zmq", "msgspec", "tokenizers", "transformers", "diffusers", "triton"}
    assert not packages & {*references, "torch", "numpy", "PIL"}
    assert "torch" not in adapter_files
    assert "torch" in rank
    assert not rank & {*references, "starlette", "fastapi"}


def test_the_rank_imports_where_triton_is_not_installed() -> None:
    modules_after("import sys; sys.modules['triton'] = None; import engine.rank")


@cache
def _nodes(file: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(file.read_text())))


def _imports(file: Path) -> Iterator[str]:
    """Dotted names of all imports of a file, those inside functions too."""
    for node in _nodes(file):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            assert node.module is not None
            if node.module == "engine":
                yield from (f"engine.{alias.name}" for alias in node.names)
            else:
                yield node.module
