"""The OpenAPI description: what FastAPI finds in the routes, and what it cannot know of this server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import msgspec

from engine.config.model_config import ModelConfig
from launcher.http.answers.schemas import MEANS, STATUS_MEANS
from launcher.messages.client_messages import Generate
from launcher.messages.limits import Limits
from launcher.messages.parameter_names import ALIASES, RANDOM_SEED
from launcher.requests.check import BEST_COMPRESSION, MAX_LORA_STRENGTH, MAX_MU, MAX_PRIORITY, MAX_TIMEOUT_S
from launcher.requests.schedule.saved_steps import CACHE_DEFAULTS, CACHE_RANGES

Schema = dict[str, Any]
# Each API with its routes, by how their paths begin; the last has all others.
_APIS = (
    ("/v1/images/", "OpenAI's images", "What OpenAI's clients, and those that speak as they do, ask for images."),
    ("/v1/chat/", "Chat completions", "For chat front ends: the last message is the prompt, the answer is a picture."),
    (("/sdapi/", "/internal/"), "AUTOMATIC1111's", "What clients of the Stable Diffusion web UI ask for images."),
    ("/v1/loras", "LoRAs", "Which LoRAs requests may choose; loading and unloading them."),
    (
        ("/get_", "/model_info", "/server_info", "/v1/model_info", "/v1/list_loras", "/health_generate"),
        "SGLang's",
        "What SGLang's routers and tools ask a server about itself.",
    ),
    ("/", "The server", "Its models, settings and state."),
)
_BASIC = "/sdapi/"  # whose clients know a user and a password
_BODY_ERRORS = (400, 408, 413, 415)


def describe(openapi: Schema, model: ModelConfig, limits: Limits, needs_key: frozenset[str]) -> None:
    """Complete the description, in place. needs_key: the paths for which the server wants an API key."""
    if needs_key:
        openapi["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer", "description": "The API key."},
            "basic": {"type": "http", "scheme": "basic", "description": "Any user, with the API key as password."},
        }
    told, schemas = {}, openapi["components"]["schemas"]
    for path, operations in openapi["paths"].items():
        name, about = next((name, about) for prefix, name, about in _APIS if path.startswith(prefix))
        for operation in operations.values():
            told[name] = about
            operation["tags"] = [name]
            keys: list[Schema] = [{"bearer": []}, *([{"basic": []}] if path.startswith(_BASIC) else [])]
            operation["security"] = keys if path in needs_key else []
            _describe_errors(operation, path in needs_key, schemas)
    openapi["tags"] = [{"name": name, "description": told[name]} for _, name, _ in _APIS if name in told]
    describe_limits(openapi, model, limits)


def _describe_errors(operation: Schema, needs_key: bool, schemas: Schema) -> None:
    """Say which statuses an error of the route may have: those it names, and those that its parts bring.

    What an error is gets a name in `schemas`, so that a program made of the description has one type for it, not one
    for each status of each route.
    """
    responses = operation["responses"]
    statuses = {int(status) for status in responses if status.isdigit() and status >= "400"}
    statuses |= set(_BODY_ERRORS) if "requestBody" in operation else set()
    statuses |= {401} if needs_key else set()
    statuses |= {404} if any(each["in"] == "path" for each in operation.get("parameters", ())) else set()
    error = responses.pop("default")
    content = error["content"]["application/json"]
    name = "Error" if list(content["schema"]["properties"]) == ["error"] else "Automatic1111Error"
    schemas[name] = content["schema"]
    error = error | {"content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}}
    for status in sorted(statuses):
        own = responses.pop(str(status), {"description": STATUS_MEANS[status]})
        responses[str(status)] = {**error, **own}
    responses["default"] = error


def describe_limits(openapi: Schema, model: ModelConfig, limits: Limits) -> None:
    """Put this server's limits and defaults into the parameters of bodies."""
    ranges = {
        "num_images": (1, limits.max_images),
        "width": (limits.min_side, limits.max_side),
        "height": (limits.min_side, limits.max_side),
        "seed": (RANDOM_SEED, limits.max_seed),
        "steps": (1, limits.max_steps),
        "guidance": (0, limits.max_guidance),
        "mu": (-MAX_MU, MAX_MU),
        "priority": (-MAX_PRIORITY, MAX_PRIORITY),
        "timeout_s": (0, MAX_TIMEOUT_S),
        "preview_every": (1, limits.max_steps),
        "output_compression": (0, BEST_COMPRESSION),
        "guidance_from": (0, 1),
        "guidance_until": (0, 1),
        "lora_strength": (-MAX_LORA_STRENGTH, MAX_LORA_STRENGTH),
    } | {f"cache_{name}": allowed for name, allowed in CACHE_RANGES.items()}
    area = f"Width times height is at most {limits.max_pixels} pixels."
    text = f"At most {limits.max_prompt_bytes} bytes."
    notes = {"prompt": text, "negative_prompt": text, "size": area, "width": area, "height": area}
    own = {field.name: field.default for field in msgspec.structs.fields(Generate)}
    own |= {f"cache_{name}": default for name, default in asdict(CACHE_DEFAULTS).items()}
    for name, field in _fields_of_bodies(openapi):
        meant = field.pop(MEANS, ALIASES.get(name, name))
        default = getattr(model, f"default_{meant}", own.get(meant))
        said, _, its_default = field.get("description", "").partition("Default: ")
        said = f"{said.strip()} {notes.get(meant, '')}".strip()
        if meant in ranges:
            for kind in field.get("anyOf", [field]):
                if kind.get("type") in ("integer", "number"):
                    kind["minimum"], kind["maximum"] = ranges[meant]
            if not its_default and field.get("default") is None and isinstance(default, (int, float)):
                its_default = f"{default:g}."
        if meant == "sigmas":
            for kind in field.get("anyOf", [field]):
                if kind.get("type") == "array":
                    kind |= {"minItems": 1, "maxItems": limits.max_steps + 1}
        if meant == "loras":
            for kind in field.get("anyOf", [field]):
                if kind.get("type") == "array":
                    names = {"type": "string", "examples": ["ink"]}
                    kind |= {"items": {"anyOf": [names, kind["items"]]}, "maxItems": limits.max_request_loras}
        if its_default:
            said = f"{said} Default: {its_default}".strip()
        if said:
            field["description"] = said


def _fields_of_bodies(openapi: Schema) -> Iterator[tuple[str, Schema]]:
    """All fields of what may be sent, by name: those of a body, and of what lies within it."""
    schemas, seen = openapi["components"]["schemas"], set[str]()

    def walk(schema: Mapping[str, Any]) -> Iterator[tuple[str, Schema]]:
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            if name not in seen:
                seen.add(name)
                yield from walk(schemas[name])
            return
        for choice in schema.get("anyOf", ()):
            yield from walk(choice)
        if isinstance(items := schema.get("items"), Mapping):
            yield from walk(items)
        for name, field in schema.get("properties", {}).items():
            yield name, field
            yield from walk(field)

    for operations in openapi["paths"].values():
        for operation in operations.values():
            for content in operation.get("requestBody", {}).get("content", {}).values():
                yield from walk(content["schema"])
