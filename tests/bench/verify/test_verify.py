"""The comparison with diffusers: what holds is said to hold, and a fault is named as the stage that it is in."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.verify import checks, ours, ranks
from bench.verify.checks import Asked, ask_diffusers, compare
from bench.verify.oracle import asking
from bench.verify.ours import Results
from bench.verify.ranks import Plan
from bench.verify.report import Verified, write_report
from bench.verify.subject.models import Model, requests_for
from engine.config.degrees import Degrees
from engine.model.vae import VAEDecoder
from engine.rank.rank import Rank
from tests.bench.verify.faults import CPU, HOW, SIZES, WEIGHTS, first_difference, parameter, plant, quiet, scaled
from tests.engine.parallel.thread_group import thread_meshes

pytestmark = pytest.mark.usefixtures("no_collecting")


@pytest.fixture(scope="module")
def asked(model: Model) -> Asked:
    """What diffusers says, once for all faults."""
    return ask_diffusers(model, requests_for(model, "float32", SIZES, steps=2, images=1), "float32", HOW, quiet)


CUMULATIVE = ("text encoder tap", "velocity", "final latents", "pixels")


def test_a_sound_engine_holds(model: Model, asked: Asked) -> None:
    checked = list(compare(model, asked, HOW, quiet))
    assert [check.name for check in checked if not check.holds] == []
    assert max(check.error for check in checked if check.name.startswith("transformer block")) < 5e-6
    names = [check.name for check in checked]
    assert names.index("text encoder tap 5") < names.index("text fusion projector") < names.index("transformer block 2")
    assert names.index("guidance and Euler step 2") < names.index("velocity of a whole forward") < names.index("pixels")
    assert {name for name in WEIGHTS if name not in names} == set()


@pytest.mark.parametrize(("stage", "path"), WEIGHTS.items(), ids=WEIGHTS)
def test_a_wrong_weight_is_named_by_its_stage_alone(
    model: Model, asked: Asked, monkeypatch: pytest.MonkeyPatch, stage: str, path: str
) -> None:
    plant(monkeypatch, scaled(path))
    checked = list(compare(model, asked, HOW, quiet))
    assert first_difference(checked).name == stage
    others = [check.name for check in checked if not check.holds and check.name != stage]
    assert [name for name in others if not name.startswith(CUMULATIVE)] == []


def wrong_taps(rank: Rank) -> None:
    rank.model.text_encoder.taps = (1, 3, 4)


def wrong_mean(rank: Rank) -> None:
    assert rank.model.vae is not None
    rank.model.vae._mean.add_(0.01)


@pytest.mark.parametrize(
    ("stage", "fault"), [("text encoder tap 5", wrong_taps), ("VAE input: latents' mean and std", wrong_mean)]
)
def test_a_wrong_setting_is_named(
    model: Model, asked: Asked, monkeypatch: pytest.MonkeyPatch, stage: str, fault: Callable[[Rank], None]
) -> None:
    plant(monkeypatch, fault)
    assert first_difference(list(compare(model, asked, HOW, quiet))).name == stage


def patched(modules: str, function: str, change: Callable[..., Any]) -> Callable[[pytest.MonkeyPatch], None]:
    """A function, changed for the modules that use it."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        for name in modules.split():
            original = getattr(import_module(name), function)
            monkeypatch.setattr(f"{name}.{function}", partial(change, original))

    return patch


CODE = {
    "noise": patched("engine.rank.job_state", "draw_noise", lambda draw, seed, *rest: draw(seed + 1, *rest)),
    "sigmas of 96×64": patched(
        "engine.rank.job_state bench.verify.checks", "default_mu", lambda mu, *rest: mu(*rest) + 1e-3
    ),
    "guidance and Euler step 1": patched("engine.rank.denoiser", "guide", lambda guide, a, b, g: guide(a, b, g + 0.01)),
    "velocity of a whole forward": patched(
        "engine.rank.denoiser", "image_rotations", lambda make, high, wide, *rest, **to: make(wide, high, *rest, **to)
    ),
}


@pytest.mark.parametrize(("stage", "patch"), CODE.items(), ids=CODE)
def test_wrong_code_is_named(
    model: Model,
    asked: Asked,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    patch: Callable[[pytest.MonkeyPatch], None],
) -> None:
    patch(monkeypatch)
    assert first_difference(list(compare(model, asked, HOW, quiet))).name == stage


