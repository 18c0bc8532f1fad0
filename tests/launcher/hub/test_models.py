"""Models named by their Hugging Face repository: out of the cache, downloaded, or an error that says what to do."""

from __future__ import annotations

import errno
import json
import re
import shutil
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import LocalEntryNotFoundError

from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from launcher.hub.models import find_model
from tests.launcher.conftest import Krea2
from tests.launcher.hub.conftest import NOWHERE, HubSettings
from tests.launcher.hub.fake_hub import COMMIT, FakeHub, fake_hub

NAME = "krea/Krea-2-Tiny"
Info = Callable[..., tuple[int, str, str]]


@pytest.fixture
def info(krea2: Krea2, hub_settings: HubSettings) -> Info:
    """`krea2 info` in this process."""

    def run(model: str, cache: Path, endpoint: str = NOWHERE, *, offline: bool = False) -> tuple[int, str, str]:
        hub_settings(cache, endpoint, offline=offline)
        return krea2("info", model)

    return run


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The demo as Krea's repositories are: with the transformer once more in the root."""
    folder = tmp_path / "repository"
    shutil.copytree(DEMO_CHECKPOINT, folder)
    shutil.copy(folder / "transformer/diffusion_pytorch_model.safetensors", folder / "turbo.safetensors")
    (folder / "LICENSE.pdf").write_bytes(b"%PDF")
    return folder


@pytest.fixture
def hub(repository: Path) -> Iterator[FakeHub]:
    with fake_hub(NAME, repository) as running:
        yield running


def put_into_cache(repository: Path, cache: Path) -> Path:
    home = cache / "hub" / f"models--{NAME.replace('/', '--')}"
    snapshot = home / "snapshots" / COMMIT
    shutil.copytree(repository, snapshot)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    return snapshot


# ---- from the network


