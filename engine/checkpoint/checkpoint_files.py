"""The components of a checkpoint: found, opened, checked against their configs, ready to be read a slice at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from os.path import isdir  # unlike Path's, it raises nothing for a name that is too long
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
from engine.checkpoint.nearby import INDEX
from engine.checkpoint.part_paths import Parts, find_parts, repository_of
from engine.checkpoint.variant import Variant, decide
from engine.config.engine_config import PARTS, EngineConfig
from engine.config.json_fields import JsonFields
from engine.config.model_config import ModelConfig
from engine.errors import CheckpointError

# How each component is opened, and how its config is inferred where it has none.
_COMPONENTS = {
    "transformer": (open_transformer, infer.infer_transformer),
    "text_encoder": (open_text_encoder, infer.infer_text_encoder),
    "vae": (open_vae, infer.infer_vae),
}
_MODEL_TYPES = {
    "transformer": ("Krea2Transformer2DModel",),
    "text_encoder": ("qwen3_vl", "qwen3_vl_text"),
    "vae": ("AutoencoderKLQwenImage",),
}


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
    is_distilled, said_by, note = _variant(parts, index, configs["transformer"], components["transformer"], variant)
    return ModelConfig.build(index, configs, schedule, is_distilled=is_distilled, said_by=said_by, note=note)


def _component_config(parts: Parts, name: str, component: Component) -> JsonFields:
    """Its own config.json, or what the component's shapes say. Constants that no shape tells are then the repository's,
    if there is one, and the published model's otherwise."""
    path = parts.paths[name]
    if name in parts.inside:
        return JsonFields.read(path / "config.json")
    own = (component_folder(path, name) if isdir(path) else path.parent) / "config.json"
    if own.is_file():
        fields = JsonFields.read(own)
        if isdir(path) or fields.values.get("_class_name", fields.values.get("model_type")) in _MODEL_TYPES[name]:
            return fields
    constants: Mapping[str, Any] = {}
    if parts.repository is not None and (other := parts.repository / name / "config.json").is_file():
        constants = {key: value for key, value in JsonFields.read(other).values.items() if key != "is_distilled"}
    return JsonFields(component.file.path, _COMPONENTS[name][1](component, constants))


def _variant(
    parts: Parts, index: JsonFields, transformer: JsonFields, component: Component, option: str | None
) -> Variant:
    """What the option and the files say, and what to take for true if they say nothing.

    A repository that the transformer does not lie in describes another transformer: it is believed last.
    """
    path = parts.paths["transformer"]
    home = repository_of(path)
    stated = None
    if home is not None:
        stated = JsonFields.read(home / INDEX).boolean("is_distilled", default=None), INDEX
    if stated is None or stated[0] is None:
        stated = transformer.boolean("is_distilled", default=None), transformer.file.name
    guess = index.boolean("is_distilled", default=None) is not False
    said = None if stated[0] is None else (stated[0], stated[1])
    return decide(option, said, component.file.metadata, path, transformer.values, guess)
