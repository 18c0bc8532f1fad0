"""What pictures say of the model and the LoRAs that they were made with."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from engine.checkpoint.checkpoint_files import CheckpointFiles
from engine.checkpoint.convert.convert import convert
from engine.config.demo_checkpoints import DEMO_CHECKPOINT, DEMO_LORAS
from engine.config.engine_config import EngineConfig
from engine.errors import ServerError
from launcher import launch
from launcher.client.async_client import AsyncClient
from launcher.disclosure.xmp import DRAWN, packet
from launcher.messages.configs import FrontendConfig, LoraFile
from launcher.provenance.file_hashes import FileHashes, read_hash
from launcher.provenance.made_with import MadeWith, component_files, model_name
from launcher.requests.image_metadata import read_infotext, read_made, read_xmp
from tests.launcher.conftest import Krea2
from tests.launcher.fake_ranks import fake_engine, run

LORA = DEMO_LORAS["demo-outlined"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def sha256(file: Path | str) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def made_with(engine: EngineConfig) -> MadeWith:
    checkpoint = CheckpointFiles.open(engine)
    checkpoint.close()
    return MadeWith(engine, checkpoint)


def read_all(folder: Path) -> None:
    for file in folder.glob("**/*.safetensors"):
        read_hash(str(file.resolve()))


def test_models_are_named_as_people_name_them(tmp_path: Path) -> None:
    cached = tmp_path / "models--krea--Krea-2-Turbo" / "snapshots" / "0123abcd"
    shutil.copytree(DEMO_CHECKPOINT, cached)
    mine = tmp_path / "My Krea 2"
    mine.symlink_to(cached.parent.parent / "copy")
    shutil.copytree(DEMO_CHECKPOINT, tmp_path / "models--krea--Krea-2-Turbo" / "copy")
    file = tmp_path / "krea2-ink.safetensors"
    shutil.copy(DEMO_CHECKPOINT / "transformer" / "diffusion_pytorch_model.safetensors", file)
    names = {
        "demo": EngineConfig(),
        "demo-raw": EngineConfig(model="demo-raw"),
        "Krea-2-Turbo": EngineConfig(model=str(cached)),
        "copy": EngineConfig(model=str(mine)),
        "krea2-ink": EngineConfig(model=str(file)),
    }
    assert {model_name(engine): engine for engine in names.values()} == names
    assert model_name(EngineConfig(model=str(cached), transformer=str(file))) == "krea2-ink"
    assert model_name(EngineConfig(transformer=str(cached / "transformer"))) == "Krea-2-Turbo"


def test_a_merged_lora_has_the_name_of_its_folder_or_repository_where_its_files_says_nothing(tmp_path: Path) -> None:
    cached = tmp_path / "models--owner--ink" / "snapshots" / "1a2b"
    files = [cached / "adapter_model.safetensors", tmp_path / "oil" / "pytorch_lora_weights.safetensors"]
    for file in files:
        file.parent.mkdir(parents=True)
        file.symlink_to(LORA)
    given = (str(files[0]), str(tmp_path / "oil"), str(LORA))
    described = made_with(EngineConfig(merge_loras=tuple((path, 1.0) for path in given))).described({})
    assert [lora["name"] for lora in described["merged_loras"]] == ["ink", "oil", LORA.stem]


def test_nothing_is_said_of_files_that_nobody_has_read_and_then_each_component_is(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(DEMO_CHECKPOINT, folder)
    engine = EngineConfig(model=str(folder), merge_loras=((str(LORA), 0.5),))
    assert made_with(engine).described({}) == {
        "model": "mine", "variant": "turbo", "merged_loras": [{"name": LORA.stem, "strength": 0.5}],
    }  # fmt: skip
    read_all(folder / "vae")
    read_hash(str(LORA.resolve()))
    weights = "diffusion_pytorch_model.safetensors"
    described = made_with(engine).described({})
    assert described["hashes"] == {"vae": {weights: sha256(folder / "vae" / weights)}}
    assert described["merged_loras"] == [{"name": LORA.stem, "strength": 0.5, "sha256": sha256(LORA)}]
    read_all(folder)
    assert made_with(engine).described({})["hashes"] == {
        part: {file.name: sha256(file) for file in (folder / part).glob("*.safetensors")}
        for part in ("transformer", "text_encoder", "vae")
    }


def test_all_shards_of_a_component_are_its_files_and_ranks_shards_none(tmp_path: Path) -> None:
    folder, name = tmp_path / "shards", "diffusion_pytorch_model"
    shutil.copytree(DEMO_CHECKPOINT, folder)
    tensors = load_file(folder / "transformer" / f"{name}.safetensors")
    (folder / "transformer" / f"{name}.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {each: f"{name}-{index % 2}.safetensors" for index, each in enumerate(names)}
    for shard in set(weight_map.values()):
        save_file({each: tensors[each] for each in names if weight_map[each] == shard}, folder / "transformer" / shard)
    (folder / "transformer" / f"{name}.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    checkpoint = CheckpointFiles.open(EngineConfig(model=str(folder)))
    files = component_files(checkpoint)
    assert [file.name for file in files["transformer"]] == [f"{name}-0.safetensors", f"{name}-1.safetensors"]
    convert(checkpoint, tmp_path / "split", layout="sharded", weights="keep", tp=2)
    checkpoint.close()
    split = CheckpointFiles.open(EngineConfig(model=str(tmp_path / "split"), tp=2))
    split.close()
    assert component_files(split) == {}


def test_pictures_say_what_made_them_once_it_is_known(run_folder: Path, tmp_path: Path) -> None:
    folder, weights = tmp_path / "mine", "diffusion_pytorch_model.safetensors"
    shutil.copytree(DEMO_CHECKPOINT, folder)
    lora = sha256(LORA)

    async def test() -> None:
        settings: dict[str, Any] = {"loras": (LoraFile(name="ink", path=str(LORA), strength=0.5),), "hash_files": True}
        async with (
            fake_engine(run_folder, engine=EngineConfig(model=str(folder)), **settings) as fakes,
            AsyncClient(fakes.address) as client,
        ):

            async def draw(**options: Any) -> Image.Image:
                return (await client.generate("a fox", seed=3, steps=1, loras=["ink"], **options)).image

            while "sha256" not in (made := read_made(await draw()) or {})["loras"][0]:  # the last to be read
                assert (made["model"], made["variant"]) == ("mine", "turbo")
            hashes = {part: sha256(folder / part / weights) for part in ("transformer", "vae")}
            image = await draw(output_format="webp")
            made = read_made(image) or {}
            assert {part: made["hashes"][part] for part in hashes} == {
                part: {weights: sha256} for part, sha256 in hashes.items()
            }
            assert made["loras"] == [{"name": "ink", "strength": 0.5, "sha256": lora}]
            said = f"Model hash: {hashes['transformer'][:10]}, Model: mine, VAE hash: {hashes['vae'][:10]}"
            assert f'{said}, Lora hashes: "ink: {lora[:10]}", Version: krea2-engine ' in (read_infotext(image) or "")
            plain = await draw(metadata=False)
            assert read_made(plain) is read_infotext(plain) is None
            assert read_xmp(plain) == packet(DRAWN)

    run(test())


def test_an_engine_that_is_not_told_to_read_reads_nothing(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FileHashes, "begin", lambda self: pytest.fail("it reads files"))

    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as client:
            made = read_made((await client.generate("a fox", steps=1)).image) or {}
            assert (made["model"], "hashes" in made) == ("demo", False)

    run(test())


def test_servers_read_files_and_a_single_call_does_not(
    krea2: Krea2, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    configs: list[FrontendConfig] = []

    def note(config: FrontendConfig, **_: object) -> None:
        configs.append(config)
        raise ServerError("noted")

    for where in ("setup.launch.launch_frontend", "cli.generate.launch_frontend", "cli.serve.serve_until_stopped"):
        monkeypatch.setattr(f"launcher.{where}", note)
    for name in ("configure_logs", "end_logs"):
        monkeypatch.setattr(f"launcher.logs.{name}", lambda *_: None)
    with pytest.raises(ServerError, match="noted"):
        launch(device="cpu", progress=False)
    for command in (("serve", "--no-http"), ("generate", "a fox", "--output", str(tmp_path / "a.png"))):
        assert krea2(*command, "--device", "cpu")[0] == 1
    assert [config.hash_files for config in configs] == [True, True, False]


def test_a_lora_that_was_written_again_and_loaded_again_has_another_hash(run_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "ink.safetensors"

    async def test() -> None:
        async with (
            fake_engine(run_folder, lora_dir=str(tmp_path), hash_files=True) as fakes,
            AsyncClient(fakes.address) as client,
        ):
            for strength in (1.0, 0.5):
                save_file({name: tensor * strength for name, tensor in load_file(LORA).items()}, file)
                await client.load_lora("ink", file.name)
                made: dict[str, Any] = {"loras": [{}]}
                while "sha256" not in made["loras"][0]:
                    made = read_made((await client.generate("a fox", steps=1, loras=["ink"])).image) or {}
                assert made["loras"][0]["sha256"] == sha256(file)
                await client.unload_lora("ink")

    run(test())
