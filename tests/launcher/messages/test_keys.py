"""CURVE keys: who is let in, who is not, and what is said about it."""

from __future__ import annotations

import asyncio
import shutil
import stat
import urllib.request
from pathlib import Path

import pytest
import zmq
import zmq.asyncio

from engine.errors import ArgumentError, ServerError
from launcher.client.async_client import AsyncClient
from launcher.messages.client_messages import Ping
from launcher.messages.encoding import encode, most_frame_bytes
from launcher.messages.keys import ClientKeys, ServerKeys, make_keys
from launcher.messages.limits import Limits
from tests.damage import FULL, full_disk
from tests.launcher.conftest import Krea2
from tests.launcher.fake_ranks import fake_engine, run
from tests.launcher.processes import PATIENCE_S, Marked, connect_async, wait_until

PROMPT = "a red circle on a blue background"
ANYWHERE = "tcp://127.0.0.1:0"


def test_a_folder_of_keys_is_private_and_has_a_file_for_each_client(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    first, second = make_keys(folder, "first"), make_keys(folder, "second")
    assert (first, second) == (folder / "first.key_secret", folder / "second.key_secret")
    for path in folder.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {path.name for path in (folder / "clients").iterdir()} == {"first.key", "second.key"}
    server = ServerKeys.load(folder)
    clients = [ClientKeys.load(file) for file in (first, second)]
    assert set(server.clients) == {client.public for client in clients}
    assert {client.server for client in clients} == {server.public}
    assert len({server.secret, *(client.secret for client in clients)}) == 3
    for keys in (server, *clients):
        assert keys.secret.decode() not in repr(keys)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    make_keys(folder, "client")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ArgumentError, match=r"client client has keys in .* already: give another name"):
        make_keys(folder, "client")
    (folder / "client.key_secret").rename(tmp_path / "given away")
    with pytest.raises(ArgumentError, match="already"):
        make_keys(folder, "client")
    (tmp_path / "given away").rename(folder / "client.key_secret")
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").write_text("precious")
    with pytest.raises(ArgumentError, match="a folder that `krea2 keys` has made"):
        make_keys(other, "client")
    assert [path.name for path in other.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["", "server", "../x", ".x", "a b", "x" * 65])
def test_a_name_that_cannot_be_a_file_s_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArgumentError, match="client must be"):
        make_keys(tmp_path / "keys", name)
    assert not (tmp_path / "keys").exists()


@pytest.mark.parametrize("room", [0, 366])  # no file, or a public key and no secret one
def test_a_full_disk_leaves_no_half_of_a_key(tmp_path: Path, room: int) -> None:
    folder = tmp_path / "keys"
    with full_disk(room), pytest.raises(ArgumentError, match=rf"folder must be one that can be written \({FULL}\)"):
        make_keys(folder, "client")
    assert {path.name for path in folder.rglob("*")} <= {"clients", "server.key", "server.key_secret"}
    assert (folder / "clients").exists() == (folder / "server.key_secret").exists()
    first = make_keys(folder, "first")
    with full_disk(room), pytest.raises(ArgumentError, match=FULL):
        make_keys(folder, "client")
    second = make_keys(folder, "client")
    assert set(ServerKeys.load(folder).clients) == {ClientKeys.load(file).public for file in (first, second)}


def test_files_that_are_no_keys_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    file = make_keys(folder, "client")
    text = file.read_text()
    secret = ClientKeys.load(file).secret.decode()
    for damaged, message in (
        ("", "No public key found"),
        (text.replace("secret-key", "secret"), "no secret key found"),
        (text.replace(secret, secret[::-1]), "keys are damaged"),
        (text.replace("server-key", "server"), "no server key found"),
    ):
        file.write_text(damaged)
        with pytest.raises(ArgumentError, match=f"key must be a client's .key_secret file .*{message}"):
            AsyncClient(ANYWHERE, key=file)
    with pytest.raises(ArgumentError, match=r"key must be .* \(No such file or directory\)"):
        AsyncClient(ANYWHERE, key=tmp_path / "nothing")
    with pytest.raises(ArgumentError, match="key must be"):
        AsyncClient(ANYWHERE, key=3)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="rpc_keys must be a folder that `krea2 keys` has made"):
        ServerKeys.load(tmp_path)


