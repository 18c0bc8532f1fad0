"""Requests of chat front ends and workflows to OpenAI's images API."""

from __future__ import annotations

from tests.launcher.http.clients.tables.rows import (
    AIOHTTP,
    AXIOS,
    KEY,
    OPENAI_NODE,
    OPENAI_PYTHON,
    Got,
    Row,
    b64,
    drawn,
    form,
    links,
    models,
    prompt,
    sentence,
    warned,
)
from tests.launcher.http_servers import PROMPT

OPEN_WEBUI = "open-webui/open-webui@02530d5: backend/open_webui/routers/images.py"
LIBRECHAT_OAI = "danny-avila/LibreChat@8731432: api/app/clients/tools/structured/OpenAIImageTools.js"
LIBRECHAT_DALLE = "danny-avila/LibreChat@37d31ec: api/app/clients/tools/structured/DALLE3.js"
LIBRECHAT_FLUX = "danny-avila/LibreChat@bfafc92: api/app/clients/tools/structured/FluxAPI.js"
N8N_BASE = "n8n-io/n8n@38f2829: packages/nodes-base/nodes/OpenAi/ImageDescription.ts"
N8N = "n8n-io/n8n@0713e95: packages/@n8n/nodes-langchain/nodes/vendors/OpenAi/v2/actions/image/generate.operation.ts"
N8N_LIST = "n8n-io/n8n@98c7dba: packages/@n8n/nodes-langchain/nodes/vendors/OpenAi/methods/listSearch.ts"
DIFY = "langgenius/dify-official-plugins@286718e: tools/openai/tools/gpt_image_generate.py"
DIFY_2 = "langgenius/dify-official-plugins@1896446: tools/openai/tools/gpt_image_2_generate.py"
DIFY_DALLE = "langgenius/dify-official-plugins@ce5822e: tools/dalle/tools/dalle3.py"

_BEARER = {"Authorization": f"Bearer {KEY}"}
_NO_KEY = {"Authorization": "Bearer "}
_N8N = AXIOS | _BEARER | {"OpenAI-Organization": ""}
_FILE = ("image.png", drawn(), "image/png")
_EDIT, _EDIT_TYPE = form(
    ("image", _FILE), model="gpt-image-1", prompt=PROMPT, n="1", size="1024x1024", response_format="b64_json"
)
_TRANSPARENT, _TRANSPARENT_TYPE = form(
    ("image[]", _FILE), model="gpt-image-1", prompt=PROMPT, n="1", background="transparent", quality="auto"
)
_TWO, _TWO_TYPE = form(*[("image[]", _FILE)] * 2, model="gpt-image-1", prompt=PROMPT, n="1", size="512x512")
_LIBRECHAT, _LIBRECHAT_TYPE = form(
    ("image[]", ("1.png", drawn(), "image/png")), model="gpt-image-1", prompt=PROMPT, quality="auto", size="auto"
)


