"""Requests of libraries, desktop programs and home servers to OpenAI's images API."""

from __future__ import annotations

import base64

from tests.launcher.http.clients.tables.rows import (
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

LOBE = "lobehub/lobe-chat: packages/model-runtime/src/core/openaiCompatibleFactory/createImage.ts"
CHERRY = "CherryHQ/cherry-studio@146393a: src/renderer/src/aiCore/legacy/clients/openai/OpenAIBaseClient.ts"
VERCEL = "vercel/ai@1091292: packages/openai-compatible/src/image/openai-compatible-image-model.ts"
LANGCHAIN = "langchain-ai/langchain-community: libs/community/langchain_community/utilities/dalle_image_generator.py"
LANGCHAIN_JS = "langchain-ai/langchainjs: libs/providers/langchain-openai/src/tools/dalle.ts"
SEMANTIC_KERNEL = (
    "microsoft/semantic-kernel@0071eda: dotnet/src/Connectors/Connectors.OpenAI/Core/ClientCore.TextToImage.cs"
)
SPRING = "spring-projects/spring-ai@011dfcb: models/spring-ai-openai/…/api/OpenAiImageApi.java"
GO_OPENAI = "sashabaranov/go-openai@004bcf0: image.go"
HOME_ASSISTANT = "home-assistant/core@004090e: homeassistant/components/openai_conversation/__init__.py"
LITELLM = "litellm 1.110: litellm/llms/openai/openai.py"
TOGETHER = "SillyTavern/SillyTavern@02903fd: src/endpoints/stable-diffusion.js"
SGLANG = "sgl-project/sglang: python/sglang/multimodal_gen/runtime/entrypoints/openai/protocol.py"
VLLM_OMNI = "vllm-project/vllm-omni@be81443: vllm_omni/entrypoints/openai/protocol/images.py"
CURL = "curl's manual"

_BEARER = {"Authorization": f"Bearer {KEY}"}
_FETCH = {"Accept": "*/*", "User-Agent": "node", "Accept-Language": "*", "Sec-Fetch-Mode": "cors"}
_CURL = {"Accept": "*/*", "User-Agent": "curl/8.5.0"}
_FILE = ("a.png", drawn(), "image/png")
_VARY, _VARY_TYPE = form(("image", _FILE), n="1", size="256x256", response_format="url")
_EDIT, _EDIT_TYPE = form(
    ("image[]", _FILE), ("mask", ("m.png", drawn(mode="L", colour=255), "image/png")), model="krea-2-turbo",
    prompt=PROMPT, n="1", quality="auto", user="a@b.c", drop_params="true",
)  # fmt: skip


def _vercel(got: Got) -> None:
    b64(count=2)(got)
    assert all(isinstance(image["b64_json"], str) for image in got.json["data"])


def _semantic_kernel(got: Got) -> None:
    links()(got)
    assert got.json["data"][0]["url"].startswith("http")


ROWS = (
    Row("LobeChat", "draws", LOBE, b64(), prompt(model="krea-2-turbo", n=1, size="1024x1024", seed=7),
        headers=OPENAI_NODE),
    Row("LobeChat", "draws with a model's own parameters", LOBE, b64(size=(256, 192)),
        prompt(model="krea-2-turbo", n=1, width=256, height=192, steps=4, seed=2147483647), headers=OPENAI_NODE),
    Row("LobeChat", "draws with dall-e-3", LOBE, b64(),
        prompt(model="dall-e-3", n=1, response_format="b64_json", size="1792x1024", quality="hd"),
        headers=OPENAI_NODE),
    Row("Cherry Studio", "draws on its page for images, served as dall-e-3", CHERRY, links(count=2),
        prompt(model="dall-e-3", negative_prompt="", image_size="1024x1024", batch_size=2, seed=3,
               num_inference_steps=4, guidance_scale=4.5, prompt_enhancement=False), headers=OPENAI_NODE),
    Row("Cherry Studio", "lists models", CHERRY, models("gpt-image-1"), method="GET", path="/v1/models",
        headers=OPENAI_NODE),
    Row("Vercel AI SDK", "draws", VERCEL, _vercel,
        prompt(model="krea-2-turbo", n=2, size="1024x1024", response_format="b64_json"), headers=_FETCH | _BEARER),
    Row("Vercel AI SDK", "draws with options of a provider", VERCEL, b64(),
        prompt(model="krea-2-turbo", n=1, seed=5, steps=4, response_format="b64_json"), headers=_FETCH | _BEARER),
    Row("Vercel AI SDK", "shows an error's message", VERCEL, sentence(400, "unknown parameter 'colour'"),
        prompt(model="krea-2-turbo", n=1, colour="red", response_format="b64_json"), headers=_FETCH | _BEARER),
    Row("LangChain", "draws with DallEAPIWrapper, and gives the link", LANGCHAIN, links(),
        prompt(n=1, size="1024x1024", model="dall-e-2", quality="standard"), headers=OPENAI_PYTHON),
    Row("LangChain", "draws in JavaScript", LANGCHAIN_JS, links(),
        prompt(model="dall-e-3", n=1, size="1024x1024", response_format="url", style="vivid", quality="standard",
               user="u1"), headers=OPENAI_NODE),
    Row("Semantic Kernel", "draws", SEMANTIC_KERNEL, _semantic_kernel,
        prompt(model="dall-e-2", size="1024x1024", response_format="url"),
        headers={"Accept": "application/json", "User-Agent": "Semantic-Kernel azsdk-net-OpenAI/2.2.0"} | _BEARER),
    Row("Spring AI", "draws", SPRING, links(), prompt(model="dall-e-3"),
        headers={"Accept": "*/*", "User-Agent": "Java-http-client/21.0.2"} | _BEARER),
    Row("Spring AI", "draws as base64", SPRING, b64(),
        prompt(model="dall-e-3", n=1, quality="hd", response_format="b64_json", size="1024x1024", style="natural",
               user="u1"), headers={"Accept": "*/*", "User-Agent": "Java-http-client/21.0.2"} | _BEARER),
    Row("go-openai", "draws", GO_OPENAI, links(count=1), prompt(n=1, size="256x256", response_format="url"),
        headers={"Accept": "application/json; charset=utf-8", "User-Agent": "Go-http-client/1.1",
                 "Content-Type": "application/json; charset=utf-8", "OpenAI-Organization": ""} | _BEARER),
    Row("go-openai", "draws variations of an image", GO_OPENAI, sentence(404, "POST /v1/images/edits"), _VARY,
        path="/v1/images/variations",
        headers={"User-Agent": "Go-http-client/1.1", "Content-Type": _VARY_TYPE} | _BEARER),
    Row("Home Assistant", "draws with its action", HOME_ASSISTANT, links(),
        prompt(model="dall-e-3", size="1024x1792", quality="hd", style="natural", response_format="url", n=1),
        headers=OPENAI_PYTHON),
    Row("LiteLLM", "draws for its proxy", LITELLM, b64(),
        prompt(model="krea-2-turbo", n=1, size="1024x1024", user="a@b.c", quality="auto"), headers=OPENAI_PYTHON),
    Row("LiteLLM", "asks for its proxy whether the model is well", LITELLM, b64(), prompt(model="krea-2-turbo"),
        headers=OPENAI_PYTHON),
    Row("LiteLLM", "edits with a mask for its proxy", LITELLM, b64(size=(192, 128)), _EDIT, path="/v1/images/edits",
        headers={"User-Agent": "litellm/1.110.2", "Content-Type": _EDIT_TYPE} | _BEARER),
    Row("vLLM-Omni's users", "edit by JSON, as its servers take it", VLLM_OMNI, b64(size=(192, 128)),
        prompt(model="krea-2-turbo", image=[f"data:image/png;base64,{base64.b64encode(drawn()).decode()}"],
               strength=0.8, seed=42, num_inference_steps=4), path="/v1/images/edits", headers=OPENAI_PYTHON),
    Row("SillyTavern", "draws as from Together", TOGETHER, b64(),
        prompt(negative_prompt="", height=128, width=192, model="krea-2-turbo", steps=4, n=1, seed=9_999_999),
        headers=_FETCH | _BEARER),
    Row("SGLang's users", "draw", SGLANG, b64("JPEG", size=(192, 128)),
        prompt(model="krea-2-turbo", n=1, size="192x128", response_format="b64_json", output_format="jpeg",
               output_quality="high", num_inference_steps=4, guidance_scale=1.0, seed=42, negative_prompt=""),
        headers=OPENAI_PYTHON),
    Row("SGLang's users", "draw with its step caching and gating of guidance", SGLANG, b64(size=(192, 128)),
        prompt(model="krea-2-turbo", n=1, size="192x128", num_inference_steps=4, enable_cache_dit=True,
               cache_dit_params={"max_warmup_steps": 1, "enable_taylorseer": True}, cfg_gate_step=0.5),
        headers=OPENAI_PYTHON),
    Row("SGLang's users", "draw with TeaCache", SGLANG, warned(b64(), "not TeaCache"),
        prompt(model="krea-2-turbo", n=1, size="192x128", num_inference_steps=4, enable_teacache=True),
        headers=OPENAI_PYTHON),
    Row("vLLM-Omni's users", "draw", VLLM_OMNI, b64(),
        prompt(model="krea-2-turbo", n=1, size="128x128", response_format="b64_json", num_inference_steps=4,
               true_cfg_scale=1.0, seed=42, negative_prompt="", vae_use_tiling=False), headers=OPENAI_PYTHON),
    Row("vLLM-Omni's users", "draw with guidance", VLLM_OMNI, b64(),
        prompt(model="krea-2-turbo", n=1, size="128x128", true_cfg_scale=4.0, seed=42), headers=OPENAI_PYTHON),
    Row("curl", "sends a form, for want of -H", CURL, sentence(415, "Content-Type", "application/json"),
        b'{"prompt": "a red circle"}',
        headers=_CURL | {"Content-Type": "application/x-www-form-urlencoded"}),
    Row("curl", "asks for two images", CURL, b64(count=2), prompt(n=2), headers=_CURL),
    Row("curl", "sends no Content-Type", CURL, b64(), prompt(), headers=_CURL | {"Content-Type": ""}),
)  # fmt: skip
