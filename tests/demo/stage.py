"""A stage that tests can see running: adds its name to WORK/log. Fails if WORK/broken exists. `wait` waits to be
interrupted, and takes its time to save then."""

import sys
import time
from pathlib import Path

name, work = sys.argv[1], Path(sys.argv[sys.argv.index("--work") + 1])
if (work / "broken").exists():
    sys.exit(3)
work.mkdir(exist_ok=True)


def log(text: str) -> None:
    with (work / "log").open("a") as file:
        file.write(f"{text}\n")


if name == "wait":
    try:
        log("waits")
        for _ in range(6000):
            time.sleep(0.1)  # in pieces: no sleep is cut short by a signal that came just before it
    except KeyboardInterrupt:
        time.sleep(1)  # longer than an interrupted `Popen` waits by itself
        log("saved")
        sys.exit(1)
log(name)
