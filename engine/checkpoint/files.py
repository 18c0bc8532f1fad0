"""The safetensors files of a checkpoint's component: one file, or shards with an index.

Headers are read when a component is opened and checked against the list of tensors that the config asks for; data is
read a slice at a time, and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from engine.checkpoint.stored import Bounds, Header, PlainTensor, StoredTensor
from engine.checkpoint.tensors import Source, text_encoder_sources, transformer_sources, vae_sources
from engine.config import EngineConfig, ModelConfig
from engine.errors import CheckpointError
from engine.json_fields import read_json_object

if TYPE_CHECKING:
    import numpy as np
    import torch

_READABLE_DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


class TensorFiles:
    """The tensors of one component, by name."""

    def __init__(self, folder: Path, name: str) -> None:
        """Open `folder/name.safetensors`, or the shards of `folder/name.safetensors.index.json`."""
        self.folder = self.path = folder
        self.metadata: dict[str, str] = {}
        self._open_files: dict[Path, Any] = {}
        self.headers: dict[str, Header] = {}
        self._files: dict[str, Path] = {}
        single, index = folder / f"{name}.safetensors", folder / f"{name}.safetensors.index.json"
        if single.exists() or not index.exists():
            self.location = single
            self._read_headers(single)
        else:
            self.location = index
            self._read_index(index)

    def check(self, sources: Iterable[Source], ignored: Callable[[str], bool]) -> list[Source]:
        """Compare the headers with what is expected. Raises `CheckpointError` for a missing, misshapen or unreadable
        tensor, and for an extra one that `ignored` does not let pass. Reads no data."""
        expected = []
        names = set()
        for source in sources:
            header = self.headers.get(source.name)
            if header is None:
                raise CheckpointError.of(self.location, "tensor is missing", name=source.name, expected=source.shape)
            if header.shape != source.shape:
                raise CheckpointError.of(
                    self.file_of(source.name),
                    "tensor has the wrong shape",
                    name=source.name,
                    expected=source.shape,
                    found=header.shape,
                )
            if header.dtype not in _READABLE_DTYPES:
                raise CheckpointError.of(
                    self.file_of(source.name),
                    "tensor has a dtype that cannot be read",
                    name=source.name,
                    expected=f"one of {', '.join(_READABLE_DTYPES)}",
                    found=header.dtype,
                )
            expected.append(source)
            names.add(source.name)
        extra = sorted(name for name in self.headers if name not in names and not ignored(name))
        if extra:
            more = f" (and {len(extra) - 1} more)" if len(extra) > 1 else ""
            raise CheckpointError.of(
                self.file_of(extra[0]), f"tensor does not belong to this model{more}", name=extra[0]
            )
        return expected

    def read(self, name: str, bounds: Bounds) -> torch.Tensor:
        try:
            return self._open(self.file_of(name)).get_slice(name)[bounds]
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError.of(self.file_of(name), f"cannot be read: {error}", name=name) from None

    def file_of(self, name: str) -> Path:
        return self._files[name]

    def octets(self, name: str) -> np.ndarray:
        """See `TensorFile.octets`."""
        import torch

        octets: np.ndarray = self._open(self.file_of(name)).get_tensor(name).reshape(-1).view(torch.uint8).numpy()
        return octets

    def close(self) -> None:
        self._open_files.clear()

    def _open(self, file: Path) -> Any:
        if file not in self._open_files:
            self._open_files[file] = safe_open(file, framework="pt")
        return self._open_files[file]

    def _read_index(self, index: Path) -> None:
        weight_map = read_json_object(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
            raise CheckpointError.of(
                index, "has a value that does not fit", name="weight_map", expected="file names by tensor name"
            )
        for shard in sorted(set(weight_map.values())):
            if not shard or Path(shard).name != shard:
                raise CheckpointError.of(index, "names a shard outside its folder", name="weight_map", found=shard)
            self._read_headers(self.folder / shard)
        for name, shard in weight_map.items():
            if name not in self.headers or self.file_of(name).name != shard:
                raise CheckpointError.of(self.folder / shard, "tensor is missing, though the index lists it", name=name)

    def _read_headers(self, file: Path) -> None:
        try:
            if not file.is_file():
                raise CheckpointError.of(file, "the file is missing")
            with safe_open(file, framework="np") as handle:
                for name in handle.keys():  # noqa: SIM118  safe_open is not iterable
                    view = handle.get_slice(name)
                    self.headers[name] = Header(tuple(view.get_shape()), view.get_dtype())
                    self._files[name] = file
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError.of(file, f"is not a valid safetensors file: {error}") from None


class CheckpointFiles:
    """The three components of a diffusers-layout folder, their headers checked against its config."""

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        """Raises `CheckpointError` if any tensor is missing, extra, misshapen or unreadable."""
        self.config = config
        self.files: dict[str, TensorFiles] = {}
        self.sources: dict[str, list[Source]] = {}

        transformer = TensorFiles(folder / "transformer", "diffusion_pytorch_model")
        self._add("transformer", transformer, transformer_sources(config.transformer), lambda name: False)

        text = TensorFiles(folder / "text_encoder", "model")
        prefix = _language_model_prefix(text)
        needed = tuple(f"{prefix}layers.{layer}." for layer in range(config.text_layers))

        def not_needed(name: str) -> bool:
            # the vision tower, the output head, and whatever lies above the last tap
            if "visual." in name or name.endswith("lm_head.weight"):
                return True
            return name == f"{prefix}norm.weight" or (
                name.startswith(f"{prefix}layers.") and not name.startswith(needed)
            )

        self._add("text_encoder", text, text_encoder_sources(config, prefix), not_needed)

        vae = TensorFiles(folder / "vae", "diffusion_pytorch_model")
        self._add(
            "vae",
            vae,
            vae_sources(config.vae),
            lambda name: name.startswith(("encoder.", "quant_conv.")) or ".time_conv." in name,
        )

    @classmethod
    def open(cls, engine: EngineConfig) -> CheckpointFiles:
        """The checkpoint that `engine` names."""
        folder = engine.checkpoint_folder()
        return cls(folder, ModelConfig.from_folder(folder, engine.variant))

    def _add(
        self, component: str, files: TensorFiles, sources: Iterable[Source], ignored: Callable[[str], bool]
    ) -> None:
        self.files[component] = files
        self.sources[component] = files.check(sources, ignored)

    def stored(self, component: str, source: Source) -> StoredTensor:
        """See `Weights.stored`."""
        return PlainTensor(self.files[component], source.name)

    def where(self, component: str, source: Source) -> Path:
        """See `Weights.where`."""
        return self.files[component].file_of(source.name)

    def close(self) -> None:
        for files in self.files.values():
            files.close()


def _language_model_prefix(files: TensorFiles) -> str:
    """What precedes `embed_tokens.weight`; it differs between the repositories that hold this text encoder."""
    suffix = "embed_tokens.weight"
    names = [name for name in files.headers if name == suffix or name.endswith("." + suffix)]
    if len(names) != 1:
        raise CheckpointError.of(
            files.location,
            "is not the text encoder's",
            expected=f"one tensor whose name ends with {suffix}",
            found=f"{len(names)} of them",
        )
    return names[0].removesuffix(suffix)
