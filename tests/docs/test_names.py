"""Every path, link, command, flag and name in the code that the documents name is there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path

import click

from launcher.cli.main import commands
from launcher.messages.limits import Limits
from tests.docs.documents import ROOT, headings, pieces

FOLDERS = ("engine", "launcher", "bench", "demo", "deploy", "tests", "docs")
# Flags of other programs that the documents show.
FOREIGN_FLAGS = {
    "pip": {"--no-build-isolation", "--index-url", "--dry-run", "--ignore-installed", "--report"},
    "torchrun": {
        *("--nproc-per-node", "--nnodes", "--node-rank", "--master-addr", "--master-port", "--rdzv-backend"),
        "--virtual-local-rank",
    },
    "docker": {
        *("--build", "--build-arg", "--detach", "--env", "--file", "--gpus", "--publish", "--read-only", "--rm"),
        *("--shm-size", "--tag", "--timeout", "--tmpfs", "--volume"),
    },
    "buildah": {"--format", "--isolation"},
    "helm": {"--install", "--set", "--set-json", "--strict"},
    "kubectl": {"--from-file", "--from-literal"},
    "git": {"--follow"},
    "ray": {
        *("--address", "--block", "--dashboard-agent-grpc-port", "--dashboard-agent-listen-port", "--dashboard-port"),
        *("--disable-usage-stats", "--head", "--max-worker-port", "--metrics-export-port", "--min-worker-port"),
        *("--node-ip-address", "--node-manager-port", "--num-gpus", "--object-manager-port", "--object-store-memory"),
        *("--ray-client-server-port", "--runtime-env-agent-port"),
    },
    "unshare": {"--map-root-user", "--net"},
}
FLAGS_OF_ALL = {"--help", "--version"}
PLACEHOLDERS = ("DATE", "NAME", "FILE", "FOLDER", "PART")
FOREIGN_CLASSES = {"Krea2Pipeline"}
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")


def test_every_link_leads_somewhere() -> None:
    wrong = []
    for piece in pieces():
        targets = re.findall(r"\]\(([^)\s]+)\)|<img src=\"([^\"]+)\"", "" if piece.is_code else piece.text)
        for target in filter(None, (link or image for link, image in targets)):
            path, _, anchor = target.partition("#")
            file = (piece.file.parent / path).resolve() if path else piece.file
            if "://" not in target and (not file.exists() or (anchor and anchor not in headings(file))):
                wrong.append(piece.says(target))
    assert not wrong, "\n".join(wrong)


def test_every_path_exists() -> None:
    path = re.compile(rf"(?<![\w./~-])(?:{'|'.join(FOLDERS)}|\.ci)/[\w./-]*[\w/]")
    wrong = []
    for piece in pieces():
        found = [name for name in path.findall(piece.text) if not any(word in name for word in PLACEHOLDERS)]
        wrong += [piece.says(name) for name in found if not (ROOT / name).exists()]
        alone = [span for span in piece.code if re.fullmatch(r"\w[\w-]*\.(py|sh|js|css|toml)", span)]
        wrong += [piece.says(name) for name in alone if name not in file_names()]
    assert not wrong, "\n".join(wrong)


def test_every_command_and_its_flags_exist() -> None:
    wrong = []
    for piece in pieces():
        for code in piece.code:
            for words in re.findall(r"(?<!from )\b(?:krea2|-m launcher) (\w[^;|]*)", code):
                command, rest = command_of(words)
                if command not in flags_of_krea2():
                    wrong.append(piece.says(f"krea2 {command}"))
                unknown = set(FLAG.findall(rest)) - flags_of_krea2().get(command, set()) - FLAGS_OF_ALL
                wrong += [piece.says(f"krea2 {command} {flag}") for flag in unknown]
            for module, rest in re.findall(r"python -m ((?:bench|demo|tests)\b[\w.]*)([^;|]*)", code):
                if module.endswith(PLACEHOLDERS):
                    continue
                if not is_command(module):
                    wrong.append(piece.says(f"python -m {module}"))
                unknown = set(FLAG.findall(rest)) - flags_of_module(module) - FLAGS_OF_ALL
                wrong += [piece.says(f"python -m {module} {flag}") for flag in unknown]
            targets = re.findall(r"^make ([a-z][\w-]*)", code.strip())
            wrong += [piece.says(f"make {target}") for target in targets if target not in make_targets()]
    assert not wrong, "\n".join(wrong)


def test_every_flag_is_one_of_some_command() -> None:
    known = set().union(*flags_of_krea2().values(), *FOREIGN_FLAGS.values(), FLAGS_OF_ALL)
    known |= {flag for folder in ("bench", "demo") for file in sources(folder) for flag in flags_in(file)}
    known |= set(FLAG.findall(text_of("bench/gpu.sh").partition("\n\n")[0]))
    wrong = [piece.says(flag) for piece in pieces() for flag in FLAG.findall(piece.text) if flag not in known]
    assert not wrong, "\n".join(wrong)


def test_every_option_and_limit_of_krea2_is_described() -> None:
    document = text_of("docs/command-line.md")
    described = set(FLAG.findall(document)) | set(re.findall(r"`(\w+|-\w)`", document))
    assert set().union(*flags_of_krea2().values()) <= described
    assert {field.name for field in fields(Limits)} <= described


def test_every_name_in_the_code_exists() -> None:
    wrong = []
    for piece in pieces():
        for code in piece.code:
            name = re.sub(r"\(.*\)$", "", code.strip())
            if re.fullmatch(rf"(?:{'|'.join(FOLDERS)})(?:\.\w+)+", name) and not resolves(name):
                wrong.append(piece.says(name))
            if (match := re.fullmatch(r"(_?[A-Z]\w+)\.(\w+)", name)) and not has_attribute(*match.groups()):
                wrong.append(piece.says(name))
            if match := re.fullmatch(r"from ((?:engine|launcher|krea2)[\w.]*) import (.+)", name):
                names = [f"{match[1]}.{imported.strip()}" for imported in match[2].split(",")]
                wrong += [piece.says(imported) for imported in names if not resolves(imported)]
        for name, file in re.findall(r"`(\w+)` in `([\w/]+\.py)`", piece.text):
            definition = rf"^\s*(?:async )?(?:def |class )?{name}\b *[(:=]"
            if (ROOT / file).exists() and not re.search(definition, text_of(file), re.MULTILINE):
                wrong.append(piece.says(f"{name} in {file}"))
    assert not wrong, "\n".join(wrong)


# ---- what there is


@cache
def file_names() -> set[str]:
    return {path.name for folder in FOLDERS for path in (ROOT / folder).rglob("*.*")} | {"pyproject.toml", "krea2.py"}


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@cache
def text_of(file: str | Path) -> str:
    return (ROOT / file).read_text()


@cache
def flags_of_krea2() -> dict[str, set[str]]:
    """By command, of a group's by both words."""
    flags = {}
    for name, command in commands.commands.items():
        inner = command.commands if isinstance(command, click.Group) else {}
        for words, each in ((name, command), *((f"{name} {word}", each) for word, each in inner.items())):
            options = [option for option in each.params if isinstance(option, click.Option)]
            flags[words] = {flag for option in options for flag in (*option.opts, *option.secondary_opts)}
    return flags


