"""docs/scheduling.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from engine.scheduling.scheduler import Scheduler
from engine.step import Step
from tests.engine.scheduling.arrivals import arrival
from tests.virtual_ranks import VirtualRanks, make_costs, make_job

DOCS = (Path(__file__).parents[2] / "docs" / "scheduling.md").read_text()
NAMES = "ABCD"


def test_the_worked_example_is_what_happens() -> None:
    arrivals = [
        arrival(0, at=0.0, tokens=4096, steps=5),
        arrival(1, at=0.01, tokens=4096, steps=2),
        arrival(2, at=0.02, tokens=1024, steps=4),
        arrival(3, at=0.25, tokens=2304, steps=2, priority=1),
    ]
    for name, one in zip(NAMES, arrivals, strict=True):
        row = f"| {name} | {one.at:.2f} s | {one.job.width}² | {one.segments[0]} | {one.job.steps} | {one.priority} |"
        assert row in DOCS
    lines = ["| step | made at | starts | denoises | tokens | to the decoder |", "|---|---|---|---|---|---|"]

    def note(step: Step, now: float) -> None:
        starts = "".join(NAMES[job.job_id] for job in step.start)
        denoises, decodes = ("".join(NAMES[job_id] for job_id in ids) for ids in (step.denoise, step.decode))
        tokens = sum(sum(arrivals[job_id].segments) for job_id in step.denoise)
        cells = (str(step.number), f"{now:.2f} s", starts, denoises, str(tokens), decodes)
        lines.append("| " + " | ".join(cell or "–" for cell in cells) + " |")

    costs = make_costs()
    ranks = VirtualRanks(Scheduler(8192, costs=costs, max_decoding=32), costs, note)
    ranks.run(arrivals)
    done = ", ".join(f"{name} at {ranks.decoded_at[job_id]:.2f} s" for job_id, name in enumerate(NAMES))
    table = "\n".join([*lines, "", f"The images are there: {done}."])
    assert table in DOCS, table


def test_the_policy_of_the_docs_can_be_used() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", DOCS, flags=re.DOTALL)
    names: dict[str, Scheduler] = {}
    exec(code, names)
    scheduler = names["scheduler"]
    for job_id, priority in enumerate((0, 5)):
        scheduler.add(make_job(job_id), segments=(5000,), request=job_id, priority=priority, now=0.0)
    step = scheduler.next_step(0.0, idle=True)
    assert step is not None
    assert step.denoise == (0,)
