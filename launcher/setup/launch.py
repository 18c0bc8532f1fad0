"""Starts an engine from Python, in processes of its own: a front-end, which starts its ranks."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Unpack

from launcher.client.bars import is_watched
from launcher.messages.configs import FrontendConfig
from launcher.setup.engine_process import EngineProcess, OnLoading, in_silence
from launcher.setup.given import check_given
from launcher.setup.keywords import AnyPath, EngineOptions, with_engine_options
from launcher.setup.loading_bar import LoadingBar

if TYPE_CHECKING:
    from launcher.client.client import Client


@with_engine_options
def launch(model: AnyPath | None = None, *, progress: bool | None = None, **options: Unpack[EngineOptions]) -> Client:
    """Start an engine in processes of its own and return a `Client` of it, once it is ready.

    Closing the client stops them all; so do leaving its `with` block, forgetting it, and the end of the program.

    model is a checkpoint folder in the diffusers layout, a transformer's file, a Hugging Face repository, as
    "owner/name" or "owner/name@revision", which is downloaded unless it is in the cache, or a demo: "demo-turbo", for
    which "demo" and None stand too, or "demo-raw". transformer, text_encoder, vae and tokenizer are files or folders
    that replace parts of it; where all four are given, no model need be. limits changes fields of `Limits`. A rank that
    is not ready after start_timeout_s seconds, or that takes longer than step_timeout_s over a step, or than 60 s and
    20 times its estimate, counts as lost. warm_up: prepare a GPU first, and run steps while no request waits, to learn
    previews and how long work takes.
    progress: whether to show a bar until then. None: in a notebook, and where stderr is a terminal.

    image_input: whether requests may bring a picture to begin from, for which the VAE's encoder is loaded
    (docs/pictures.md).

    tp, sp and cfg_parallel: how 1, 2 or 4 GPUs share the work; parallel="auto" chooses.

    offload, prefetch, memory_budget, vae_memory and lora_memory are for small devices (docs/small-gpus.md), sizes being
    bytes or text such as "16GB".

    loras: files as "[NAME=]PATH[:STRENGTH]" for requests to choose by name, or with merge_lora to be part of the
    weights for all of them; PATH may be in a Hugging Face repository (docs/lora.md), and "demo-outlined" is the demos'
    own. lora_lenient skips what fits nothing in a file, with a warning. lora_dir: a folder from which
    `Client.load_lora` may load more.

    filters: what checks prompts and pictures, each as "NAME[:VALUE][,KEY=VALUE]…" (docs/filters.md). filter_fail_open:
    let through what they cannot check, and what the audit log cannot be written about. audit_log: a folder for lines
    about what left and what was refused (docs/audit.md), with prompts themselves if audit_content.

    disclosure: whether files say that a model drew the picture, also with `metadata=False`. c2pa_certificate, c2pa_key
    and c2pa_timestamp: what manifests in them are signed with (docs/safety.md).

    Raises `ArgumentError`, `CheckpointError` or `LoraError` for what is wrong with these, and `LaunchError`,
    `RankError` or `ServerError` if the engine does not come up.
    """
    config, problems = check_given(model, options)
    for problem in problems:
        warnings.warn(problem, stacklevel=3)  # where `launch(…)` stands
    if not (is_watched() if progress is None else progress):
        return launch_frontend(config)
    with LoadingBar() as bar:
        return launch_frontend(config, on_loading=bar.show_loading)


def launch_frontend(config: FrontendConfig, *, on_loading: OnLoading = in_silence) -> Client:
    """Do what `launch` does, for a checked configuration.

    on_loading: called, from when the front-end's process runs until its ranks are ready, every second at least, in the
    thread that calls this: the bytes of the weights that all ranks together have read, how many they are to read, which
    is 0 until it is known, and what they do: `starting`, `loading` or `warming up`.
    """
    engine = EngineProcess(config)
    with engine.starting():
        on_loading(0, 0, "starting")
        from launcher.setup.engine_client import EngineClient  # while the ranks import torch

        engine.wait_until_started(on_loading)
        client = EngineClient(engine)
        thread = client.thread  # an engine that referred to the client would keep it from being forgotten
        engine.on_end(thread.server_ended)
        client.connect()
        return client