def test_a_repository_is_downloaded_once_without_the_transformers_second_copy(
    info: Info, hub: FakeHub, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    code, stdout, stderr = info(NAME, cache, hub.url)
    assert code == 0, stderr
    assert "6 blocks, width 128" in stdout
    assert re.search(rf"downloading {NAME} from Hugging Face \(\d+ files, \d+\.\d MB\); using its weights", stderr)
    assert "licence of their authors" in stderr
    assert f"https://huggingface.co/{NAME}/blob/main/LICENSE.pdf" in stderr
    assert sorted(hub.fetched) == sorted(set(hub.files()) - {"turbo.safetensors", "README.md"})

    hub.fetched.clear()
    assert info(NAME, cache)[0] == 0, "nothing listens, and nothing needs to"
    assert not hub.fetched


def test_a_revision_is_a_checkpoint_of_its_own(info: Info, hub: FakeHub, repository: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    hub.revisions["v1"] = Path(shutil.copytree(repository, tmp_path / "first"))
    index = tmp_path / "first/model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"default_steps": 3}))
    found = hub.folder_of("v1")
    assert found is not None
    for endpoint in (hub.url, NOWHERE):
        for revision in ("v1", found[0]):
            code, stdout, stderr = info(f"{NAME}@{revision}", cache, endpoint)
            assert code == 0, stderr
            assert f"snapshots/{found[0]}" in stdout
            assert " 3 steps" in stdout
    code, stdout, stderr = info(NAME, cache, hub.url)
    assert (code, " 3 steps" in stdout) == (0, False)
    code, _, stderr = info(f"{NAME}@v2", cache, hub.url)
    assert code == 2
    assert stderr.startswith(f"error: MODEL '{NAME}@v2': there is no such folder or file here. As a Hugging Face repos")
    assert "it has no branch, tag or whole commit v2" in stderr


def test_of_several_precisions_the_one_that_is_read_is_downloaded(
    info: Info, hub: FakeHub, repository: Path, tmp_path: Path
) -> None:
    """As repositories have it that keep an fp16 copy for diffusers' `variant`."""
    vae, encoder = repository / "vae", repository / "text_encoder"
    (vae / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"half")
    for n in (1, 2):
        (encoder / f"model.fp16-0000{n}-of-00002.safetensors").write_bytes(bytes([n]))
    (encoder / "model.safetensors.index.fp16.json").write_text("{}")
    transformer = repository / "transformer/diffusion_pytorch_model.safetensors"
    transformer.rename(transformer.with_name("diffusion_pytorch_model.bf16.safetensors"))
    (repository / "tokenizer/merges.txt").write_text("a b")
    code, stdout, stderr = info(NAME, tmp_path / "cache", hub.url)
    assert code == 0, stderr
    assert "transformer/diffusion_pytorch_model.bf16.safetensors" in stdout
    assert "tokenizer/merges.txt" in hub.fetched
    assert not [file for file in hub.fetched if "fp16" in file]
    hub.fetched.clear()
    assert info(NAME, tmp_path / "cache")[0] == 0, "nothing listens, and nothing needs to"
    (snapshot,) = (tmp_path / "cache").glob("hub/*/snapshots/*")
    (snapshot / "text_encoder/model.safetensors").unlink()
    assert info(NAME, tmp_path / "cache", offline=True)[0] == 2
    assert info(NAME, tmp_path / "cache", hub.url)[0] == 0
    assert hub.fetched == []  # the library has the file, without its name


@pytest.mark.parametrize("weight_map", [[], None, {"a": ["b"]}])
def test_a_damaged_index_in_the_cache_is_an_error_as_elsewhere(
    info: Info, repository: Path, tmp_path: Path, weight_map: object
) -> None:
    transformer = put_into_cache(repository, tmp_path / "cache") / "transformer"
    whole = transformer / "diffusion_pytorch_model.safetensors"
    for number in (1, 2):
        shutil.copy(whole, transformer / f"diffusion_pytorch_model-0000{number}-of-00002.safetensors")
    whole.unlink()
    index = transformer / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    message = f"error: {index}: weight_map: has a value that does not fit, expected file names by tensor name\n"
    assert info(NAME, tmp_path / "cache") == (2, "", message)


def test_of_a_download_that_broke_off_only_the_rest_is_fetched(info: Info, hub: FakeHub, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    hub.cut = "vae/diffusion_pytorch_model.safetensors"
    code, _, stderr = info(NAME, cache, hub.url)
    if code:  # the library tries again by itself, or leaves that to the user
        assert "cannot be downloaded" in stderr
        code, _, stderr = info(NAME, cache, hub.url)
    assert code == 0, stderr
    counts = Counter(hub.fetched)
    assert counts.pop("vae/diffusion_pytorch_model.safetensors") > 1
    assert set(counts.values()) == {1}


@pytest.mark.parametrize(
    ("status", "error", "says"),
    [
        (403, "GatedRepo", f"its authors want you to agree to a licence first, at https://huggingface.co/{NAME}"),
        (401, "GatedRepo", "hf auth login"),
        (401, "RepoNotFound", "if it is a private one, run: hf auth login"),
        (404, "RepoNotFound", f"none of that name; look how it is spelt (https://huggingface.co/{NAME})"),
        (500, "", "it cannot be downloaded (HfHubHTTPError"),
    ],
)
def test_a_refusal_is_explained(info: Info, hub: FakeHub, tmp_path: Path, status: int, error: str, says: str) -> None:
    hub.refuse = (status, error)
    code, stdout, stderr = info(NAME, tmp_path / "cache", hub.url)
    assert (code, stdout) == (2, "")
    assert stderr.startswith(f"error: MODEL '{NAME}': there is no such folder or file here. As a Hugging Face")
    assert says in stderr
    assert ("Where there is no network" in stderr) == (status == 500)
    assert stderr.count("\n") == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_says_where_it_is_and_what_to_do(
    info: Info, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def download(*_: Any, local_files_only: bool = False, **__: Any) -> str:
        raise LocalEntryNotFoundError("") if local_files_only else OSError(number, "No space left on device")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    code, stdout, stderr = info(NAME, tmp_path / "cache", hub.url)
    assert (code, stdout) == (2, "")
    assert f"the disk of {tmp_path}/cache" in stderr
    assert "set HF_HOME to a folder on another disk. What has come is kept" in stderr


def test_a_repository_in_another_layout_is_not_downloaded(info: Info, hub: FakeHub, tmp_path: Path) -> None:
    (hub.folder / "model_index.json").unlink()
    code, _, stderr = info(NAME, tmp_path / "cache", hub.url)
    assert code == 2
    assert stderr == (
        f"error: https://huggingface.co/{NAME}: is not in the diffusers layout; download the file of it that you want, "
        "and give that as transformer; did you mean krea/Krea-2-Turbo?\n"
    )
    assert not hub.fetched


# ---- without one


def test_a_repository_in_the_cache_needs_no_network(info: Info, repository: Path, tmp_path: Path) -> None:
    snapshot = put_into_cache(repository, tmp_path / "cache")
    code, stdout, stderr = info(NAME, tmp_path / "cache", offline=True)
    assert (code, stderr) == (0, "")
    assert str(snapshot / "transformer") in stdout


def test_a_part_of_a_repository_in_the_cache_is_not_enough(info: Info, repository: Path, tmp_path: Path) -> None:
    shutil.rmtree(repository / "vae")
    put_into_cache(repository, tmp_path / "cache")
    code, _, stderr = info(NAME, tmp_path / "cache", offline=True)
    assert code == 2
    assert "not in the cache" in stderr


@pytest.mark.parametrize("model", [NAME, "checkpoints/foo"])
def test_without_a_network_both_possibilities_are_spoken_of_and_nothing_is_tried_again(
    info: Info, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    ask = HfApi.model_info

    def count(api: HfApi, name: str, **options: Any) -> Any:
        asked.append(name)
        return ask(api, name, **options)

    monkeypatch.setattr(HfApi, "model_info", count)
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it waits, to try again"))
    code, stdout, stderr = info(model, tmp_path / "cache")
    assert asked == [model]
    assert (code, stdout) == (2, "")
    assert stderr.startswith(f"error: MODEL '{model}': there is no such folder or file here. As a Hugging Face")
    assert "download it elsewhere and give its folder" in stderr
    assert "HF_HOME" in stderr


def test_a_hub_that_never_answers_is_given_up(info: Info, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.hub.asking.ANSWER_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        code, _, stderr = info(NAME, tmp_path / "cache", f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert code == 2
    assert "it cannot be downloaded" in stderr


@pytest.mark.parametrize(
    ("part", "value", "command"),
    [
        ("tokenizer", "Qwen/Qwen3-VL-4B-Instruct", "Qwen/Qwen3-VL-4B-Instruct --include '*.json' '*.txt'"),
        ("vae", "a/b@v1/vae/x.safetensors", "a/b vae/x.safetensors --revision v1"),
    ],
)
def test_a_part_in_a_repository_is_refused_with_the_command_that_downloads_it(
    krea2: Krea2, monkeypatch: pytest.MonkeyPatch, part: str, value: str, command: str
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    option = f"--{part.replace('_', '-')}"
    for arguments in (("info", "demo"), ("serve", "demo"), ("convert", "out")):
        code, _, stderr = krea2(*arguments, option, value)
        assert code == 2
        says = "there is no such file or folder here. If it is in a Hugging Face repository, give the path that this"
        assert stderr == f"error: {option} '{value}': {says} prints: hf download {command}\n"


# ---- what is no repository


NO_NAMES = (None, "demo", "./foo", "../a/b", "/a/b", "a/b/c", "a/b/", "~/b", "a /b", ".a/b", "a/..")


@pytest.mark.parametrize("model", NO_NAMES)
def test_what_is_no_repositorys_name_is_never_looked_for(model: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert find_model(model) == model


def test_a_folder_goes_before_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir(parents=True)
    assert find_model(NAME) == NAME
