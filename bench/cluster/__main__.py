"""What the cluster adds to a request, beside `krea2 serve` in the same run.

    python -m bench.cluster [--pairs 40] [--cases picture,stream,…] [--model demo] [--device auto] [--json FILE]
    python -m bench.cluster --control
    python -m bench.cluster --url http://HOST:PORT --cluster-url http://HOST:PORT
    python -m bench.cluster --simulate [--hosts 100]     # see bench/cluster/simulation/command.py

Starts one server of each kind with the same model, `krea2 serve` and `krea2 cluster run` with one replica, in a network
of their own, since Ray listens on every interface: tests.network.own_network says what that takes. Or takes servers
that run: with KREA2_API_KEY in the environment they are asked with that key.

Each request goes to both, one after the other, in an order that is drawn for each pair, and what counts is the
difference of the two times, whose median has an interval that holds it with 95 %, whatever the times' distribution.
`all` is the difference of all that a request took, `outside` of what of it the engine does not count as its own
(`timings.total`): messages, HTTP, Ray. On a machine with anything else to do the engine's own time varies by more than
a cluster adds, so bars are for the median of `outside`, where there is one. `engine` is the ratio of the engine's own
times: a cluster that starved its engines (niceness, threads) would show there, and misses its bar if the interval lies
above 1.1. With `--control` both are `krea2 serve`: what comes out then is what the method cannot tell.

Ends with 1 if a bar was missed or a request failed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack

import httpx

from bench.cluster.cases import CASES, Case
from bench.cluster.overhead import measure
from bench.cluster.report import Report
from bench.cluster.servers import ServerFailed, enter_network, start_cluster, start_serve
from bench.cluster.simulation.command import main as simulation
from bench.measure.arguments import end_with, json_file, parse_list, positive
from bench.measure.output import note
from bench.serve.traffic import RequestFailed
from engine.errors import ArgumentError, Krea2Error


def main(words: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if words is None else words
    if "--simulate" in words:
        return simulation([word for word in words if word != "--simulate"])
    parser = argparse.ArgumentParser(prog="python -m bench.cluster", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairs", type=positive, default=40, help="of pictures; of other cases in proportion (40)")
    parser.add_argument("--cases", default=",".join(CASES), help=f"comma-separated ({','.join(CASES)})")
    parser.add_argument("--deadline", type=positive, default=300, help="seconds for a request (300)")
    parser.add_argument("--model", default="demo", help="of both (demo)")
    parser.add_argument("--device", default="auto", help="of both (auto)")
    parser.add_argument("--control", action="store_true", help="two servers, to see what the method cannot tell")
    parser.add_argument("--url", help="a server that runs, in place of one that is started")
    parser.add_argument("--cluster-url", help="a cluster that runs; with --url")
    parser.add_argument("--simulate", action="store_true", help="a hundred hosts on a virtual clock: --simulate --help")
    parser.add_argument("--any-interface", action="store_true", help="let Ray listen on this machine's interfaces")
    parser.add_argument("--json", type=json_file, metavar="FILE", help="add the JSON lines to it")
    try:
        return _run(parser.parse_args(words), words)
    except Krea2Error as error:
        note(f"error: {error.message}")
        return error.exit_code
    except (RequestFailed, ServerFailed) as error:
        note(f"error: {error}")
        return 1


def _run(arguments: argparse.Namespace, words: Sequence[str]) -> int:
    names = parse_list("cases", arguments.cases, list(CASES))
    if (arguments.url is None) != (arguments.cluster_url is None):
        raise ArgumentError("--url and --cluster-url are of two servers to compare: give both", parameter="url")
    if arguments.control and arguments.url is not None:
        raise ArgumentError("--control starts its own two servers, and goes without --url", parameter="control")
    with ExitStack() as servers:
        if arguments.url is not None:
            urls = (arguments.url, arguments.cluster_url)
        else:
            if not arguments.any_interface:
                enter_network(words)
            options = ["--model", arguments.model, "--device", arguments.device]
            serve = servers.enter_context(start_serve(options))
            other = start_serve(options) if arguments.control else start_cluster(options)
            urls = (serve, servers.enter_context(other))
        report = Report(shlex.join(["python", "-m", "bench.cluster", *words]), arguments.json, arguments.control)
        cases = [CASES[name] for name in names]
        return asyncio.run(_measure(urls, cases, arguments, report))


async def _measure(urls: Sequence[str], cases: Sequence[Case], arguments: argparse.Namespace, report: Report) -> int:
    key = os.environ.get("KREA2_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    serve, cluster = (
        httpx.AsyncClient(base_url=url, headers=headers, timeout=arguments.deadline, trust_env=False) for url in urls
    )
    async with serve, cluster:
        for case in cases:
            report.case(await measure(case, serve, cluster, arguments.pairs))
    return report.end()


if __name__ == "__main__":
    end_with(main, stacks=False)
