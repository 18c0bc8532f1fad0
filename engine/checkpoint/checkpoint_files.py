"""The components of a checkpoint: found, opened, checked against their configs, ready to be read a slice at a time."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from os.path import isdir, isfile  # unlike Path's, they raise nothing for a name that is too long
from pathlib import Path
from typing import Any

from engine.checkpoint.files.open import component_folder
from engine.checkpoint.files.stored import StoredTensor
from engine.checkpoint.layouts import infer
from engine.checkpoint.layouts.component import Component, open_text_encoder, open_transformer, open_vae
from engine.checkpoint.layouts.presharded import is_split, open_shard, shard_sources
from engine.checkpoint.layouts.tensors import (
    Source,
    component_with_files,
    is_vae_encoder,
    sources_by_component,
)
from engine.checkpoint.nearby import INDEX, no_checkpoint
from engine.config.engine_config import PARTS, EngineConfig
from engine.config.json_fields import JsonFields
from engine.config.model_config import ModelConfig
from engine.errors import ArgumentError, CheckpointError

# How each component is opened, and how its config is inferred where it has none.
_COMPONENTS = {
    "transformer": (open_transformer, infer.infer_transformer),
    "text_encoder": (open_text_encoder, infer.infer_text_encoder),
    "vae": (open_vae, infer.infer_vae),
}
_MODEL_TYPES = ("qwen3_vl", "qwen3_vl_text", "Krea2Transformer2DModel", "AutoencoderKLQwenImage")


class CheckpointFiles:
    """The components of a checkpoint: the `Weights` that come from files. Headers have been read and checked; data is
    read on demand.

    components: those with files of their own; the VAE's encoder is in its decoder's. tokenizer: the folder or file of
    the tokenizer, which is not opened. parameters: the number of parameters of each whole component that inference
    needs. split_for: the tp degree of which these are one rank's shards; None if whole.
    """

    def __init__(
        self,
        config: ModelConfig,
        components: Mapping[str, Component],
        tokenizer: Path,
        split_for: int | None,
        *,
        image_input: bool,
    ) -> None:
        """Check the components. Raises `CheckpointError` if any tensor is missing, extra, misshapen or unreadable."""
        self.config, self.components, self.tokenizer = config, components, tokenizer
        self.split_for = split_for
        self.sources = sources_by_component(config, image_input=image_input)
        self.parameters = {
            name: sum(math.prod(source.shard_shape(1)) for source in sources) for name, sources in self.sources.items()
        }
        needed_layers = tuple(f"layers.{layer}." for layer in range(config.text_layers))
        unused: dict[str, Callable[[str], bool]] = {  # above the text encoder's last tap; where no pictures go in
            "text_encoder": lambda name: (
                name == "norm.weight" or (name.startswith("layers.") and not name.startswith(needed_layers))
            ),
            "vae": lambda name: (not image_input and is_vae_encoder(name)) or ".time_conv." in name,
        }
        if split_for is not None:
            self.sources = {name: shard_sources(sources, split_for) for name, sources in self.sources.items()}
            del unused["text_encoder"]
        for name, component in components.items():
            _check(component, self.sources_in_files_of(name), unused.get(name, lambda name: False))

    @classmethod
    def open(cls, engine: EngineConfig, rank: int = 0, *, as_it_is: bool = False) -> CheckpointFiles:
        """Open what the options name; of a folder that was split for ranks, this rank's part. Reads headers and json
        files; imports no torch. as_it_is: with the VAE's encoder if there is one, whatever `image_input` says.

        Raises `CheckpointError` for a file that is missing, damaged or of another model, and `ArgumentError` as
        `find_parts` and `is_split` do.
        """
        parts = find_parts(engine)
        folder = parts.repository
        described = None
        if folder is not None:
            described = JsonFields.read(folder / INDEX), JsonFields.read(folder / "scheduler/scheduler_config.json")
        is_whole = folder is None or parts.inside != set(PARTS) or not is_split(folder, engine.tp)
        with ExitStack() as cleanup:
            components = {}
            for name, (opener, _) in _COMPONENTS.items():
                if is_whole or folder is None:
                    components[name] = opener(parts.paths[name])
                else:  # the VAE is not split: rank 0 has it whole
                    components[name] = open_shard(folder, engine.tp, 0 if name == "vae" else rank, name)
                cleanup.callback(components[name].file.close)
            config = _read_config(parts, described, components, engine.variant)
            image_input = any(map(is_vae_encoder, components["vae"].tensors)) if as_it_is else engine.image_input
            split_for = None if is_whole else engine.tp
            checkpoint = cls(config, components, parts.paths["tokenizer"], split_for, image_input=image_input)
            cleanup.pop_all()
        return checkpoint

    def sources_in_files_of(self, component: str) -> list[Source]:
        """List all tensors that are read from a component's files: from the VAE's those of both its halves."""
        return [
            source
            for name, sources in self.sources.items()
            if component_with_files(name) == component
            for source in sources
        ]

    def stored(self, component: str, source: Source) -> StoredTensor:
        """See `Weights.stored`."""
        return self.components[component_with_files(component)].tensors[source.name]

    def close(self) -> None:
        """Let go of the files. Tensors that were read stay valid."""
        for component in self.components.values():
            component.file.close()


def _check(component: Component, sources: Iterable[Source], is_unused: Callable[[str], bool]) -> None:
    """Compare the component's tensors with those expected. An extra tensor is an error unless it `is_unused`."""
    names = set()
    for source in sources:
        names.add(source.name)
        tensor = component.tensors.get(source.name)
        if tensor is None:
            name, expected = component.in_file(source.name), source.shape
            problem = "tensor is missing"
            if is_vae_encoder(source.name):
                problem += ", which encodes the pictures that go in (--no-image-input does without them)"
            raise CheckpointError.of(component.file.path, problem, name=name, expected=expected)
        if tensor.shape != source.shape:
            problem, expected, found = "tensor has the wrong shape", source.shape, tuple(tensor.shape)
            raise CheckpointError.of(tensor.file, problem, name=tensor.name, expected=expected, found=found)
        tensor.size(source.shard_bounds(0, 1))  # an error for what cannot be read
    extra = sorted(name for name in component.tensors if name not in names and not is_unused(name))
    if extra:
        more = f" (and {len(extra) - 1} more)" if len(extra) > 1 else ""
        tensor = component.tensors[extra[0]]
        raise CheckpointError.of(tensor.file, f"tensor does not belong to this model{more}", name=tensor.name)


