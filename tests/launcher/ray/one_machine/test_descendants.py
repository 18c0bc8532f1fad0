"""All processes that come from one, whoever started them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from launcher.ray.one_machine.descendants import descendants
from tests.launcher.processes import PATIENCE_S, ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="of Linux")

# An orphan in a session of its own, by a process that ends at once; and one that ignores what can be ignored.
ENDS_ALL = """
import signal, subprocess, sys, time
from launcher.ray.one_machine.descendants import adopt_orphans, descendants, end_descendants
adopt_orphans()
subprocess.run([sys.executable, "-c", '''
import subprocess
subprocess.Popen(["sleep", "1000"], start_new_session=True)
'''], check=True)
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(1000)"
subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE).stdout.readline()
found = descendants()
assert end_descendants(60.0) == []
print(len(found), descendants(), *found)
"""

# An orphan, once it has ended, and a child of its own that has ended with 7 and was waited for by nobody yet.
BURIES = """
import os, pathlib, signal, subprocess, sys
from launcher.ray.one_machine.descendants import adopt_orphans, bury_orphans, descendants
adopt_orphans()
subprocess.run([sys.executable, "-c", '''
import subprocess
subprocess.Popen(["sleep", "1000"])
'''], check=True)
(orphan,) = descendants()
own = subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"])
bury_orphans({own.pid})
os.kill(orphan, 0)
os.kill(orphan, signal.SIGKILL)
for process in (orphan, own.pid):
    os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
bury_orphans({own.pid})
children = pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
print(own.wait(), [each for each in children if int(each) != own.pid])
"""


def test_children_and_theirs_are_found_and_those_that_have_ended_are_not() -> None:
    program = 'import subprocess, sys; subprocess.run(["sleep", "1000"])'
    with subprocess.Popen([sys.executable, "-c", program]) as child:
        try:
            while len(found := [each for each in descendants() if _comes_from(each, child.pid)]) < 2:
                pass
            assert found[0] == child.pid
        finally:
            for process in reversed(found):
                os.kill(process, 9)
            child.wait(PATIENCE_S)
        assert child.pid not in descendants()


def test_orphans_are_adopted_and_all_are_ended() -> None:
    run = subprocess.run(
        [sys.executable, "-c", ENDS_ALL], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    count, left, *ended = run.stdout.split()
    assert (count, left) == ("2", "[]")
    assert not any(os.path.exists(f"/proc/{process}") for process in ended)


def test_an_orphan_that_has_ended_is_buried_and_its_parents_own_children_keep_their_exit_codes() -> None:
    run = subprocess.run(
        [sys.executable, "-c", BURIES], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert run.stdout.split() == ["7", "[]"]


def _comes_from(process: int, ancestor: int) -> bool:
    if process == ancestor:
        return True
    try:
        with open(f"/proc/{process}/stat") as stat:
            return int(stat.read().rpartition(")")[2].split()[1]) == ancestor
    except OSError:
        return False
