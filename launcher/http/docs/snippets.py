"""A request as a line for a shell, and as a Python program without packages; both run as they stand.

`page/scripts/docs/snippets.js` puts what a form sends in their place of what is sent here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

Snippet = list[tuple[str, str]]  # pieces of a text; what a form changes is named: `url`, `sent` (the body), `reading`
KEY = "KREA2_API_KEY"  # the variable of the environment that has the API key
# How to find the pictures of an answer, where it has some, as base64.
_PICTURES = {
    **dict.fromkeys(("/v1/images/generations", "/v1/images/edits"), '[image["b64_json"] for image in answer["data"]]'),
    **dict.fromkeys(("/sdapi/v1/txt2img", "/sdapi/v1/img2img"), 'answer["images"]'),
    "/v1/chat/completions": 're.findall("base64,([^)]+)", answer["choices"][0]["message"]["content"])',
}


_NEXT = " \\\n  "  # what is between lines of one command


class Call(NamedTuple):
    """A request: a method, the url of a route, and its body, None for none. needs_key: the server asks for an API
    key. answers: the type of what it answers."""

    method: str
    path: str
    url: str
    body: Mapping[str, Any] | None
    needs_key: bool
    answers: str


def as_curl(call: Call) -> Snippet:
    """For sh, bash and zsh: it prints the answer as it comes, or writes the picture to a file."""
    begins_as_it_is = call.method == "GET" or (call.method == "POST" and call.body is not None)
    snippet = [("", f"curl -sSN {'' if begins_as_it_is else f'-X {call.method} '}"), ("url", _quoted(call.url))]
    if call.needs_key:
        snippet.append(("", f'{_NEXT}-H "Authorization: Bearer ${KEY}"'))
    if call.body is not None:
        snippet += [("", f"{_NEXT}-H 'Content-Type: application/json'{_NEXT}-d "), ("sent", _quoted(_json(call.body)))]
    if call.answers.startswith("image/"):
        snippet.append(("", f"{_NEXT}-o picture.png"))
    return snippet


def as_python(call: Call) -> Snippet:
    """For a Python without packages: it prints the answer, or writes its pictures to files."""
    pictures, is_json = _PICTURES.get(call.path), call.answers == "application/json"
    imports = {"urllib.request"}
    imports |= {"json"} if is_json or call.body is not None else set()
    imports |= {"os"} if call.needs_key else set()
    imports |= {"base64"} if pictures else set()
    imports |= {"re"} if pictures and pictures.startswith("re.") else set()
    snippet = [("", "".join(f"import {name}\n" for name in sorted(imports)) + "\n")]
    if call.body is not None:
        fields = "".join(f"    {_python(name)}: {_python(value)},\n" for name, value in call.body.items())
        snippet += [("", "body = "), ("sent", f"{{\n{fields}}}"), ("", "\n")]
    snippet += [("", "request = urllib.request.Request("), ("url", _python(call.url)), ("", _arguments(call))]
    snippet.append(("", ")\nwith urllib.request.urlopen(request) as response:\n"))
    if pictures:
        written = (call.body or {}).get("output_format", "webp" if pictures.startswith("re.") else "png")
        reading = ["    answer = json.load(response)", f"for index, picture in enumerate({pictures}):"]
        reading.append(f'    with open(f"picture-{{index}}.{written}", "wb") as file:')
        reading.append("        file.write(base64.b64decode(picture))")
        return [*snippet, ("reading", "\n".join(reading))]
    if call.answers.startswith("image/"):
        return [*snippet, ("", '    open("picture.png", "wb").write(response.read())')]
    return [*snippet, ("", f"    print({'json.load(response)' if is_json else 'response.read().decode()'})")]


def _arguments(call: Call) -> str:
    """What a request of Python's has besides its url."""
    arguments, headers = "", {}
    if call.body is not None:
        arguments += ", json.dumps(body).encode()"
        headers["Content-Type"] = _python("application/json")
    if call.needs_key:
        headers["Authorization"] = f'"Bearer " + os.environ["{KEY}"]'
    if headers:
        written = ", ".join(f'"{name}": {value}' for name, value in headers.items())
        arguments += f", headers={{{written}}}"
    if call.method != "GET" and (call.body is None or call.method != "POST"):
        arguments += f', method="{call.method}"'
    return arguments


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