def _read_config(
    parts: Parts,
    described: tuple[JsonFields, JsonFields] | None,
    components: Mapping[str, Component],
    variant: str | None,
) -> ModelConfig:
    """From config files where there are any, from the tensors' shapes where not. described: a repository's index and
    scheduler."""
    file = components["transformer"].file.path
    index, schedule = described or (
        JsonFields(file, infer.INDEX_CONSTANTS),
        JsonFields(file, infer.SCHEDULER_CONSTANTS),
    )
    configs = {name: _component_config(parts, name, components[name]) for name in _COMPONENTS}
    stated, guess = _is_distilled(parts, index, configs["transformer"])
    return ModelConfig.build(index, configs, schedule, variant=variant, stated=stated, guess=guess)


def _component_config(parts: Parts, name: str, component: Component) -> JsonFields:
    """Its own config.json, or what the component's shapes say. Constants that no shape tells are then the repository's,
    if there is one, and the published model's otherwise."""
    path = parts.paths[name]
    if name in parts.inside:
        return JsonFields.read(path / "config.json")
    own = (component_folder(path, name) if isdir(path) else path.parent) / "config.json"
    if own.is_file():
        fields = JsonFields.read(own)
        if isdir(path) or fields.values.get("_class_name", fields.values.get("model_type")) in _MODEL_TYPES:
            return fields
    constants: Mapping[str, Any] = {}
    if parts.repository is not None and (other := parts.repository / name / "config.json").is_file():
        constants = {key: value for key, value in JsonFields.read(other).values.items() if key != "is_distilled"}
    return JsonFields(component.file.path, _COMPONENTS[name][1](component, constants))


def _is_distilled(parts: Parts, index: JsonFields, transformer: JsonFields) -> tuple[bool | None, bool]:
    """What the files say, and what to take for true if they say nothing.

    A repository that the transformer does not lie in describes another transformer: the file's name goes before it.
    """
    home = repository_of(parts.paths["transformer"])
    stated = None
    if home is not None:
        stated = JsonFields.read(home / INDEX).boolean("is_distilled", default=None)
    if stated is None:
        stated = transformer.boolean("is_distilled", default=None)
    by_name = variant_by_name(parts.paths["transformer"])
    if by_name is not None:
        return stated, by_name == "turbo"
    return stated, index.boolean("is_distilled", default=None) is not False


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
    """Find where each part is. Raises `ArgumentError` for parts given nowhere or a transformer given twice, and
    `CheckpointError` if `model` does not exist, or is a folder without a model_index.json."""
    paths = {part: Path(value) for part in PARTS if (value := getattr(engine, part)) is not None}
    repository = engine.demo
    if repository is None and engine.model is not None:
        model = Path(engine.model)
        if isdir(model):
            repository = model
            if not isfile(model / INDEX):
                raise no_checkpoint(model)
        elif not isfile(model):
            raise CheckpointError.of(model, "there is no such folder or file")
        elif "transformer" in paths:
            raise ArgumentError.of("model", "a folder where transformer is given too", engine.model)
        else:
            paths["transformer"] = model
            repository = repository_of(model)

    inside = set()
    missing = [part for part in PARTS if part not in paths]
    if missing and repository is None:
        given = " ".join(f"{part} {path}" for part, path in paths.items())
        raise ArgumentError(
            f"missing: {', '.join(missing)}; give each as a file or a folder, or all of them as a model in the "
            f"diffusers layout (a folder, a Hugging Face repository, or demo for a demo's parts) beside {given}",
            parameter=missing[0],
        )
    for part in missing:
        assert repository is not None
        paths[part] = repository / part
        single = [*repository.glob("*.safetensors")] if part == "transformer" and not paths[part].exists() else []
        if len(single) == 1:
            paths[part] = single[0]  # official repositories have it beside the folder of the same weights
        else:
            inside.add(part)
    return Parts(paths, repository or repository_of(paths["transformer"]), frozenset(inside))


def repository_of(path: Path) -> Path | None:
    """Return the folder in the diffusers layout that a transformer's `path` is or lies in; None if there is none."""
    path = path.absolute()
    folder = path if isdir(path) else path.parent
    candidates = (folder, folder.parent) if folder.name == "transformer" else (folder,)
    return next((each for each in candidates if isfile(each / INDEX)), None)


def variant_by_name(path: Path) -> str | None:
    """Return what a single file's name says, as InvokeAI reads it: "turbo", "raw" (also for base), or None."""
    if not isfile(path):
        return None
    if "turbo" in path.stem.lower():
        return "turbo"
    return "raw" if {"raw", "base"} & set(re.split(r"[^a-z0-9]+", path.stem.lower())) else None