def test_wrong_steps_are_named_with_the_first_of_them(
    model: Model, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What all stages hold for, and goes wrong when a rank makes whole images."""
    images = ours.Runner.images

    def later(runner: ours.Runner, jobs: Any, results: Results, say: Any, *, catch: bool) -> None:
        images(runner, jobs, results, say, catch=catch)
        results.latents[0][1] += 0.01

    monkeypatch.setattr(ours.Runner, "images", later)
    difference = first_difference(list(compare(model, asked, HOW, quiet)))
    assert difference.name.startswith("final latents of 96×64, guidance 3.5")
    assert difference.detail == "from step 2 of 2 on"


def test_wrong_pixels_are_named(model: Model, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = VAEDecoder.decode_pixels
    monkeypatch.setattr(VAEDecoder, "decode_pixels", lambda *given, **options: decode(*given, **options).flip(-1))
    assert first_difference(list(compare(model, asked, HOW, quiet))).name == "pixels"


def test_what_is_no_number_is_a_failure(model: Model, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, lambda rank: parameter(rank, WEIGHTS["transformer block 1"]).fill_(float("nan")))
    checked = list(compare(model, asked, HOW, quiet))
    difference = first_difference(checked)
    assert difference.name == "transformer block 1"
    assert not any(check.holds for check in checked if check.name.startswith(("velocity", "final latents")))
    report = write_report([Verified(model, checked)])
    assert "first difference: transformer block 1 (float32), which is not a number" in report


def test_a_stage_that_raises_is_told_and_the_others_go_on(
    model: Model, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raise_it(*_: object) -> None:
        raise RuntimeError("no kernel image")

    def break_projector(rank: Rank) -> None:
        stages = ours.stages_of_transformer

        def broken(*given: Any) -> Any:
            rank.model.transformer.text_fusion.projector.forward = raise_it  # after the images, which it is in too
            return stages(*given)

        monkeypatch.setattr(ours, "stages_of_transformer", broken)

    plant(monkeypatch, break_projector)
    checked = list(compare(model, asked, HOW, quiet))
    assert [check.name for check in checked if not check.holds] == ["text fusion projector"]
    report = write_report([Verified(model, checked)])
    assert "first difference: text fusion projector (float32), RuntimeError: no kernel image" in report
    assert "Traceback (most recent call last):" in report
    assert 'File "./bench/verify/ours.py"' in report
    assert str(Path(ours.__file__).parent) not in report


def test_an_image_that_fails_is_told_and_the_stages_go_on(
    model: Model, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(ours.Runner, "_images", fail)
    checked = list(compare(model, asked, HOW, quiet))
    assert [check.name for check in checked if not check.holds] == ["final latents"]
    assert {check.name for check in checked} >= {*WEIGHTS, "velocity of a whole forward", "pixels"}


def test_what_diffusers_side_lacks_is_told_and_the_rest_is_compared(
    model: Model, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("conv_in")

    for part in ("trace_text", "make_traced", "trace_step"):
        monkeypatch.setattr(asking, part, fail)
    lacking = ask_diffusers(model, asked.answers.requests, "float32", HOW, quiet)
    checked = list(compare(model, lacking, HOW, quiet))
    missing = [check.name for check in checked if not check.holds]
    assert missing == ["diffusers' text encoder", "diffusers' decoder", "diffusers' transformer"]
    assert [check.name for check in checked if check.holds and check.name.startswith("final latents")]


# ---- several ranks, here as threads


@pytest.fixture
def in_threads(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Rank], None]], None]:
    """`in_threads(fault)`: ranks run as threads, the second of them with a fault."""

    def set_up(fault: Callable[[Rank], None]) -> None:
        def run_group(plan: Plan, degrees: Degrees, seconds: float) -> list[Results]:
            meshes = thread_meshes(degrees, timeout_s=seconds)

            def run(index: int) -> Results:
                try:
                    rank = Rank(plan.config(degrees), meshes[index], CPU)
                    with torch.no_grad():
                        if index == 1:
                            fault(rank)
                    results = ranks.compute(rank, plan, quiet, catch=False)
                    rank.close()
                    return results
                except BaseException:
                    meshes[index].close()  # lets a rank go that waits for this one
                    raise

            with ThreadPoolExecutor(degrees.ranks) as threads:
                futures = [threads.submit(run, index) for index in range(degrees.ranks)]
            failures = [failure for future in futures if (failure := future.exception()) is not None]
            if failures:  # what the others say is only that this one left
                raise min(failures, key=lambda failure: "in vain" in str(failure))
            return [future.result() for future in futures]

        monkeypatch.setattr(checks, "run_group", run_group)

    return set_up


def drift(rank: Rank) -> None:
    """Velocities that this rank alone gets wrong."""
    rank.model.transformer.register_forward_hook(lambda _module, _arguments, velocities: 1.001 * velocities)


@pytest.mark.parametrize(
    ("mode", "stage", "fault"),
    [
        (Degrees(tp=2), None, lambda rank: None),
        (Degrees(sp=2), "transformer block 1", scaled(WEIGHTS["transformer block 1"])),
        (Degrees(tp=2), "transformer block 2", scaled(WEIGHTS["transformer block 2"])),
        (Degrees(tp=2), "final latents", drift),
    ],
    ids=["tp2", "sp2, a weight", "tp2, a weight", "tp2, a drift"],
)
def test_a_fault_on_one_of_two_ranks_is_named(
    model: Model,
    asked: Asked,
    in_threads: Callable[[Callable[[Rank], None]], None],
    mode: Degrees,
    stage: str | None,
    fault: Callable[[Rank], None],
) -> None:
    in_threads(fault)
    checked = list(compare(model, asked, replace(HOW, modes=(mode,)), quiet))
    assert any(check.mode == mode.name for check in checked)
    if stage is None:
        assert [check.name for check in checked if not check.holds] == []
        return
    difference = first_difference(checked)
    assert difference.mode == mode.name
    assert difference.name.startswith(stage)
    assert any(not check.holds and check.name.startswith("between ranks") for check in checked) == (fault is drift)


def test_ranks_that_differ_are_named(model: Model, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_group(plan: Plan, degrees: Degrees, seconds: float) -> list[Results]:
        first = ranks.run_one(plan, quiet)
        return [first, replace(first, latents=[[each + 1e-4 for each in image] for image in first.latents])]

    monkeypatch.setattr(checks, "run_group", run_group)
    checked = list(compare(model, asked, replace(HOW, modes=(Degrees(cfg=2),)), quiet))
    (difference,) = [check for check in checked if not check.holds]
    assert (difference.name, difference.mode) == ("between ranks", "cfg")
    assert difference.detail == "rank 1 against rank 0"
