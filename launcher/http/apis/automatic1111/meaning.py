"""What a body of A1111's means to the engine, and what its sender is to be told."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from engine.config.model_config import ModelConfig
from engine.errors import ArgumentError, Krea2Error
from launcher.http.answers.drawing import Studio
from launcher.http.apis.automatic1111.body import IGNORED, NONE, Txt2ImgBody, check_names
from launcher.http.apis.automatic1111.img2img import Img2ImgBody, describe_picture
from launcher.messages.limits import Limits
from launcher.messages.message_parts import LoraChoice
from launcher.requests.usual_sizes import own_size

SAMPLER, SCHEDULER = "Euler", "Automatic"
HABITUAL_CFG = 7.0  # what clients send where their user chose nothing
_AS_SENT = {
    "seed", "steps", "output_format", "output_compression", "mu", "sigmas", "priority", "timeout_s", "explain", "cache",
    "guidance_from", "guidance_until", "guidance_outside",
}  # fmt: skip
_EULER = ("euler", "k_euler", "flow-match euler")
_OWN_SCHEDULE = ("automatic", "use same scheduler", "none")
# Values of settings that change nothing.
_SETTINGS: dict[str, tuple[object, ...]] = {
    "CLIP_stop_at_last_layers": (*NONE, 1),
    "sd_vae": (*NONE, "Automatic"),
    "forge_additional_modules": (*NONE, []),
    "samples_format": (*NONE, "png"),
}
_WHY = {
    "enable_hr": "enable_hr was ignored: the picture is drawn at width × height at once, so ask for the size you want",
    "save_images": "save_images was ignored: the server keeps no pictures",
    "alwayson_scripts": "alwayson_scripts were ignored: this server has no extensions, such as ControlNet or ADetailer",
}
# None of these goes over a part of a text again and again: prompts are as long as bodies here, and other requests wait.
_LORA = re.compile(r"(?P<gap>(?<![ \t])[ \t]*+)<(?:lora|lyco):(?P<name>[^<>:]+)(?::(?P<strength>[^<>]*))?>")
_WEIGHT = re.compile(r"\([^()]+:\s*+(?:[0-9]++(?:\.[0-9]++)?|\.[0-9]++)\s*+\)")
_FILE_HASH = re.compile(r"(?<!\s)\s*+\[[0-9a-fA-F]++\]$")
_PICTURES = ("init_images", "mask")  # of img2img
_SHOWN = 60  # characters of what a client sent


def to_parameters(body: Txt2ImgBody, studio: Studio) -> tuple[dict[str, Any], list[str]]:
    """Give the parameters of a body by the names that `Studio.draw` takes, and warnings.

    Raises `ArgumentError` for what cannot be.
    """
    limits, model = studio.config.limits, studio.model
    unknown = check_names(body)
    if body.script_name not in NONE:
        raise ArgumentError.of("script_name", "empty, since this server has no scripts", body.script_name)
    prompt, loras = read_loras(body.prompt or "")
    guidance, of_guidance = _guidance(body, model, limits)
    size, of_size = _size(body, model, limits)
    of_picture, told = describe_picture(body) if isinstance(body, Img2ImgBody) else ({}, [])
    warnings = [*of_guidance, *_steps(body, model, limits), *of_size]
    if _WEIGHT.search(f"{prompt} {body.negative_prompt}"):
        warnings.append("weights in the prompt, as (word:1.3), were read as text: say in words what matters")
    given = body.model_dump(include=_AS_SENT)
    given |= (
        size
        | of_picture
        | {
            "prompt": prompt,
            "negative_prompt": body.negative_prompt,
            "guidance": guidance,
            "num_images": _num_images(body, limits),
            "loras": loras,
        }
    )
    warnings += [*told, *_sampling(body), *_settings(body, studio), *_ignored(body)]
    if pictures := [name for name in unknown if name in _PICTURES]:
        warnings.append(
            f"{_listed(pictures)} ignored: this route draws from the prompt alone, and img2img over a picture"
        )
    if unknown := [name for name in unknown if name not in pictures]:
        warnings.append(f"{_listed(unknown)} ignored: nobody here knows what that is")
    return given, warnings


def read_loras(prompt: str) -> tuple[str, tuple[LoraChoice, ...]]:
    """Take `<lora:name:strength>` out of a prompt. Raises `ArgumentError` for a strength that is no number."""
    loras = []
    for tag in _LORA.finditer(prompt):
        name, strength = tag["name"].strip(), (tag["strength"] or "").split(":")[0]
        try:
            loras.append(LoraChoice(name=name, strength=float(strength) if strength.strip() else None))
        except ValueError:
            allowed = f"a number in <lora:{_short(name)}:STRENGTH>, as 0.8"
            raise ArgumentError(f"the strength of a LoRA in prompt must be {allowed}", parameter="prompt") from None
    return _LORA.sub(_gap, prompt), tuple(loras)


def _gap(tag: re.Match[str]) -> str:
    """What is left of a tag: the blank that parts two words."""
    return tag["gap"] if tag.string[tag.end() : tag.end() + 1].isalnum() else ""


def is_served(name: str, studio: Studio) -> bool:
    """Whether a name is that of a model that is served, alone or as A1111 lists files: `name.safetensors [hash]`."""
    bare = _FILE_HASH.sub("", name)
    for known in (name, bare, re.sub(r"\.(safetensors|ckpt|gguf)$", "", bare)):
        try:
            studio.check_model(known)
        except Krea2Error:
            continue
        return True
    return False


def changed_settings(where: str, settings: Mapping[str, Any]) -> list[str]:
    """Warn of settings of A1111's that would change something there."""
    meant = [name for name, value in settings.items() if value not in _SETTINGS.get(name, (None,))]
    return [f"{where}: {_listed(meant)} ignored, as there is no such setting here"] if meant else []


