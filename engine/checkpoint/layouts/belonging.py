"""Which tensors of a file are a component's, and after what prefix: trainers wrap a model, savers put all its parts
into one file, and some keep their own state beside it.

A component is found by one tensor that it alone has: what precedes that name is the prefix, whatever it is.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from engine.checkpoint.layouts import names

_SIGNATURES = {
    "transformer": (names.NATIVE_TRANSFORMER_SIGNATURE, names.TRANSFORMER_SIGNATURE),
    "text_encoder": (names.TEXT_ENCODER_SIGNATURE, names.LLAMA_SIGNATURE),
    "vae": (names.VAE_SIGNATURE, names.WAN_SIGNATURE),
}
_CALLED = {"transformer": "a transformer", "text_encoder": "a text encoder", "vae": "a VAE"}  # for people
# What everything of one component begins with in the files of ComfyUI and stable-diffusion.cpp, which hold all three.
_ROOTS = {
    "transformer": ("model.diffusion_model.",),
    "text_encoder": ("text_encoders.", "text_encoder.", "cond_stage_model.", "conditioner."),
    "vae": ("vae.", "first_stage_model."),
}
_MOST_COPIES = 8  # of a component in a file: there are no more than its weights and their running means
_LANGUAGE_MODEL = re.compile(r"(?:model\.)?(?:language_model\.|model\.)$")  # beside which vision lies
# Modules that wrap others, PEFT's too, and `block`, as Krea's trainer calls that of activation checkpointing.
_WRAPPERS = re.compile(rf"(?:(?<=\.)|^)(?:{names.WRAPPERS}|base_layer)\.|(?<=\.)block\.")
# A running mean of the weights, beside them: LitEma's, ema-pytorch's, EDM's and others'.
_MEAN = re.compile(r"(?:^|[._])ema(?:_model|_weights|_params)?\.")
# What else trainers save: it changes no picture.
_STATE = re.compile(
    r"(?:optimizer|optimizers|optimizer_states?|optim|lr_schedulers?|grad_scaler|scaler|random_states?|rng_state)[._]"
    r"|(?:epoch|global_step|step|steps|iteration|iterations|n_averaged|num_updates|initted|decay|loss)$"
)
_UNUSED = ".logit_scale"  # of CLIP, which to ComfyUI every text encoder is one of


class Belonging(NamedTuple):
    """What is a component's. names: what the file calls each tensor, by the name without prefix and wrappers. prefix:
    what precedes those names in the file. training: how many tensors are left out that a trainer needs, a running mean
    of the weights among them."""

    names: Mapping[str, str]
    prefix: str
    training: int


class Ambiguous(Exception):
    """A file holds a component or a tensor twice. which: its prefixes or names, some of them."""

    def __init__(self, which: Sequence[str]) -> None:
        self.which = tuple(each or "no prefix" for each in which[:_MOST_COPIES])
        super().__init__(self.which)


def held(stored: Iterable[str]) -> dict[str, list[str]]:
    """Find the components among tensors' names: the prefixes that each is there after."""
    found: dict[str, set[str]] = {}
    for name in map(_plain, stored):
        for component, signatures in _SIGNATURES.items():
            if name.endswith(signatures):
                prefix = name.removesuffix(signatures[0]).removesuffix(signatures[1])
                if (not prefix or prefix.endswith(".")) and not _STATE.match(prefix):
                    found.setdefault(component, set()).add(prefix)
    return {component: sorted(found[component]) for component in _SIGNATURES if component in found}


def called(*components: str) -> str:
    """Call components as people do: a transformer, a text encoder and a VAE."""
    *first, last = (_CALLED[component] for component in components)
    return f"{', '.join(first)} and {last}" if first else last


def belonging(stored: Collection[str], component: str) -> Belonging | None:
    """Sort out a component's tensors; None if it is not there. What belongs to nothing known counts as its own, under
    the file's name. Raises `Ambiguous`.

    Of weights and their running mean the weights are taken, as by whoever else reads such files.
    """
    found = held(stored)
    prefixes = found.pop(component, [])
    weights = [prefix for prefix in prefixes if not _MEAN.search(prefix)] or prefixes
    if not weights:
        return None
    for copies, most in ((weights, 1), *((each, _MOST_COPIES) for each in found.values())):
        if len(copies) > most:
            raise Ambiguous(copies)
    prefix = weights[0]
    others = _others(component, prefix, found)
    region = _region(component, prefix)
    rest_is_anothers = any(not _region(other, each) for other, prefixes in found.items() for each in prefixes)
    mean = bool(_MEAN.search(prefix))
    own: dict[str, str] = {}
    training = 0
    for name in stored:
        plain = _plain(name)
        short = plain.removeprefix(prefix)
        if plain.startswith(others) or (rest_is_anothers and not plain.startswith(region)) or plain.endswith(_UNUSED):
            continue
        if _STATE.match(plain) or _STATE.match(short) or (not mean and _MEAN.search(plain)):
            training += 1
        elif short in own:
            raise Ambiguous((own[short], name))
        else:
            own[short] = name
    return Belonging(own, prefix, training)


def _others(component: str, prefix: str, found: Mapping[str, Iterable[str]]) -> tuple[str, ...]:
    """What begins the names of other components: theirs, and whatever is known to."""
    own = _region(component, prefix)
    regions = {root for other, roots in _ROOTS.items() if other != component for root in roots}
    regions |= {_region(other, each) for other, prefixes in found.items() for each in prefixes}
    return tuple(region for region in regions if region and not own.startswith(region))


def _region(component: str, prefix: str) -> str:
    """What begins the names of all that lies with a component, vision beside the language model too."""
    for root in _ROOTS[component]:
        if prefix.startswith(root):
            return root
    return _LANGUAGE_MODEL.sub("", prefix) if component == "text_encoder" else prefix


def _plain(name: str) -> str:
    """Without wrappers."""
    return _WRAPPERS.sub("", name)
