"""A hundred hosts on a virtual clock: how long requests wait behind which router, and what the autoscaler does.

    python -m bench.cluster --simulate [--hosts 100 --gpus 8 --tp 4] [--ingresses 16] [--loads 0.6,0.8,0.9]
        [--seconds 60] [--seeds 2] [--stats 2] [--cases poisson,bursts,deaths,ramp] [--routers ours,…] [--json FILE]

The router (`launcher.ray.fleet`), the autoscaler (`launcher.ray.scaling`) and the replicas' scheduler are the real
ones; replicas only take time, that of steps **as predicted for H200s, not measured**. Each ingress has a router of its
own, and hears what replicas say of themselves every `--stats` seconds, 0.1 to 0.6 s late. All routers get the same
arrivals. A wait is what a request took beyond what it would have taken alone; that of the first fifth of the time is
left out.

    ours       seconds of work ahead, as the ingress knows them. A request whose replica then says that
               it waits for longer than elsewhere moves, once
    two        power of two choices with Serve's cache of queue lengths: Serve's own router
    in-flight  least of the ingress' own requests in flight, as most proxies do it
    asked      power of two choices that asks both replicas for each request, which is not counted
    perfect    least seconds of work as it is at this moment, which nobody can know

`deaths`: 10 % of the hosts die at once after a third of the time and come back after two. `ramp`: 1 to 50 replicas.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from random import Random
from statistics import mean

from bench.cluster.simulation.arrivals import arrivals, bursty
from bench.cluster.simulation.cluster import Cluster, Outcome, Plan
from bench.cluster.simulation.ramp import follow
from bench.cluster.simulation.replicas import mean_busy_s
from bench.cluster.simulation.routers import LeastInFlight, Omniscient, Router, SecondsOfWork, TwoAsked, TwoChoices
from bench.measure.arguments import duration, json_file, parse_list, positive
from bench.measure.output import note, print_table, publish
from engine.errors import ArgumentError, Krea2Error
from launcher.ray.scaling import Rule

ROUTERS: dict[str, Callable[[Cluster, Random], Router]] = {
    "ours": lambda cluster, random: SecondsOfWork(lambda: cluster.now, random),
    "two": lambda cluster, random: TwoChoices(lambda: cluster.now, random, cluster.replicas),
    "in-flight": lambda cluster, random: LeastInFlight(lambda: cluster.now, random),
    "asked": lambda cluster, random: TwoAsked(lambda: cluster.now, random, cluster.replicas),
    "perfect": lambda cluster, random: Omniscient(lambda: cluster.now, random, cluster.replicas),
}
CASES = ("poisson", "bursts", "deaths", "ramp")
_WARM = 0.2  # of the time, whose requests do not count
_DYING = 0.1  # of the hosts


def main(words: Sequence[str]) -> int:
    """Run it with the words of a command line, without `--simulate`. Returns the exit status."""
    head = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m bench.cluster --simulate", description=head)
    parser.add_argument("--hosts", type=positive, default=100, help="(100)")
    parser.add_argument("--gpus", type=positive, default=8, help="of a host (8)")
    parser.add_argument("--tp", type=positive, default=4, help="GPUs of a replica: 1, 2 or 4 (4)")
    parser.add_argument("--ingresses", type=positive, default=16, help="(16)")
    parser.add_argument("--loads", default="0.6,0.8,0.9", help="comma-separated, of what all can do (0.6,0.8,0.9)")
    parser.add_argument("--load", type=duration, default=0.8, help="of bursts, on average, and of deaths (0.8)")
    parser.add_argument("--seconds", type=positive, default=60, help="in which requests come (60)")
    parser.add_argument("--seeds", type=positive, default=2, help="of arrivals, each with every router (2)")
    parser.add_argument("--ramp", type=positive, default=1800, help="seconds of the ramp (1800)")
    parser.add_argument("--stats", type=duration, default=2.0, help="seconds between what a replica says (2)")
    parser.add_argument("--cases", default=",".join(CASES), help=f"comma-separated ({','.join(CASES)})")
    parser.add_argument("--routers", default=",".join(ROUTERS), help=f"comma-separated ({','.join(ROUTERS)})")
    parser.add_argument("--json", type=json_file, metavar="FILE", help="add the JSON lines to it")
    try:
        return _run(parser.parse_args(words))
    except Krea2Error as error:
        note(f"error: {error.message}")
        return error.exit_code


def _run(arguments: argparse.Namespace) -> int:
    if arguments.tp not in (1, 2, 4) or arguments.gpus % arguments.tp:
        raise ArgumentError.of("tp", "1, 2 or 4, of which a host's GPUs are a multiple", arguments.tp)
    cases = parse_list("cases", arguments.cases, CASES)
    routers = parse_list("routers", arguments.routers, list(ROUTERS))
    loads = _loads(arguments.loads)
    rows: list[list[str]] = []
    for case in (case for case in CASES if case in cases and case != "ramp"):
        for load in loads if case == "poisson" else [arguments.load]:
            for router in routers:
                rows.append(_compare(arguments, case, load, router))
    if rows:
        print_table(
            ("case", "load", "router", "P50", "P90", "P99", "busiest", "refused", "moved", "replayed", "note"), rows
        )
    if "ramp" in cases:
        _ramp(arguments)
    return 0


def _loads(text: str) -> list[float]:
    try:
        loads = [float(word) for word in text.split(",")]
    except ValueError:
        loads = [math.nan]
    if not all(0 < load < 2 for load in loads):
        raise ArgumentError.of("loads", "comma-separated numbers above 0 and below 2", text)
    return loads


def simulate(plan: Plan, case: str, load: float, router: str, *, seconds: float, seed: int) -> Outcome:
    """Run one case behind one router: the same arrivals for every router."""
    random = Random(seed)
    each_s = mean_busy_s(plan.tp)
    most = load * plan.replicas / each_s
    rate, most = bursty(random, most, seconds) if case == "bursts" else (lambda at, most=most: most, most)
    stream = arrivals(random, rate, most, seconds=seconds, ingresses=plan.ingresses)
    return Cluster(plan, seed).run(stream, ROUTERS[router], seconds=seconds)


def _compare(arguments: argparse.Namespace, case: str, load: float, router: str) -> list[str]:
    seconds = float(arguments.seconds)
    deaths = ((seconds / 3, 2 * seconds / 3, _DYING),) if case == "deaths" else ()
    plan = Plan(
        arguments.hosts, arguments.gpus, arguments.tp, arguments.ingresses, max(0.1, arguments.stats), deaths=deaths
    )
    begun = time.perf_counter()
    outcomes = [simulate(plan, case, load, router, seconds=seconds, seed=seed) for seed in range(arguments.seeds)]
    waits = {share: [outcome.wait_s(share, _WARM * seconds) for outcome in outcomes] for share in (0.5, 0.9, 0.99)}
    result = {
        "case": case,
        "router": router,
        "load": load,
        **asdict(plan),
        "simulated_s": seconds,
        "seeds": arguments.seeds,
        "requests": sum(len(outcome.waits) for outcome in outcomes),
        "wait_p50_s": waits[0.5],
        "wait_p90_s": waits[0.9],
        "wait_p99_s": waits[0.99],
        "busiest_of_mean": [outcome.imbalance for outcome in outcomes],
        "refused": sum(outcome.refused for outcome in outcomes),
        "lost": sum(outcome.lost for outcome in outcomes),
        "moved": sum(outcome.moved for outcome in outcomes),
        "replayed": sum(outcome.replayed for outcome in outcomes),
        "steps": "predicted for H200s, not measured",
    }
    note(f"{case}, load {load:g}, {router}: P99 {mean(waits[0.99]):.2f} s ({time.perf_counter() - begun:.0f} s)")
    said = ""
    if deaths:
        parts = [(0.2, 1 / 3), (1 / 3, 2 / 3), (2 / 3, 1)]
        during = [
            mean(outcome.wait_s(0.99, since * seconds, until * seconds) for outcome in outcomes)
            for since, until in parts
        ]
        result["wait_p99_before_during_after_s"] = during
        said = "P99 before, during, after: " + ", ".join(f"{wait:.2f}" for wait in during)
    publish("cluster_simulation", result, arguments.json)
    return [
        case,
        f"{load:g}",
        router,
        *(f"{mean(waits[share]):.2f}" for share in (0.5, 0.9, 0.99)),
        f"{mean(outcome.imbalance for outcome in outcomes):.2f}",
        str(result["refused"]),
        f"{100 * result['moved'] / max(1, result['requests']):.0f} %",
        f"{result['replayed']}" + (f", {result['lost']} lost" if result["lost"] else ""),
        said,
    ]


def _ramp(arguments: argparse.Namespace) -> None:
    rule = Rule(1, 50)
    course = follow(0, mean_busy_s(arguments.tp), seconds=arguments.ramp, tp=arguments.tp, rule=rule)
    hours = course.replica_s / 3600
    least = sum(course.needed) / 3600
    result: dict[str, object] = {
        "simulated_s": arguments.ramp,
        "replicas_at_most": course.most,
        "changes": len(course.targets) - 1,
        "turns": course.turns,
        "replica_hours": hours,
        "busy_hours": least,
        "wait_p50_s": course.wait_s(0.5),
        "wait_p99_s": course.wait_s(0.99),
        "refused": course.refused,
        "targets": course.targets,
        "steps": "predicted for H200s, not measured",
    }
    publish("cluster_ramp", result, arguments.json)
    print(
        f"ramp of {arguments.ramp} s, 1 to 50 replicas: at most {course.most}, {len(course.targets) - 1} changes, "
        f"{course.turns} turns; {hours:.1f} replica hours for {least:.1f} of work; "
        f"waits P50 {course.wait_s(0.5):.2f} s, P99 "
        f"{course.wait_s(0.99):.1f} s; {course.refused} refused"
    )
