"""The parameters of a request in Python: the keywords of `generate` and `stream`, and what other programs call them."""

from __future__ import annotations

import difflib
import inspect
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Required, TypedDict, TypeVar, get_type_hints

import msgspec

from engine.errors import ArgumentError
from launcher.client.uploads import KINDS, read_pictures
from launcher.messages.client_messages import Generate
from launcher.messages.message_parts import CacheChoice, LoraChoice, Outpaint
from launcher.messages.parameter_names import ALIASES, SYNONYMS, in_own_names
from launcher.parameters.table import OTHERS
from launcher.parameters.values import PICTURES


class LoraParameters(TypedDict, total=False):
    """One of the `loras` of a request, with the fields of `LoraChoice`."""

    name: Required[str]
    strength: float | None


class OwnParameters(TypedDict, total=False):
    """The fields of `Generate` besides the prompt, and its pictures, each with its help. A LoRA may be a name."""

    seed: Annotated[int | None, "Of the first image; image i has seed + i. None, -1: drawn, and told by the result."]
    steps: Annotated[int | None, "Denoise steps. None: the checkpoint's."]
    guidance: Annotated[
        float | None, "How strongly to follow the prompt, on Krea's scale, as diffusers has it: 0 is off."
    ]
    negative_prompt: Annotated[str | None, "What to steer away from; needs a guidance above 0."]
    width: Annotated[int | None, "In pixels, rounded up to a multiple of 16. None: the checkpoint's."]
    height: Annotated[int | None, "In pixels, rounded up to a multiple of 16. None: the checkpoint's."]
    num_images: Annotated[int, "How many images to make of the prompt."]
    loras: Annotated[Sequence[LoraParameters | str], 'LoRAs that are loaded: names, or {"name": …, "strength": …}.']
    mu: Annotated[float | None, "The schedule's shift, instead of the checkpoint's own."]
    sigmas: Annotated[Sequence[float], "The noise level of each step before `mu` shifts it: falling, from at most 1."]
    preview_every: Annotated[int | None, "Steps of an image between previews. None: no previews."]
    output_format: Annotated[str, "Of the files: png, jpeg or webp."]
    output_compression: Annotated[int | None, "The quality of JPEG and WebP files: 0 to 100, the best."]
    metadata: Annotated[bool, "Whether files carry prompt, seed and settings."]
    timeout_s: Annotated[float | None, "Seconds after which to give the request up; at once if it would take longer."]
    priority: Annotated[int, "Of the requests that wait, those with the highest go first."]
    request_id: Annotated[str, "For `cancel`, of 1 to 64 characters. Default: one of its own."]
    idempotency_key: Annotated[str | None, "A request with the key of another one joins it, or gets its images."]
    explain: Annotated[bool, "Whether the result's `explanation` says where the time went."]
    image: Annotated[object, "A picture to begin from: a path, bytes, an open file, Pillow's image or an array."]
    mask: Annotated[object, "White where `image` is repainted; or transparent, if it has any transparency."]
    strength: Annotated[float | None, "How much of `image` changes, 0 to 1. None: 0.6; 1 with a mask or outpaint."]
    strength_steps: Annotated[str, "partial: of the steps, the strength's part is run; full: all are."]
    outpaint: Annotated[Mapping[str, int] | None, 'Pixels to add to `image`, as {"left": 256, "top": 64}.']
    mask_crop: Annotated[int | None, "Draw only the masked part and so many pixels around it, at full size."]
    mask_feather: Annotated[int | None, "Pixels over which what is drawn fades into what stays. None: 8."]
    cache: Annotated[
        str | Mapping[str, Any], 'Compute fewer steps: off, quality, fast, or {"method": "velocity", "order": 1, …}.'
    ]
    guidance_from: Annotated[float, "Guide only from this part of the schedule on, 0 to 1: before it, steps cost half."]
    guidance_until: Annotated[float, "Guide only up to this part of the schedule, 0 to 1."]
    guidance_outside: Annotated[str, "What guides in the other steps: off, or last, for the last guided one's."]
    moderation: Annotated[str, "Which thresholds the engine's filters apply: auto or low."]
    user: Annotated[str | None, "Whom the picture is for, at most 256 characters: goes into the audit log."]


class Parameters(OwnParameters, total=False):
    """And the names that diffusers and image servers have for some of them."""

    num_inference_steps: int | None
    guidance_scale: float | None
    num_images_per_prompt: int | None
    n: int | None
    size: str | None
    safety_identifier: str | None


_OWN = get_type_hints(OwnParameters, include_extras=True)
KNOWN = [*get_type_hints(Parameters)]
_OTHER = [name for name in KNOWN if name not in _OWN]
_EVENTS = "stream gives the events themselves, and previews with preview_every; generate takes"
_CALLBACK = "give callback=f, which is called as f(step, steps, preview)"
# Parameters of pipelines in Python that have no meaning here: what to do instead. Those of all doors are in
# `launcher/parameters/table.py`.
INSTEAD = {
    "callback_on_step_end": _CALLBACK,
    "callback_on_step_end_tensor_inputs": _CALLBACK,
    "callback_steps": _CALLBACK,
    "output_type": "result.images are Pillow's, of which numpy.asarray makes arrays",
    "return_dict": "a Result is returned, with images and more",
    "generator": "give seed=SEED, whose noise is that of a new torch.Generator('cpu').manual_seed(SEED)",
    "response_format": "give output_format: png, jpeg or webp",
    "callback": f"{_EVENTS} a callback",
    "progress": f"{_EVENTS} progress, for a bar",
}
_LAUNCH = "it is launch that settles it"
# The same of methods of diffusers' pipelines.
_METHODS = {
    "from_pretrained": "an engine is started by client = launch(model)",
    **dict.fromkeys(("to", "cuda"), f"{_LAUNCH}, as launch(model, device=…, dtype=…)"),
    **dict.fromkeys(
        ("enable_model_cpu_offload", "enable_sequential_cpu_offload"),
        f'{_LAUNCH}, as launch(model, memory_budget="12GB")',
    ),
    **dict.fromkeys(
        ("load_lora_weights", "set_adapters", "fuse_lora"),
        'launch(model, loras=["NAME=FILE"]) loads them, and each request names its own: generate(…, loras=["NAME"])',
    ),
    "unload_lora_weights": "each request names its LoRAs; one that names none has none",
    "set_progress_bar_config": "give generate progress=False, or True",
}
_NO_OTHER = {"output_type": "pil", "return_dict": True}  # what is done anyhow

