"""LoRAs on a real engine with the demo checkpoint: what is drawn, by every way of asking for it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from engine.errors import ArgumentError, LoraError, NotFiniteError
from launcher import Client, Result, launch
from tests.engine.lora.adapter_files import add_vectors, draw_low_rank, layer_shapes, vector_shapes, write_scheme
from tests.launcher.conftest import Krea2
from tests.launcher.processes import PATIENCE_S, Marked, connect, wait_until

PROMPT = "a red circle on a blue background"
HEAD_DIM = vector_shapes(DEMO_CHECKPOINT)["transformer_blocks.0.attn.norm_q.weight"][0]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`one.safetensors` and `two.safetensors`, which change every layer; `broken` and `more` are not quite right."""
    folder = tmp_path_factory.mktemp("loras")
    shapes = layer_shapes(DEMO_CHECKPOINT)
    for seed, (name, scheme) in enumerate((("one", "1 diffusers"), ("two", "7 kohya"))):
        change = draw_low_rank(shapes, rank=2, seed=seed)
        write_scheme(folder / f"{name}.safetensors", DEMO_CHECKPOINT, change, scheme)
    tensors = load_file(folder / "one.safetensors")
    save_file(tensors | {"transformer.unheard.of.lora_A.weight": torch.zeros(2, 2)}, folder / "more.safetensors")
    next(iter(tensors.values()))[0, 0] = torch.nan
    save_file(tensors, folder / "broken.safetensors")
    return folder


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[Client]:
    with launch(device="cpu", warm_up=False, loras=[f"{folder}/one.safetensors:0.5"], lora_dir=str(folder)) as client:
        yield client


def draw(client: Client, *loras: tuple[str, float], seed: int = 0) -> np.ndarray:
    choices = [{"name": name, "strength": strength} for name, strength in loras]
    return pixels(client.generate(PROMPT, seed=seed, steps=3, loras=choices))  # type: ignore[arg-type]


def pixels(result: Result) -> np.ndarray:
    return np.asarray(result.images[0]).astype(int)


def test_a_lora_changes_the_picture_by_its_strength_and_at_none_not_at_all(client: Client) -> None:
    plain = draw(client)
    assert np.array_equal(draw(client, ("one", 0.0)), plain)
    half, full = (draw(client, ("one", strength)) for strength in (0.5, 1.0))
    assert abs(half - plain).max() > 8
    assert abs(full - half).max() > 8
    by_default = client.generate(PROMPT, seed=0, steps=3, loras=["one"])
    assert np.array_equal(pixels(by_default), half)
    (told,) = json.loads(by_default.images[0].info["krea2"])["loras"]
    assert (told["name"], told["strength"]) == ("one", 0.5)


def test_a_lora_is_drawn_with_the_schedule_that_its_file_says(client: Client, folder: Path) -> None:
    header = {"krea2.sigmas": "[1, 0.7, 0.2]", "krea2.mu": "0", "krea2.guidance": "0.5"}
    save_file(load_file(folder / "two.safetensors"), folder / "fast.safetensors", header)
    assert client.load_lora("fast", "fast.safetensors").made_for.keys() == {"fast"}
    try:
        told = client.generate(PROMPT, seed=0, loras=["fast"])
        asked = client.generate(PROMPT, seed=0, loras=["fast"], sigmas=[1, 0.7, 0.2, 0], mu=0.0, guidance=0.5)
        shifted = client.generate(PROMPT, seed=0, loras=["fast"], sigmas=[1, 0.7, 0.2], guidance=0.5)
    finally:
        client.unload_lora("fast")
    assert np.array_equal(pixels(told), pixels(asked))
    assert abs(pixels(shifted) - pixels(asked)).max() > 8
    made, same = (json.loads(result.images[0].info["krea2"]) for result in (told, asked))
    assert made == same
    assert (made["steps"], made["sigmas"], made["mu"], made["guidance"]) == (3, [1.0, 0.7, 0.2], 0.0, 0.5)
    assert told.made_for is not None
    assert asked.made_for is None


def test_refusals_tell_clients_nothing_of_where_the_folder_is(client: Client, folder: Path) -> None:
    (folder / "peft").mkdir()
    shutil.copy(folder / "one.safetensors", folder / "peft" / "adapter_model.safetensors")
    (folder / "peft" / "adapter_config.json").write_text("{")
    (folder / "index.json").write_text('{"weight_map": {"a": "missing.safetensors"}}')
    for path in ("peft", "index.json", "x" * 5000, "broken.safetensors", "missing"):
        with pytest.raises((ArgumentError, LoraError)) as refusal:
            client.load_lora("style", path)
        assert str(folder) not in refusal.value.message
        assert len(refusal.value.message) < 1000


