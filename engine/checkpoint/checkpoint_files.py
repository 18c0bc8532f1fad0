"""The components of a checkpoint, opened, checked against their configs, and ready to be read a slice at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from engine.checkpoint.files.open import component_folder, is_folder
from engine.checkpoint.files.stored import StoredTensor
from engine.checkpoint.layouts import infer
from engine.checkpoint.layouts.component import Component, open_text_encoder, open_transformer, open_vae
from engine.checkpoint.layouts.presharded import is_split, open_shard, shard_sources
from engine.checkpoint.layouts.tensors import Source, text_encoder_sources, transformer_sources, vae_sources
from engine.checkpoint.parts import Parts, find_parts, repository_of, variant_by_name
from engine.config.engine_config import PARTS, EngineConfig
from engine.config.json_fields import JsonFields
from engine.config.model_config import ModelConfig
from engine.errors import CheckpointError

_OPENERS: Mapping[str, Callable[[Path], Component]] = {
    "transformer": open_transformer,
    "text_encoder": open_text_encoder,
    "vae": open_vae,
}
_INFER: Mapping[str, Callable[[Component, Mapping[str, Any]], dict[str, Any]]] = {
    "transformer": infer.infer_transformer,
    "text_encoder": infer.infer_text_encoder,
    "vae": infer.infer_vae,
}
_MODEL_TYPES = ("qwen3_vl", "qwen3_vl_text", "Krea2Transformer2DModel", "AutoencoderKLQwenImage")


class CheckpointFiles:
    """The components of a checkpoint. Its headers have been read and checked; its data is read on demand.

    tokenizer: the folder or file of the tokenizer, which is not opened. parameters: that inference needs of each
    component. split_for: how many ranks the components are one's shards of, None if they are whole.
    """

    def __init__(
        self,
        config: ModelConfig,
        components: Mapping[str, Component],
        tokenizer: Path,
        *,
        split_for: int | None = None,
    ) -> None:
        """split_for: the components are one rank's shards, so many ranks having been planned for. Raises
        `CheckpointError` if any tensor is missing, extra, misshapen or unreadable."""
        self.config, self.components, self.tokenizer = config, components, tokenizer
        self.split_for = split_for
        self.sources = {
            "transformer": list(transformer_sources(config.transformer)),
            "text_encoder": list(text_encoder_sources(config)),
            "vae": list(vae_sources(config.vae)),
        }
        self.parameters = {
            name: sum(math.prod(source.shard_shape(1)) for source in sources) for name, sources in self.sources.items()
        }
        if split_for is not None:
            self.sources = {name: shard_sources(sources, split_for) for name, sources in self.sources.items()}
            for name, component in components.items():
                _check(component, self.sources[name], lambda name: False)
            return
        needed_layers = tuple(f"layers.{layer}." for layer in range(config.text_layers))
        _check(components["transformer"], self.sources["transformer"], lambda name: False)
        _check(
            components["text_encoder"],
            self.sources["text_encoder"],  # whatever lies above the last tap is left alone
            lambda name: name == "norm.weight" or (name.startswith("layers.") and not name.startswith(needed_layers)),
        )
        _check(
            components["vae"],
            self.sources["vae"],
            lambda name: name.startswith(("encoder.", "quant_conv.")) or ".time_conv." in name,
        )

    @classmethod
    def open(cls, engine: EngineConfig, rank: int = 0) -> CheckpointFiles:
        """Open what the options name, of a folder that was split for ranks what is this rank's. Reads headers and json
        files; imports no torch.

        Raises `CheckpointError` for a file that is missing, damaged or of another model, and `ArgumentError` if a part
        is given nowhere.
        """
        parts = find_parts(engine)
        repository = None if parts.repository is None else _read_repository(parts.repository)
        split_for = None
        if parts.repository is not None and parts.inside == set(PARTS) and is_split(parts.repository, engine.tp):
            split_for = engine.tp
        with ExitStack() as cleanup:
            components = {}
            for name, opener in _OPENERS.items():
                if split_for is None:
                    components[name] = opener(parts.paths[name])
                else:
                    assert parts.repository is not None
                    shard = 0 if name == "vae" else rank  # the decoder is nobody's part
                    components[name] = open_shard(parts.repository, split_for, shard, name)
                cleanup.callback(components[name].file.close)
            config = _read_config(parts, repository, components, engine.variant)
            checkpoint = cls(config, components, parts.paths["tokenizer"], split_for=split_for)
            cleanup.pop_all()
        return checkpoint

    def stored(self, component: str, source: Source) -> StoredTensor:
        """See `Weights.stored`."""
        return self.components[component].tensors[source.name]

    def close(self) -> None:
        for component in self.components.values():
            component.file.close()


def _check(component: Component, sources: Iterable[Source], ignored: Callable[[str], bool]) -> None:
    """Compare what there is with what is expected. An extra tensor is an error unless `ignored` lets it pass."""
    names = set()
    for source in sources:
        names.add(source.name)
        tensor = component.tensors.get(source.name)
        if tensor is None:
            raise CheckpointError.of(
                component.location, "tensor is missing", name=component.in_file(source.name), expected=source.shape
            )
        if tensor.shape != source.shape:
            raise CheckpointError.of(
                tensor.file,
                "tensor has the wrong shape",
                name=tensor.name,
                expected=source.shape,
                found=tuple(tensor.shape),
            )
        tensor.size(source.shard_bounds(0, 1))  # an error for what cannot be read
    extra = sorted(name for name in component.tensors if name not in names and not ignored(name))
    if extra:
        more = f" (and {len(extra) - 1} more)" if len(extra) > 1 else ""
        tensor = component.tensors[extra[0]]
        raise CheckpointError.of(tensor.file, f"tensor does not belong to this model{more}", name=tensor.name)


def _read_repository(folder: Path) -> tuple[JsonFields, JsonFields]:
    """What describes a repository as a whole: its index and its scheduler."""
    return JsonFields.read(folder / "model_index.json"), JsonFields.read(folder / "scheduler" / "scheduler_config.json")


def _read_config(
    parts: Parts,
    repository: tuple[JsonFields, JsonFields] | None,
    components: Mapping[str, Component],
    variant: str | None,
) -> ModelConfig:
    """From config files where there are any, from the tensors' shapes where not."""
    file = components["transformer"].location
    index, schedule = repository or (
        JsonFields(file, infer.INDEX_CONSTANTS),
        JsonFields(file, infer.SCHEDULER_CONSTANTS),
    )
    configs = {name: _component_config(parts, name, components[name]) for name in _OPENERS}
    stated, guess = _is_distilled(parts, index, configs["transformer"])
    return ModelConfig.build(index, configs, schedule, variant=variant, stated=stated, guess=guess)


