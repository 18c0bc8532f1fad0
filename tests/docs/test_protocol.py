"""docs/protocol.md says what launcher/messages/client_messages.py does, and its client works."""

from __future__ import annotations

import asyncio
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgpack
import msgspec
import pytest
import zmq
from PIL import Image

from engine import errors
from engine.config.engine_config import EngineConfig
from engine.errors import Krea2Error
from launcher.client.async_client import LOAD_LORA_S, AsyncClient
from launcher.client.connection import ASK_AGAIN_S, PING_S, SILENCE_S
from launcher.explanation import PARTS, Explanation, Stage
from launcher.frontend.delivery.clients import MAX_CLIENTS
from launcher.frontend.intake import _MOST_PICTURE_BYTES
from launcher.messages.client_messages import PROTOCOL_VERSION, Reply, Request
from launcher.messages.configs import FrontendConfig
from launcher.messages.encoding import MAX_REQUEST_BYTES, decode_reply, decode_request, most_frame_bytes
from launcher.messages.keys import make_keys
from launcher.messages.limits import Limits
from launcher.requests.check import MAX_LORA_STRENGTH
from launcher.requests.lora_files import MAX_NAME
from tests.launcher.fake_ranks import fake_engine, run
from tests.launcher.processes import PATIENCE_S

DOCUMENT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
SECTIONS = dict(re.findall(r"^### `(\w+)`\n(.*?)(?=^##)", DOCUMENT, flags=re.MULTILINE | re.DOTALL))
(CLIENT,) = re.findall(r"^```python\n(.*?)^```", DOCUMENT, flags=re.MULTILINE | re.DOTALL)
TYPES = {"str": "text", "int": "integer", "float": "number", "bool": "boolean", "NoneType": "null"}


def rows(section: str) -> list[list[str]]:
    """The cells of a section's table, but for its head."""
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def name_of(kind: Any) -> str:
    """A field's type in the document's words."""
    kinds = [part for part in (get_args(kind) or (kind,)) if hasattr(part, "__name__")]
    return " or ".join(TYPES[part.__name__] for part in kinds)


def test_the_document_names_every_message_and_no_other() -> None:
    tags = [kind.__struct_config__.tag for kind in (*get_args(Request), *get_args(Reply))]
    assert sorted(SECTIONS) == sorted(tags)
    assert f"# The client protocol, version {PROTOCOL_VERSION}" in DOCUMENT


@pytest.mark.parametrize("kind", [*get_args(Request), *get_args(Reply)], ids=lambda kind: kind.__name__)
def test_the_fields_of_a_message_are_described(kind: type[msgspec.Struct]) -> None:
    table = rows(SECTIONS[kind.__struct_config__.tag])
    fields = [field for field in msgspec.structs.fields(kind) if field.name != "version"]
    assert [row[0] for row in table] == [f"`{field.name}`" for field in fields]
    types = get_type_hints(kind)
    for row, field in zip(table, fields, strict=True):
        if "array" not in row[1] and "map" not in row[1]:
            assert row[1] == name_of(types[field.name]), field.name
        if kind in get_args(Request):
            assert row[2] == ("required" if field.required else f"`{json.dumps(field.default)}`"), field.name


def test_the_fields_of_an_explanation_are_described() -> None:
    tables = DOCUMENT.split("## Explanation")[1].split("\n## ")[0].split("A stage has")
    for table, kind in zip(tables, (Explanation, Stage), strict=True):
        described = [name for row in rows(table) for name in re.findall(r"`(\w+)`", row[0])]
        assert sorted(described) == sorted(field.name for field in msgspec.structs.fields(kind))
    for part in PARTS:
        assert f"`{part}`" in rows(tables[0])[2][2], part


def test_every_error_code_is_explained() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Krea2Error)]
    table = rows(DOCUMENT.split("## Errors")[1].split("## Limits")[0])
    assert sorted(row[0] for row in table) == sorted(f"`{kind.code}`" for kind in kinds)


@pytest.mark.parametrize(
    "sentence",
    [
        f"sends `ping` every {PING_S:g} s",
        f"has heard nothing of a request for {ASK_AGAIN_S:g} s",
        f"nothing has come for {SILENCE_S:g} s",
        f"lease of {FrontendConfig(engine=EngineConfig()).lease_s:g} s",
        f"{MAX_REQUEST_BYTES:,} bytes".replace(",", " "),
        f"the file of a picture {Limits.max_image_bytes:,} (".replace(",", " "),
        f"more than {most_frame_bytes(Limits()):,} bytes".replace(",", " "),
        f"take {_MOST_PICTURE_BYTES >> 30} GiB of the server's memory",
        f"at most {Limits.max_prompt_bytes:,} bytes".replace(",", " "),
        f"at most {Limits.max_pixels:,} pixels".replace(",", " "),
        f"{Limits.max_queue} requests wait in one server (`max_queue`) and {MAX_CLIENTS} clients",
        f"| {Limits.min_side} to {Limits.max_side} pixels",
        f"| 1 to {Limits.max_steps}; null",
        f"| 0 (off) to {Limits.max_guidance:g};",
        f"| 1 to {Limits.max_images} |",
        f"at most {Limits.max_request_loras} different LoRAs",
        f"(number, −{MAX_LORA_STRENGTH:g} to {MAX_LORA_STRENGTH:g};",
        f"1 to {MAX_NAME} printable characters without `/`; not that of another one; at most {Limits.max_loras} are",
        f"wait {LOAD_LORA_S:g} s",
    ],
)
def test_the_numbers_are_those_of_the_code(sentence: str) -> None:
    assert sentence in " ".join(DOCUMENT.split())


