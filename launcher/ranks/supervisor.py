"""Keeps a rank group running: when one is lost its processes are stopped and another group is started.

A group that torchrun started cannot be replaced, and neither can one that never came up: their error ends the
front-end.
"""

from __future__ import annotations

import asyncio

import zmq.asyncio

from engine.errors import Krea2Error, LaunchError, LoraError, RankError
from launcher.logs import log_event
from launcher.messages.configs import FrontendConfig
from launcher.processes import Child, stop_all
from launcher.ranks.gpu_watch import GpuWatch
from launcher.ranks.rank_group import RankEvents, RankGroup
from launcher.ranks.start import start_ranks

_PATIENCE_S = 0.5  # for ranks to end once they are asked to; they end at once unless they hang
_GONE_S, _LOOK_S = 30.0, 0.05  # for killed ones to be gone, and between looks
_STRIKES = 3  # groups lost in a row, none of which made an image, or that cannot begin, before the server gives up
_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0  # before the next group


class RankSupervisor:
    """Keeps `group`, the rank group of now, running.

    restarts: groups that were replaced. given_up: the last one's error while nothing may wait for the next. gpus: keeps
    which GPUs may be used.
    """

    def __init__(
        self, config: FrontendConfig, children: list[Child], context: zmq.asyncio.Context, events: RankEvents
    ) -> None:
        """children: the processes of the first group; those of a later one take their places."""
        self._config, self._children = config, children
        self._context, self._events = context, events
        self.restarts = 0
        self.given_up: Krea2Error | None = None
        self._strikes = 0
        self.gpus = GpuWatch(
            config.step_timeout_s,
            on_error=events.gpu_failed,
            on_quarantine=events.gpu_quarantined,
            fail=self._fail_for_gpu,
        )
        self.group = self._new_group()
        self.group.watch(children)

    async def run(self) -> None:
        """Replace lost groups until cancelled. Raises the error of a group that cannot be replaced."""
        while True:
            error = await self.group.failed
            lost = asyncio.get_running_loop().time()
            self.group.close()
            if self._config.external_ranks or (self.restarts == 0 and not self.group.came_up):
                raise error
            explained = self._events.ranks_lost(error)
            self._strikes = 0 if explained or self.group.images else self._strikes + 1
            if self._strikes >= _STRIKES:
                # a LoRA that ranks cannot start with is no mistake of those who ask for images
                self._give_up(RankError(error.message) if isinstance(error, LoraError) else error)
            await asyncio.to_thread(stop_all, self._children, patience_s=_PATIENCE_S)
            left = await self._wait_until_gone()
            await self.gpus.ranks_lost(lost)
            try:
                variables = self.gpus.environment(1 if self._config.engine.share_gpu else self._config.engine.ranks)
            except RankError as too_few:
                self._give_up(too_few)
                await asyncio.Event().wait()  # until somebody stops the server
            if self._strikes > 1:
                await asyncio.sleep(min(_LONGEST_PAUSE_S, 2.0 ** min(self._strikes - 2, 10)))
            self.restarts += 1
            self.group = await self._next_group()
            try:
                await asyncio.to_thread(start_ranks, self._config, self._children, self.restarts, variables)
            except LaunchError as problem:
                self.group.fail(problem)
            else:
                self.group.watch(self._children[left:])

    def close(self) -> None:
        """Stop listening to ranks, and for errors of GPUs."""
        self.group.close()
        self.gpus.close()

    def _give_up(self, error: Krea2Error) -> None:
        self.given_up = error
        self._events.ranks_given_up(error)

    def _fail_for_gpu(self, error: Krea2Error) -> None:
        if not self._config.external_ranks:  # torchrun's end everything, once they have failed themselves
            self.group.fail(error)

    async def _wait_until_gone(self) -> int:
        """Wait until killed processes have ended, so that the next group has all of a GPU's memory: some take seconds.

        Returns how many have not; they are kept, to be stopped again at the end.
        """
        loop = asyncio.get_running_loop()
        due = loop.time() + _GONE_S
        while (left := [child for child in self._children if not child.wait(0.0)]) and loop.time() < due:
            await asyncio.sleep(_LOOK_S)  # not in a thread, which would keep a server that is stopped from ending
        self._children[:] = left
        if left:
            log_event("lost ranks have not ended", level="error", processes=len(left), waited_s=_GONE_S)
        return len(left)

    async def _next_group(self) -> RankGroup:
        """Make a group as soon as that can be done: a disk that is full now may not be later."""
        pause_s, tries = _PAUSE_S, 0
        while True:
            try:
                return self._new_group()
            except LaunchError as error:
                tries += 1
                if tries >= _STRIKES:  # until then requests wait: most shortages pass
                    self._give_up(error)
            await asyncio.sleep(pause_s)
            pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s)

    def _new_group(self) -> RankGroup:
        return RankGroup(self._config, self._context, self._events, generation=self.restarts, on_ready=self.gpus.uses)
