"""What follows the description of a route, or breaks it, is answered as that says, and never with 5xx."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings, strategies
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from launcher.messages.limits import Limits
from tests.launcher.fake_ranks import DEADLINE_S, fake_engine, run
from tests.launcher.http.docs.described import routes
from tests.launcher.http_servers import http_server

SMALL = Limits(max_side=128, max_steps=8, max_images=2)  # so that what is valid is also quick
CASES = {"POST": 10}  # for each operation and mode
NEEDED = ("prompt", "messages", "name", "reason")  # parameters that no body may leave out
OTHERS = 4  # cases of other methods
CHECKS = (not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance)
MODES = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)


def explore(url: str, *, scale: int = 1) -> Counter[tuple[str, int]]:
    """Send generated requests to every route. Returns how many had which status, by route."""
    schema = schemathesis.openapi.from_dict(_closed(httpx.get(f"{url}/openapi.json", timeout=DEADLINE_S).json()))
    statuses: Counter[tuple[str, int]] = Counter()
    for found in schema.get_all_operations():
        operation = found.ok()
        method = operation.method.upper()
        can_be_wrong = operation.body or operation.query or operation.headers  # any text may be in a path
        for mode in MODES if can_be_wrong else MODES[:1]:

            @settings(
                max_examples=scale * CASES.get(method, OTHERS), deadline=None, database=None, phases=[Phase.generate],
                derandomize=True, suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            @given(case=cases_of(operation, mode))
            def check(case: schemathesis.Case) -> None:
                answer = case.call(base_url=url, timeout=DEADLINE_S)
                statuses[f"{case.method} {case.operation.path}", answer.status_code] += 1
                case.validate_response(answer, checks=CHECKS)

            check()
    return statuses


def cases_of(operation: Any, mode: schemathesis.GenerationMode) -> strategies.SearchStrategy[schemathesis.Case]:
    """Requests that follow the description of a route, or break it."""
    cases = operation.as_strategy(generation_mode=mode)
    if mode is schemathesis.GenerationMode.NEGATIVE:
        return cases
    return strategies.builds(_thin, cases, strategies.randoms(use_true_random=False))


def _thin(case: schemathesis.Case, chance: Random) -> schemathesis.Case:
    """Leave a few of its parameters in a body, which contradict each other less often than all of them do."""
    if isinstance(body := case.body, dict):
        needed = {name: body[name] for name in NEEDED if name in body}
        others = [name for name in body if name not in needed]
        case.body = needed | {name: body[name] for name in chance.sample(others, min(len(others), 3))}
    return case


def _closed(schema: Any) -> Any:
    """The description, in whose answers no field may be that it does not have."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: each if name in ("examples", "example") else _closed(each) for name, each in schema.items()}
    if closed.get("type") == "object" and "properties" in closed:
        closed.setdefault("additionalProperties", False)
    return closed


async def _explore_fakes(run_folder: Path, scale: int) -> None:
    async with (
        fake_engine(run_folder, limits=SMALL) as fakes,
        http_server(fakes.address, limits=SMALL, audit_log=str(run_folder / "audit")) as client,
    ):
        statuses = await asyncio.to_thread(explore, str(client.base_url), scale=scale)
        routes = set((await client.get("/openapi.json")).json()["paths"])
    assert {route.partition(" ")[2] for route, _ in statuses} == routes
    assert {200, 400, 404} <= {status for _, status in statuses}
    drawn = [route for (route, status) in statuses if status == 200 and route.startswith("POST")]
    assert "POST /v1/images/generations" in drawn


def test_nothing_that_follows_the_description_or_breaks_it_is_a_server_error(run_folder: Path) -> None:
    run(_explore_fakes(run_folder, scale=1))


def test_every_example_that_docs_offers_is_answered_with_what_it_asks_for(run_folder: Path) -> None:
    async def test() -> None:
        audit_log = str(run_folder / "audit")
        async with fake_engine(run_folder) as fakes, http_server(fakes.address, audit_log=audit_log) as client:
            sent = 0
            for method, path, operation in routes((await client.get("/openapi.json")).json()):
                for kind, content in operation.get("requestBody", {}).get("content", {}).items():
                    for name, example in content.get("examples", {}).items():
                        answer = await client.request(method, path, json=example["value"])
                        assert (answer.status_code, kind) == (200, "application/json"), (path, name, answer.text)
                        assert "error" not in answer.text, (path, name)
                        sent += 1
            assert sent > 5

    run(test())


@pytest.mark.slow  # in the fast run: the same with fewer cases
def test_the_same_with_many_more_cases(run_folder: Path) -> None:
    run(_explore_fakes(run_folder, scale=20))