@pytest.mark.parametrize("rpc", [ANYWHERE, "ipc://{folder}/rpc"])
def test_a_server_with_keys_answers_the_clients_that_it_knows_and_no_others(
    run_folder: Path, tmp_path: Path, rpc: str
) -> None:
    known, strangers = tmp_path / "keys", tmp_path / "strangers"
    file = make_keys(known, "client")
    make_keys(strangers, "client")
    # A stranger who knows the server's public key has a pair that the server does not know.
    text = (strangers / "client.key_secret").read_text()
    theirs, ours = ClientKeys.load(strangers / "client.key_secret"), ClientKeys.load(file)
    impostor = tmp_path / "impostor"
    impostor.write_text(text.replace(theirs.server.decode(), ours.server.decode()))

    async def test() -> None:
        address = rpc.format(folder=run_folder)
        async with fake_engine(run_folder, rpc=address, rpc_keys=str(known)) as fakes:
            for key in (file, known / "server.key_secret"):
                async with AsyncClient(fakes.address, key=key) as client:
                    assert (await client.generate(PROMPT, steps=1)).seeds
            for refused in (None, strangers / "client.key_secret", impostor):
                with pytest.raises(ServerError, match="answers only clients with a key that it knows"):
                    await AsyncClient(fakes.address, connect_timeout_s=0.5, key=refused).connect()
            # What was sent before the handshake failed has not been heard.
            async with AsyncClient(fakes.address, key=str(file)) as client:
                status = await client.status()
                assert (status.done, status.dropped_messages) == (2, 0)

    run(test())


def test_a_client_with_keys_talks_to_no_server_but_its_own(run_folder: Path, tmp_path: Path) -> None:
    file = make_keys(tmp_path / "keys", "client")

    async def test() -> None:
        async with fake_engine(run_folder, rpc=ANYWHERE) as fakes:
            with pytest.raises(ServerError, match="no server answers"):
                await AsyncClient(fakes.address, connect_timeout_s=0.5, key=file).connect()

    run(test())


def test_a_message_above_the_limit_is_refused_with_keys_too(run_folder: Path, tmp_path: Path) -> None:
    file = make_keys(tmp_path / "keys", "client")

    async def test() -> None:
        async with (
            fake_engine(run_folder, rpc=ANYWHERE, rpc_keys=str(tmp_path / "keys")) as fakes,
            AsyncClient(fakes.address, key=file) as client,
        ):
            socket = fakes.context.socket(zmq.DEALER)
            ClientKeys.load(file).use(socket)
            socket.connect(fakes.address)
            await socket.send(encode(Ping()))
            await socket.recv()
            await socket.send(b"x" * (most_frame_bytes(Limits()) + 1))
            assert (await client.generate(PROMPT, steps=1)).seeds
            assert (await client.status()).dropped_messages == 0

    run(test())


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/ready", timeout=PATIENCE_S) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_the_command_line_makes_keys_and_serves_with_them(marked: Marked, krea2: Krea2, tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    assert krea2("keys", str(folder), "--client", "laptop") == (0, f"{folder}/laptop.key_secret\n", "")
    mine = Path(shutil.move(folder / "laptop.key_secret", tmp_path / "mine"))
    code, _, stderr = krea2("keys", str(folder), "--client", "laptop")
    assert (code, stderr.count("\n")) == (2, 1)
    assert stderr.startswith("error: --client laptop has keys in")

    marked.use_hollow_ranks()
    server = marked.start_krea2("serve", "--port", "0", "--device", "cpu", "--rpc", ANYWHERE, "--rpc-keys", str(folder))
    assert server.stdout is not None
    url = server.stdout.readline().strip().removeprefix("http: ")
    address = server.stdout.readline().strip().removeprefix("rpc: ")

    async def use() -> None:
        async with connect_async(address, key=mine) as client:
            assert (await client.generate(PROMPT, steps=1)).seeds

    asyncio.run(use())
    wait_until(lambda: is_ready(url), "the HTTP process' connection")
    server.terminate()
    _, stderr = server.communicate(timeout=PATIENCE_S)
    assert "error:" not in stderr
    assert server.returncode == 143
    marked.expect_nothing_left()


@pytest.mark.parametrize("missing", ["server.key_secret", "clients"])
def test_a_folder_that_is_not_whole_is_refused_with_what_is_missing_and_how_to_make_it(
    tmp_path: Path, missing: str
) -> None:
    folder = tmp_path / "my keys"
    if missing == "clients":
        make_keys(folder, "client")
        shutil.rmtree(folder / "clients")
    told = rf"\(there is no {folder}/{missing}; .* run: krea2 keys '{folder}' --client NAME\)"
    with pytest.raises(ArgumentError, match=f"rpc_keys must be a folder .*{told}"):
        ServerKeys.load(folder)
    folder.mkdir(exist_ok=True)
    (folder / "other").touch()
    with pytest.raises(ArgumentError, match=f"^folder must be a folder .*{told}"):
        make_keys(folder, "another")


def test_serve_refuses_a_folder_without_keys(krea2: Krea2, tmp_path: Path) -> None:
    code, stdout, stderr = krea2("serve", "--no-http", "--rpc", "tcp://0.0.0.0:5555", "--rpc-keys", str(tmp_path))
    assert (code, stdout) == (2, "")
    assert stderr.startswith("error: --rpc-keys must be a folder that `krea2 keys` has made")
    assert stderr.count("\n") == 1
