"""The page at /docs: every route with its parameters, what it answers, and a form that tries it.

It is whole without a script; `page/scripts/docs/` makes the forms work. All links are relative to where the page is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from itertools import groupby
from typing import Any

from launcher.http.answers.errors import STATUS_OF_CODE
from launcher.http.answers.schemas import STATUS_MEANS
from launcher.http.docs.fields import Field, Schemas
from launcher.http.docs.snippets import Call, Snippet, as_curl, as_python

_STYLES = ("base", "header", "form", "buttons", "docs")
_PLACES = {"path": "in the path", "query": "in the query", "header": "a header"}


def write_page(openapi: Mapping[str, Any], base: str, root: str) -> str:
    """Write the page as HTML. base: what the urls in its snippets begin with, without a slash at the end; root: the
    way from the page to the server's first path, as `./`."""
    schemas, info = Schemas(openapi), openapi["info"]
    routes = [
        _Route(method, path, operation, schemas, base, root)
        for path, operations in openapi["paths"].items()
        for method, operation in operations.items()
    ]
    groups = [(tag, [route for route in routes if tag["name"] in route.tags]) for tag in openapi["tags"]]
    styles = "".join(f'<link rel="stylesheet" href="{root}page/styles/{name}.css">' for name in _STYLES)
    title = f"{escape(info['title'])} {escape(info['version'])}"
    key = _KEY if "securitySchemes" in openapi["components"] else ""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}: HTTP API</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><link rel="icon" href="{root}page/icon.svg">{styles}'
        f'<script type="module" src="{root}page/scripts/docs/docs.js"></script></head>'
        f'<body class="docs" data-root="{root}" data-base="{escape(base)}">'
        f'<a class="skip" href="#routes">To the routes</a><header class="top"><h1>{title}</h1>'
        f'<p class="runs">HTTP API</p><a href="{root}openapi.json">openapi.json</a>'
        f'<a href="{root}">The page</a></header>'
        f'<div class="docs-columns">{_contents(groups)}<main id="routes"><p>{_text(info["description"])}</p>{key}'
        f"{''.join(_group(tag, routes) for tag, routes in groups)}{_errors()}</main></div></body></html>"
    )


_KEY = (
    '<form id="key-form" class="panel field" hidden><label for="key">API key</label>'
    '<input id="key" type="password" autocomplete="off" aria-describedby="key-note">'
    '<p id="key-note" class="note">For the forms on this page. It is kept until this tab is closed.</p></form>'
)


