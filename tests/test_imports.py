"""Who may import what: read from the source, and seen in a fresh interpreter."""

from __future__ import annotations

import ast
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from tests.bench.floors import BENCH_FLOORS
from tests.engine.floors import ENGINE_FLOORS
from tests.floors import FOR_USERS, KNOW_AUTO_MODE, LAUNCHER_FLOORS
from tests.fresh_interpreter import modules_after

ROOT = Path(__file__).parent.parent
ENGINE = sorted((ROOT / "engine").rglob("*.py"))
LAUNCHER = sorted((ROOT / "launcher").rglob("*.py"))
DEMO = sorted((ROOT / "demo").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
BENCH = sorted(file for kind in ("*.py", "*.sh") for file in (ROOT / "bench").rglob(kind))

# What the engine may import besides itself and the standard library.
ENGINE_PACKAGES = {"torch", "gguf", "triton", "numpy"}
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

MOST_FILES, MOST_LINES = 12, 300  # in a folder, besides its __init__.py; in a file


def test_the_engine_imports_torch_and_little_else() -> None:
    allowed = (set(sys.stdlib_module_names) | ENGINE_PACKAGES | {"engine"}) - ENGINE_FORBIDDEN
    for file in ENGINE:
        assert {name.split(".")[0] for name in _imports(file)} <= allowed, file


@pytest.mark.parametrize(
    ("files", "floors"),
    [(ENGINE, ENGINE_FLOORS), (LAUNCHER, LAUNCHER_FLOORS), (BENCH, BENCH_FLOORS)],
    ids=["engine", "launcher", "bench"],
)
def test_every_folder_imports_only_floors_below_it(files: list[Path], floors: dict[str, set[str]]) -> None:
    order = list(floors)
    for floor, below in floors.items():
        assert below <= set(order[: order.index(floor)]), f"{floor} is said to import a floor that is not below it"
    (package,) = {_module(file).split(".")[0] for file in files}
    for file in (file for file in files if file.suffix == ".py"):
        floor = _floor(_module(file))
        inner = {_floor(name) for name in _imports(file) if name.split(".")[0] == package}
        assert inner <= {floor, *floors.get(floor, set())}, f"{_module(file)} imports a floor above it"


def test_only_who_handles_the_option_knows_of_the_automatic_mode() -> None:
    know = {_floor(_module(file)) for file in LAUNCHER if "launcher.auto_mode" in map(_floor, _imports(file))}
    assert know == {*KNOW_AUTO_MODE, "launcher.auto_mode"}
    assert {floor for floor, below in LAUNCHER_FLOORS.items() if "launcher.auto_mode" in below} == KNOW_AUTO_MODE


def test_every_folder_and_every_file_is_small() -> None:
    """The recipe of the demo lies in one folder."""
    files = ENGINE + LAUNCHER + BENCH + TESTS
    counts = Counter(file.parent for file in files if file.name != "__init__.py")
    large = {f"{_path(folder)}/" for folder, count in counts.items() if count > MOST_FILES}
    large |= {_path(file) for file in files + DEMO if len(file.read_text().splitlines()) > MOST_LINES}
    assert not large


def test_every_package_says_in_a_sentence_what_lives_there_and_imports_nothing() -> None:
    for folder in {file.parent for file in ENGINE + LAUNCHER + BENCH if file.suffix == ".py"}:
        file = folder / "__init__.py"
        assert file.is_file(), f"{_path(folder)} is no package"
        sentence = (ast.get_docstring(ast.parse(file.read_text())) or "").split("\n\n")[0]
        assert sentence.endswith("."), f"{_path(file)} says nothing"
        allowed = {"importlib", "typing", "launcher"} if folder == ROOT / "launcher" else set()
        if folder == ROOT / "launcher" / "ray":  # whose function, which Serve calls, imports when it is called
            allowed = {"typing", "launcher", "ray"}
        found = {name.split(".")[0] for name in _imports(file)} - {"__future__"}
        assert found <= allowed, f"{_path(file)} imports something"


def test_no_module_imports_itself_through_others() -> None:
    """Imports for types alone count too, and so do those inside functions."""
    modules = {_module(file): file for file in ENGINE + LAUNCHER + BENCH if file.suffix == ".py"}
    graph = {name: {found for found in _imports(file) if found in modules} for name, file in modules.items()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " → ".join([*path[path.index(name) :], name])
        if name not in done:
            for found in sorted(graph[name]):
                visit(found, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_what_users_import_takes_it_from_the_launcher_and_the_errors() -> None:
    assert {*_imports(ROOT / "krea2.py")} <= {*FOR_USERS, "__future__", "typing"}
    for file in ENGINE + LAUNCHER + BENCH:
        assert file.suffix != ".py" or "krea2" not in _imports(file), f"{_path(file)} imports what is for users"


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
    light = ("config.engine_config", "config.model_config", "config.chat_template", "errors", "step")
    light += ("scheduling.scheduler", "planning.memory_plan", "checkpoint.weight_format")
    packages, adapter_files, rank = modules_after(
        f"import launcher, engine, {', '.join(f'engine.{part}' for part in light)}",
        "import engine.lora.files",
        "import engine.rank.rank",
    )
    references = {"zmq", "msgspec", "tokenizers", "transformers", "diffusers", "triton"}
    assert not packages & {*references, "torch", "numpy", "PIL"}
    assert "torch" not in adapter_files
    assert "torch" in rank
    assert not rank & {*references, "starlette", "fastapi"}


def test_the_rank_imports_where_triton_is_not_installed() -> None:
    modules_after("import sys; sys.modules['triton'] = None; import engine.rank.rank")


def _module(file: Path) -> str:
    """The dotted name of a file, a package's for its `__init__.py`."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _floor(module: str) -> str:
    """The folder that a module lies in; files directly in a package are floors of their own."""
    folder = module if (ROOT / module.replace(".", "/")).is_dir() else module.rpartition(".")[0]
    return module if folder in ("engine", "launcher", "bench") else folder


def _path(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


@cache
def _nodes(file: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(file.read_text())))


@cache
def _imports(file: Path) -> tuple[str, ...]:
    """Dotted names of all modules that a file imports, those inside functions too."""
    found: list[str] = []
    for node in _nodes(file):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                path = ROOT / inner.replace(".", "/")
                found.append(inner if path.is_dir() or path.with_suffix(".py").is_file() else node.module)
    return tuple(found)
