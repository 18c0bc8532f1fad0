"""What a JSON schema says, for people: its fields in a table, and an example of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

Schema = Mapping[str, Any]
_DEEPEST = 5  # objects within objects
_OF_TYPE = {"string": "…", "integer": 0, "number": 0.0, "boolean": False, "null": None}
_NAMES = {"string": "text", "boolean": "true or false", "null": "null"}


class Field(NamedTuple):
    """A field of a body or an answer; one within another is named as `data[].seed`."""

    name: str
    allowed: str
    meaning: str
    default: str
    needed: bool


class Schemas:
    """The schemas of an OpenAPI description, by which others may be named."""

    def __init__(self, openapi: Schema) -> None:
        self._schemas: Schema = openapi.get("components", {}).get("schemas", {})

    def resolve(self, schema: Schema) -> Schema:
        """The schema itself, if it is a reference to one."""
        while "$ref" in schema:
            schema = self._schemas[schema["$ref"].rpartition("/")[2]]
        return schema

    def fields(self, schema: Schema, within: str = "", depth: int = 0) -> Iterator[Field]:
        """Tell the fields of an object, each before those within it."""
        for kind in self._kinds(schema):
            if kind.get("type") == "array":
                if depth < _DEEPEST:
                    yield from self.fields(kind.get("items", {}), f"{within}[]", depth + 1)
                continue
            dot = "." if within else ""
            for name, field in kind.get("properties", {}).items():
                path = f"{within}{dot}{name}"
                meaning, default = _split_default(self.resolve(field))
                yield Field(path, self.allowed(field), meaning, default, name in kind.get("required", ()))
                if depth < _DEEPEST:
                    yield from self.fields(field, path, depth + 1)

    def allowed(self, schema: Schema) -> str:
        """Say which values fit a schema: its type, and its limits."""
        kinds = [kind for kind in self._kinds(schema) if kind.get("type") != "null"]
        return " or ".join(dict.fromkeys(map(self._allowed, kinds))) or "null"

    def example(self, schema: Schema) -> Any:
        """Make a value that fits a schema, of the examples that it has."""
        schema = self.resolve(schema)
        if "examples" in schema or "example" in schema:
            return schema["examples"][0] if "examples" in schema else schema["example"]
        kind = next(self._kinds(schema), schema)
        if kind is not schema and "examples" in kind:
            return kind["examples"][0]
        if "const" in kind or "enum" in kind:
            return kind["const"] if "const" in kind else kind["enum"][0]
        if kind.get("type") == "array":
            return [self.example(kind["items"])] if "items" in kind else []
        if kind.get("type") == "object":
            needed = kind.get("required", ())
            fields = kind.get("properties", {}).items()
            return {name: self.example(field) for name, field in fields if name in needed or "examples" in field}
        return _OF_TYPE.get(kind.get("type", "null"))

    def _kinds(self, schema: Schema) -> Iterator[Schema]:
        schema = self.resolve(schema)
        choices = schema.get("anyOf", schema.get("oneOf"))
        if choices is None:
            yield schema
        else:
            for choice in choices:
                yield from self._kinds(choice)

    def _allowed(self, kind: Schema) -> str:
        if "const" in kind or "enum" in kind:
            return ", ".join(_said(value) for value in kind.get("enum", [kind.get("const")]))
        if kind.get("type") == "array":
            most = f", at most {kind['maxItems']}" if "maxItems" in kind else ""
            return f"list of {self.allowed(kind['items'])}{most}" if "items" in kind else "list"
        if kind.get("contentEncoding") == "base64":
            return "base64"
        named = _NAMES.get(kind.get("type", "anything"), kind.get("type", "anything"))
        return f"{named}{_range(kind)}"


def _range(kind: Schema) -> str:
    least, most = kind.get("minimum"), kind.get("maximum")
    if least is not None and most is not None:
        return f", {least:.16g} to {most:.16g}"
    if "exclusiveMinimum" in kind:
        up_to = "" if most is None else f" and at most {most:.16g}"
        return f", above {kind['exclusiveMinimum']:.16g}{up_to}"
    if least is not None or most is not None:
        return f", at least {least:.16g}" if most is None else f", at most {most:.16g}"
    return ""


def _split_default(field: Schema) -> tuple[str, str]:
    """The meaning of a field, and its default: the end of its description that begins with `Default:`, or the schema's
    own."""
    text = str(field.get("description", ""))
    meaning, found, default = text.rpartition("Default: ")
    if found:
        return meaning.strip(), default.removesuffix(".")
    own = field.get("default")
    return text, "" if own is None else _said(own)


def _said(value: object) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
