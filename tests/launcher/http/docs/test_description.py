"""The OpenAPI description has every route, and this server's limits, defaults, keys and address."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import BaseModel, Field

from engine.config.engine_config import EngineConfig
from engine.config.model_config import ModelConfig
from launcher.http.answers.schemas import means
from launcher.http.docs import description
from launcher.http.docs.fields import Schemas
from launcher.messages.limits import Limits
from tests.launcher.http.docs.described import Schema, describe, get, routes

LIMITS = Limits(max_side=256, max_steps=8, max_guidance=2.5)


@pytest.fixture(scope="module")
def openapi() -> Schema:
    return describe(limits=LIMITS)


def test_the_description_has_the_limits_and_defaults_of_this_server(openapi: Schema) -> None:
    properties = openapi["components"]["schemas"]["ImageRequest"]["properties"]
    settings = get("/v1/settings", limits=LIMITS).json()
    for name, low, high, default in (
        ("width", 64, 256, settings["defaults"]["width"]),
        ("num_inference_steps", 1, 8, settings["defaults"]["steps"]),
        ("guidance", 0, 2.5, settings["defaults"]["guidance"]),
        ("n", 1, 10, 1),
        ("priority", -100, 100, 0),
    ):
        number = next(kind for kind in properties[name]["anyOf"] if kind["type"] in ("integer", "number"))
        assert (number["minimum"], number["maximum"]) == (low, high), name
        assert properties[name]["description"].endswith(f"Default: {default:g}."), name
    assert f"a multiple of {settings['size_multiple']}" in properties["width"]["description"]
    assert f"at most {LIMITS.max_pixels} pixels" in properties["size"]["description"]
    assert f"At most {LIMITS.max_prompt_bytes} bytes" in properties["prompt"]["description"]
    assert properties["loras"]["anyOf"][0]["maxItems"] == LIMITS.max_request_loras
    for body in ("LoadLoraBody", "LoraChoiceBody"):
        strength = openapi["components"]["schemas"][body]["properties"]["strength"]
        assert strength["anyOf"][0]["maximum"] == settings["max_lora_strength"]
        assert description.MEANS not in strength
    assert settings["good_sides"] == [96, 256]


def test_every_route_says_what_it_does_what_it_takes_and_what_it_answers(openapi: Schema) -> None:
    for method, path, operation in routes(openapi):
        where = f"{method} {path}"
        assert operation["tags"], where
        assert re.match("[A-Z].*[.]", operation["description"], re.DOTALL), where
        for parameter in operation.get("parameters", ()):
            assert re.fullmatch("[A-Z].*[.]", parameter["description"]), (where, parameter["name"])
        contents = [each for status, each in operation["responses"].items() if status < "300"]
        assert contents, where
        assert all(each["content"] for each in contents), where
        if "requestBody" in operation:
            assert {"400", "413", "415"} <= set(operation["responses"]), where
    assert {tag["name"] for tag in openapi["tags"]} == {
        tag for _, _, operation in routes(openapi) for tag in operation["tags"]
    }


def test_every_field_is_explained_and_every_optional_one_of_a_body_has_its_default(openapi: Schema) -> None:
    schemas = Schemas(openapi)
    for method, path, operation in routes(openapi):
        for field in schemas.fields(_sent(operation)):
            where = f"{field.name} of {method} {path}"
            assert re.fullmatch("[A-Z].*[.]", field.meaning, re.DOTALL), where
            assert field.needed or field.default or "gnored" in field.meaning, f"{where} has no default"
        for field in schemas.fields(_answered(operation)):
            constant = re.fullmatch("[a-z0-9.-]+", field.allowed)
            assert constant or re.fullmatch("[A-Z].*[.]", field.meaning, re.DOTALL), f"{field.name} of {method} {path}"


def test_examples_follow_the_schemas_that_they_are_of(openapi: Schema) -> None:
    import jsonschema

    schemas = Schemas(openapi)
    for method, path, operation in routes(openapi):
        for schema in (_sent(operation), _answered(operation)):
            whole = {**schema, "components": openapi["components"]}
            jsonschema.validate(schemas.example(schema), whole), (method, path)
        content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
        for example in content.get("examples", {}).values():
            jsonschema.validate(example["value"], {**content["schema"], "components": openapi["components"]})


def test_keys_and_the_public_address_are_in_the_description(openapi: Schema) -> None:
    assert "securitySchemes" not in openapi["components"]
    openapi = describe(api_keys=("secret",), public_url="https://draw.example/krea2/")
    assert openapi["servers"] == [{"url": "https://draw.example/krea2"}]
    schemes = openapi["components"]["securitySchemes"]
    for _, path, operation in routes(openapi):
        named = [name for each in operation["security"] for name in each]
        assert set(named) <= set(schemes)
        wants = path.startswith(("/v1/", "/sdapi/")) and "/files/" not in path
        if path == "/metrics" or wants:
            assert "bearer" in named, path
            assert "401" in operation["responses"], path
        if path in ("/health", "/ready"):
            assert not named


def test_what_an_error_is_stands_in_one_place(openapi: Schema) -> None:
    assert list(openapi["components"]["schemas"]["Error"]["properties"]) == ["error"]
    for method, path, operation in routes(openapi):
        assert operation["security"] == [], (method, path)  # which says that no key is needed
        for status, response in operation["responses"].items():
            if status >= "400":
                schema = response["content"]["application/json"]["schema"]
                name = "Automatic1111Error" if path.startswith("/sdapi/") else "Error"
                assert schema == {"$ref": f"#/components/schemas/{name}"}, (method, path, status)


class _Batch(BaseModel):
    cfg_scale: float | None = Field(None, description="How strongly.", json_schema_extra=means("guidance"))
    pictures: int = Field(1, description="How many.", json_schema_extra=means("num_images"))
    steps: int | str = Field(20, description="Steps. Default: 20.")


def test_a_field_of_another_name_has_the_limits_of_the_parameter_that_it_means(demo: ModelConfig) -> None:
    schema = _Batch.model_json_schema()
    openapi = {
        "components": {"schemas": {"Batch": schema}},
        "paths": {"/x": {"post": {
            "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Batch"}}}}}
        }},
    }  # fmt: skip
    description.describe_limits(openapi, demo, LIMITS)
    cfg_scale, pictures, steps = schema["properties"].values()
    assert (cfg_scale["anyOf"][0]["maximum"], cfg_scale["description"]) == (2.5, "How strongly. Default: 0.")
    assert (pictures["minimum"], pictures["maximum"], pictures["description"]) == (1, 10, "How many.")
    assert (steps["anyOf"][0]["maximum"], steps["description"]) == (8, "Steps. Default: 20.")
    assert "x-means" not in str(schema)


def _sent(operation: Schema) -> Schema:
    return operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})


def _answered(operation: Schema) -> Any:
    return operation["responses"].get("200", {}).get("content", {}).get("application/json", {}).get("schema", {})


@pytest.mark.parametrize("image_input", [True, False])
def test_the_settings_say_whether_pictures_go_in_and_how_large_they_may_be(image_input: bool) -> None:
    engine, limits = EngineConfig(image_input=image_input), Limits(max_image_bytes=5000, max_image_pixels=700)
    settings = get("/v1/settings", engine=engine, limits=limits).json()
    assert settings["image_input"] is image_input
    assert (settings["limits"]["max_image_bytes"], settings["limits"]["max_image_pixels"]) == (5000, 700)
