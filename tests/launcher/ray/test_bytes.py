"""What crosses from one process of a cluster to another is bytes of messages: nothing of ours is pickled."""

from __future__ import annotations

import ast
import inspect

import pytest

from launcher.ray.engine_replica import EngineReplica
from tests.launcher.processes import ROOT

FILES = sorted((ROOT / "launcher" / "ray").rglob("*.py"))
# Plain data, which looks the same to every release of ours.
PLAIN = {"bytes", "list[bytes]", "bool", "AsyncGenerator[bytes, None]"}
CALLED = ("draw", "ask", "report")  # through a handle


def test_no_file_pickles_or_shares_objects() -> None:
    assert FILES
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            names += [ast.unparse(node)] if isinstance(node, ast.Attribute) else []
            for name in names:
                assert "pickle" not in name, file
                assert name not in ("ray.put", "ray.util.register_serializer", "ray.remote"), file


@pytest.mark.parametrize("name", CALLED)
def test_what_ingresses_call_takes_and_gives_bytes(name: str) -> None:
    signature = inspect.signature(getattr(EngineReplica, name))
    taken = [str(each.annotation) for each in [*signature.parameters.values()][1:]]
    assert {*taken, str(signature.return_annotation)} <= PLAIN