def command_of(words: str) -> tuple[str, str]:
    """Divide what follows `krea2` into the command, of one word or of a group's two, and the rest."""
    command, rest = re.match(r"(\w+)(.*)", words, re.DOTALL).groups()  # type: ignore[union-attr]
    inner = re.match(r"\s+(\w+)(.*)", rest, re.DOTALL)
    if isinstance(commands.commands.get(command), click.Group) and inner is not None:
        return f"{command} {inner[1]}", inner[2]
    return command, rest


@cache
def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):", text_of("Makefile"), re.MULTILINE))


def module_file(module: str) -> Path | None:
    """What `python -m module` runs, or what importing it does."""
    path = ROOT / module.replace(".", "/")
    candidates = (path / "__main__.py", path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in candidates if file.is_file()), None)


def is_command(module: str) -> bool:
    file = module_file(module)
    return file is not None and file.name != "__init__.py" and '__name__ == "__main__"' in text_of(file)


@cache
def flags_in(file: Path) -> set[str]:
    """The flags that the file adds to a parser."""
    text = text_of(file)
    added = " ".join(re.findall(r"add_argument\(\s*((?:\"[\w-]+\",?\s*)+)", text))
    in_loops = " ".join(re.findall(r"for name in \(([^)]*)\):\s+parser\.add_argument\(f\"--\{name\}\"", text))
    return {*FLAG.findall(added), *(f"--{name}" for name in re.findall(r"\"([\w-]+)\"", in_loops))}


@cache
def flags_of_module(module: str) -> set[str]:
    """Those of a command: its file adds them, or the files of its project that it imports."""
    return set().union(*(flags_in(file) for file in imported(module)))


def imported(module: str) -> list[Path]:
    """The file of a module and those of its folder's project that it imports, itself or through others."""
    found: dict[Path, None] = {}
    waiting = [module]
    while waiting:
        file = module_file(waiting.pop())
        if file is not None and file not in found:
            found[file] = None
            waiting += re.findall(rf"^\s*from ({module.split('.')[0]}\.[\w.]+) import", text_of(file), re.MULTILINE)
    return list(found)


def resolves(dotted: str) -> bool:
    """Whether a dotted name is a package, a module, or what one defines, up to an attribute of a class."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        path, rest = ROOT.joinpath(*parts[:count]), parts[count:]
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if file.is_file():
            known = not rest or rest[0] in defined(file)
            return known and (len(rest) < 2 or has_attribute(rest[0], rest[1]))
    return False


@cache
def defined(file: Path) -> set[str]:
    """The names at the top of a module, and the others that it says may be used."""
    names: set[str] = set()
    for node in ast.parse(text_of(file)).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
            if "__all__" in names and node.value is not None:
                names |= {part.value for part in ast.walk(node.value) if isinstance(part, ast.Constant)}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def has_attribute(kind: str, name: str) -> bool:
    """Whether a class of the engine or the launcher has a method, a field or an attribute of this name."""
    return kind in FOREIGN_CLASSES or any(name in found for found in attributes(kind))


@cache
def attributes(kind: str) -> list[set[str]]:
    """Those of each class of this name."""
    return list(_attributes(kind))


def _attributes(kind: str) -> Iterator[set[str]]:
    for file in (*sources("engine"), *sources("launcher")):
        if not re.search(rf"^class {kind}\b", text_of(file), re.MULTILINE):
            continue
        for node in ast.parse(text_of(file)).body:
            if isinstance(node, ast.ClassDef) and node.name == kind:
                methods = {part.name for part in node.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)}
                named = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
                own = {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}
                yield methods | named | own
