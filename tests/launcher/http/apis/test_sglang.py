"""What SGLang's routers and users ask a server."""

from __future__ import annotations

from pathlib import Path

import engine
from tests.launcher.fake_ranks import fake_engine, run
from tests.launcher.http_servers import http_server

SECRET = ("/get_model_info", "/model_info", "/v1/model_info", "/get_server_info", "/server_info", "/v1/list_loras")


def test_what_sglang_says_of_itself_is_said_to_who_has_a_key(run_folder: Path) -> None:
    async def test() -> None:
        async with (
            fake_engine(run_folder) as fakes,
            http_server(fakes.address, api_keys=("secret",), model_names=("krea-2-turbo", "gpt-image-1")) as client,
        ):
            told = {path: (await client.get(path)).json() for path in SECRET}
            assert told["/get_model_info"] == told["/model_info"] == told["/v1/model_info"]
            assert told["/model_info"]["model_path"] == "krea-2-turbo"
            assert told["/model_info"]["is_generation"] is True
            assert told["/get_server_info"] == told["/server_info"]
            assert (told["/server_info"]["tp_size"], told["/server_info"]["version"]) == (1, engine.__version__)
            assert told["/v1/list_loras"] == {"loaded_adapters": [], "active": {"transformer": []}}
            del client.headers["Authorization"]
            for path in SECRET:
                for slash in ("", "/"):
                    assert (await client.get(path + slash)).status_code == 401, path
            assert (await client.get("/version")).json() == {"version": engine.__version__}
            assert (await client.get("/health_generate")).json() == (await client.get("/ready")).json()

    run(test())