class _Route:
    """One route of the description, and how the page shows it."""

    def __init__(
        self, method: str, path: str, operation: Mapping[str, Any], schemas: Schemas, base: str, root: str
    ) -> None:
        self.method, self.path, self.tags = method.upper(), path, operation["tags"]
        self.id = f"{method}{path}".replace("/", "-").replace("{", "").replace("}", "")
        self._operation, self._schemas, self._base, self._root = operation, schemas, base, root
        self._needs_key = bool(operation["security"])
        self._answers: Mapping[str, Any] = operation["responses"].get("200", {}).get("content", {})
        self._parameters: list[Mapping[str, Any]] = operation.get("parameters", [])
        content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
        self._body: Mapping[str, Any] | None = content.get("schema")
        self._examples: dict[str, Any] = {name: each["value"] for name, each in content.get("examples", {}).items()}
        if self._body is not None and not self._examples:
            self._examples = {"an example": schemas.example(self._body)}

    @property
    def heading(self) -> str:
        """Method and path, which may be broken after a slash."""
        path = escape(self.path).replace("/", "/<wbr>")
        return f'<code><span class="method">{self.method}</span> {path}</code>'

    def write(self) -> str:
        """The whole section."""
        about = "".join(f"<p>{_text(part)}</p>" for part in self._operation.get("description", "").split("\n\n"))
        key = '<p class="note">Needs the <a href="#key">API key</a>.</p>' if self._needs_key else ""
        return (
            f'<article class="route" aria-labelledby="{self.id}"><h3 id="{self.id}">{self.heading}'
            f'<a class="anchor" href="#{self.id}" aria-label="Link to this route">#</a></h3>{about}{key}'
            f"{self._write_sent()}{self._write_answer()}{self._write_snippets()}{self._write_form()}</article>"
        )

    def _write_sent(self) -> str:
        fields = [
            Field(
                each["name"], f"{self._schemas.allowed(each['schema'])}, {_PLACES[each['in']]}",
                each.get("description", ""), "", each.get("required", False),
            )
            for each in self._parameters
        ]  # fmt: skip
        fields += self._schemas.fields(self._body) if self._body is not None else ()
        if not fields:
            return "<p>It has no parameters.</p>"
        ignored = [field for field in fields if field.meaning.startswith("Ignored")]
        table = _table("Parameters", [field for field in fields if field not in ignored], with_defaults=True)
        if ignored:
            rest = _table("Ignored", ignored, with_defaults=False)
            table += f"<details><summary>{len(ignored)} more, which are ignored</summary>{rest}</details>"
        return table

    def _write_answer(self) -> str:
        parts = []
        for kind, content in self._answers.items():
            about = content.get("schema", {}).get("description", "")
            if kind == "application/json":
                example = json.dumps(self._schemas.example(content["schema"]), indent=2, ensure_ascii=False)
                fields = list(self._schemas.fields(content["schema"]))
                parts.append(_table(f"Answer: <code>{kind}</code>", fields, with_defaults=False))
                parts.append(f"<details><summary>An example of the answer</summary>{_code(example)}</details>")
            else:
                parts.append(f"<p>Answer: <code>{escape(kind)}</code>{'. ' if about else ''}{_text(about)}</p>")
        errors = "".join(
            f"<tr><td>{status}</td><td>{_text(response['description'])}</td></tr>"
            for status, response in self._operation["responses"].items()
            if status >= "400" and status.isdigit()
        )
        if errors:
            rows = f"<table><thead><tr><th>status</th><th>when</th></tr></thead><tbody>{errors}</tbody></table>"
            parts.append(f'<details><summary>Errors</summary>{rows}<p><a href="#errors">All errors</a></p></details>')
        return "".join(parts)

    def _write_snippets(self) -> str:
        path = self.path
        for parameter in self._parameters:
            if parameter["in"] == "path":
                path = path.replace(f"{{{parameter['name']}}}", str(_example_of(parameter) or parameter["name"]))
        body = next(iter(self._examples.values()), None)
        answers = next(iter(self._answers), "")
        call = Call(self.method, self.path, self._base + path, body, self._needs_key, answers)
        return "".join(
            f'<details class="snippet"><summary>{name}</summary>{_code_of(snippet)}'
            f'<button type="button" class="quiet copy" hidden>Copy<span class="visually-hidden"> {name}</span></button>'
            "</details>"
            for name, snippet in (("curl", as_curl(call)), ("Python", as_python(call)))
        )

    def _write_form(self) -> str:
        path = self.path.removeprefix("/")
        return (
            f'<form class="try" data-method="{self.method}" data-path="{escape(path)}" autocomplete="off" novalidate '
            f'aria-label="Try {self.method} {escape(self.path)}" hidden><h4>Try it</h4>{"".join(self._write_inputs())}'
            '<div class="try-buttons"><button type="submit" class="primary">Send</button>'
            '<button type="button" class="quiet stop" hidden>Stop</button>'
            '<p class="try-status" role="status"></p></div><div class="try-answer"></div></form>'
        )

    def _write_inputs(self) -> Iterator[str]:
        for parameter in self._parameters:
            name, place = escape(parameter["name"]), parameter["in"]
            field = f"{self.id}.{name}"
            value, needed = escape(str(_example_of(parameter) or "")), " required" if place == "path" else ""
            yield (
                f'<div class="field"><label for="{field}">{name}, {_PLACES[place]}</label>'
                f'<input id="{field}" name="{name}" data-in="{place}" value="{value}"{needed} spellcheck="false"></div>'
            )
        if self._body is not None:
            written = [json.dumps(value, indent=2, ensure_ascii=False) for value in self._examples.values()]
            if len(written) > 1:
                options = "".join(
                    f'<option value="{escape(text)}">{escape(name)}</option>'
                    for name, text in zip(self._examples, written, strict=True)
                )
                yield (
                    f'<div class="field"><label for="{self.id}.example">Example</label>'
                    f'<select id="{self.id}.example" class="examples">{options}</select></div>'
                )
            yield (
                f'<div class="field"><label for="{self.id}.body">Body, as JSON</label>'
                f'<textarea id="{self.id}.body" name="body" rows="{min(16, written[0].count(chr(10)) + 2)}" '
                f'aria-describedby="{self.id}.wrong" spellcheck="false">{escape(written[0])}</textarea>'
                f'<p id="{self.id}.wrong" class="field-error" role="alert" hidden></p></div>'
            )


