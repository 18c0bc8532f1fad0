"""`krea2 cluster run`: several engines behind one address, on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from engine.errors import ArgumentError, LaunchError, printable
from launcher.cli.cluster.needs import need_ray
from launcher.cli.cluster.options import ClusterCommand, arguments_of, cluster_options, replicas_of
from launcher.cli.options.engine_options import check_device, model_argument
from launcher.cli.options.numbers import NUMBER, WHOLE_NUMBER
from launcher.cli.options.serving import api_key_option, log_format_option, tell_access
from launcher.cli.progress import LoadingProgress
from launcher.messages.api_keys import read_keys
from launcher.messages.configs import HttpConfig

if TYPE_CHECKING:
    from launcher.ray.one_machine.messages import OpenPort
    from launcher.ray.settled import Settled

_DRAIN_S = 20.0
_PLENTY = 8  # CPUs that Ray is to count besides those of engines, for its own actors and the ingresses
_START_S = 300.0  # for Ray, and for replicas to begin
_OPEN = (
    "Ray listens on all interfaces of this machine, whatever --host is, at {}; these ports ask for the token, which "
    "only Ray's own processes have here, and are better behind a firewall all the same"
)


@click.command("run", cls=ClusterCommand)
@model_argument
@cluster_options(
    "images_folder",
    "ingress_replicas",
    "engine_cpus",
    "ingress_cpus",
    "max_surge_percent",
    "backlog_target_s",
    "down_delay_s",
    drain_s={"help": "Seconds for what runs to be finished when stopped.", "default": _DRAIN_S, "type": NUMBER},
)
@click.option("--replicas", default="2", metavar="N", help="How many engines.")
@click.option("--port", type=WHOLE_NUMBER, default=30000, help="Where HTTP listens; 0 takes a free one.")
@api_key_option
@log_format_option
def run(*, port: int, api_keys: tuple[str, ...], log_format: str, **options: Any) -> int:
    """Serve several engines of this machine behind one address until stopped. Prints it once all have loaded.

    MODEL is the same as --model. Ray runs meanwhile, with a token that nobody else has, and ends with the command.

    \b
    Examples:
      krea2 cluster run
      krea2 cluster run krea/Krea-2-Turbo --replicas 4 --tp 2
      krea2 cluster run path/to/Krea-2-Turbo --port 8000 --api-key-file keys.txt --host 0.0.0.0
    """
    need_ray("krea2 cluster run")
    from launcher.logs import configure_logs, end_logs, flush_stderr, log_event, status_stream
    from launcher.ray.one_machine.command import Cluster, reserve
    from launcher.ray.one_machine.messages import ClusterConfig
    from launcher.ray.settled import settle

    began = time.monotonic()
    if not options["replicas"].strip().isdecimal():
        allowed = "a number, as 2 (MIN:MAX is for krea2 cluster config: here all run always)"
        raise ArgumentError.of("replicas", allowed, options["replicas"])
    settled = settle(arguments_of(options))
    for warning in settled.warnings:
        click.echo(printable(f"warning: {warning}"), err=True)
    if any(key.split() != [key] for key in api_keys if key):  # which is not repeated, being a secret
        raise ArgumentError("api_key must have no white space: it reaches an ingress among others", parameter="api_key")
    replicas, engine = replicas_of(options["replicas"])["min_replicas"], settled.frontend.engine
    check_device(engine)
    keys = _keys(settled, api_keys)
    tell_access(keys, insecure=settled.args.http.insecure)
    with reserve(keys.host, port) as taken:
        config = ClusterConfig(
            args=_found(settled),
            host=keys.host,
            port=taken.port,
            cpus=replicas * engine.ranks + _PLENTY,
            gpus=0 if engine.device == "cpu" else replicas * engine.ranks,
            start_timeout_s=settled.frontend.start_timeout_s + _START_S,
            drain_s=options["drain_s"],
        )
        configure_logs(log_format)
        loading = LoadingProgress(
            status_stream(), lambda stage, after_s: log_event("loading", name=stage.name, after_s=after_s)
        )

        def tell(open_ports: Sequence[OpenPort]) -> None:
            loading.close()
            flush_stderr()  # or a terminal has the bar before the address
            try:
                click.echo(f"http: {taken.url}")
            except OSError as error:
                raise LaunchError(f"the server's address cannot be written to stdout: {error.strerror}") from None
            said = _summary(settled, keys, taken.url, replicas, time.monotonic() - began, options["drain_s"])
            ports = [f"{each.port} ({each.process})" for each in open_ports]
            if log_format == "json":
                log_event("serving", **said, open_ports=[each.port for each in open_ports])
                return
            rows = [f"  {name:<8} {text}" for name, text in said.items()]
            click.echo(
                "\n".join(map(printable, ["", f"serving {rows[0].split(maxsplit=1)[1]}", *rows[1:], ""])), err=True
            )
            if ports:
                click.echo(printable(f"note: {_OPEN.format(', '.join(ports))}"), err=True)

        def tell_of_draining() -> None:
            if log_format == "json":
                log_event("draining", seconds=config.drain_s)
            else:
                text = f"stopping; what runs is finished for up to {config.drain_s:g} s, or Ctrl-C again ends it"
                click.echo(text, err=True)

        try:
            number = Cluster(
                config,
                api_keys=api_keys,
                log_format=log_format,
                on_stage=loading.show,
                on_serving=tell,
                on_draining=tell_of_draining,
            ).run()
        finally:
            loading.close()
            end_logs()
    return 0 if number is None else 128 + number  # the exit status, as a shell gives it for a signal


def _found(settled: Settled) -> dict[str, Any]:
    """The arguments with the model's folder where it was found, since replicas have no token to download it with."""
    engine = settled.frontend.engine
    args = settled.args.given()
    if engine.model is not None and engine.demo is None:
        args |= {"model": engine.model, "served_model_name": list(settled.args.model_names())}
    return args


