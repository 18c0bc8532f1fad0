"""The OpenAPI description of the images API, and a page that shows it without loading anything from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import msgspec
from starlette.responses import HTMLResponse

from engine.config.model_config import ModelConfig
from launcher.http.answers.schemas import TEXT
from launcher.http.apis.loras import LoadLoraBody
from launcher.http.apis.openai_body import ImageRequest, LoraChoiceBody
from launcher.messages.client_messages import Generate
from launcher.messages.limits import Limits
from launcher.messages.parameter_names import ALIASES, RANDOM_SEED
from launcher.requests.check import BEST_COMPRESSION, MAX_LORA_STRENGTH, MAX_MU, MAX_PRIORITY, MAX_TIMEOUT_S

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; }
code, pre { font-family: ui-monospace, monospace; font-size: 0.9em; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: 0.25rem 0.75rem 0.25rem 0; border-bottom: 1px solid #8884; }
:root { color-scheme: light dark; }
"""
_POLICY = "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'; frame-ancestors 'none'"


def describe_limits(openapi: Mapping[str, Any], model: ModelConfig, limits: Limits) -> None:
    """Put this server's limits and defaults into the OpenAPI description of the parameters, in place."""
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
    }
    defaults = {field.name: field.default for field in msgspec.structs.fields(Generate)}
    schemas = openapi["components"]["schemas"]
    for body in (LoraChoiceBody, LoadLoraBody):
        field = schemas[body.__name__]["properties"]["strength"]
        field["anyOf"][0] |= {"minimum": -MAX_LORA_STRENGTH, "maximum": MAX_LORA_STRENGTH}
    properties = schemas[ImageRequest.__name__]["properties"]
    loras = properties["loras"]["anyOf"][0]
    loras |= {"items": {"anyOf": [TEXT, loras["items"]]}, "maxItems": limits.max_request_loras}
    for sent, field in properties.items():
        name = ALIASES.get(sent, sent)
        if name in ranges:
            number = next(kind for kind in field["anyOf"] if kind["type"] != "null")
            number["minimum"], number["maximum"] = ranges[name]
            default = getattr(model, f"default_{name}", defaults[name])
            if default is not None:
                field["description"] = f"{field.get('description', '')} Default: {default:g}.".strip()


def describe_page(openapi: Mapping[str, Any]) -> HTMLResponse:
    """Show every path of the OpenAPI description, with the parameters of its body in a table."""
    sections = [
        _section(openapi, method, path, operation)
        for path, operations in openapi["paths"].items()
        for method, operation in operations.items()
    ]
    info = openapi["info"]
    html = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(info["title"])}</title>'
        f'<meta name="viewport" content="width=device-width"><link rel="icon" href="/page/icon.svg">'
        f"<style>{_STYLE}</style></head><body>"
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info['description'])} "
        f'The same for programs: <a href="/openapi.json">openapi.json</a>. For people: <a href="/">the page</a>.</p>'
        f"{''.join(sections)}</body></html>"
    )
    return HTMLResponse(html, headers={"Content-Security-Policy": _POLICY})


def _section(openapi: Mapping[str, Any], method: str, path: str, operation: Mapping[str, Any]) -> str:
    title = f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(operation.get('description', ''))}</p>"
    headers = "".join(
        f"<p>Header <code>{escape(parameter['name'])}</code>: {escape(parameter['description'])}</p>"
        for parameter in operation.get("parameters", ())
        if parameter["in"] == "header"
    )
    body = operation.get("requestBody")
    if body is None:
        return title
    reference = body["content"]["application/json"]["schema"]["$ref"]
    schema = openapi["components"]["schemas"][reference.rpartition("/")[2]]
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code>{' (needed)' if name in schema['required'] else ''}</td>"
        f"<td>{escape(_allowed(field))}</td><td>{escape(field.get('description', ''))}</td></tr>"
        for name, field in schema["properties"].items()
    )
    return f"{title}{headers}<table><tr><th>parameter</th><th>type</th><th></th></tr>{rows}</table>"


def _allowed(field: Mapping[str, Any]) -> str:
    if "anyOf" in field:
        return ", ".join(_allowed(kind) for kind in field["anyOf"] if kind.get("type") != "null")
    if "enum" in field:
        return ", ".join(map(str, field["enum"]))
    if field.get("type") == "array":
        return f"at most {field['maxItems']}: NAME or {{name, strength}}"
    if "minimum" in field:
        return f"{field['type']}, {field['minimum']:.16g} to {field['maximum']:.16g}"
    return str(field.get("type", ""))