def _contents(groups: list[tuple[Mapping[str, Any], list[_Route]]]) -> str:
    lists = ""
    for tag, routes in groups:
        links = "".join(f'<li><a href="#{route.id}">{route.heading}</a></li>' for route in routes)
        lists += f'<li><a href="#{_anchor(tag)}">{escape(tag["name"])}</a><ul>{links}</ul></li>'
    return (
        '<nav class="contents" aria-label="Contents"><details open><summary>Contents</summary>'
        f'<ul>{lists}<li><a href="#errors">Errors</a></li></ul></details></nav>'
    )


def _group(tag: Mapping[str, Any], routes: list[_Route]) -> str:
    heading = f'<h2 id="{_anchor(tag)}">{escape(tag["name"])}</h2><p>{_text(tag["description"])}</p>'
    return f"<section>{heading}{''.join(route.write() for route in routes)}</section>"


def _errors() -> str:
    by_status = sorted((status, code) for code, status in STATUS_OF_CODE.items())
    rows = "".join(
        f"<tr><td>{status}</td><td>{', '.join(f'<code>{code}</code>' for _, code in codes)}</td>"
        f"<td>{_text(STATUS_MEANS[status])}</td></tr>"
        for status, codes in groupby([*by_status, (500, "internal_error")], lambda each: each[0])
    )
    return (
        '<section><h2 id="errors">Errors</h2><p>An error says what is wrong, which parameter is to blame, and what is '
        "allowed. Its <code>code</code> is one of these; the id of a request is in the header "
        "<code>X-Request-ID</code> of each answer, and in the server's log.</p><table><thead><tr><th>status</th>"
        f"<th>code</th><th>when</th></tr></thead><tbody>{rows}</tbody></table></section>"
    )


def _table(title: str, fields: list[Field], *, with_defaults: bool) -> str:
    if not fields:
        return f"<p>{title}</p>"
    columns = ("name", "allowed", "default", "meaning") if with_defaults else ("name", "type", "meaning")
    rows = ""
    for field in fields:
        needed = ' <span class="needed">needed</span>' if with_defaults and field.needed else ""
        default = f"<td>{_text(field.default)}</td>" if with_defaults else ""
        rows += (
            f'<tr><th scope="row"><code>{escape(field.name)}</code>{needed}</th><td>{escape(field.allowed)}</td>'
            f"{default}<td>{_text(field.meaning)}</td></tr>"
        )
    head = "".join(f'<th scope="col">{column}</th>' for column in columns)
    return (
        f'<div class="table" role="region" aria-label="{title.partition(":")[0]}" tabindex="0"><table>'
        f"<caption>{title}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _example_of(parameter: Mapping[str, Any]) -> object:
    examples = parameter.get("schema", {}).get("examples") or [parameter.get("example")]
    return examples[0]


def _anchor(tag: Mapping[str, Any]) -> str:
    return "".join(char if char.isalnum() else "-" for char in tag["name"].lower())


def _code(text: str) -> str:
    return f'<pre tabindex="0"><code>{escape(text)}</code></pre>'


def _code_of(snippet: Snippet) -> str:
    """A snippet, of which a script finds what follows the form: the classes `url`, `sent` and `reading`."""
    parts = (f'<span class="{kind}">{escape(text)}</span>' if kind else escape(text) for kind, text in snippet)
    return f'<pre tabindex="0"><code>{"".join(parts)}</code></pre>'


def _text(text: str) -> str:
    """Escape a text, in which `code` is between backticks."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if index % 2 else part for index, part in enumerate(parts))
