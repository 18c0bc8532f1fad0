"""The page at /docs, as its HTML has it."""

from __future__ import annotations

import re
from collections import Counter

import httpx
import pytest

from launcher.http.answers.errors import STATUS_OF_CODE
from launcher.http.docs.fields import Field, Schemas
from launcher.http.docs.page import write_page
from tests.launcher.http.docs.described import describe, get, routes
from tests.launcher.http.page.fake_server import PAGE


@pytest.fixture(scope="module")
def answer() -> httpx.Response:
    return get("/docs")


def test_the_page_has_every_route_with_all_its_parameters_and_a_form(answer: httpx.Response) -> None:
    openapi = describe()
    schemas, html = Schemas(openapi), answer.text
    for method, path, operation in routes(openapi):
        assert f'data-method="{method.upper()}" data-path="{path[1:]}"' in html
        for content in operation.get("requestBody", {}).get("content", {}).values():
            for field in schemas.fields(content["schema"]):
                assert f"<code>{field.name}</code>" in html
    for code in STATUS_OF_CODE:
        assert f"<code>{code}</code>" in html
    ids = Counter(re.findall(' id="([^"]+)"', html))
    assert set(ids.values()) == {1}
    assert set(re.findall('(?:href="#|for="|aria-labelledby="|aria-describedby=")([^"]+)"', html)) <= set(ids)


def test_the_page_loads_its_own_files_alone_relative_to_where_it_is(answer: httpx.Response) -> None:
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert not re.search("<style|<script>| style=| on[a-z]+=", answer.text)
    loaded = re.findall('(?:href|src)="([^"#][^"]*)"', answer.text)
    assert len(loaded) > 5
    assert all(path.startswith("./") for path in loaded)
    for path in set(loaded) - {"./", "./openapi.json"}:
        assert (PAGE / path.removeprefix("./page/")).is_file(), path


def test_what_is_shown_is_text_and_no_markup() -> None:
    openapi = describe(model_names=('<b>"fox"</b>',), public_url='https://h.example/"<i>')
    html = write_page(openapi, 'https://h.example/"<i>', "./")
    assert "&lt;b&gt;" in html
    assert "<b>" not in html
    assert "<i>" not in html


def test_fields_within_fields_have_their_limits_and_examples() -> None:
    schemas = Schemas({"components": {"schemas": {"Part": {
        "type": "object",
        "required": ["kind"],
        "properties": {
            "kind": {"type": "string", "enum": ["text", "url"], "description": "What it is."},
            "weight": {"anyOf": [{"type": "number", "exclusiveMinimum": 0, "maximum": 2}, {"type": "null"}]},
        },
    }}}})  # fmt: skip
    part = {"$ref": "#/components/schemas/Part"}
    schema = {
        "type": "object",
        "required": ["parts"],
        "properties": {
            "parts": {"anyOf": [{"type": "string"}, {"type": "array", "items": part, "maxItems": 3}]},
            "count": {"type": "integer", "minimum": 1, "description": "How many. Default: 2.", "examples": [5]},
            "loud": {"type": "boolean", "default": True},
        },
    }
    assert list(schemas.fields(schema)) == [
        Field("parts", "text or list of object, at most 3", "", "", True),
        Field("parts[].kind", "text, url", "What it is.", "", True),
        Field("parts[].weight", "number, above 0 and at most 2", "", "", False),
        Field("count", "integer, at least 1", "How many.", "2", False),
        Field("loud", "true or false", "", "true", False),
    ]
    assert schemas.example(schema) == {"parts": "…", "count": 5}
    assert schemas.example({"type": "array", "items": part}) == [{"kind": "text"}]
