"""The runtime's CUDA branches on a device of the tests' own: streams, graphs, pinned copies, offloading, decoding."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.checkpoint.checkpoint_files import CheckpointFiles
from engine.config.engine_config import DIT, DIT_LAYERWISE, TEXT_ENCODER, VAE
from engine.kernels.packing import Packing
from engine.lora.adapters import Adapters
from engine.model.text_encoder import TextEncoder
from engine.model.vae_encoder import VAEEncoder
from engine.offload import host_buffers
from engine.offload.offload import SwappedComponent
from engine.parallel.mesh import Mesh
from engine.rank import cuda_graphs as graphs
from engine.rank import denoiser, prompt_encoder
from engine.rank.image_decoder import DecodedImage
from engine.rank.rank import Rank
from engine.rank.recovery import Recovery
from engine.rank.warm_up import warm_up
from engine.step import Adapter, Job, Picture, Step
from tests.engine.lora.adapter_files import add_vectors, draw_low_rank, layer_shapes, write_scheme
from tests.engine_runs import as_array, config_of, jobs_of
from tests.fake_cuda import FakeCuda, modes
from tests.fake_cuda.clocks import Event, Stream
from tests.oracle import Request
from tests.step_scripts import pixels_of

CPU = torch.device("cpu")
SIDE = 64
REQUESTS = [
    Request("a red circle on a blue background", seeds=(0, 1), steps=3, width=SIDE, height=SIDE),
    Request("a fox", guidance=2.0, negative_prompt="rain", seeds=(2,), steps=2, width=SIDE, height=48),
]
# Where a step may wait for the device: an adapter is loaded before its clock starts, what is offloaded as a whole
# leaves when nothing is in flight, and where memory ran out there is nothing better to do.
MAY_WAIT = [(Adapters, "load"), (SwappedComponent, "drop"), (Recovery, "free_memory"), (Recovery, "_decode_small")]


@contextmanager
def fake_cuda(**options: Any) -> Iterator[FakeCuda]:
    with FakeCuda(**options) as device:
        for owner, name in MAY_WAIT:
            device.allow_waits(owner, name)
        yield device


class Run:
    """A rank of a small checkpoint, the images that it makes, and the jobs that it gives up."""

    def __init__(self, folder: Path, device: torch.device, **options: Any) -> None:
        config = config_of(folder, device="auto" if device.type == "cuda" else "cpu", **options)
        weights = CheckpointFiles.open(config, 0)
        weights.config = replace(weights.config, default_width=SIDE, default_height=SIDE)
        self.images: dict[int, DecodedImage] = {}
        self.failures: dict[int, Exception] = {}
        self.previews: dict[tuple[int, int], torch.Tensor] = {}
        self.latents: dict[int, torch.Tensor] = {}
        self.rank = Rank(config, Mesh(), device, self._take, weights, on_failed=self.failures.__setitem__)
        self._number = 0

    def _take(self, image: DecodedImage) -> None:
        self.images[image.job_id] = image

    def run(self, jobs: Sequence[Job], adapters: Sequence[Adapter] = ()) -> Run:
        """All jobs to their end, a job more joining in each step, with its picture; nobody waits before the last step
        is queued."""
        waiting, left, load, handles = list(jobs), dict[int, int](), tuple(adapters), []
        kept = {}
        while waiting or left:
            start = tuple(waiting[:1])
            waiting = waiting[1:]
            left |= {job.job_id: job.steps for job in start}
            encode = tuple(job.picture for job in start if job.picture is not None)
            forget = tuple(picture.picture_id for picture in encode)
            handles.append(self._execute(start=start, denoise=tuple(left), load=load, encode=encode, forget=forget))
            load, done = (), tuple(job_id for job_id, steps in left.items() if steps == 1)
            left = {job_id: steps - 1 for job_id, steps in left.items() if steps > 1}
            if done:
                handles.append(self._execute(decode=done))
        if adapters:
            handles.append(self._execute(unload=tuple(adapter.adapter_id for adapter in adapters)))
        for step in handles:
            step.wait()
            kept |= {(preview.job_id, preview.step): preview.pixels for preview in step.previews}
        self.previews |= kept
        return self

    def teach_previews(self, job: Job) -> None:
        """Make one image, of which previews of others are learned."""
        self.run([replace(job, job_id=-1, steps=1)])
        self.rank.decoder.settle()
        del self.images[-1]

    def _execute(self, **parts: Any) -> Any:
        step = Step(self._number, **parts)
        self._number += 1
        return self.rank.execute(step, {picture.picture_id: pixels_of(picture) for picture in step.encode})

    def close(self) -> Run:
        self.rank.close()
        return self


def jobs(folder: Path) -> list[Job]:
    """Guided and not, two that begin from pictures, of one of which a part stays, all with previews."""
    alone, second, guided = (replace(job, preview_every=1) for job in jobs_of(folder, REQUESTS))
    pictures = Picture(1, second.width, second.height), Picture(2, guided.width, guided.height, masked=True)
    second, guided = (
        replace(job, picture=picture, skipped_steps=1) for job, picture in zip((second, guided), pictures, strict=True)
    )
    return [alone, second, guided]


def assert_same_images(images: dict[int, DecodedImage], expected: dict[int, DecodedImage], most: float = 1.0) -> None:
    assert images.keys() == expected.keys()
    for job_id, image in images.items():
        difference = np.abs(as_array(image).astype(float) - as_array(expected[job_id]))
        assert difference.max() <= most, f"job {job_id}"


@pytest.fixture(scope="module")
def on_cpu(turbo: Path) -> dict[int, DecodedImage]:
    return Run(turbo, CPU).run(jobs(turbo)).close().images


OFFLOADS = [
    (),
    (DIT,),
    (DIT_LAYERWISE, TEXT_ENCODER, VAE),
    (DIT, TEXT_ENCODER, VAE),
]


@pytest.mark.parametrize("offload", OFFLOADS, ids=lambda offload: "+".join(offload) or "none")
def test_the_images_are_the_cpus_and_nothing_relies_on_luck(
    turbo: Path, on_cpu: dict[int, DecodedImage], offload: tuple[str, ...]
) -> None:
    with fake_cuda() as device:
        run = Run(turbo, device.device, offload=offload, attention="torch")
        run.teach_previews(jobs(turbo)[0])
        run.run(jobs(turbo)).close()
    device.check()
    assert_same_images(run.images, on_cpu)
    assert run.previews.keys() == {(job.job_id, step) for job in jobs(turbo) for step in range(1, job.steps)}
    assert len({stream for stream, _ in device.timeline.calls}) >= 2


@pytest.mark.parametrize("room", [None, 0])
def test_a_picture_is_encoded_beside_a_step_where_there_is_room(
    turbo: Path, monkeypatch: pytest.MonkeyPatch, room: int | None
) -> None:
    beside, forward = list[bool](), VAEEncoder.forward

    def watched(self: VAEEncoder, pixels: torch.Tensor, **options: Any) -> torch.Tensor:
        beside.append(torch.cuda.current_stream() is run.rank.pictures._stream)
        return forward(self, pixels, **options)

    monkeypatch.setattr(VAEEncoder, "forward", watched)
    with fake_cuda() as device:
        run = Run(turbo, device.device, attention="torch")
        run.rank.pictures.room = room
        run.run(jobs(turbo)[1:2]).close()
    device.check()
    assert beside == [room is None]


@pytest.mark.parametrize("offload", [(), (DIT_LAYERWISE, TEXT_ENCODER)], ids=["none", "layerwise"])
def test_adapters(turbo: Path, tmp_path: Path, offload: tuple[str, ...]) -> None:
    file = write_scheme(tmp_path / "lora.safetensors", turbo, draw_low_rank(layer_shapes(turbo)))
    adapters = [Adapter(7, str(add_vectors(file, turbo)))]
    with_lora = [replace(job, loras=((7, 0.8),) if job.job_id != 1 else ()) for job in jobs(turbo)]
    expected = Run(turbo, CPU).run(with_lora, adapters).close().images
    with fake_cuda() as device:
        run = Run(turbo, device.device, offload=offload, attention="torch").run(with_lora, adapters).close()
    device.check()
    assert_same_images(run.images, expected)


@pytest.fixture
def _small_recordings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "_STEP_ROWS", 32)
    monkeypatch.setattr(graphs, "_LARGEST_STEP", 64)
    monkeypatch.setattr(graphs, "_LARGEST_PROMPT", 64)


@pytest.mark.usefixtures("_small_recordings")
def test_replays_of_graphs_make_the_images_of_a_rank_without(turbo: Path) -> None:
    """In bfloat16: graphs are for nothing else."""
    expected = Run(turbo, CPU, dtype="bfloat16").run(jobs(turbo)).close()
    with fake_cuda() as device:
        run = Run(turbo, device.device, dtype="bfloat16", attention="auto")
        warm_up(run.rank, [(48, SIDE)])
        assert run.rank.denoiser.graphs is not None
        assert run.rank.prompts.graphs is not None
        run.run(jobs(turbo)).close()
    device.check()
    assert [name for _, name in device.timeline.calls].count("graph replay") >= 3
    for job_id, image in run.images.items():
        difference = np.abs(as_array(image).astype(float) - as_array(expected.images[job_id]))
        assert difference.mean() <= 3, f"job {job_id}"


def test_out_of_memory_breaks_no_rule(turbo: Path, on_cpu: dict[int, DecodedImage]) -> None:
    """Twice in steps, and once in the decoder's thread."""
    of_steps, of_decoding = itertools.count(), itertools.count()

    def refuses(size: int) -> bool:
        if device.timeline.thread.in_step:
            return next(of_steps) in (50, 700)
        return threading.current_thread().name.startswith("vae") and next(of_decoding) == 5

    with fake_cuda() as device:
        run = Run(turbo, device.device, attention="torch")
        device.memory.refuses = refuses
        run.run(jobs(turbo)).close()
    device.check()
    assert next(of_steps) > 700
    assert next(of_decoding) > 5
    assert not run.failures
    assert_same_images(run.images, on_cpu)


