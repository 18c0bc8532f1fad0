"""The trial on one machine that docs/many-machines.md shows."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.launcher.processes import PATIENCE_S, new_marked, temporary_folder

DOCUMENT = (Path(__file__).parents[4] / "docs" / "many-machines.md").read_text()


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_the_trial_draws_and_leaves_nothing() -> None:
    section = DOCUMENT.partition("\n## A trial on one machine\n")[2].partition("\n## ")[0]
    commands = re.findall(r"^    (.*)$", section, re.MULTILINE)
    assert commands[0] == "pip install -e '.[ray]'"
    (started,) = [command for command in commands if command.startswith("krea2 ")]
    (asked,) = [command for command in commands if command.startswith("curl ")]
    with temporary_folder() as folder:
        marked = new_marked(Path(folder))
        try:
            cluster = marked.start_krea2(*started.split()[1:], stderr=subprocess.DEVNULL)
            assert cluster.stdout is not None
            assert cluster.stdout.readline() == "http: http://127.0.0.1:30000\n"
            done = subprocess.run(asked, shell=True, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
            assert json.loads(done.stdout)["data"][0]["seed"] == 27
            cluster.send_signal(signal.SIGINT)
            assert cluster.wait(PATIENCE_S) == 128 + signal.SIGINT
            marked.expect_nothing_left()
        finally:
            marked.kill()
