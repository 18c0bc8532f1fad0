"""A request as a line for a shell, and as a Python program without packages; both run as they stand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

KEY = "KREA2_API_KEY"  # the variable of the environment that has the API key
# How to find the pictures of an answer, where it has some, as base64.
_PICTURES = {
    "/v1/images/generations": '[image["b64_json"] for image in answer["data"]]',
    "/sdapi/v1/txt2img": 'answer["images"]',
    "/v1/chat/completions": 're.findall("base64,([^)]+)", answer["choices"][0]["message"]["content"])',
}


class Call(NamedTuple):
    """A request: a method, the url of a route, and its body, None for none. needs_key: the server asks for an API
    key. answers: the type of what it answers."""

    method: str
    path: str
    url: str
    body: Mapping[str, Any] | None
    needs_key: bool
    answers: str


def as_curl(call: Call) -> str:
    """For sh, bash and zsh: it prints the answer, or writes the picture to a file."""
    lines = [f"curl -sS {_quoted(call.url)}"]
    if call.method not in ("GET", "POST") or (call.method == "POST" and call.body is None):
        lines[0] = f"curl -sS -X {call.method} {_quoted(call.url)}"
    if call.needs_key:
        lines.append(f'-H "Authorization: Bearer ${KEY}"')
    if call.body is not None:
        lines += ["-H 'Content-Type: application/json'", f"-d {_quoted(_json(call.body))}"]
    if call.answers.startswith("image/"):
        lines.append("-o picture.png")
    return " \\\n  ".join(lines)


def as_python(call: Call) -> str:
    """For a Python without packages: it prints the answer, or writes its pictures to files."""
    pictures, is_json = _PICTURES.get(call.path), call.answers == "application/json"
    imports = {"urllib.request"}
    imports |= {"json"} if is_json or call.body is not None else set()
    imports |= {"os"} if call.needs_key else set()
    imports |= {"base64"} if pictures else set()
    imports |= {"re"} if pictures and pictures.startswith("re.") else set()
    lines = [*(f"import {name}" for name in sorted(imports)), ""]
    arguments = [_python(call.url)]
    if call.body is not None:
        lines += ["body = {", *(f"    {_python(name)}: {_python(value)}," for name, value in call.body.items()), "}"]
        arguments.append("json.dumps(body).encode()")
    headers = {}
    if call.body is not None:
        headers["Content-Type"] = _python("application/json")
    if call.needs_key:
        headers["Authorization"] = f'"Bearer " + os.environ["{KEY}"]'
    if headers:
        written = ", ".join(f'"{name}": {value}' for name, value in headers.items())
        arguments.append(f"headers={{{written}}}")
    if call.method != "GET" and (call.body is None or call.method != "POST"):
        arguments.append(f'method="{call.method}"')
    lines.append(f"request = urllib.request.Request({', '.join(arguments)})")
    lines.append("with urllib.request.urlopen(request) as response:")
    if pictures:
        written = (call.body or {}).get("output_format", "webp" if pictures.startswith("re.") else "png")
        lines += ["    answer = json.load(response)", f"for index, picture in enumerate({pictures}):"]
        lines.append(f'    with open(f"picture-{{index}}.{written}", "wb") as file:')
        lines.append("        file.write(base64.b64decode(picture))")
    elif call.answers.startswith("image/"):
        lines.append('    open("picture.png", "wb").write(response.read())')
    else:
        lines.append(f"    print({'json.load(response)' if is_json else 'response.read().decode()'})")
    return "\n".join(lines)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _python(value: object) -> str:
    """Write a value of JSON as Python does."""
    if isinstance(value, str):
        return _json(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_json(name)}: {_python(item)}" for name, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_python, value)) + "]"
    return repr(value)