def test_loading_unloading_and_different_ones_at_once(client: Client, folder: Path) -> None:
    listed = client.load_lora("second", "two.safetensors")
    assert [(lora.name, lora.modules) for lora in listed.loras] == [("one", 72), ("second", 72)]
    choices = [(), (("one", 1.0),), (("second", 1.0),), (("one", 0.5), ("second", -0.5))]
    alone = [draw(client, *loras) for loras in choices]
    assert all(abs(a - b).max() > 8 for i, a in enumerate(alone) for b in alone[:i])
    requests = [
        client.stream(PROMPT, seed=0, steps=3, loras=[{"name": name, "strength": strength} for name, strength in loras])
        for loras in choices
    ]
    for events in requests:
        next(events)  # so that all are queued together
    for events, image in zip(requests, alone, strict=True):
        *_, result = events
        assert isinstance(result, Result)
        assert abs(pixels(result) - image).max() <= 1
    client.unload_lora("second")
    with pytest.raises(ArgumentError, match=r"among the loaded ones \(one\), got 'second'"):
        draw(client, ("second", 1.0))
    shutil.copy(folder / "one.safetensors", folder / "copy.safetensors")
    client.load_lora("second", "copy.safetensors")
    assert np.array_equal(draw(client, ("second", 1.0)), alone[1])
    client.unload_lora("second")


def test_a_file_that_does_not_fit_is_refused_and_named(client: Client) -> None:
    with pytest.raises(LoraError, match=r"^broken\.safetensors: .*not finite"):
        client.load_lora("x", "broken.safetensors")
    with pytest.raises(LoraError, match=r"^more\.safetensors: .*transformer\.unheard\.of"):
        client.load_lora("x", "more.safetensors")
    with pytest.raises(ArgumentError, match="path must be relative"):
        client.load_lora("x", "../one.safetensors")


def test_one_that_overflows_is_named_and_harms_no_other_picture(client: Client, folder: Path) -> None:
    before = draw(client, ("one", 1.0))
    bold = {name: 1e25 * tensor for name, tensor in load_file(folder / "two.safetensors").items()}
    save_file(bold, folder / "bold.safetensors")
    client.load_lora("bold", "bold.safetensors")
    with pytest.raises(NotFiniteError, match="no numbers: try a smaller strength of the LoRA 'bold' at 2"):
        draw(client, ("bold", 2.0))
    client.unload_lora("bold")
    assert np.array_equal(draw(client, ("one", 1.0)), before)


def test_merged_into_the_weights_it_draws_the_same(client: Client, folder: Path) -> None:
    chosen = draw(client, ("one", 1.0))
    with launch(device="cpu", warm_up=False, loras=[f"{folder}/one.safetensors"], merge_lora=True) as merged:
        assert abs(draw(merged) - chosen).max() <= 2
        status = merged.status()
        assert ([lora.file for lora in status.merged_loras], status.loras) == (["one.safetensors"], ())


