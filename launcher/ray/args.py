"""What `args:` of the application may have, checked as `krea2 serve` checks its options, before any actor starts.

Options of the engine have the names that `launch` knows; those of HTTP the names of `krea2 serve`, with `_`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

from engine.config.engine_config import EngineConfig
from engine.config.options import Option, check_options, option, options_of, switch
from engine.errors import ArgumentError
from launcher.hub.names import model_name
from launcher.messages.limits import is_number
from launcher.ray.scaling import BACKLOG_TARGET_S, BACKLOG_TARGETS_S, DOWN_DELAY_S, DOWN_DELAYS_S
from launcher.setup.configure import MAX_TIMEOUT_S, LaunchOptions

ENGINE, INGRESS = "engine", "ingress"  # the names of the deployments, which a config may name for its overrides
MOST_REPLICAS = 10_000
_ENGINES_AN_INGRESS = 8  # pictures of as many replicas pass through one process

# Options of `krea2 serve` that a cluster has not, each with why, or what there is instead.
_REFUSED = {
    **dict.fromkeys(
        ("api_key", "api_keys"),
        "a key must not be among the arguments, which Serve stores and shows: set KREA2_API_KEY in the environment of "
        "the nodes, or name a file of keys with api_key_file",
    ),
    "parallel": "parallel is for one machine, whose GPUs are known: choose tp, sp and cfg_parallel",
    "share_gpu": "share_gpu is for trials on one machine: Ray gives each rank a GPU of its own",
    "key_limits": "key_limits would be counted by each replica for itself: limit keys before the cluster",
    "http_workers": "http_workers are ingress_replicas of a config here: by default one, and one more for every "
    f"{_ENGINES_AN_INGRESS} engines",
    "port": "the port is Serve's own: http_options.port of the config",
    "no_http": "no_http: a cluster is reached over HTTP alone",
    **dict.fromkeys(("rpc", "rpc_keys"), "rpc: a cluster is reached over HTTP alone"),
    "log_format": "log_format: the processes of a cluster log JSON",
    "num_replicas": "num_replicas is min_replicas and max_replicas here",
}


def _texts(help: str) -> Any:
    def fits(value: Any) -> bool:
        return isinstance(value, tuple) and all(isinstance(each, str) for each in value)

    return option((), help, "a list of texts", fits, repeated=True)


def _number(default: float | None, least: float, most: float, help: str, *, kind: type = float) -> Any:
    whole = " whole number" if kind is int else ""
    allowed = f"a{whole} between {least:g} and {most:g}" if whole else f"between {least:g} and {most:g}"

    def fits(value: Any) -> bool:
        return (type(value) is int if kind is int else is_number(value)) and least <= value <= most

    return option(default, help, allowed, fits, kind=kind)


@dataclass(frozen=True)
class HttpOptions:
    """The options of `krea2 serve` for HTTP that a cluster has, too. Raises `ArgumentError`."""

    host: str = option(
        "127.0.0.1",
        "Where Serve's proxies listen, as http_options.host of the config says it: decides which Host is answered.",
        "a host name or address",
        lambda value: isinstance(value, str) and value != "",
    )
    insecure: bool = switch(False, "Allow a host that other machines can reach without a key.")
    api_key_file: str | None = option(
        None, "File of keys on every node that runs an ingress.", "a path", lambda v: isinstance(v, str) and v != ""
    )
    served_model_name: tuple[str, ...] = _texts("What HTTP clients call the model.")
    any_model: bool = switch(False, "Serve HTTP clients the model whatever they call it.")
    allowed_host: tuple[str, ...] = _texts("Another name that Host may have where host is loopback.")
    allow_origin: tuple[str, ...] = _texts("Let the web pages of another origin use the server.")
    public_url: str | None = option(
        None,
        "Where clients find the cluster through a load balancer; links begin with it.",
        "a URL",
        lambda v: isinstance(v, str) and v != "",
    )
    max_body_bytes: int = _number(2**20, 1, 2**40, "Of an HTTP request.", kind=int)

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class ClusterOptions:
    """The options that only a cluster has. Raises `ArgumentError`.

    max_replicas, ingress_replicas and engine_cpus are None for what depends on other options.
    """

    min_replicas: int = _number(1, 1, MOST_REPLICAS, "Engines that always run.", kind=int)
    max_replicas: int | None = _number(
        None, 1, MOST_REPLICAS, "Engines that may run.  [default: min_replicas]", kind=int
    )
    backlog_target_s: float = _number(
        BACKLOG_TARGET_S,
        *BACKLOG_TARGETS_S,
        "Seconds of work that may wait for each engine before there are more of them.",
    )
    down_delay_s: float = _number(
        DOWN_DELAY_S,
        *DOWN_DELAYS_S,
        "Seconds for which fewer engines must have been enough before some are stopped.",
    )
    ingress_replicas: int | None = _number(
        None,
        1,
        1000,
        f"Processes that take HTTP requests.  [default: 1, and one more for every {_ENGINES_AN_INGRESS} engines]",
        kind=int,
    )
    engine_cpus: float | None = _number(
        None, 0, 1024, "CPUs that Ray counts for an engine.  [default: 1 a GPU; without GPUs 0.5 a rank]"
    )
    ingress_cpus: float = _number(0.1, 0, 1024, "CPUs that Ray counts for an ingress.")
    drain_s: float = _number(
        600.0, 0, MAX_TIMEOUT_S, "Seconds that a replica has for what it draws when it is to stop."
    )
    max_surge_percent: int = _number(
        0, 0, 100, "Replicas that an update may start before it stops old ones, of those that run.", kind=int
    )
    images_folder: str | None = option(
        None,
        "A folder that all nodes share, for images that are answered as urls.",
        "a path",
        lambda v: isinstance(v, str) and v != "",
    )
    warm_up_sizes: tuple[str, ...] = _texts("Sizes to prepare GPUs for, as 1024x768.")

    def __post_init__(self) -> None:
        check_options(self)
        if self.max_replicas is not None and self.max_replicas < self.min_replicas:
            raise ArgumentError.of("max_replicas", f"at least min_replicas, {self.min_replicas}", self.max_replicas)


KINDS = (EngineConfig, LaunchOptions, HttpOptions, ClusterOptions)


def known_options() -> dict[str, tuple[Any, Option]]:
    """List all that `args:` may have by name, each with its default."""
    own = {name: each for kind in KINDS for name, each in options_of(kind).items()}
    return {name: each for name, each in own.items() if name not in _REFUSED}


@dataclass(frozen=True)
class ClusterArgs:
    """What an application is made of: options for the engine as `launch` takes them, for HTTP, and for the cluster."""

    engine: Mapping[str, Any]
    http: HttpOptions
    cluster: ClusterOptions

    @classmethod
    def of(cls, args: Mapping[str, Any]) -> ClusterArgs:
        """Read arguments, in which numbers may be texts, as `serve run … tp=2` gives them, and None is not given.

        Raises `ArgumentError` for one that is unknown, or has no place in a cluster, or a value that is not allowed.
        Opens no file.
        """
        if not isinstance(args, Mapping):
            raise ArgumentError.of("args", "a mapping of options to values", args)
        known = known_options()
        values = {}
        for name, value in args.items():
            if (why := _REFUSED.get(name)) is not None:
                raise ArgumentError(why, parameter=str(name))
            if name not in known:
                close = get_close_matches(str(name), known, n=1)
                hint = f": did you mean {close[0]}?" if close else ""
                raise ArgumentError(f"unknown parameter {str(name)[:60]!a}{hint}", parameter=str(name)[:60])
            if value is not None:
                values[name] = _read(name, value, *known[name])
        parts = [{each.name: values[each.name] for each in fields(kind) if each.name in values} for kind in KINDS]
        return cls(engine=parts[0] | parts[1], http=HttpOptions(**parts[2]), cluster=ClusterOptions(**parts[3]))

    def given(self) -> dict[str, Any]:
        """Give all that differs from its default, as `args:` has it: lists, texts and numbers."""
        own: dict[str, Any] = dict(self.engine)
        for part in (self.http, self.cluster):
            own |= {each.name: value for each in fields(part) if (value := getattr(part, each.name)) != each.default}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in own.items()}

    @property
    def max_replicas(self) -> int:
        return self.cluster.max_replicas or self.cluster.min_replicas

    @property
    def ingress_replicas(self) -> int:
        return self.cluster.ingress_replicas or 1 + self.max_replicas // _ENGINES_AN_INGRESS

    def model_names(self) -> tuple[str, ...]:
        """What HTTP clients call the model: by default its folder's, its repository's or its file's name."""
        names = tuple(name.strip() for text in self.http.served_model_name for name in text.split(","))
        name: str = self.engine.get("model") or self.engine.get("transformer") or "demo"
        return names or (model_name(name),)


def _read(name: str, value: Any, default: Any, known: Option) -> Any:
    """Read one value: a text where a number, a switch or a list is wanted."""
    if name == "limits":
        return value
    if isinstance(default, bool) and isinstance(value, str):
        switches = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}
        return switches.get(value.lower(), value)
    if name == "filters" and isinstance(value, str):
        return (value,)  # one, which may have commas
    if isinstance(default, tuple) or known.repeated:
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, Sequence) or not all(isinstance(each, str) for each in parts):
            raise ArgumentError.of(name, "a list of texts", value)
        return tuple(each.strip() for each in parts)
    if isinstance(value, str) and known.kind in (int, float):
        try:
            return known.kind(value)
        except ValueError:
            raise ArgumentError.of(name, known.allowed, value) from None
    return os.fspath(value) if isinstance(value, os.PathLike) else value
