"""What statements import, seen in an interpreter that has imported nothing before."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parent.parent
_DEADLINE_S = 250  # a healthy machine takes seconds
_SCRIPT = """
import json, sys
for statement in json.loads(sys.argv[1]):
    exec(statement)
    print(json.dumps([name for name, module in sys.modules.items() if module]))
"""


def modules_after(*statements: str) -> list[set[str]]:
    """The modules that are there after each of the statements, which one interpreter runs one after the other."""
    command = [sys.executable, "-c", _SCRIPT, json.dumps(statements)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=_DEADLINE_S, cwd=_ROOT)
    assert result.returncode == 0, result.stderr
    return [set(json.loads(line)) for line in result.stdout.splitlines()]
