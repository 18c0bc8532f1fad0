"""A real engine on the demo checkpoint, through `launch` and the clients."""

from __future__ import annotations

import asyncio
import errno
import inspect
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.config.engine_config import EngineConfig
from engine.errors import ArgumentError, CancelledError, CheckpointError, LaunchError, LoraError, ServerError
from launcher import AsyncClient, Client, Result, launch
from launcher.client.results import ImageFile
from launcher.client.trace import trace_events
from launcher.messages.client_messages import Accepted, Progress
from launcher.requests.timings import STAGES
from launcher.setup.configure import LaunchOptions
from tests.launcher.client.explained import expect_trace, expect_whole
from tests.launcher.processes import PATIENCE_S, Marked, connect, connect_async

PROMPT = "a red circle on a blue background"


def pixels(result: Result, index: int = 0) -> np.ndarray:
    return np.asarray(result.images[index]).astype(int)


def shows_red_on_blue(image: np.ndarray) -> bool:
    red, _, blue = image[image.shape[0] // 2, image.shape[1] // 2]
    corner_red, _, corner_blue = image[4, 4]
    return bool(red > 150 > blue and corner_blue > 150 > corner_red)


def test_the_picture_shows_what_the_prompt_says(client: Client) -> None:
    result = client.generate(PROMPT, seed=0)
    assert shows_red_on_blue(pixels(result))
    assert (result.seed, result.width, result.height, result.warnings) == (0, 128, 128, ())
    assert all(seconds >= 0 for seconds in result.timings.values())
    assert set(result.timings) == {*STAGES, "total"}
    assert 0 < result.timings["total"] == pytest.approx(sum(map(result.timings.__getitem__, STAGES)))


def check_explanation(result: Result, *, ranks: int) -> None:
    """Check that the parts of a request's life add up to what its client waited, with what nobody accounts for among
    them, and that its stages are those of all ranks, above a floor that the CPU was measured for."""
    assert result.explanation is not None
    told = result.explanation.told
    expect_whole(told)
    expect_trace(trace_events([result.explanation]), result.explanation)
    assert told.total_s == pytest.approx(result.timings["total"] + told.parts["check"])
    assert sum(result.explanation.parts.values()) == pytest.approx(result.explanation.client_s)
    assert {"unattributed", "transfer"} <= result.explanation.parts.keys()
    denoised = [stage for stage in told.stages if stage.name == "denoise"]
    assert sorted({(stage.rank, stage.steps[0]) for stage in denoised}) == [
        (rank, step) for rank in range(ranks) for step in range(1, told.steps + 1)
    ]
    assert all(stage.floor_s is not None for stage in denoised)
    assert told.floor_source.startswith("cpu: ")
    assert told.floor_source.endswith("measured just now")


def test_the_parts_of_a_request_s_life_add_up_to_what_its_client_waited(client: Client) -> None:
    result = client.generate(PROMPT, seed=0, num_images=2, explain=True)
    check_explanation(result, ranks=1)
    assert client.generate(PROMPT, seed=0, steps=1).explanation is None


def test_image_i_of_a_request_is_the_image_of_seed_plus_i(client: Client) -> None:
    together = client.generate(PROMPT, seed=3, num_images=2, steps=3)
    alone = [client.generate(PROMPT, seed=seed, steps=3) for seed in together.seeds]
    assert together.seeds == [3, 4]
    for index in range(2):
        assert abs(pixels(together, index) - pixels(alone[index])).max() <= 1
    assert abs(pixels(together, 0) - pixels(together, 1)).max() > 1


# With sp: test_ranks_on_two_machines_make_the_picture_of_a_single_rank.
@pytest.mark.parametrize("mode", [{"tp": 2}, pytest.param({"sp": 2}, marks=pytest.mark.slow), {"cfg_parallel": True}])
def test_two_ranks_make_the_same_picture(client: Client, mode: dict[str, Any]) -> None:
    with launch(device="cpu", warm_up=False, **mode) as two:
        status = two.status()
        told = {"tp": status.tp, "sp": status.sp, "cfg_parallel": status.cfg_parallel}
        assert told == {"tp": 1, "sp": 1, "cfg_parallel": False} | mode
        assert len(two.status().rank_memory) == 2
        requests = [{"seed": 1}, {"seed": 2, "width": 96, "guidance": 2.0, "steps": 3}]
        for parameters in requests:
            mine = client.generate(PROMPT, **parameters)  # type: ignore[arg-type]
            theirs = two.generate(PROMPT, **parameters, explain=True)  # type: ignore[arg-type]
            assert abs(pixels(mine) - pixels(theirs)).max() <= 1
            check_explanation(theirs, ranks=2)


def test_a_drawn_seed_is_told_and_makes_the_image_again(client: Client) -> None:
    drawn = client.generate(PROMPT, steps=2)
    again = client.generate(PROMPT, steps=2, seed=drawn.seed)
    assert abs(pixels(drawn) - pixels(again)).max() <= 1


def test_a_stream_ends_with_the_result(client: Client) -> None:
    events = list(client.stream(PROMPT, steps=4))
    assert isinstance(events[0], Accepted)
    progress = [event for event in events if isinstance(event, Progress)]
    steps = [event.step for event in progress]
    assert steps  # of the ones that wait for a client to read them, only the newest is sent
    assert steps == sorted(set(steps) & {1, 2, 3, 4})
    assert {event.steps for event in progress} == {4}
    image, result = events[-2:]
    assert isinstance(image, ImageFile)
    assert isinstance(result, Result)
    assert result.files == [image.file]


def test_leaving_a_stream_early_cancels_the_request(client: Client) -> None:
    for event in client.stream(PROMPT, steps=200, num_images=10):
        if isinstance(event, Progress):
            break
    assert client.status().running == 0


def test_many_threads_can_share_a_client(client: Client) -> None:
    sizes = [(128, 128), (64, 96), (160, 64), (128, 128), (96, 96), (64, 64)]
    with ThreadPoolExecutor(len(sizes)) as threads:
        results = list(threads.map(lambda size: client.generate(PROMPT, width=size[0], height=size[1], steps=3), sizes))
    assert [(result.width, result.height) for result in results] == sizes
    assert [result.images[0].size for result in results] == sizes


def test_another_thread_can_cancel(client: Client) -> None:
    events = client.stream(PROMPT, steps=200, num_images=10, request_id="long")
    assert isinstance(next(events), Accepted)
    canceller = threading.Thread(target=client.cancel, args=("long",))
    canceller.start()
    with pytest.raises(CancelledError):
        list(events)
    canceller.join()


def test_it_works_beside_a_running_event_loop_and_so_does_the_async_client(client: Client) -> None:
    async def notebook_cell() -> None:
        assert client.generate(PROMPT, steps=1).seeds  # blocks this loop, as a cell may
        async with connect_async(client.address) as own:
            results = await asyncio.gather(*(own.generate(PROMPT, steps=2, seed=seed) for seed in range(3)))
            assert [result.seed for result in results] == [0, 1, 2]

    asyncio.run(notebook_cell())


def test_a_closed_client_says_so_and_other_clients_go_on(client: Client) -> None:
    other = connect(client.address)
    failures: list[BaseException] = []

    def wait_in_vain() -> None:
        try:
            for _ in events:
                waiting.set()
        except ServerError as error:
            failures.append(error)

    events = other.stream(PROMPT, steps=200, num_images=10)
    waiting = threading.Event()
    thread = threading.Thread(target=wait_in_vain, daemon=True)
    thread.start()
    assert waiting.wait(PATIENCE_S)
    other.close()
    thread.join(PATIENCE_S)
    assert [str(error) for error in failures] == ["the client was closed"]
    for use in (other.ping, other.status, lambda: other.generate(PROMPT)):
        with pytest.raises(ServerError, match="closed"):
            use()
    other.close()
    assert client.generate(PROMPT, steps=1).seeds


def test_launch_works_in_a_thread_that_ends_before_the_engine_does(
    marked: Marked, monkeypatch: pytest.MonkeyPatch
) -> None:
    marked.use_hollow_ranks()
    for name in ("PYTHONPATH", "TMPDIR", "KREA2_TEST_MARK"):
        monkeypatch.setenv(name, marked.environment[name])
    monkeypatch.setattr(tempfile, "tempdir", marked.environment["TMPDIR"])  # instead of what this process found before

    def start() -> None:
        context = launch(device="cpu")
        started.append((context, context.__enter__()))

    started: list[tuple[object, Client]] = []
    thread = threading.Thread(target=start)
    thread.start()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    context, client = started[0]
    try:
        assert client.generate(PROMPT, steps=1).seeds
    finally:
        context.__exit__(None, None, None)  # type: ignore[attr-defined]
    marked.expect_nothing_left()


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"model": "/no/such/folder"}, CheckpointError, "/no/such/folder: there is no such folder"),
        ({"model": "demo-trubo"}, CheckpointError, r"no such folder or file; did you mean demo-turbo\?$"),
        ({"loras": "demo-outlind"}, LoraError, r"No such file or directory; did you mean demo-outlined\?$"),
        ({"tp": 3}, ArgumentError, "tp must be one of 1, 2, 4, got 3"),
        ({"tp": True}, ArgumentError, "tp must be one of 1, 2, 4, got True"),
        ({"model": 3}, ArgumentError, "the path of a checkpoint, or one of demo, demo-turbo, demo-raw, got 3"),
        ({"vae": ""}, ArgumentError, "vae must be a path, got ''"),
        ({"vae": "x"}, ArgumentError, "missing: transformer, text_encoder, tokenizer; give each as a file"),
        ({"share_gpu": 1}, ArgumentError, "share_gpu must be True or False, got 1"),
        ({"quantization": "int4"}, ArgumentError, "quantization must be one of auto, none, fp8, int8, got 'int4'"),
        ({"attention": "fa9"}, ArgumentError, "attention must be one of auto, cudnn, flash, fa2, fa3, fa3-fp8, fa4"),
        ({"cuda_graphs": "yes"}, ArgumentError, "cuda_graphs must be True or False, got 'yes'"),
        ({"warm_up": "no"}, ArgumentError, "warm_up must be True or False, got 'no'"),
        ({"limits": 3}, ArgumentError, "limits must be a mapping of names to numbers, got 3"),
        ({"step_timeout_s": "1"}, ArgumentError, "step_timeout_s must be above 0 and at most 604800, got '1'"),
        ({"device": "tpu"}, ArgumentError, "device must be one of auto, cuda, cpu, got 'tpu'"),
        ({"limits": {"max_side": -1}}, ArgumentError, "limit max_side must be a positive whole number, got -1"),
        ({"model": Path("/no/such/folder")}, CheckpointError, "/no/such/folder: there is no such folder"),
        ({"loras": 3}, ArgumentError, r"loras must be a list of \[NAME=\]PATH\[:STRENGTH\], got 3"),
        ({"loras": Path("/no/such/lora")}, LoraError, "/no/such/lora: "),
        ({"offload": 3}, ArgumentError, "offload must be some of dit-layerwise, dit, text-encoder, vae, got 3"),
        ({"tpp": 3}, TypeError, r"^launch\(\) got an unexpected keyword argument 'tpp': did you mean 'tp'\?$"),
        ({"torch_dtype": "bfloat16"}, TypeError, r"argument 'torch_dtype': here it is dtype$"),
        ({"steps": 8}, TypeError, r"argument 'steps': it is one of client\.generate\(prompt, steps=…\)$"),
        ({"zzz": 8}, TypeError, r"argument 'zzz'$"),
    ],
)
def test_bad_arguments_are_refused_before_anything_starts(
    arguments: dict[str, object], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message), launch(**arguments):  # type: ignore[arg-type]
        raise AssertionError("started")


