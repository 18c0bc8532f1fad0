"""`launch` without `with`: what is closed, forgotten or never closed at all leaves no process and no file."""

from __future__ import annotations

from tests.launcher.processes import PATIENCE_S, Marked

SCRIPT = """
import os, sys
import psutil
from krea2 import ServerError, launch
from tests.launcher.processes import wait_until

def start():
    return launch(device="cpu", tp=2, warm_up=False)

def expect_no_engine():
    wait_until(lambda: not psutil.Process().children(recursive=True), "the end of the engine")

client = start()
assert client.generate("a red circle", seed=7, steps=1).seed == 7
assert client.address in repr(client)
if not (forked := os.fork()):
    try:
        client.ping()
    except ServerError as error:
        print(error)
    client.close()
    sys.exit()  # where the client would be closed as well, and forgotten
assert os.waitpid(forked, 0) == (forked, 0)
assert client.ping() >= 0
client.close()
client.close()
expect_no_engine()
assert repr(client) == "<Client of an engine of its own: demo, stopped>"
for use in (client.ping, client.__enter__, lambda: client.generate("x"), lambda: list(client.stream("x"))):
    try:
        use()
    except ServerError as error:
        print(error)

client = start()
assert client.ping() >= 0
del client
expect_no_engine()

client = start()
raise KeyError("mine")
"""


def test_an_engine_that_is_closed_forgotten_or_left_behind_ends(marked: Marked) -> None:
    marked.use_hollow_ranks()
    process = marked.start_script(SCRIPT)
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    first, rest = stdout.split("\n", 1)
    assert first == "this process was forked from the client's own: it needs one of its own, Client(address)"
    assert rest == "the client was closed\n" * 4
    assert stderr.endswith("KeyError: 'mine'\n")
    assert not marked.alive()
    marked.expect_nothing_left()
