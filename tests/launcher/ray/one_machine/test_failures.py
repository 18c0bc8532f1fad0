"""What became of a replica, of what Serve says of it."""

from __future__ import annotations

import pytest

from engine.errors import ArgumentError, CheckpointError, LaunchError, RankError
from launcher.ray.one_machine.failures import failure, of_ours

SAID = """A replica failed to start with exception. Retrying 2 more time(s). Error:
\x1b[36mray::ServeReplica:krea2:engine.initialize_and_get_metadata()\x1b[39m (pid=19877, ip=127.0.0.1)
  File "/usr/lib/python3.11/concurrent/futures/_base.py", line 456, in result
    return self.__get_result()
           ^^^^^^^^^^^^^^^^^^^
RuntimeError: Traceback (most recent call last):
  File "/srv/replica.py", line 1867, in initialize
    await self._user_callable_wrapper.initialize_callable()
{last}"""


@pytest.mark.parametrize(
    ("last", "error"),
    [
        (
            "engine.errors.CheckpointError: /m/vae.safetensors: is damaged",
            CheckpointError("/m/vae.safetensors: is damaged"),
        ),
        ("engine.errors.ArgumentError: tp must be 1, got 3", ArgumentError("tp must be 1, got 3")),
        (
            "engine.errors.RankError: rank 0 was killed by SIGKILL\nThe engine's last output:\nValueError: no",
            RankError("rank 0 was killed by SIGKILL"),
        ),
        ("ValueError: odd: this", LaunchError("a replica did not start: ValueError: odd: this")),
    ],
)
def test_the_last_error_is_the_one_and_keeps_its_exit_code(last: str, error: Exception) -> None:
    made = failure(["", SAID.format(last=last)])
    assert (type(made), str(made), made.exit_code) == (type(error), str(error), error.exit_code)  # type: ignore[attr-defined]


def test_what_has_no_traceback_is_told_by_its_last_line() -> None:
    assert str(failure(["", "Failed to update the deployments ['engine']."])) == (
        "the replicas did not start: Failed to update the deployments ['engine']."
    )
    assert str(failure([])) == "the replicas did not start: Ray does not say why"


def test_errors_of_others_are_not_ours() -> None:
    assert of_ours(["", SAID.format(last="ValueError: engine.errors.CheckpointError: x")]) is None
