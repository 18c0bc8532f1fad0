"""What made a picture as the text that AUTOMATIC1111's web UI writes into its files, under `parameters`. Pure.

Civitai, ComfyUI, image viewers and other tools read it: the prompt, then a line `Negative prompt: …`, then a line
`Steps: 8, Sampler: Euler, CFG scale: 1, …`, whose values stand in quotes, as JSON, where they hold commas, colons or
newlines.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

_SHORT = 10  # digits of a SHA-256 by which A1111 and Civitai (there AutoV2) know a file
_KEY = "Negative prompt:"
# At the beginning of a line, and some readers take the negative prompt wherever they see it.
_READ_AS_KEYS = re.compile(r"(?P<key>Negative prompt|(?:^|(?<=[\r\n]))[^\S\r\n]*+Steps)(?=:)")
_LORA = re.compile(r'[:,<>{}"\\]')  # what a LoRA's name cannot have in this text


def infotext(made: Mapping[str, Any]) -> str:
    """Write what `read_made` reads in A1111's format. Readers strip each line; else they find texts as they were, but
    for zeros, and for the words `Negative prompt:` and, where a line begins with it, `Steps:`, which get a space before
    the colon. Whatever `made` lacks is left out.

    CFG scale: A1111's, which is Krea's guidance + 1, so that 1 is none. Model hash: of several files what `sha256sum
    *.safetensors | sha256sum` prints. Each hash: the first ten digits of a SHA-256.
    """
    loras = [*made.get("loras", ()), *made.get("merged_loras", ())]
    tags = [f"<lora:{_LORA.sub('_', lora['name'])}:{lora['strength']:g}>" for lora in loras]
    prompt = " ".join([*filter(None, [_prose(made.get("prompt"))]), *tags])
    # The line of an empty negative prompt, which A1111 leaves out, has ComfyUI import the picture.
    return f"{prompt}\n{_KEY} {_prose(made.get('negative_prompt'))}\n{_parameters(made, loras)}"


def model_hash(files: Mapping[str, str]) -> str:
    """Return one SHA-256 for a component's files, given the one of each by its name: a single file's own."""
    if len(files) == 1:
        return next(iter(files.values()))
    return hashlib.sha256("".join(f"{files[name]}  {name}\n" for name in sorted(files)).encode()).hexdigest()


def _parameters(made: Mapping[str, Any], loras: list[Mapping[str, Any]]) -> str:
    """The last line."""
    hashes = {name: model_hash(files)[:_SHORT] for name, files in made.get("hashes", {}).items()}
    own = {_LORA.sub("_", lora["name"]): lora["sha256"][:_SHORT] for lora in loras if "sha256" in lora}
    values = {
        "Steps": made.get("steps"),
        "Sampler": "Euler",
        "CFG scale": None if made.get("guidance") is None else f"{made['guidance'] + 1:.12g}",
        "Seed": made.get("seed"),
        "Size": f"{made['width']}x{made['height']}" if "width" in made else None,
        "Model hash": hashes.get("transformer"),
        "Model": made.get("model"),
        "VAE hash": hashes.get("vae"),
        "Denoising strength": None if made.get("strength") is None else f"{made['strength']:.12g}",
        "Mu": made.get("mu"),
        "Sigmas": ", ".join(f"{sigma:.12g}" for sigma in made.get("sigmas") or ()) or None,
        **_saved(made),
        "Lora hashes": ", ".join(f"{name}: {short}" for name, short in own.items()) or None,
        "Version": made.get("version"),
    }
    parts = [f"{name}: {_quoted(str(value))}" for name, value in values.items() if value is not None]
    if found := {("model" if name == "transformer" else name): short for name, short in hashes.items()} | {
        f"lora:{name}": short for name, short in own.items()
    }:
        parts.append(f"Hashes: {json.dumps(found)}")
    return ", ".join(parts)


def _saved(made: Mapping[str, Any]) -> dict[str, Any]:
    """Say what was asked for of its steps and what was computed: in words of ours, since A1111 has none."""
    cache, computed = made.get("cache"), made.get("computed")
    fields = ", ".join(f"{name}={value}" for name, value in cache.items()) if isinstance(cache, Mapping) else cache
    return {
        "Cache": fields,
        "Guidance from": made.get("guidance_from"),
        "Guidance until": made.get("guidance_until"),
        "Guidance outside": made.get("guidance_outside"),
        "Block evaluations": computed.get("block_evaluations") if isinstance(computed, Mapping) else None,
    }


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:\n"]', value) else value


def _prose(text: str | None) -> str:
    return _READ_AS_KEYS.sub(r"\g<key> ", text or "").replace("\0", "\ufffd")
