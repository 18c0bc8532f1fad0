"""Make the demo's checkpoints from nothing, stage by stage.

    python -m demo --schedule two-hours --work WORK

Every stage is a command of its own, which is printed and can be run alone. What was interrupted goes on where it was
when this is run again; WORK/finished.json says which stages are done.
"""

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Schedule:
    """How long to train: optimizer steps of each model (of the VAE first whole, then, when the raw one is trained, of
    its decoder), how many pictures the raw one sees and is measured on, and how many walks of the raw one the turbo one
    learns from, with how many substeps each; unjudged for raw models that are not trained for long enough to draw
    anything right; and the LoRA's steps and pictures."""

    vae_steps: int
    decoder_steps: int
    pictures: int
    raw_steps: int
    walks: int
    turbo_steps: int
    lora_steps: int
    lora_pictures: int = 3000
    kept_out: int = 1000
    substeps: int = 5
    unjudged: bool = False

    def stages(self) -> list[list[str]]:
        """Modules with their arguments, in order; each is given the work folder too, and goes on from what the earlier
        ones left there."""
        return [
            f"demo.{stage}".split()
            for stage in (
                "tokenizer",
                f"autoencoder --steps {self.vae_steps}",
                f"transformer --steps {self.raw_steps} --pictures {self.pictures} --kept-out {self.kept_out}",
                f"decoder --steps {self.decoder_steps}",
                f"distill --steps {self.turbo_steps} --trajectories {self.walks} --substeps {self.substeps}"
                + (" --unjudged" if self.unjudged else ""),
                f"outlined --steps {self.lora_steps} --pictures {self.lora_pictures}",
                "release",
            )
        ]


SCHEDULES = {
    "short": Schedule(
        vae_steps=900,
        decoder_steps=50,
        pictures=4_000,
        raw_steps=1_000,
        walks=160,
        turbo_steps=200,
        lora_steps=50,
        lora_pictures=320,
        kept_out=100,
        substeps=2,
        unjudged=True,
    ),
    "two-hours": Schedule(
        vae_steps=3_000,
        decoder_steps=800,
        pictures=16_000,
        raw_steps=5_500,
        walks=1_280,
        turbo_steps=1_000,
        lora_steps=500,
        substeps=3,
    ),
    "full": Schedule(
        vae_steps=8_000,
        decoder_steps=4_000,
        pictures=40_000,
        raw_steps=20_000,
        walks=6_000,
        turbo_steps=4_000,
        lora_steps=3_000,
    ),
}


def make(stages: list[list[str]], work: Path) -> None:
    """Run those of the stages that are not finished in this work folder. Raises `SystemExit` if one fails, or if the
    folder was begun with other stages: its results would be of neither."""
    record = work / "finished.json"
    finished = json.loads(record.read_text()) if record.exists() else []
    if finished != stages[: len(finished)]:
        sys.exit(f"{work} was begun with another schedule; choose another folder for this one")
    for number, stage in enumerate(stages, 1):
        print(f"[{number}/{len(stages)}] python -m {' '.join(stage)} --work {work}", flush=True)
        if number <= len(finished):
            print("  finished before", flush=True)
            continue
        _run([sys.executable, "-m", *stage, "--work", str(work)])
        finished.append(stage)
        _write(record, finished)


def _run(command: list[str]) -> None:
    with _interrupted_after(), subprocess.Popen(command) as process:
        code = process.wait()
    if code:
        sys.exit(f"{command[2]} ended with exit code {code}; run this again to go on from its last state")


@contextmanager
def _interrupted_after() -> Iterator[None]:
    """Have Ctrl-C interrupt this process once what is inside is over: a stage hears of it too, and saves its state."""
    interrupts: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # elsewhere it is ignored, as a stage does then
        signal.signal(signal.SIGINT, lambda number, _: interrupts.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if interrupts:
        raise KeyboardInterrupt


def _write(record: Path, finished: list[list[str]]) -> None:
    record.parent.mkdir(parents=True, exist_ok=True)
    partial = record.with_suffix(".partial")
    partial.write_text(json.dumps(finished, indent=2) + "\n")
    partial.replace(record)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--schedule", choices=SCHEDULES, default="two-hours", help="how long to train (two-hours)")
    parser.add_argument("--work", type=Path, required=True, help="folder of states and results")
    options = parser.parse_args()
    make(SCHEDULES[options.schedule].stages(), options.work)


if __name__ == "__main__":
    main()