F = TypeVar("F", bound=Callable[..., Any])


class LikeNoPipeline:
    """Answers who takes a client for a pipeline of diffusers with what to do instead."""

    def __call__(self, *_: object, **__: object) -> None:
        """Raise `TypeError`."""
        raise TypeError("a client is no pipeline to be called: client.generate(prompt) makes pictures")

    def __getattr__(self, name: str) -> Any:
        hint = f": {_METHODS[name]}" if name in _METHODS else ""
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{hint}", name=name, obj=self)


def _plain(value: Any) -> Any:
    """A number of numpy or torch as one of Python; anything else as it is."""
    is_one = hasattr(value, "item") and getattr(value, "ndim", 0) == 0
    return value.item() if is_one else value


def make_request(prompt: str, given: Parameters, call: str) -> tuple[Generate, dict[str, bytes], tuple[str, ...]]:
    """Make the message for the keywords of a call. Returns the files of its pictures and warnings, too.

    Values are checked where it is received, as every client's. Raises `TypeError` for a keyword that is none, and
    `ArgumentError` for one of other programs that says what cannot be, for a prompt or LoRAs of another kind, and for
    pictures that cannot be read.
    """
    named: dict[str, Any] = {}
    value: Any
    for name, value in given.items():
        if isinstance(value, str) and not value and SYNONYMS.get(name, name) in PICTURES:
            raise ArgumentError.of(name, KINDS, value)  # a path that was not filled in is no wish for text alone
        if name in KNOWN or name in OTHERS or name == "extra_body":
            is_object = isinstance(value, dict)
            named[name] = {key: _plain(each) for key, each in value.items()} if is_object else _plain(value)
        elif name not in INSTEAD:
            near = difflib.get_close_matches(name, [*KNOWN, "callback", "progress"], n=1)
            hint = f": did you mean {near[0]!r}?" if near else f"; help(client.{call}) lists all"
            raise TypeError(f"{call}() got an unexpected keyword argument {name!r}{hint}")
        elif value is not None and (name not in _NO_OTHER or value != _NO_OTHER[name]):
            seed = str(value.initial_seed()) if hasattr(value, "initial_seed") else "7"
            raise ArgumentError(f"{name} is not taken: {INSTEAD[name].replace('SEED', seed)}", parameter=name)
    if not isinstance(prompt, str):
        raise ArgumentError.of("prompt", "one text (for several, make a request of each)", prompt)
    own, warnings = in_own_names(named)
    if unknown := own.keys() - {*_OWN}:
        raise TypeError(f"{call}() got an unexpected keyword argument {min(unknown)!r} in extra_body")
    own.setdefault("request_id", uuid.uuid4().hex)
    files = read_pictures({name: own.pop(name) for name in PICTURES if name in own})
    if isinstance(own.get("outpaint"), Mapping):
        own["outpaint"] = Outpaint(**own["outpaint"])
    if "cache" in own:
        own["cache"] = CacheChoice.of(own["cache"])
    own |= {"pictures": tuple(files), "loras": _read_loras(own.get("loras", ()))}
    return Generate(prompt=prompt, **own), files, warnings


def _read_loras(loras: object) -> tuple[LoraChoice, ...]:
    allowed = 'a list of {"name": …, "strength": …} or of names'
    if isinstance(loras, str | Mapping) or not isinstance(loras, Sequence):
        raise ArgumentError.of("loras", allowed, loras)
    choices = []
    for lora in loras:
        choice: Any = {"name": lora} if isinstance(lora, str) else lora
        if not isinstance(choice, Mapping) or "name" not in choice or choice.keys() - {"name", "strength"}:
            raise ArgumentError.of("loras", allowed, lora)
        choices.append(LoraChoice(**choice))
    return tuple(choices)


def documented(method: F) -> F:
    """Give a method with `**parameters` the signature and the help of all of them."""
    signature = inspect.signature(method)
    *first, rest = signature.parameters.values()
    defaults: dict[str, Any] = {field.name: field.default for field in msgspec.structs.fields(Generate)}
    defaults |= {"request_id": "…", **dict.fromkeys(PICTURES)}
    own = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name], annotation=kind.__origin__)
        for name, kind in _OWN.items()
    ]
    method.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*first, *own, rest.replace(name="other_names", annotation=inspect.Parameter.empty)]
    )
    if method.__doc__ is not None:
        lines = [f"    {name}: {kind.__metadata__[0]}" for name, kind in _OWN.items()]
        other = [f"    {name}: {ALIASES.get(name, 'width and height, as 512x768')}" for name in _OTHER]
        method.__doc__ = "\n".join(
            [inspect.cleandoc(method.__doc__), "", "Parameters:", *lines, "Other names:", *other]
        )
    return method