def _component_config(parts: Parts, name: str, component: Component) -> JsonFields:
    """Its own config.json, or what the component's shapes say. Constants that no shape tells are then the repository's,
    if there is one, and the published model's otherwise."""
    path = parts.paths[name]
    if name in parts.inside:
        return JsonFields.read(path / "config.json")
    own = (component_folder(path, name) if is_folder(path) else path.parent) / "config.json"
    if own.is_file():
        fields = JsonFields.read(own)
        if is_folder(path) or fields.values.get("_class_name", fields.values.get("model_type")) in _MODEL_TYPES:
            return fields
    constants: Mapping[str, Any] = {}
    if parts.repository is not None and (other := parts.repository / name / "config.json").is_file():
        constants = {key: value for key, value in JsonFields.read(other).values.items() if key != "is_distilled"}
    return JsonFields(component.location, _INFER[name](component, constants))


def _is_distilled(parts: Parts, index: JsonFields, transformer: JsonFields) -> tuple[bool | None, bool]:
    """What the files say, and what to take for true if they say nothing.

    A repository that the transformer does not lie in speaks of another one, and is believed only after the file's name.
    """
    home = repository_of(parts.paths["transformer"])
    stated = None
    if home is not None:
        stated = JsonFields.read(home / "model_index.json").boolean("is_distilled", default=None)
    if stated is None:
        stated = transformer.boolean("is_distilled", default=None)
    by_name = variant_by_name(parts.paths["transformer"])
    if by_name is not None:
        return stated, by_name == "turbo"
    others = index.boolean("is_distilled", default=None)
    return stated, True if others is None else others
