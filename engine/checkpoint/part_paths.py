"""Where the parts of a model are: in a folder, in one file, or each in files of its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from os.path import isdir, isfile  # unlike Path's, they raise nothing for a name that is too long
from pathlib import Path

from engine.checkpoint.files.open import open_tensor_file
from engine.checkpoint.layouts.belonging import called, held
from engine.checkpoint.nearby import INDEX, no_checkpoint
from engine.checkpoint.tokenizer_files import MERGES, VOCABULARY, WHOLE
from engine.config.engine_config import PARTS, EngineConfig
from engine.errors import ArgumentError, CheckpointError


@dataclass(frozen=True)
class Parts:
    """Where the parts of a model are: in one folder in the diffusers layout, or each somewhere else.

    paths: a file or a folder for each of `PARTS`. repository: the folder in the diffusers layout whose
    model_index.json and scheduler describe the model; None if there is none. inside: the parts that are this
    repository's own, each in its folder.
    """

    paths: Mapping[str, Path]
    repository: Path | None
    inside: frozenset[str]


def find_parts(engine: EngineConfig) -> Parts:
    """Find where each part is. A file that is the model is each part that it holds and that is not given beside it; of
    its header is read what it holds.

    Raises `ArgumentError` for parts given nowhere or a model of which nothing is taken, and `CheckpointError` if
    `model` does not exist, is damaged, or is a folder without a model_index.json.
    """
    paths = {part: Path(value) for part in PARTS if (value := getattr(engine, part)) is not None}
    repository = engine.demo
    contents: list[str] = []
    if repository is None and engine.model is not None:
        model = Path(engine.model)
        if isdir(model):
            repository = model
            if not isfile(model / INDEX):
                raise no_checkpoint(model)
        elif not isfile(model):
            raise CheckpointError.of(model, "there is no such folder or file")
        else:
            if len(paths) < len(PARTS) - 1 or "transformer" in paths:
                contents = parts_of(model)
            others = dict.fromkeys(contents, model)
            if "transformer" in paths and not others.keys() - paths.keys():
                allowed = "a folder, or a file of other parts, where transformer is given too"
                raise ArgumentError.of("model", allowed, engine.model)
            paths = {"transformer": model} | others | paths
            repository = repository_of(model)
            if repository is None and (beside := _tokenizer_beside(model)) is not None:
                paths.setdefault("tokenizer", beside)

    inside = set()
    missing = [part for part in PARTS if part not in paths]
    if missing and repository is None:
        raise _missing(missing, paths, contents)
    for part in missing:
        assert repository is not None
        paths[part] = repository / part
        single = [*repository.glob("*.safetensors")] if part == "transformer" and not paths[part].exists() else []
        if len(single) == 1:
            paths[part] = single[0]  # official repositories have it beside the folder of the same weights
        else:
            inside.add(part)
    return Parts(paths, repository or repository_of(paths["transformer"]), frozenset(inside))


def parts_of(file: Path) -> list[str]:
    """List the parts of a model that a file of tensors holds. Raises `CheckpointError` if it is damaged."""
    with closing(open_tensor_file(file)) as opened:
        return [*held(opened.headers)]


def _tokenizer_beside(file: Path) -> Path | None:
    """What lies in the file's folder, since no file of tensors holds a tokenizer."""
    if isdir(folder := file.parent / "tokenizer"):
        return folder
    names = (WHOLE,), (VOCABULARY, MERGES)
    return next((file.parent / each[0] for each in names if all(isfile(file.parent / name) for name in each)), None)


def _missing(missing: Sequence[str], paths: Mapping[str, Path], contents: Collection[str]) -> ArgumentError:
    where = "give each as a file or a folder, or all of them as a model in the diffusers layout (a folder, a Hugging "
    where += "Face repository, or demo for a demo's parts) beside "
    given = " ".join(f"{part} {path}" for part, path in paths.items())
    holds = called(*contents).replace("a transformer", "the DiT") if contents else ""  # no word that is an option's
    if contents and "transformer" not in contents:
        given += f", which holds no DiT but {holds}"
    elif len(contents) > 1:
        given = f"{paths['transformer']}, which holds {holds}"
        if missing == ["tokenizer"]:
            where = "no file of tensors has it: give Qwen3-VL-4B's tokenizer.json or its folder, or put it beside "
    return ArgumentError(f"missing: {', '.join(missing)}; {where}{given}", parameter=missing[0])


def repository_of(path: Path) -> Path | None:
    """Return the folder in the diffusers layout that a transformer's `path` is or lies in; None if there is none."""
    path = path.absolute()
    folder = path if isdir(path) else path.parent
    candidates = (folder, folder.parent) if folder.name == "transformer" else (folder,)
    return next((each for each in candidates if isfile(each / INDEX)), None)
