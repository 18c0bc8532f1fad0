"""Says what a server serves, on what and where, once its ranks are ready."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from engine.config.model_config import ModelConfig
from launcher.messages.configs import FrontendConfig, HttpConfig
from launcher.messages.connections.sockets import is_loopback
from launcher.messages.rank_messages import Ready

_SHOWN_LORAS = 6


class ServerSummary(NamedTuple):
    """What is known of a server. url: where HTTP is, None if it serves RPC alone. after_s: it has taken to start."""

    config: FrontendConfig
    model: ModelConfig
    http: HttpConfig | None
    url: str | None
    rpc: str
    ranks: Sequence[Ready]
    after_s: float

    def fields(self) -> dict[str, object]:
        """Give it as the fields of a log's event."""
        said = dict(self._said(addresses=True))
        return {name.replace(" ", "_"): text[0] if len(text) == 1 else text for name, text in said.items()}

    def lines(self, *, addresses: bool) -> list[str]:
        """Give it as lines for people. addresses: with those that stdout has, which they do not see there."""
        rows = [
            f"  {name if not number else '':<8} {text}"
            for name, texts in self._said(addresses=addresses)
            for number, text in enumerate(texts)
        ]
        return ["", f"serving {rows[0].split(maxsplit=1)[1]}", *rows[1:], ""]

    def _said(self, *, addresses: bool) -> Iterator[tuple[str, list[str]]]:
        engine, model = self.config.engine, self.model
        kind = "Turbo" if model.is_distilled else "Raw"
        size = f"{model.default_width}×{model.default_height}"
        yield "model", [f"{engine.name} ({kind}: {model.default_steps} steps, {size}), started in {self.after_s:.0f} s"]
        yield "device", [_device(rank, len(self.ranks) > 1) for rank in self.ranks]
        if len(self.ranks) > 1:
            yield "mode", [f"{engine.degrees.name}, {len(self.ranks)} ranks"]
        yield "weights", [self._weights()]
        if self.url is not None:
            yield "page", [f"{self.url}/"]
            yield "API", [f"{self.url}/v1, as OpenAI's images API"]
            yield "docs", [f"{self.url}/docs"]
            yield "names", [self._names()]
            yield "keys", [self._keys()]
        if addresses:
            yield "RPC", [self.rpc]
        yield "LoRAs", [self._loras()]
        yield "filters", [filters_said(self.config)]
        limits = self.config.limits
        pixels = f"sides of {limits.min_side} to {limits.max_side} pixels, {limits.max_images} images a request"
        yield "limits", [f"{pixels}, {limits.max_queue} requests waiting"]
        drain = f", which finishes what runs for up to {self.config.drain_s:g} s" if self.config.drain_s else ""
        yield "stop", [f"Ctrl-C{drain}"]

    def _weights(self) -> str:
        dtype = self.config.engine.dtype
        if dtype == "auto":
            dtype = "bfloat16" if self.ranks[0].device.startswith("cuda") else "float32"
        blocks = self.config.block_format
        return dtype if blocks == "float" else f"{blocks} in the blocks, {dtype} elsewhere"

    def _names(self) -> str:
        assert self.http is not None
        return ", ".join(self.http.model_names) + (", and any other" if self.http.any_model else "")

    def _keys(self) -> str:
        assert self.http is not None
        count = len(self.http.api_keys) + len(self.http.file_keys)
        if count:
            return f"one of {count} is asked for" if count > 1 else "one is asked for"
        return "none: loopback only" if is_loopback(self.http.host) else f"none: whoever reaches {self.http.host}"

    def _loras(self) -> str:
        engine = self.config.engine
        merged = [f"{path.rpartition('/')[2]} (merged, {strength:g})" for path, strength in engine.merge_loras]
        named = merged + [f"{lora.name} ({lora.strength:g})" for lora in self.config.loras]
        more = [f"{len(named) - _SHOWN_LORAS} more"] if len(named) > _SHOWN_LORAS else []
        where = f"; clients may load more from {self.config.lora_dir}" if self.config.lora_dir is not None else ""
        return (", ".join([*named[:_SHOWN_LORAS], *more]) or "none") + where


def filters_said(config: FrontendConfig) -> str:
    """Name the content filters of a server, for people."""
    names = ", ".join(spec.label for spec in config.filters)
    opens = "; what they cannot check is let through" if names and config.filter_fail_open else ""
    return f"{names}{opens}" if names else "none"


def _device(rank: Ready, several: bool) -> str:
    name = f" ({rank.device_name})" if rank.device_name not in ("", rank.device) else ""
    size = rank.memory.get("weights", 0)
    shown = f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
    return f"{f'rank {rank.rank}: ' if several else ''}{rank.device}{name}, {shown} of weights"
