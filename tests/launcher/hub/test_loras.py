"""LoRAs named by their Hugging Face repository: which file is taken, and why there is none."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from engine.config.demo_checkpoints import DEMO_LORAS
from engine.errors import ArgumentError
from launcher.hub.loras import find_lora
from launcher.requests.lora_files import located, parse_lora
from tests.launcher.conftest import Krea2
from tests.launcher.hub.conftest import NOWHERE, HubSettings
from tests.launcher.hub.fake_hub import FakeHub, fake_hub

NAME = "someone/krea2-ink"
OUTLINED = Path(DEMO_LORAS["demo-outlined"]).read_bytes()
PEFT, PEFT_CONFIG, DIFFUSERS = "adapter_model.safetensors", "adapter_config.json", "pytorch_lora_weights.safetensors"
Find = Callable[..., Path]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    (tmp_path / "repository").mkdir()
    with fake_hub(NAME, tmp_path / "repository") as running:
        yield running


@pytest.fixture
def find(hub: FakeHub, hub_settings: HubSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Find:
    """Finds a LoRA with one cache, from the hub or from nowhere."""
    monkeypatch.chdir(tmp_path)

    def run(path: str = NAME, endpoint: str = hub.url, *, most_bytes: int = 10**9, offline: bool = False) -> Path:
        hub_settings(tmp_path / "cache", endpoint, offline=offline)
        hub.fetched.clear()
        return Path(find_lora(path, most_bytes=most_bytes))

    return run


def put(hub: FakeHub, *names: str, data: bytes = OUTLINED, revision: str | None = None) -> None:
    if revision is not None:
        hub.revisions[revision] = hub.folder.with_name(revision.replace("/", "-"))
    for name in names:
        file = (hub.folder if revision is None else hub.revisions[revision]) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)


def put_peft(hub: FakeHub, *names: str) -> None:
    for name in names:
        put(hub, name)
        save_file({"base_model.model.x.lora_A.weight": np.zeros((1, 4), np.float32)}, hub.folder / name)


# ---- which file


def test_the_only_file_is_downloaded_once_and_its_licence_is_said(
    hub: FakeHub, find: Find, capsys: pytest.CaptureFixture[str]
) -> None:
    put(hub, "ink_v2.safetensors", "README.md", "images/1.png")
    hub.licence = "apache-2.0"
    file = find()
    assert (file.name, file.read_bytes()) == ("ink_v2.safetensors", OUTLINED)
    assert hub.fetched == ["ink_v2.safetensors"]
    assert capsys.readouterr().err == (
        f"downloading ink_v2.safetensors of {NAME} from Hugging Face (0.1 MB); using it means agreeing to the licence "
        f"of its authors, apache-2.0: https://huggingface.co/{NAME}\n"
    ).replace("0.1", f"{len(OUTLINED) / 1e6:.1f}")
    for offline in (False, True):
        assert find(endpoint=NOWHERE, offline=offline) == file
        assert find(f"{NAME}/ink_v2.safetensors", NOWHERE, offline=offline) == file
    assert capsys.readouterr().err == ""


def test_of_several_the_one_that_is_named_and_no_other_is_downloaded(hub: FakeHub, find: Find) -> None:
    put(hub, "v1/ink.safetensors", "v2/ink.safetensors")
    put(hub, "[x]*.safetensors", data=OUTLINED[:-1])  # what is the same, the library does not download again
    for name in ("v2/ink.safetensors", "[x]*.safetensors"):
        assert find(f"{NAME}/{name}").as_posix().endswith(name)
        assert hub.fetched == [name]
    listed = r"\[x\]\*.safetensors \(0.\d MB\), v1/ink.safetensors \(0.\d MB\), v2/ink.safetensors \(0.\d MB\)"
    says = rf"it has several files; name one, as {NAME}/\[x\]\*.safetensors: {listed}"
    with pytest.raises(ArgumentError, match=says) as refused:
        find()  # though only some are in the cache
    assert refused.value.parameter == "lora"
    with pytest.raises(ArgumentError, match=rf"it has no file v3.safetensors; name one, as .*: {listed}"):
        find(f"{NAME}/v3.safetensors")


@pytest.mark.parametrize("preferred", [PEFT, DIFFUSERS])
def test_pefts_and_diffusers_files_go_before_others_as_in_a_folder(hub: FakeHub, find: Find, preferred: str) -> None:
    put(hub, preferred, "comfyui.safetensors", f"checkpoint-10/{preferred}", "optimizer.pt")
    file = find()
    assert file.name == preferred
    assert hub.fetched == [preferred]
    assert find(endpoint=NOWHERE) == file


@pytest.mark.parametrize(
    ("name", "others", "fetched"),
    [
        (PEFT, ["comfyui.safetensors"], [PEFT_CONFIG, PEFT]),
        ("peft.safetensors", [], [PEFT_CONFIG, "peft.safetensors"]),
        ("peft.safetensors", ["comfyui.safetensors"], ["peft.safetensors", PEFT_CONFIG]),
        ("comfyui.safetensors", ["peft.safetensors"], ["comfyui.safetensors"]),
        ("step-10/peft.safetensors", ["step-20/peft.safetensors"], ["step-10/peft.safetensors"]),
    ],
)
def test_pefts_config_comes_along_where_it_is_for_the_file(
    hub: FakeHub, find: Find, name: str, others: list[str], fetched: list[str]
) -> None:
    put(hub, "comfyui.safetensors", PEFT_CONFIG, data=OUTLINED)
    put_peft(hub, *(each for each in (name, *others) if "comfyui" not in each))
    if "comfyui.safetensors" not in (name, *others):
        (hub.folder / "comfyui.safetensors").unlink()
    find(f"{NAME}/{name}")
    assert hub.fetched == fetched
    assert find(f"{NAME}/{name}", NOWHERE).exists()


def test_a_config_that_is_not_in_the_cache_yet_is_fetched_before_the_file_is_used(hub: FakeHub, find: Find) -> None:
    put_peft(hub, "a.safetensors", "b.safetensors")
    put(hub, PEFT_CONFIG, data=b"{}")
    file = find(f"{NAME}/a.safetensors")
    (file.parent / PEFT_CONFIG).unlink()  # as if the download had ended between the two
    with pytest.raises(ArgumentError, match="it cannot be downloaded"):
        find(f"{NAME}/a.safetensors", NOWHERE)
    find(f"{NAME}/a.safetensors")
    assert (file.parent / PEFT_CONFIG).exists()


def test_a_branch_a_tag_a_pull_request_and_a_commit_are_revisions(hub: FakeHub, find: Find) -> None:
    put(hub, "ink.safetensors")
    put(hub, "ink.safetensors", data=b"first", revision="v1.0")
    put(hub, "ink.safetensors", data=b"wish", revision="refs/pr/3")
    commit = hub.folder_of("v1.0")
    assert commit is not None
    for revision, data in (("v1.0", b"first"), ("refs/pr/3", b"wish"), (commit[0], b"first"), ("main", OUTLINED)):
        for path in (f"{NAME}@{revision}", f"{NAME}@{revision}/ink.safetensors"):
            assert find(path).read_bytes() == data
            assert find(path, NOWHERE).read_bytes() == data
    assert find().read_bytes() == OUTLINED
    with pytest.raises(ArgumentError, match=rf"it has no branch, tag or whole commit v2 \(https://.*/{NAME}/tree/main"):
        find(f"{NAME}@v2")


# ---- why there is none


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ([], "it has no .safetensors file"),
        (["a.bin", "b.ckpt"], r"no .safetensors file, but a.bin \(0.\d MB\), b.ckpt \(0.\d MB\), and pickles are not"),
        (["model_index.json", "vae/a.safetensors"], f"it is a model, and no LoRA: --model {NAME}"),
        ([f"{n:02}.safetensors" for n in range(30)], r"name one, as .*/00.safetensors: 00\..* \(0.\d MB\) and 20 more"),
        (["a\x1b[31m.safetensors", "b.safetensors"], r"a\\x1b\[31m.safetensors"),
    ],
)
def test_what_has_no_lora_or_too_many_says_what_it_has(hub: FakeHub, find: Find, files: list[str], says: str) -> None:
    put(hub, *files)
    with pytest.raises(ArgumentError, match=says) as refused:
        find()
    assert refused.value.message.startswith(f"lora '{NAME}': there is no such folder or file here. As a Hugging Face")
    assert not hub.fetched


def test_a_file_that_is_too_large_is_not_downloaded(hub: FakeHub, find: Find) -> None:
    put(hub, "ink.safetensors")
    with pytest.raises(ArgumentError, match=rf"must be at most 99 bytes, and has {len(OUTLINED)}"):
        find(most_bytes=99)
    assert not hub.fetched


@pytest.mark.parametrize(
    ("status", "error", "says"),
    [
        (403, "GatedRepo", "agree to a licence first"),
        (401, "RepoNotFound", "if it is a private one, run: hf auth login"),
        (404, "RepoNotFound", "none of that name; look how it is spelt"),
        (500, "", "it cannot be downloaded .* give its path, or copy that machine's cache"),
    ],
)
def test_a_refusal_is_explained(hub: FakeHub, find: Find, status: int, error: str, says: str) -> None:
    hub.refuse = (status, error)
    with pytest.raises(ArgumentError, match=says):
        find()


def test_without_a_network_it_is_said_that_nothing_is_in_the_cache(find: Find) -> None:
    with pytest.raises(ArgumentError, match="not in the cache, and HF_HUB_OFFLINE forbids to download it"):
        find(offline=True)
    with pytest.raises(ArgumentError, match="it cannot be downloaded"):
        find(endpoint=NOWHERE)


# ---- as people name it


def test_names_and_strengths_stand_around_it(hub: FakeHub, find: Find) -> None:
    put(hub, "a b/ink.v2.safetensors")
    file = find()
    for text, name, strength in (
        (NAME, "krea2-ink", 1.0),
        (f"{NAME}@main:0.5", "krea2-ink", 0.5),
        (f"Ink={NAME}:-1", "Ink", -1.0),
        (f"{NAME}/a b/ink.v2.safetensors:.5", "ink.v2", 0.5),
    ):
        lora = parse_lora(text)
        assert (lora.name, lora.strength) == (name, strength)
        assert located(lora).path == str(file)


def test_what_lies_here_goes_before_a_repository(find: Find, tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir(parents=True)
    assert parse_lora(f"{NAME}:0.5").name == "krea2-ink"
    assert find() == Path(NAME)
    (tmp_path / f"{NAME}@v1").mkdir()
    assert find(f"{NAME}@v1") == Path(f"{NAME}@v1")


def test_info_tells_of_it_and_generate_and_serve_take_it(
    hub: FakeHub, find: Find, krea2: Krea2, tmp_path: Path
) -> None:
    put(hub, "ink.safetensors")
    file = find()
    code, stdout, stderr = krea2("info", "demo", "--lora", f"{NAME}:0.5", "--hashes")
    assert (code, stderr) == (0, "")
    assert f"{file}: LoRA, changes" in stdout
    assert stdout.endswith("  ink.safetensors\n")
    for command in (("generate", "a star", "--output", str(tmp_path / "x.png")), ("serve", "demo")):
        code, _, stderr = krea2(*command, "--lora", f"{NAME}/pen.safetensors")
        assert code == 2
        assert "it has no file pen.safetensors; name one" in stderr
        assert json.dumps(stderr).count("\\n") == 1
