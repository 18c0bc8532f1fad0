"""The process that keeps a Ray for the command that started it, and that nothing of the Ray outlives."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

import msgspec

from engine.errors import Krea2Error, LaunchError
from launcher.messages.configs import Ended, Starting
from launcher.messages.encoding import describe
from launcher.messages.message_parts import Stage
from launcher.processes import Reporter, exit_after, read_config, watch_parent
from launcher.ray.one_machine.descendants import adopt_orphans, descendants, end_descendants
from launcher.ray.one_machine.environment import set_up
from launcher.ray.one_machine.listening import open_ports
from launcher.ray.one_machine.messages import ClusterConfig, CutOff, NotStarted, Output, Serving
from launcher.run_folder import RunFolder

END_S = 10.0  # for killed processes to be gone
_REMOVE_S = 30.0  # and for their files
_SLOW = "timed out during startup"  # what Ray says after 30 s, in which a loaded machine may not get so far
_WATCH_S = 1.0
HURRY = signal.SIGUSR1  # from the parent, once it has asked to stop: what runs is to be cut off now
_LATE_S = 15.0  # beyond what it may take to let what runs be finished: Serve answers no more


def run_keeper() -> NoReturn:
    """Start a Ray and serve what the parent says, until the parent ends this or is gone."""
    keeper = _Keeper(read_config(ClusterConfig))
    keeper.run()


class _Keeper:
    def __init__(self, config: ClusterConfig) -> None:
        self._config = config
        self._parent = Reporter()
        self._reporting = threading.Lock()
        self._ending = threading.Lock()
        self._stop = threading.Event()  # in order
        self._hurry = threading.Event()
        self._serves = False
        adopt_orphans()
        self._folder = RunFolder(config.folder)
        signal.signal(signal.SIGTERM, self._end_at_once)
        signal.signal(HURRY, lambda _, __: self._hurry.set())
        watch_parent(self._parent_ended)

    def run(self) -> NoReturn:
        """Do all of it, and end this process."""
        try:
            self._keep()
        except Krea2Error as error:
            self._tell(error)
        except Exception as error:
            self._tell(LaunchError(f"Ray failed: {describe(error)}{self._kept_logs()}"))
        except BaseException as error:  # of Ray's own handler of signals: whoever ends this needs no logs of it
            self._tell(LaunchError(f"Ray failed: {describe(error)}"))
        self._end()
        while True:  # another thread is at it
            time.sleep(END_S)

    def _keep(self) -> None:
        set_up(os.environ, self._folder.path)
        tempfile.tempdir = None  # which the environment says anew
        self._send(Starting(stage=Stage(name="starting Ray")))
        from launcher.ray.one_machine.own_ray import OwnRay  # the environment counts when Ray is imported

        try:
            ray = OwnRay(self._config, lambda process, line: self._send(Output(process=process, line=line)))
        except Krea2Error:
            raise
        except Exception as error:
            message = f"Ray did not start: {describe(error)}"
            again = _SLOW in message
            self._send(NotStarted(message=message if again else message + self._kept_logs(), again=again))
            return
        signal.signal(signal.SIGTERM, self._end_at_once)  # which Ray has taken
        ray.serve(lambda stage: self._send(Starting(stage=stage)))
        self._serves = True
        found = (each for each in open_ports(descendants()) if each.port != self._config.port)  # which is for clients
        self._send(Serving(open_ports=tuple(found)))
        while not self._stop.wait(_WATCH_S):
            ray.check()
        late = threading.Timer(self._config.drain_s + _LATE_S, self._end)
        late.daemon = True
        late.start()
        try:
            if cut_off := ray.drain(self._config.drain_s, self._hurry):
                self._send(CutOff(requests=cut_off))
        except Exception as error:  # it is to stop all the same
            self._send(Output(process="ray", line=f"what runs cannot be waited for: {describe(error)}"))

    def _parent_ended(self, died: bool) -> None:
        """Stop in order if the parent wants that, and there is something to do so with."""
        if died or not self._serves:
            self._end()
        self._stop.set()

    def _end_at_once(self, _: int, __: FrameType | None) -> None:
        self._end()

    def _end(self) -> None:
        """End every process that comes from this one, and then this one. Returns if that is being done already."""
        if not self._ending.acquire(blocking=False):
            return
        exit_after(END_S + _REMOVE_S)
        end_descendants(END_S)
        self._folder.remove()
        os._exit(0)

    def _send(self, report: msgspec.Struct) -> None:
        with self._reporting:
            self._parent.send(report)

    def _tell(self, error: Krea2Error) -> None:
        self._send(Ended(code=error.code, message=error.message, parameter=error.parameter))

    def _kept_logs(self) -> str:
        """Keep Ray's logs of what nobody has foreseen, and say where they are."""
        with suppress(OSError):
            logs = next(Path(self._folder.path).glob("session_*_*/logs"), None)
            if logs is None:
                return ""
            parent = os.path.dirname(self._folder.path)
            kept = tempfile.mkdtemp(prefix="krea2-ray-logs-", dir=parent)
            shutil.copytree(logs, kept, dirs_exist_ok=True)
            return f" (Ray's logs are in {kept})"
        return ""