def test_a_front_end_that_no_files_are_left_for_is_a_launch_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("launcher.setup.engine_process.Child", start)
    with pytest.raises(LaunchError, match=r"^the front-end cannot be started: Too many open files$"), launch():
        raise AssertionError("started")


def test_launch_takes_every_option_with_its_default() -> None:
    table = {field.name: field.default for kind in (EngineConfig, LaunchOptions) for field in fields(kind)}
    del table["merge_loras"]  # which merge_lora and loras make
    signature = inspect.signature(launch)
    assert {name: parameter.default for name, parameter in signature.parameters.items()} == table | {"progress": None}


@pytest.mark.parametrize(
    ("progress", "watched", "shown"),
    [(None, False, False), (None, True, True), (True, False, True), (False, True, False)],
)
def test_launch_shows_those_who_watch_how_far_it_is(
    progress: bool | None,
    watched: bool,
    shown: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(_: object, *, on_loading: Callable[[int, int, str], None] = lambda *_: None) -> None:
        on_loading(0, 0, "starting")
        on_loading(3_000_000, 4_000_000, "loading")
        raise LaunchError("no room")

    monkeypatch.setattr("launcher.setup.launch.launch_frontend", start)
    monkeypatch.setattr("launcher.setup.launch.is_watched", lambda: watched)
    with pytest.raises(LaunchError):
        launch(progress=progress)
    err = capsys.readouterr().err
    assert ("starting [00:00]" in err, "/4.00M" in err) == (shown, shown)
    assert not err.rpartition("\r")[2]  # it is taken away, whatever happens


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("address", "timeout", "message"),
    [
        (None, 1.0, "address must be tcp://HOST:PORT or ipc:///PATH, got None"),
        ("", 1.0, "address must be tcp://HOST:PORT or ipc:///PATH, got ''"),
        ("tcp://127.0.0.1:5555", None, "connect_timeout_s must be above 0, got None"),
    ],
)
def test_bad_arguments_of_a_client_are_named(
    kind: type[Client] | type[AsyncClient], address: object, timeout: object, message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        kind(address, connect_timeout_s=timeout)  # type: ignore[arg-type]
