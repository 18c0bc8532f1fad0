"""What clients send beside OpenAI's own values: it is understood, or answered with what is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from launcher.messages.parameter_names import GUIDANCE_IS_OFF
from tests.launcher.fake_ranks import fake_engine, run
from tests.launcher.http_servers import PATH, PROMPT, events_of, http_server

WRONG: tuple[tuple[dict[str, Any], str, str], ...] = (
    ({"num_outputs": 11}, "num_outputs", "num_outputs must be between 1 and 10, got 11"),
    ({"sampling_steps": "900"}, "sampling_steps", "sampling_steps must be between 1 and 200, got 900"),
    ({"image_size": "5000x64"}, "image_size", "image_size 5000x64: width must be between 64 and 4096, got 5000"),
    ({"cfg_scale": 0}, "cfg_scale", "cfg_scale must be 1, which is off, or more, got 0"),
    ({"n": "two"}, "n", "n must be a whole number, got 'two'"),
    ({"n": 1.5}, "n", "n must be a whole number, got 1.5"),
    ({"stream": "perhaps"}, "stream", "stream must be true or false, got 'perhaps'"),
    ({"output_compression": 101}, "output_compression", "output_compression must be between 0 and 100, got 101"),
    ({"extra_body": {"sede": 1}}, "sede", "unknown parameter 'sede': did you mean seed?"),
    ({"extra_body": "x"}, "extra_body", "unknown parameter 'extra_body'"),
    ({"n": 1, "num_outputs": 2}, "num_images", "num_images 2 contradicts n, which says 1"),
)


def test_what_clients_send_is_understood_or_answered_in_their_words(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, http_server(fakes.address) as client:
            await a_seed_of_64_bits_is_drawn_with_what_its_warning_says(client)
            await what_a_form_sends_is_understood(client)
            await what_changes_nothing_is_told_in_answers_and_streams(client)
            await what_is_wrong_is_told_in_the_clients_words(client)

    run(test())


async def drawn(client: httpx.AsyncClient, **body: Any) -> Any:
    answer = await client.post(PATH, json={"prompt": PROMPT, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def a_seed_of_64_bits_is_drawn_with_what_its_warning_says(client: httpx.AsyncClient) -> None:
    answer = await drawn(client, seed=2**64 - 1)
    assert answer["seed"] == 2**53 - 1
    assert answer["warnings"][0].startswith(f"seed {2**64 - 1} was reduced to {2**53 - 1}, ")
    random = await drawn(client, seed=-1)
    assert (0 <= random["seed"] < 2**32, random["warnings"]) == (True, [])


async def what_a_form_sends_is_understood(client: httpx.AsyncClient) -> None:
    form: dict[str, Any] = {"n": "2", "seed": "7", "steps": "3", "width": "96", "height": 64.0}
    form |= dict.fromkeys(("size", "response_format", "output_format", "model", "negative_prompt", "style"), "")
    answer = await drawn(client, **form, stream="false", quality="ultra", user="")
    assert [image["seed"] for image in answer["data"]] == [7, 8]
    assert all("b64_json" in image for image in answer["data"])
    assert (answer["size"], answer["output_format"]) == ("96x64", "png")
    assert not any("ignored" in warning for warning in answer["warnings"])
    streamed = await client.post(PATH, json={"prompt": PROMPT, "stream": "true", "size": "Auto"})
    assert [name for name, _ in events_of(streamed.text)] == ["image_generation.completed"]


async def what_changes_nothing_is_told_in_answers_and_streams(client: httpx.AsyncClient) -> None:
    body: dict[str, Any] = {"background": "transparent", "sampler": "DDIM", "guidance_scale": "1"}
    body |= {"extra_body": {"num_outputs": 1}}
    background, sampler, guidance = (await drawn(client, **body))["warnings"]
    assert background == "background was ignored: images are opaque"
    assert sampler.startswith("sampler was ignored: there is one sampler")
    assert guidance == GUIDANCE_IS_OFF
    streamed = await client.post(PATH, json={"prompt": PROMPT, "stream": True, **body})
    ((_, completed),) = events_of(streamed.text)
    assert completed["warnings"] == [background, sampler, guidance]


async def what_is_wrong_is_told_in_the_clients_words(client: httpx.AsyncClient) -> None:
    for more, param, message in WRONG:
        answer = await client.post(PATH, json={"prompt": PROMPT, **more})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_parameter", param)
        assert error["message"].startswith(message)
