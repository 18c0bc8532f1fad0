"""The body of a chat completion: which of it is the request for images, and how these are to be answered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from engine.errors import ArgumentError
from launcher.http.answers.schemas import means
from launcher.http.answers.wording import explain_invalid
from launcher.http.apis.chat.messages import ChatMessage, prompt_of
from launcher.http.apis.openai_body import ImageRequest

Form = Literal["markdown", "images", "parts"]

_IGNORED = "Ignored: it is about text."
# Sampling and the like, as vLLM, SGLang, Ollama, OpenRouter and front ends send them.
_OF_OTHER_SERVERS = frozenset((
    "add_generation_prompt", "allowed_token_ids", "bad_words", "cache_prompt", "cache_salt", "chat_id",
    "chat_template", "chat_template_kwargs", "continue_final_message", "documents", "do_sample",
    "dynatemp_exponent", "dynatemp_range", "echo", "enable_thinking", "format", "guided_choice", "guided_grammar",
    "guided_json", "guided_regex", "ignore_eos", "include_reasoning", "include_stop_str_in_output", "keep_alive",
    "length_penalty", "logits_processors", "max_new_tokens", "min_p", "min_tokens", "mirostat", "mirostat_eta",
    "mirostat_tau", "mm_processor_kwargs", "models", "num_batch", "num_ctx", "num_gpu", "num_keep", "num_predict",
    "num_thread", "options", "penalize_nl", "plugins", "prompt_logprobs", "provider", "reasoning", "regex",
    "repeat_last_n", "repeat_penalty", "repetition_penalty", "return_token_ids", "return_tokens_as_token_ids",
    "route", "sampler_seed", "separate_reasoning", "session_id", "skip_special_tokens",
    "spaces_between_special_tokens", "stop_token_ids", "stream_reasoning", "structured_outputs", "tfs_z", "think",
    "thinking", "top_a", "top_k", "transforms", "truncate_prompt_tokens", "typical_p", "use_beam_search",
    "use_mlock", "use_mmap", "usage",
))  # fmt: skip
_NO_PREVIEWS = "is not possible in a chat, which can take nothing back: POST /v1/images/generations streams previews"
_NOT_IN_CHAT = {
    "partial_images": _NO_PREVIEWS,
    "preview_every": _NO_PREVIEWS,
    "image_config": "is OpenRouter's: give size, as 1344x768, or width and height",
}


def _describe(schema: dict[str, Any]) -> None:
    """Add the parameters of the images API to the OpenAPI description of a body."""
    images = ImageRequest.model_json_schema(ref_template="#/components/schemas/{model}")["properties"]
    for name, field in images.items():
        if name not in ("prompt", *_NOT_IN_CHAT):
            schema["properties"].setdefault(name, field)


class ChatRequest(BaseModel, extra="allow", strict=True, allow_inf_nan=False, json_schema_extra=_describe):
    """The body of `POST /v1/chat/completions`: what OpenAI defines, and every parameter of the images API, beside the
    rest or in an object extra_body, as vLLM-Omni has them. Sampling parameters of other servers are ignored.\f
    A flat record of 40, since OpenAI's body is one. FastAPI describes it up to the form feed.
    """

    messages: list[ChatMessage] = Field(
        description="The text of the last one of role user is the prompt, and an image in it, as a data URL, is drawn "
        "over. Others do not matter: the model remembers nothing and takes no instructions."
    )
    model: str | None = Field(None, description="One of the names that GET /v1/models lists. Default: the first.")
    n: Annotated[int, Field(ge=1)] | None = Field(
        None, description="How many choices to answer, each with images of its own. Default: 1."
    )
    num_outputs_per_prompt: Annotated[int, Field(ge=1)] | None = Field(
        None, description="How many images each choice has. Default: 1.", json_schema_extra=means("num_images")
    )
    modalities: list[str] | None = Field(
        None, description="What to answer: must have image, if it is given, and answers images then. Default: null."
    )
    answer_as: Form | None = Field(
        None,
        description="Where images are in the answer: in the text, as markdown; in a list images of the message, as "
        "OpenRouter has them; or as parts of the content, as vLLM-Omni has them. Default: parts if there is an "
        "extra_body, images if there are modalities, else markdown.",
    )
    response_format: Literal["b64_json", "url"] | dict[str, Any] | None = Field(
        None,
        description="Whether images are data URLs, b64_json, or links that are held for an hour at most, url. OpenAI's "
        "own objects must be of type text. Default: b64_json.",
    )
    output_format: Literal["png", "jpeg", "webp"] | None = Field(
        None, description="The kind of the image files. Default: png, but webp for data URLs in markdown."
    )
    stream: bool | None = Field(None, description="Whether to answer with server-sent events. Default: false.")
    stream_options: dict[str, Any] | None = Field(
        None, description="With include_usage true, a stream's last event counts tokens. Default: null."
    )
    progress: bool | None = Field(
        None,
        description="Whether a stream tells steps, as reasoning_content, which front ends show as thinking. "
        "Default: false.",
    )
    extra_body: dict[str, Any] | None = Field(None, description="Parameters, as if they were beside it. Default: null.")
    tools: Any = Field(None, description="Ignored: no tool is ever called.")
    tool_choice: Any = Field(None, description="Ignored, but that required and named tools are refused.")
    functions: Any = Field(None, description="Ignored: no function is ever called.")
    function_call: Any = Field(None, description="Ignored, but that named functions are refused.")
    parallel_tool_calls: Any = Field(None, description="Ignored: no tool is ever called.")
    audio: Any = Field(None, description=_IGNORED)
    frequency_penalty: Any = Field(None, description=_IGNORED)
    logit_bias: Any = Field(None, description=_IGNORED)
    logprobs: Any = Field(None, description=_IGNORED)
    max_completion_tokens: Any = Field(None, description=_IGNORED)
    max_tokens: Any = Field(None, description=_IGNORED)
    metadata: Any = Field(None, description="Ignored: nothing is stored.")
    prediction: Any = Field(None, description=_IGNORED)
    presence_penalty: Any = Field(None, description=_IGNORED)
    prompt_cache_key: Any = Field(None, description=_IGNORED)
    prompt_cache_options: Any = Field(None, description=_IGNORED)
    prompt_cache_retention: Any = Field(None, description=_IGNORED)
    reasoning_effort: Any = Field(None, description=_IGNORED)
    service_tier: Any = Field(None, description="Ignored: priority decides.")
    stop: Any = Field(None, description=_IGNORED)
    store: Any = Field(None, description="Ignored: nothing is stored.")
    temperature: Any = Field(None, description=_IGNORED)
    top_logprobs: Any = Field(None, description=_IGNORED)
    top_p: Any = Field(None, description=_IGNORED)
    verbosity: Any = Field(None, description=_IGNORED)
    web_search_options: Any = Field(None, description=_IGNORED)

    @model_validator(mode="before")
    @classmethod
    def _unpack(cls, given: object) -> object:
        """Put what vLLM-Omni's clients have in extra_body beside the rest."""
        if isinstance(given, dict) and isinstance(extra := given.get("extra_body"), dict):
            return {**given, **extra, "extra_body": extra}
        return given

    @property
    def form(self) -> Form:
        """Where the images are to be."""
        if self.answer_as is not None:
            return self.answer_as
        return "parts" if self.extra_body is not None else "images" if self.modalities else "markdown"

    @property
    def links(self) -> bool:
        """Whether images are answered as links."""
        return self.response_format == "url"

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends by counting tokens."""
        return bool(self.stream_options and self.stream_options.get("include_usage"))


def to_image_request(body: ChatRequest) -> ImageRequest:
    """Make a request for images of a chat. Raises `ArgumentError` for what a model that draws cannot do."""
    _check_wishes(body)
    sent = {name: value for name, value in (body.model_extra or {}).items() if name not in _OF_OTHER_SERVERS}
    if "prompt" in sent:
        raise ArgumentError("unknown parameter 'prompt': a chat's prompt is its last message", parameter="prompt")
    if body.progress and not body.stream:
        raise ArgumentError("progress needs stream to be true", parameter="progress")
    for name, told in _NOT_IN_CHAT.items():
        if sent.get(name):
            raise ArgumentError(f"{name} {told}", parameter=name)
    if body.output_format is not None:
        sent["output_format"] = body.output_format
    elif body.form == "markdown" and not body.links:
        sent["output_format"] = "webp"  # front ends send the whole chat again each time, and the images with it
    sent["prompt"], picture = prompt_of(body.messages)
    if picture is not None:
        if sent.get("image"):
            raise ArgumentError("image contradicts the last message, which has another", parameter="image")
        sent["image"] = picture
    try:
        return ImageRequest.model_validate(sent)
    except ValidationError as error:
        known = {*ImageRequest.model_fields, *ChatRequest.model_fields} - {"prompt"}
        raise explain_invalid(error.errors(), sorted(known)) from None


def _check_wishes(body: ChatRequest) -> None:
    if body.modalities is not None and "image" not in body.modalities:
        raise ArgumentError(
            f'this model answers with images: modalities must have "image", got {_short(body.modalities)}',
            parameter="modalities",
        )
    if isinstance(body.response_format, dict) and body.response_format.get("type", "text") != "text":
        raise ArgumentError(
            "this model answers with images and writes no JSON: response_format must be of type text, or url or "
            f"b64_json, got {_short(body.response_format.get('type'))}",
            parameter="response_format",
        )
    for name in ("tool_choice", "function_call"):
        choice = getattr(body, name)
        if choice == "required" or isinstance(choice, Mapping):
            raise ArgumentError(f"this model answers with images and calls no tools: leave {name} out", parameter=name)


def _short(value: object) -> str:
    return repr(value)[:60]