# ---- what the runtime does about it, left out


def _nothing(*_: object, **__: object) -> None:
    pass


def _blocking(method: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda *args, non_blocking=False, **kwargs: method(*args, **kwargs)


def _reads_a_number(guide: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda velocity, *others: guide(velocity, *others) if bool(velocity.isfinite().all()) else velocity


LEFT_OUT = [
    ((Stream, "wait_stream", _nothing), (), "unordered: "),
    ((Stream, "wait_event", _nothing), (DIT_LAYERWISE,), "does not wait for what copy to the device has written"),
    ((Event, "synchronize", _nothing), (), "unordered: "),
    ((Stream, "synchronize", _nothing), (), "by the host does not wait for what copy to the host"),
    ((torch.Tensor, "pin_memory", lambda tensor: tensor), (), "unpinned: "),
    ((host_buffers, "pinned", lambda size: torch.empty(size, dtype=torch.uint8)), (DIT_LAYERWISE,), "unpinned: "),
    ((modes, "_copied", _blocking(modes._copied)), (), "wait: the host waits in copy to the device inside"),
    ((torch.Tensor, "copy_", _blocking(torch.Tensor.copy_)), (), "wait: the host waits in copy to the host inside"),
    ((denoiser, "guide", _reads_a_number(denoiser.guide)), (), "wait: the host waits in is_nonzero inside of a step"),
    (
        (torch.Tensor, "record_stream", _nothing),
        (),
        "freed: memory of stream 1 is given back while stream 0 may use it",
    ),
]


@pytest.mark.parametrize(("patch", "offload", "told"), LEFT_OUT, ids=[case[0][1] for case in LEFT_OUT])
def test_what_is_left_out_is_told(
    turbo: Path, monkeypatch: pytest.MonkeyPatch, patch: tuple[Any, str, Any], offload: tuple[str, ...], told: str
) -> None:
    monkeypatch.setattr(prompt_encoder, "_KEPT_TOKENS", 0)  # so that features go with their job
    with fake_cuda() as device, monkeypatch.context() as left_out:
        left_out.setattr(*patch)
        run = Run(turbo, device.device, offload=offload, attention="torch")
        run.teach_previews(jobs(turbo)[0])
        run.run(jobs(turbo)[1:]).close()
    assert any(told in said for said in device.violations), device.violations


@pytest.mark.usefixtures("_small_recordings")
def test_a_table_made_while_a_graph_is_recorded_is_told(turbo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = TextEncoder.forward

    def forward(self: TextEncoder, ids: torch.Tensor, packing: Packing) -> torch.Tensor:
        return encode(
            self, ids + torch.zeros(1, dtype=torch.int64).pin_memory().to(ids.device, non_blocking=True), packing
        )

    monkeypatch.setattr(TextEncoder, "forward", forward)
    with fake_cuda() as device:
        run = Run(turbo, device.device, dtype="bfloat16", attention="auto")
        warm_up(run.rank, decodes=False)
        run.close()
    assert any(said.startswith("capture: copy to the device while a graph is recorded") for said in device.violations)