def test_the_bytes_of_the_worked_exchange_are_its_messages() -> None:
    exchange = DOCUMENT.split("## A worked exchange")[1].split("## A client")[0]
    messages = re.findall(r"^([→←]) (\{.*\})\n((?:  [0-9a-f ]+\n)+)", exchange, flags=re.MULTILINE)
    assert [arrow for arrow, _, _ in messages] == ["→", "←", "←", "←", "→"]
    for arrow, text, dump in messages:
        frame = bytes.fromhex(dump)
        assert msgpack.unpackb(frame) == json.loads(text)
        decode: Callable[[bytes], object] = decode_request if arrow == "→" else decode_reply
        decode(frame)


def client_functions() -> dict[str, Any]:
    """What the document's client defines."""
    namespace: dict[str, Any] = {"__name__": "client"}
    exec(CLIENT, namespace)
    return namespace


def test_the_document_s_client_makes_images(run_folder: Path, tmp_path: Path) -> None:
    assert set(re.findall(r"^(?:import|from) (\w+)", CLIENT, flags=re.MULTILINE)) == {
        "pathlib",
        "re",
        "sys",
        "time",
        "uuid",
        "msgpack",
        "zmq",
    }
    file = tmp_path / "client.py"
    file.write_text(CLIENT)
    generate = client_functions()["generate"]

    async def test() -> None:
        async with fake_engine(run_folder) as fakes, AsyncClient(fakes.address) as other:
            files = await asyncio.to_thread(
                generate, fakes.address, "a red circle", seed=5, steps=3, num_images=3, preview_every=1
            )
            assert [Image.open(io.BytesIO(file)).getpixel((0, 0))[0] for file in files] == [5, 6, 7]  # type: ignore[index]
            with pytest.raises(RuntimeError, match=r"^invalid_parameter: width must be between 64 and 4096, got 3$"):
                await asyncio.to_thread(generate, fakes.address, "a red circle", width=3)
            process = await asyncio.create_subprocess_exec(
                sys.executable, "client.py", fakes.address, "a red circle", cwd=tmp_path
            )
            assert await asyncio.wait_for(process.wait(), PATIENCE_S) == 0
            assert Image.open(tmp_path / "image_0.png").size == (128, 128)
            paths = [tmp_path / "photo.png", tmp_path / "mask.png"]
            Image.new("RGB", (144, 112), "blue").save(paths[0])
            Image.new("L", (144, 112), 255).save(paths[1])
            process = await asyncio.create_subprocess_exec(
                sys.executable, "client.py", fakes.address, "a red circle", *map(str, paths), cwd=tmp_path
            )
            assert await asyncio.wait_for(process.wait(), PATIENCE_S) == 0
            assert Image.open(tmp_path / "image_0.png").size == (144, 112)
            assert (await other.status()).done == 3
            with pytest.raises(RuntimeError, match=r"^invalid_parameter: image "):
                await asyncio.to_thread(generate, fakes.address, "a red circle", pictures=[tmp_path / "client.py"])

            fakes.ranks[0].hold = True
            call = asyncio.create_task(asyncio.to_thread(generate, fakes.address, "a red circle"))
            while not (await other.status()).running:
                pass
            fakes.stop.set()
            with pytest.raises(RuntimeError, match=r"^server_unavailable: the server was stopped$"):
                await call

    run(test())


def test_the_document_s_client_gives_up_where_it_is_not_answered(run_folder: Path, tmp_path: Path) -> None:
    client = client_functions()
    client["PING_S"] = 0.1  # what it sends must not wait, once there is no connection
    assert client["SILENCE_S"] + 1 + 0.5 < 20  # and the longest poll, and what a closed socket lingers
    key, stranger = (make_keys(tmp_path / folder, "client") for folder in ("keys", "others"))

    async def generate(address: str, key: Path | None = None, silence_s: float = 0.7) -> Any:
        return await asyncio.to_thread(client["generate"], address, "a red circle", key, silence_s, steps=1)

    async def test() -> None:
        anywhere = "tcp://127.0.0.1:0"
        async with fake_engine(run_folder, rpc=anywhere, rpc_keys=str(tmp_path / "keys")) as fakes:
            assert len(await generate(fakes.address, key, PATIENCE_S)) == 1
            server = fakes.context.socket(zmq.ROUTER)  # goes when it has accepted the request
            server.linger = -1
            server.bind(anywhere)
            calls = [generate(fakes.address), generate(fakes.address, stranger), generate(f"ipc://{tmp_path}/nothing")]
            cut_off = asyncio.create_task(generate(server.get_string(zmq.LAST_ENDPOINT), silence_s=5.0))
            name, _ = await server.recv_multipart()
            await server.send_multipart([name, msgpack.packb({"type": "accepted", "request_id": "?"})])
            server.close()
            for error in await asyncio.gather(*calls, cut_off, return_exceptions=True):
                assert re.match(r"nothing came from .* for (0\.7|5) s: is there a server, and if it has", str(error))

    run(test())