def _guidance(body: Txt2ImgBody, model: ModelConfig, limits: Limits) -> tuple[float | None, list[str]]:
    """Krea's guidance; None for the checkpoint's own."""
    scale, own = body.cfg_scale, model.default_guidance
    if body.guidance is not None or scale is None:
        return body.guidance, []
    if model.is_distilled and own == 0:
        told = "Turbo has guidance built in, and more may spoil the picture; guidance, on Krea's scale, sets it"
        return None, [f"cfg_scale {scale:g} was ignored: {told} nevertheless"] if scale > 1 else []
    if scale == HABITUAL_CFG:
        told = f"the checkpoint's own, {own + 1:g}; guidance {scale - 1:g} says it on Krea's scale"
        return None, [f"cfg_scale {scale:g}, which clients send by habit, was taken for {told}"]
    if not 0 <= scale <= limits.max_guidance + 1:
        raise ArgumentError.of("cfg_scale", f"between 0 and {limits.max_guidance + 1:g}", scale)
    return max(0.0, scale - 1), []


def _steps(body: Txt2ImgBody, model: ModelConfig, limits: Limits) -> Iterable[str]:
    own = model.default_steps
    if model.is_distilled and body.steps is not None and own < body.steps <= limits.max_steps:
        yield f"{body.steps} steps take {body.steps / own:.3g} times as long as the {own} that Turbo was made for"


def _size(body: Txt2ImgBody, model: ModelConfig, limits: Limits) -> tuple[dict[str, int | None], list[str]]:
    """Width and height: those that a small model was not made for give way to its own, since clients of A1111's send
    what Stable Diffusion was made for."""
    if isinstance(body, Img2ImgBody) and not (body.width or body.height):
        return {"width": None, "height": None}, []  # the picture's
    asked = body.width or model.default_width, body.height or model.default_height
    allowed = all(limits.min_side <= side <= limits.max_side for side in asked)  # what is not is refused
    own = own_size(asked, model, usual=None) if allowed else None
    if own is None or model.size_domain is None:
        return {"width": body.width, "height": body.height}, []
    outside = f"it is outside of what {model.size_domain.described()}"
    told = f"{asked[0]} × {asked[1]} was drawn as {own[0]} × {own[1]}, since {outside}"
    return {"width": own[0], "height": own[1]}, [told]


def _num_images(body: Txt2ImgBody, limits: Limits) -> int:
    sent = {"batch_size": body.batch_size, "n_iter": body.n_iter}
    for name, value in sent.items():
        if value is not None and not 1 <= value <= limits.max_images:
            raise ArgumentError.of(name, f"between 1 and {limits.max_images}", value)
    count = (body.batch_size or 1) * (body.n_iter or 1)
    if count > limits.max_images:
        allowed = f"at most {limits.max_images} images"
        raise ArgumentError(f"batch_size × n_iter must be {allowed}, got {count}", parameter="batch_size")
    return count


def _sampling(body: Txt2ImgBody) -> Iterable[str]:
    sampler = body.sampler_name if body.sampler_name not in NONE else body.others.get("sampler_index")
    if sampler not in NONE and str(sampler).lower() not in _EULER:
        yield f"sampler {_short(sampler)} was replaced by {SAMPLER}, the only one here"
    if body.scheduler not in NONE and str(body.scheduler).lower() not in _OWN_SCHEDULE:
        yield f"scheduler {_short(body.scheduler)} was replaced by {SCHEDULER}, the checkpoint's own"


def _settings(body: Txt2ImgBody, studio: Studio) -> Iterable[str]:
    settings = dict(body.override_settings or {})
    checkpoint = settings.pop("sd_model_checkpoint", None)
    if checkpoint not in NONE and not is_served(str(checkpoint), studio):
        yield f"sd_model_checkpoint {_short(checkpoint)} was ignored: {studio.config.model_names[0]} is what is served"
    yield from changed_settings("override_settings", settings)


def _ignored(body: Txt2ImgBody) -> Iterable[str]:
    meant = [name for name, value in body.others.items() if value not in (IGNORED.get(name) or (value,))]
    yield from (_WHY[name] for name in meant if name in _WHY)
    if plain := [name for name in meant if name not in _WHY]:
        yield f"{_listed(plain)} ignored: that changes nothing here"


def _listed(names: list[str]) -> str:
    shown = [_short(name).strip("'") for name in names[:8]]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return f"{', '.join(shown)}{more} {'was' if len(names) == 1 else 'were'}"


def _short(value: object) -> str:
    text = str(value)
    return ascii(text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "...")