def _keys(settled: Settled, api_keys: tuple[str, ...]) -> HttpConfig:
    """Say as `krea2 serve` does who may use the server."""
    http = settled.args.http
    file_keys = () if http.api_key_file is None else read_keys(http.api_key_file)
    return HttpConfig(
        engine=settled.frontend.engine,
        limits=settled.frontend.limits,
        host=http.host,
        api_keys=api_keys,
        api_key_file=http.api_key_file,
        file_keys=file_keys,
        model_names=settled.args.model_names(),
        any_model=http.any_model,
        allowed_origins=http.allow_origin,
    )


def _summary(
    settled: Settled, http: HttpConfig, url: str, replicas: int, after_s: float, drain_s: float
) -> dict[str, str]:
    """Say what is served, as `krea2 serve` does."""
    engine, model = settled.frontend.engine, settled.model
    kind = "Turbo" if model.is_distilled else "Raw"
    keys = len(http.api_keys) + len(http.file_keys)
    each = f"{engine.degrees.name}, " if engine.ranks > 1 else ""
    from launcher.cli.server_summary import filters_said
    from launcher.requests.lora_files import parse_lora

    loras = [parse_lora(text).name for text in settled.args.engine.get("loras", ())]
    return {
        "model": f"{http.model_names[0]} ({kind}: {model.default_steps} steps, "
        f"{model.default_width}×{model.default_height}), started in {after_s:.0f} s",
        "engines": f"{replicas}, {each}{replicas * engine.ranks} ranks",
        "page": f"{url}/",
        "API": f"{url}/v1, as OpenAI's images API",
        "docs": f"{url}/docs",
        "keys": "none" if not keys else f"one of {keys} is asked for" if keys > 1 else "one is asked for",
        "LoRAs": ", ".join(loras) or "none",
        "filters": filters_said(settled.frontend),
        "stop": "Ctrl-C" + (f", which finishes what runs for up to {drain_s:g} s" if drain_s else ""),
    }
