"""Reads the names of Hugging Face repositories, and of files and revisions in them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from engine.checkpoint.files.file_sets import PICKLE_SUFFIXES

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_REVISION = r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}"
_REPOSITORY = rf"(?P<repository>{_PART}/{_PART})"
# A branch may have slashes, and a pull request has: refs/pr/1. Before a file, where one may end is not known.
_MODEL = re.compile(rf"{_REPOSITORY}(?:@(?P<revision>{_REVISION}(?:/{_REVISION}){{0,8}}))?")
_LORA = re.compile(
    rf"{_REPOSITORY}(?:@(?P<revision>(?:refs/(?:pr|convert)/)?{_REVISION}))?(?:/(?P<file>.{{1,500}}{re.escape('.safetensors')}))?"
)
_SUFFIX = ".safetensors"
_FILES = (_SUFFIX, ".gguf", ".json", *PICKLE_SUFFIXES)  # what no repository is called


@dataclass(frozen=True)
class HubName:
    """A repository as `owner/name`, its branch, tag or commit, None for main, and a file in it, None for all."""

    repository: str
    revision: str | None = None
    file: str | None = None

    @classmethod
    def of_model(cls, text: str) -> HubName | None:
        """Read `owner/name[@revision]`; None for anything else, and for what is a path here or called as a file is."""
        return cls._of(_MODEL, text)

    @classmethod
    def of_lora(cls, text: str) -> HubName | None:
        """Read `owner/name[@revision][/folder/file.safetensors]`; None for anything else, and for what is a path here.
        A file in a folder, `folder/file.safetensors`, is none of these."""
        name = cls._of(_LORA, text)
        inside = (name.file or "file").split("/") if name is not None else ()
        return None if {"", ".", ".."} & {*inside} else name

    @classmethod
    def _of(cls, form: re.Pattern[str], text: str) -> HubName | None:
        match = form.fullmatch(text)
        if match is None or match["repository"].endswith(_FILES) or not text.isprintable() or os.path.lexists(text):
            return None
        return cls(**match.groupdict())

    @property
    def lora(self) -> str:
        """What a LoRA is called by default: as its file, or its repository."""
        own = self.repository if self.file is None else self.file.removesuffix(_SUFFIX)
        return own.rpartition("/")[2]

    @property
    def shown(self) -> str:
        """The repository, with its revision if one was given."""
        return self.repository if self.revision is None else f"{self.repository}@{self.revision}"

    @property
    def page(self) -> str:
        return f"https://huggingface.co/{self.repository}"


def model_name(model: str) -> str:
    """What people call a model: its folder's, its repository's or its file's name."""
    if (name := HubName.of_model(model)) is not None:
        return name.repository.rpartition("/")[2]
    path = Path(model).resolve()
    return (path.stem if path.is_file() else path.name) or model
