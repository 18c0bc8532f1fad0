"""litellm in a process of its own, since it changes the logging and the event loops of the one that imports it."""

from __future__ import annotations

import asyncio
import base64
import inspect
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple


class LiteLlm(NamedTuple):
    """Calls its functions."""

    process: subprocess.Popen[str]

    def call(self, function: str, **arguments: Any) -> Any:
        """Call a function, or `Router.aimage_generation`. Returns what it returns, or its exception's class, status and
        message."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([function, arguments]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "litellm's process has ended"
        return json.loads(line)


@contextmanager
def litellm_process() -> Iterator[LiteLlm]:
    """Start the process, and end it."""
    local = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"}  # nothing is fetched or sent
    command = [sys.executable, "-W", "ignore", "-m", __name__]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=os.environ | local,
    ) as process:  # fmt: skip
        try:
            yield LiteLlm(process)
        finally:
            process.kill()


def _run() -> None:
    out, sys.stdout = sys.stdout, sys.stderr  # it prints
    import litellm

    async def call(function: str, arguments: dict[str, Any]) -> Any:
        for name in ("image", "mask"):  # which JSON has as base64
            if name in arguments:
                arguments[name] = io.BytesIO(base64.b64decode(arguments[name]))
        if function == "Router.aimage_generation":
            router = litellm.Router(model_list=arguments.pop("model_list"))
            return await router.aimage_generation(**arguments)
        answer = getattr(litellm, function)(**arguments)
        if inspect.isawaitable(answer):
            answer = await answer
        if arguments.get("stream"):
            return [chunk.model_dump() async for chunk in answer]
        return answer

    for line in sys.stdin:
        try:
            answer = asyncio.run(call(*json.loads(line)))
            told = answer if isinstance(answer, list) else answer.model_dump()
        except Exception as error:
            told = [type(error).__name__, getattr(error, "status_code", None), str(error)]
        print(json.dumps(told), file=out, flush=True)


if __name__ == "__main__":
    _run()
