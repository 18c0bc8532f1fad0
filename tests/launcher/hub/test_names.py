"""What is taken for the name of a Hugging Face repository, and what for a path."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.hub.names import HubName, model_name
from launcher.setup.nearest import nearest_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "revision"),
    [
        ("krea/Krea-2-Turbo", None),
        ("krea/Krea-2-Turbo@main", "main"),
        ("krea/Krea-2-Turbo@v1.0+x_y-z", "v1.0+x_y-z"),
        ("krea/Krea-2-Turbo@refs/pr/12", "refs/pr/12"),
        ("krea/Krea-2-Turbo@someone/branch", "someone/branch"),
        (f"krea/Krea-2-Turbo@{COMMIT}", COMMIT),
    ],
)
def test_a_model_is_a_repository_and_a_revision(text: str, revision: str | None) -> None:
    assert HubName.of_model(text) == HubName("krea/Krea-2-Turbo", revision)
    assert model_name(text) == "Krea-2-Turbo"
    assert nearest_model(text) is None  # which is there, and could not be had


@pytest.mark.parametrize(
    "text",
    [
        *("", "demo", "./foo", "../a/b", "/a/b", "a/b/c", "a/b/", "~/b", "a /b", ".a/b", "a/..", "a@b/c", "a/b@"),
        *("a/b@@c", "a/b@c@d", "a/b@/c", "a/b@c/", "a/b@../c", "a/b@c//d", "a/b@\n", "a/b\n", f"a/{'b' * 97}", "é/b"),
        *("styles/ink.safetensors", "models/turbo-q8.gguf", "a/b.safetensors@c", "loras/ink.pt"),
        *(f"a/b@{'c' * 201}", f"a/b@{'/'.join('c' * 20)}"),
    ],
)
def test_other_texts_are_paths(text: str) -> None:
    assert HubName.of_model(text) is None
    if text not in ("a/b@c/", "a/b@c//d"):
        assert HubName.of_lora(text) is None


@pytest.mark.parametrize(
    ("text", "revision", "file", "name"),
    [
        ("a/Ink.v2", None, None, "Ink.v2"),
        ("a/Ink.v2@v1", "v1", None, "Ink.v2"),
        ("a/Ink.v2@refs/pr/1", "refs/pr/1", None, "Ink.v2"),
        ("a/Ink.v2/x.safetensors", None, "x.safetensors", "x"),
        ("a/Ink.v2@v1/x y/z.1.safetensors", "v1", "x y/z.1.safetensors", "z.1"),
        ("a/Ink.v2@refs/pr/1/x.safetensors", "refs/pr/1", "x.safetensors", "x"),
    ],
)
def test_a_lora_is_a_repository_a_revision_and_a_file(
    text: str, revision: str | None, file: str | None, name: str
) -> None:
    found = HubName.of_lora(text)
    assert found == HubName("a/Ink.v2", revision, file)
    assert found.lora == name


@pytest.mark.parametrize(
    "text",
    [
        *("styles/ink.safetensors", "a/b/c", "a/b/c.bin", "a/b/../c.safetensors", "a/b/./c.safetensors"),
        *("a/b//c.safetensors", "a/b@x/y", "a/b/.safetensors", "a/b/c\n.safetensors", "/a/b/c.safetensors"),
        f"a/b/{'c' * 600}.safetensors",
    ],
)
def test_a_file_in_a_folder_and_what_leads_out_of_one_are_paths(text: str) -> None:
    assert HubName.of_lora(text) is None


def test_what_lies_here_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for text in ("a/b@c", "d/e"):
        (tmp_path / text).mkdir(parents=True)
        assert HubName.of_model(text) is None
        assert HubName.of_lora(text) is None
        assert model_name(text) == text.rpartition("/")[2]
    (tmp_path / "f").symlink_to("nowhere")
    (tmp_path / "d/e/x.safetensors").touch()
    assert HubName.of_lora("d/e/x.safetensors") is None
    assert HubName.of_lora("d/e/y.safetensors") == HubName("d/e", None, "y.safetensors")
