"""Writes the config of a cluster for `serve deploy`: YAML with comments, which Ray's own schema reads."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import engine
from engine.errors import printable
from launcher.ray.args import ENGINE, ClusterOptions, HttpOptions, known_options

APPLICATION, IMPORT_PATH = "krea2", "launcher.ray:build_app"
# To be found in the file, since they are what people change first.
_ALWAYS = ("min_replicas", "max_replicas", "backlog_target_s", "down_delay_s", "drain_s", "max_surge_percent")
_WIDTH = 110
_HEAD = f"""\
Written by krea2 cluster config, release {engine.__version__}. After a change: krea2 cluster config --check FILE.
Every node has this package with its extra ray, and the files that are named here, at the same paths.
Keys of HTTP clients are not for this file, which Serve stores and shows: they are KREA2_API_KEY in the environment in \
which Ray is started on the nodes, or lie in a file that api_key_file names.
Ray itself asks who connects where RAY_AUTH_MODE=token and the token are in that environment: docs/many-machines.md."""
_DEPLOYMENTS = """\
LoRAs are loaded and unloaded without a restart when this list is deployed again; the files are on every node."""


def write(args: Mapping[str, Any], *, host: str, port: int) -> str:
    """Write a config. args: of the application, checked; host, port: where Serve's proxies listen."""
    args = {name: value for name, value in args.items() if name != "host"}
    if host != HttpOptions.host:
        args["host"] = host
    loras = [] if args.get("merge_lora") else args.pop("loras", [])
    lines = [
        *_comment(_HEAD, ""),
        "",
        *_comment("A proxy on each node that has a replica: clients come to all of them by a layer-4 load balancer."),
        "proxy_location: EveryNode",
        "",
        "http_options:",
        f"  host: {_value(host)}",
        f"  port: {port}",
        "",
        *_comment("Of Serve's own logs. Ingresses log requests themselves, as JSON."),
        "logging_config:",
        "  encoding: JSON",
        "  enable_access_log: false",
        "",
        "applications:",
        f"- name: {APPLICATION}",
        "  route_prefix: /",
        f"  import_path: {IMPORT_PATH}",
        "  args:",
        *_section("The engine: options of krea2 serve, by their names in Python.", _engine(args)),
        *_section("HTTP: options of krea2 serve.", _of(HttpOptions, args)),
        *_section("The cluster.", _of(ClusterOptions, {**_defaults(), **args})),
    ]
    if loras:
        lines += [
            "  deployments:",
            f"  - name: {ENGINE}",
            "    user_config:",
            *_comment(_DEPLOYMENTS, " " * 6),
            "      loras:",
            *(f"      - {_value(lora)}" for lora in loras),
        ]
    return "\n".join(lines) + "\n"


def _engine(args: Mapping[str, Any]) -> dict[str, Any]:
    others = {each.name for kind in (HttpOptions, ClusterOptions) for each in fields(kind)}
    return {name: value for name, value in args.items() if name not in others}


def _of(kind: type, args: Mapping[str, Any]) -> dict[str, Any]:
    return {each.name: args[each.name] for each in fields(kind) if each.name in args}


def _defaults() -> dict[str, Any]:
    """What is written also where it is the default."""
    return {name: known_options()[name][0] for name in _ALWAYS}


def _section(title: str, args: Mapping[str, Any]) -> Iterator[str]:
    """Write some of the arguments, each under what its option says of itself."""
    if not args:
        return
    yield from _comment(title, " " * 4)
    known = known_options()
    for name, value in args.items():
        yield from _comment((known[name][1].help or "").partition("  [")[0], " " * 4)
        if isinstance(value, Mapping):
            yield f"    {name}:"
            yield from (f"      {key}: {_value(each)}" for key, each in value.items())
        else:
            yield f"    {name}: {_value(value)}"


def _comment(text: str, indent: str = "") -> Iterator[str]:
    for line in text.split("\n"):
        start = f"{indent}# "
        yield from textwrap.wrap(
            line, _WIDTH, initial_indent=start, subsequent_indent=start, break_on_hyphens=False, break_long_words=False
        )


def _value(value: Any) -> str:
    """Write it as JSON, which is YAML too but for the escapes of characters beyond 16 bits."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(map(_value, value))}]"
    return printable(json.dumps(value, ensure_ascii=False), escape=lambda char: f"\\U{ord(char):08x}")
