"""Routes that other servers have and this one has not: what to ask for instead."""

from __future__ import annotations

_VARIED = "variations are drawn over a picture from a prompt: POST /v1/images/edits, with a strength of about 0.6"
_CHAT = "this server draws: POST /v1/images/generations or /v1/chat/completions"
_COMFYUI = "this is no ComfyUI: choose OpenAI's API in the client, with a base URL that ends in /v1, or AUTOMATIC1111's"
_OLLAMA = "this is no Ollama: choose OpenAI's API in the client, with a base URL that ends in /v1"
_AZURE = "choose OpenAI in the client, not Azure, with a base URL that ends in /v1"
_FLUX = "choose OpenAI's API in the client, not Black Forest Labs', with a base URL that ends in /v1"
_A1111 = (
    "of AUTOMATIC1111's API this server has what draws, /sdapi/v1/txt2img and /sdapi/v1/img2img, and what describes it"
)
_UPSCALED = "nothing is upscaled or restored here: ask /sdapi/v1/txt2img for the size you want"
_UNTRAINED = "nothing is trained here"

_LORAS = "each request chooses its LoRAs: POST /v1/loras loads one, and loras of POST /v1/images/generations names it"
_MERGED = (
    "LoRAs are not merged while the server runs: " + _LORAS + "; --merge-lora of krea2 serve puts one into all images"
)
_GENERATE = "this server draws: POST /v1/images/generations"
_BASE = "it is the base URL of OpenAI's clients, which add paths such as /images/generations to it themselves"
_DOCS = "what there is is described at /docs, and in /openapi.json"

# By the beginning of their paths, which no route of ours has.
_INSTEAD = {
    "/swagger": _DOCS,
    "/redoc": _DOCS,
    "/v1/images/variation": _VARIED,
    "/v1/responses": _CHAT,
    "/v1/completions": _CHAT,
    "/v1/embeddings": _CHAT,
    "/v1/messages": _CHAT,
    "/v1/audio/": _CHAT,
    "/v1/videos": _CHAT,
    "/v1/moderations": _CHAT,
    "/v1/files": _CHAT,
    "/v1/batches": _CHAT,
    "/v1/uploads": _CHAT,
    "/v1/fine_tuning": _CHAT,
    "/v1/vector_stores": _CHAT,
    "/v1/assistants": _CHAT,
    "/v1/threads": _CHAT,
    "/v1/realtime": _CHAT,
    "/v1/flux": _FLUX,
    "/v1/get_result": _FLUX,
    "/v1/set_lora": _LORAS,
    "/v1/merge_lora_weights": _MERGED,
    "/v1/unmerge_lora_weights": _MERGED,
    "/v1/rerank": _CHAT,
    "/generate": _GENERATE,
    "/vertex_generate": _GENERATE,
    "/invocations": _GENERATE,
    "/openai/deployments/": _AZURE,
    "/sdapi/v1/extra-": _UPSCALED,
    "/sdapi/v1/interrogate": "this server draws pictures, and describes none",
    "/sdapi/v1/png-info": "no pictures are read here: what made one of this server's is in its file, as parameters",
    "/sdapi/v1/skip": "no single image can be skipped: /sdapi/v1/interrupt ends whole requests",
    "/sdapi/v1/unload-checkpoint": "the model stays loaded while the server runs: stop it to have its memory",
    "/sdapi/v1/create/": _UNTRAINED,
    "/sdapi/v1/train/": _UNTRAINED,
    "/sdapi/v1/server-": "clients cannot stop this server: whoever has started it can",
    "/sdapi/interpause/": _A1111,
    "/controlnet/": _A1111,
    "/prompt": _COMFYUI,
    "/object_info": _COMFYUI,
    "/system_stats": _COMFYUI,
    "/history": _COMFYUI,
    "/api/tags": _OLLAMA,
    "/api/chat": _OLLAMA,
    "/api/generate": _OLLAMA,
    "/api/version": _OLLAMA,
}


def instead_of(path: str) -> str | None:
    """Say what to do instead of asking for a path that only other servers have; None if it is not known as theirs."""
    path = "/" + path.strip("/")
    if path == "/v1":
        return _BASE
    return next((told for start, told in _INSTEAD.items() if path.startswith(start)), None)