# That each of several ranks gets them: test_loras.py with fake ranks.
@pytest.mark.parametrize("tp", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_lost_ranks_are_replaced_with_their_loras(marked: Marked, folder: Path, client: Client, tp: str) -> None:
    server = marked.start_krea2(
        "serve", "--device", "cpu", "--tp", tp, "--port", "0", "--lora", f"style={folder}/one.safetensors",
        "--lora-dir", str(folder),
    )  # fmt: skip
    assert server.stdout is not None
    url = server.stdout.readline().strip().removeprefix("http: ")
    address = server.stdout.readline().strip().removeprefix("rpc: ")
    with connect(address) as own:
        own.load_lora("two", "two.safetensors")
        marked.alive("_rank")[0].kill()
        assert abs(draw(own, ("style", 1.0)) - draw(client, ("one", 1.0))).max() <= 2
        wait_until(lambda: own.status().restarts == 1, "other ranks")
    listed = httpx.get(f"{url}/v1/loras", timeout=PATIENCE_S).json()["data"]
    assert [(lora["name"], lora["modules"]) for lora in listed] == [("style", 72), ("two", 72)]
    assert httpx.delete(f"{url}/v1/loras/two", timeout=PATIENCE_S).status_code == 200
    server.terminate()
    _, stderr = server.communicate(timeout=PATIENCE_S)
    events = [json.loads(line) for line in stderr.splitlines() if line.startswith('{"time":')]
    loaded = [(event["name"], event["modules"]) for event in events if event["event"] == "lora loaded"]
    assert loaded == [("style", 72), ("two", 72)] * 2


# Without torchrun: the command that rank 0 of torchrun's starts is the same, and `client` has LoRAs of spawned ranks.
@pytest.mark.parametrize("starter", [TORCHRUN, pytest.param((), marks=pytest.mark.slow)], ids=["torchrun", "spawned"])
def test_the_command_line_draws_with_them_and_tells_what_it_skips(
    marked: Marked, client: Client, folder: Path, tmp_path: Path, starter: tuple[str, ...]
) -> None:
    process = marked.start(
        sys.executable, *starter, "-m", "launcher",
        "generate", PROMPT, "--device", "cpu", "--steps", "3", "--seed", "0", "--output", str(tmp_path / "x.png"),
        "--lora", f"{folder}/more.safetensors:0.5", "--lora", f"{folder}/two.safetensors:-0.5", "--lora-lenient",
    )  # fmt: skip
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, stdout) == (0, f"{tmp_path}/x.png\n"), stderr
    warning = (
        f"lora_lenient leaves out 1 of {1 + 2 * 72} keys, and what it changes is missing from pictures: "
        "1 for nothing in Krea 2's transformer (transformer.unheard.of.lora_A.weight)"
    )
    assert stderr.count(f"warning: {folder}/more.safetensors: {warning}\n") == stderr.count("warning: ") == 1
    client.load_lora("two", "two.safetensors")
    chosen = draw(client, ("one", 0.5), ("two", -0.5))  # `more` is `one` but for what is skipped
    client.unload_lora("two")
    assert abs(np.asarray(Image.open(tmp_path / "x.png")).astype(int) - chosen).max() <= 2
    assert abs(chosen - draw(client)).max() > 8


@pytest.mark.parametrize("command", [("generate", "x"), ("serve",)])
def test_mistakes_are_one_line_and_exit_code_2_before_anything_starts(
    krea2: Krea2, folder: Path, command: tuple[str, ...]
) -> None:
    for arguments, message in (
        (["--lora", f"{folder}/broken.safetensors"], f"{folder}/broken.safetensors: "),
        (["--lora", f"{folder}/missing"], f"{folder}/missing: No such file or directory"),
        (["--lora", f"{folder}/more.safetensors"], f"{folder}/more.safetensors: has tensors that are for no layer"),
        (["--lora", f"{folder}/one.safetensors:50"], "the strength of a LoRA must be between -10 and 10, got 50"),
        (["--merge-lora"], "--merge-lora needs a lora"),
    ):
        code, stdout, stderr = krea2(*command, "--device", "cpu", *arguments)
        assert (code, stdout) == (2, ""), stderr
        assert stderr.startswith(f"error: {message}")
        assert stderr.count("\n") == 1


def test_info_checks_a_file(krea2: Krea2, folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "one.safetensors", tmp_path)
    more, alone = str(add_vectors(tmp_path / "one.safetensors", DEMO_CHECKPOINT)), str(tmp_path / "norm.safetensors")
    count = len(vector_shapes(DEMO_CHECKPOINT))
    save_file({"blocks.0.attn.qknorm.qnorm.scale.diff": torch.zeros(HEAD_DIM)}, alone)
    fast = f"{tmp_path}/fast.safetensors"
    header = {"krea2.steps": "4", "krea2.shift": "1"}
    save_file({"blocks.0.attn.qknorm.qnorm.scale.diff": torch.zeros(HEAD_DIM)}, fast, header)
    loras = [text for file in (f"{folder}/two.safetensors", more, alone, fast) for text in ("--lora", file)]
    code, stdout, _ = krea2("info", "demo", *loras, "--tp", "2")
    assert code == 0
    assert f"{more}: LoRA and full difference, changes 72 layers and {count} of the norms and modulation" in stdout
    assert f"{alone}: full difference, changes 1 of the norms and modulation tables, 0." in stdout
    assert " MB on each rank; made for 4 steps, mu 0\n" in stdout
    assert f"{folder}/two.safetensors: LoRA, changes 72 layers, scale 1.5 (alpha tensors), 0." in stdout
