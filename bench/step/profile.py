"""Where a step's time goes, kernel by kernel, by torch's profiler."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from bench.engines.engine import Engine
from bench.measure.output import note

_STEPS = 3
_KERNELS = 30  # that the table shows


def profile_steps(engine: Engine, images: int, side: int, folder: Path) -> None:
    """Trace a few denoise steps of `images` square images of `side` pixels. The table of kernels goes to whoever
    watches, the trace to `folder`."""
    on_gpu = engine.setup.device.type == "cuda"
    jobs = engine.new_jobs(images, side, _STEPS + 1)
    ids = [job.job_id for job in jobs]
    engine.execute(start=jobs, denoise=ids).wait()
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_gpu]
    with profile(activities=activities) as trace:
        for _ in range(_STEPS):
            engine.execute(denoise=ids).wait()
        if on_gpu:
            torch.cuda.synchronize(engine.setup.device)
    engine.execute(release=ids).wait()
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    version = engine.version
    note(f"{_STEPS} steps of {images}×{side}², {version}")
    note(trace.key_averages().table(sort_by=key, row_limit=_KERNELS, max_name_column_width=80))
    words = [version.quantization, version.attention, *["eager"] * (not version.cuda_graphs)]
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"trace-{images}x{side}-{'-'.join(words)}.json.gz"
    trace.export_chrome_trace(str(file))
    note(f"trace: {file}")
