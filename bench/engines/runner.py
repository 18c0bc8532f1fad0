"""Runs a benchmark of the whole engine: each case with each version's engine, whatever fails, and the table."""

from __future__ import annotations

import argparse
import logging
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

from bench.engines.engine import Engine
from bench.engines.real_size import RandomWeights
from bench.engines.results import Results
from bench.engines.setup import Setup
from bench.measure.lost import DeviceLost, raise_if_lost
from bench.measure.output import note, publish_left_out
from bench.measure.timing import measure_ceilings
from engine.errors import ArgumentError, Krea2Error

if TYPE_CHECKING:
    from bench.engines.peer import Peer

T = TypeVar("T")
R = TypeVar("R")


class Run(Generic[T, R]):
    """A benchmark of the whole engine under way: what this device reaches, the peer if one is asked for, and the
    results so far."""

    def __init__(self, benchmark: str, setup: Setup, columns: Sequence[str]) -> None:
        """Raises `ArgumentError` if the peer that is asked for is missing."""
        self.setup = setup
        self.results = Results(benchmark, setup, columns)
        self.ceilings = measure_ceilings(setup.model.transformer, setup.device, setup.dtype)
        self.peer = _load_peer(setup)

    def measure_all(
        self,
        cases: Sequence[T],
        measure: Callable[[Engine, T], R],
        row: Callable[[R], Sequence[str]],
        *,
        decodes: bool = True,
        after: Callable[[Engine, T], None] = lambda engine, case: None,
    ) -> Results:
        """Measure each case with each version's engine, and call `after` then. row: what the table shows of a result.

        The first case is always tried, the others as long as there is time. A version that cannot run here is named.
        What fails is told with its traceback, and the other cases go on with a new engine; in a new process
        (`bench.survive`) if the GPU is lost, with which this ends, since nothing can be trusted that it computes.
        """

        def measure_case(engine: Engine, case: T) -> None:
            result = measure(engine, case)
            self.results.add(result, row(result))
            after(engine, case)

        try:
            _measure_all(self.setup, cases, measure_case, self.results, decodes)
        except DeviceLost as error:
            self.results.lose_device(error)
        return self.results


def _measure_all(
    setup: Setup,
    cases: Sequence[T],
    measure: Callable[[Engine, T], None],
    results: Results,
    decodes: bool,
) -> None:
    """Raises `DeviceLost`."""
    attempts = results.attempts
    began = False
    left_out: list[str] = []
    for version in setup.versions:
        waiting = [case for case in cases if attempts.is_new(f"{case} with {version}")]
        most = len(waiting)
        while waiting and not (began and setup.budget.spent):
            began = True
            if not attempts.prepare(f"the engine with {version}"):
                results.fail(str(version), "an earlier process died of its engine")
                break
            try:
                engine = Engine(setup, version, decodes=decodes)
            except ArgumentError as error:
                note(f"{version} is left out: {error}")
                break
            except Exception as error:
                results.fail(str(version), traceback.format_exc())
                raise_if_lost(error)
                break
            try:
                while waiting and not (setup.budget.spent and len(waiting) < most):
                    case = waiting.pop(0)
                    attempts.begin(f"{case} with {version}")
                    measure(engine, case)
            except Exception as error:
                results.fail(f"{case} with {version}", traceback.format_exc())
                raise_if_lost(error)
            try:
                engine.close()
            except Exception as error:
                results.fail(f"the end of {version}", traceback.format_exc())
                raise_if_lost(error)
        else:
            for case in waiting:
                note(f"{case} with {version} is left out: the time is up")
                left_out.append(f"{case} with {version}")
    publish_left_out(left_out, len(cases) * len(setup.versions), setup.json)


def _load_peer(setup: Setup) -> Peer | None:
    """The peer that is asked for, with the weights that the engines have. Raises `ArgumentError` if it is missing."""
    if setup.peer == "none":
        return None
    try:
        from bench.engines.peer import Peer
    except ImportError as error:
        raise ArgumentError(f"peer diffusers is not available: {error}", parameter="peer") from None
    return Peer(RandomWeights(setup.model, setup.device), setup.dtype)


def run_main(
    run: Callable[[argparse.Namespace], Results | None], parser: argparse.ArgumentParser, words: Sequence[str]
) -> int:
    """Parse, run and print the table, unless there is none to be. 1 if something failed or nothing was measured, `LOST`
    if the GPU is lost; a user's mistake is one line on stderr and the exit code 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        results = run(parser.parse_args(words))
    except Krea2Error as error:
        note(f"error: {error}")
        return error.exit_code
    if results is None:
        return 0
    results.print_table()
    return results.status