def _dify(got: Got) -> None:
    """It reads the tokens of every answer that has `usage`, null or not, and images of base64."""
    usage = got.json["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["input_tokens_details"]["text_tokens"] > 0
    assert usage["input_tokens_details"]["image_tokens"] == 0
    b64()(got)


def _bad_request(got: Got) -> None:
    assert (got.answer.status_code, got.answer.reason_phrase) == (400, "Bad Request")


def _n8n_lists(got: Got) -> None:
    """Of all models it lists those whose names are OpenAI's for images."""
    found = [model["id"] for model in got.json["data"] if model["id"].startswith(("dall-", "gpt-image"))]
    assert set(found) == {"dall-e-3", "gpt-image-1"}


ROWS = (
    Row("Open WebUI", "draws with the engine Open AI, as it is set up at first", OPEN_WEBUI, b64(),
        prompt(model="dall-e-2", n=1, size="512x512", response_format="b64_json"), headers=AIOHTTP | _BEARER),
    Row("Open WebUI", "draws without a key, two images", OPEN_WEBUI, b64(count=2),
        prompt(model="dall-e-3", n=2, size="512x512", response_format="b64_json"), headers=AIOHTTP | _NO_KEY),
    Row("Open WebUI", "draws with gpt-image-1 and size auto, for a user whom it names", OPEN_WEBUI, b64(),
        prompt(model="gpt-image-1", n=1, size="auto"),
        headers=AIOHTTP | _BEARER | {"X-OpenWebUI-User-Name": "A%20B", "X-OpenWebUI-User-Role": "admin"}),
    Row("Open WebUI", "draws with additional parameters of an administrator", OPEN_WEBUI,
        warned(b64(), "background"),
        prompt(model="dall-e-3", n=1, size="512x512", response_format="b64_json", seed=-1, steps=4,
               background="transparent", quality="high", style=""), headers=AIOHTTP | _BEARER),
    Row("Open WebUI", "draws with an API version, as Azure's", OPEN_WEBUI, b64(),
        prompt(model="dall-e-3", n=1, size="512x512", response_format="b64_json"),
        path="/v1/images/generations?api-version=2024-02-01", headers=AIOHTTP | _BEARER),
    Row("Open WebUI", "draws, its base URL ending in a slash", OPEN_WEBUI, b64(),
        prompt(model="dall-e-3", n=1, size="512x512", response_format="b64_json"),
        path="/v1//images/generations", headers=AIOHTTP | _BEARER),
    Row("Open WebUI", "draws, its base URL without /v1", OPEN_WEBUI, sentence(404, "/v1/images/generations"),
        prompt(model="dall-e-3", n=1, size="512x512", response_format="b64_json"),
        path="/images/generations", headers=AIOHTTP | _BEARER),
    Row("Open WebUI", "shows an error by its status alone", OPEN_WEBUI, _bad_request,
        prompt(model="dall-e-3", n=1, size="9x9", response_format="b64_json"), headers=AIOHTTP | _BEARER),
    Row("Open WebUI", "edits an image", OPEN_WEBUI, warned(b64(), "neither mask nor strength"),
        _EDIT, path="/v1/images/edits", headers=AIOHTTP | _BEARER | {"Content-Type": _EDIT_TYPE}),
    Row("Open WebUI", "edits an image whose background is to go", OPEN_WEBUI, warned(b64(size=(192, 128)), "opaque"),
        _TRANSPARENT, path="/v1/images/edits", headers=AIOHTTP | _BEARER | {"Content-Type": _TRANSPARENT_TYPE}),
    Row("Open WebUI", "edits two images at once", OPEN_WEBUI, sentence(400, "as references, are not taken yet"),
        _TWO, path="/v1/images/edits", headers=AIOHTTP | _BEARER | {"Content-Type": _TWO_TYPE}),
    Row("LibreChat", "draws with the tool image_gen_oai", LIBRECHAT_OAI, b64(),
        prompt(model="gpt-image-1", n=1, background="auto", output_format="png", quality="auto", size="auto"),
        headers=OPENAI_NODE),
    Row("LibreChat", "draws a transparent WebP", LIBRECHAT_OAI, warned(b64("WEBP"), "background"),
        prompt(model="gpt-image-1", n=1, background="transparent", output_format="webp", output_compression=100,
               quality="high", size="1024x1536"), headers=OPENAI_NODE),
    Row("LibreChat", "draws as from Azure", LIBRECHAT_OAI, b64(),
        prompt(model="gpt-image-1", n=1, background="auto", output_format="png", quality="auto", size="auto"),
        path="/v1/images/generations?api-version=2025-04-01-preview", headers=OPENAI_NODE | {"api-key": KEY}),
    Row("LibreChat", "shows an error's message, behind the status", LIBRECHAT_OAI, sentence(400, "size 9x9"),
        prompt(model="gpt-image-1", n=1, background="auto", output_format="png", quality="auto", size="9x9"),
        headers=OPENAI_NODE),
    Row("LibreChat", "edits an image", LIBRECHAT_OAI, warned(b64(size=(192, 128)), "neither mask"),
        _LIBRECHAT, path="/v1/images/edits", headers=AXIOS | _BEARER | {"Content-Type": _LIBRECHAT_TYPE}),
    Row("LibreChat", "draws with the tool dalle, and saves what the link leads to", LIBRECHAT_DALLE, links(),
        prompt(model="dall-e-3", quality="standard", style="vivid", size="1024x1024", n=1), headers=OPENAI_NODE),
    Row("LibreChat", "draws with the tool flux, of another company's API", LIBRECHAT_FLUX,
        sentence(404, "choose OpenAI"),
        prompt(prompt_upsampling=False, safety_tolerance=6, output_format="png", width=1024, height=768),
        path="/v1/flux-pro-1.1", headers=AXIOS | {"x-key": KEY}),
    Row("n8n", "tries the credentials", N8N_BASE, models("gpt-image-1"), method="GET", path="/v1/models", headers=_N8N),
    Row("n8n", "lists models of images", N8N_LIST, _n8n_lists, method="GET", path="/v1/models", headers=_N8N),
    Row("n8n", "draws with the older node", N8N_BASE, b64(count=2),
        prompt(model="dall-e-2", response_format="b64_json", n=2, size="256x256"), headers=_N8N),
    Row("n8n", "draws with gpt-image-1-mini", N8N, b64(),
        prompt(model="gpt-image-1-mini", quality="medium", size="1024x1024"), headers=_N8N),
    Row("n8n", "draws with dall-e-3, as links", N8N, links(),
        prompt(model="dall-e-3", response_format="url", quality="hd", size="1792x1024", style="natural"),
        headers=_N8N),
    Row("n8n", "draws with dall-e-3, as files", N8N, b64(),
        prompt(model="dall-e-3", response_format="b64_json", quality="standard", style="vivid"), headers=_N8N),
    Row("n8n", "shows an error's message", N8N, sentence(400, "size 9x9"),
        prompt(model="gpt-image-1", quality="medium", size="9x9"), headers=_N8N),
    Row("Dify", "draws with gpt-image-1", DIFY, _dify, prompt(model="gpt-image-1", n=1), headers=OPENAI_PYTHON),
    Row("Dify", "draws with all that its form offers", DIFY, _dify,
        prompt(model="gpt-image-1-mini", size="1536x1024", quality="high", background="transparent",
               output_format="png", moderation="low", n=1), headers=OPENAI_PYTHON),
    Row("Dify", "draws a JPEG with gpt-image-2", DIFY_2, b64("JPEG"),
        prompt(model="gpt-image-2", n=1, quality="medium", output_format="jpeg", output_compression=80),
        headers=OPENAI_PYTHON),
    Row("Dify", "shows an error as the package tells it", DIFY_2, sentence(400, "n must be", "got 11"),
        prompt(model="gpt-image-2", n=11), headers=OPENAI_PYTHON),
    Row("Dify", "draws with the tool DALL-E 3", DIFY_DALLE, b64(),
        prompt(model="dall-e-3", size="1792x1024", n=1, style="vivid", quality="standard",
               response_format="b64_json"), headers=OPENAI_PYTHON),
    Row("Dify", "draws, its base URL with /v1, to which it adds another", DIFY,
        sentence(404, "did you mean /v1/images/generations"), prompt(model="gpt-image-1", n=1),
        path="/v1/v1/images/generations", headers=OPENAI_PYTHON),
)  # fmt: skip
