"""What clients send beside OpenAI's own values: it is understood, or answered with what is."""

from __future__ import annotations

from pathlib import Path

from tests.launcher.fake_ranks import run
from tests.launcher.http.apis.openai_clients import openai_client
from tests.launcher.http_servers import PROMPT


def test_a_seed_of_64_bits_is_drawn_with_what_its_warning_says(run_folder: Path) -> None:
    async def test() -> None:
        async with openai_client(run_folder) as (client, _, _):
            extra = (await client.images.generate(prompt=PROMPT, extra_body={"seed": 2**64 - 1})).model_extra
            assert extra is not None
            assert extra["seed"] == 2**53 - 1
            assert extra["warnings"][0].startswith(f"seed {2**64 - 1} was reduced to {2**53 - 1}, ")
            drawn = (await client.images.generate(prompt=PROMPT, extra_body={"seed": -1})).model_extra
            assert drawn is not None
            assert (0 <= drawn["seed"] < 2**32, drawn["warnings"]) == (True, [])

    run(test())
