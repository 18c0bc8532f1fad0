"""Keys of a file that are for no layer: what they are, for an error, and for what is said of leaving them out. Pure
Python."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from engine.lora.names import LONGEST_KEY, LayerNames, shorten, split_key, strip_prefixes

# Kinds of adapters that are not read, by what ends their keys. LyCORIS, PEFT and, of OFT, kohya write them.
_UNREAD = {
    "OFT": r"oft_R|oft_blocks|oft_diag|rescale",
    "BOFT": r"boft_R|boft_s",
    "(IA)³": r"ia3_l|on_input",
    "GLoRA": r"[ab][12]|glora_[A-Za-z]+",
    "VeRA": r"vera_lambda_[bd]",
    "LoRA with biases": r"lora_[AB](?:\.[^.]+)?\.bias",
}
_UNREAD_ENDING = re.compile(
    r"\.(?:{})(?:\.[^.]+)?(?:\.weight)?$".format(
        "|".join(f"(?P<kind{index}>{ending})" for index, ending in enumerate(_UNREAD.values()))
    )
)
_INSTEAD = (
    "LoRA, LoKr, LoHa, DoRA and differences of weights are; what trained it can merge it into a checkpoint, of which "
    "one of these can be extracted"
)

_TEXT_ENCODER, _NOTHING = "the text encoder", "nothing in Krea 2's transformer"
_TEXT_ENCODER_PREFIXES = ("text_encoder", "lora_te", "lycoris_te", "te.", "te1.", "te2.", "conditioner.")
_OTHER_MODELS = (  # by what only their names contain
    (("add_q_proj", "add_k_proj", "img_mod", "txt_mod", "img_mlp", "txt_mlp"), "Qwen-Image"),
    (("double_blocks", "single_blocks", "single_transformer_blocks"), "FLUX"),
    (("input_blocks", "output_blocks", "down_blocks", "up_blocks", "mid_block"), "Stable Diffusion"),
    (("cross_attn",), "Wan"),
    (("joint_blocks",), "Stable Diffusion 3"),
)
_MOST_LISTED = 3  # keys of a kind
_MOST_TRIED = 100  # keys that are looked up as something else


def unread_paths(keys: Iterable[str]) -> dict[str, str]:
    """Returns the paths of layers for which there are tensors of a kind that is not read, and that kind."""
    return dict(found for key in keys if (found := _unread(key)))


def sort_out(keys: Sequence[str], unread: Mapping[str, str]) -> dict[str, list[str]]:
    """Returns keys that are for no layer by what they are for. unread: as `unread_paths` finds it in all of a file."""
    sorted_out: dict[str, list[str]] = defaultdict(list)
    for key in keys:
        path, *_ = _unread(key) or split_key(key) or (key,)
        if path in unread:
            sorted_out[unread[path]].append(key)
        elif strip_prefixes(key[:LONGEST_KEY]).startswith(_TEXT_ENCODER_PREFIXES):
            sorted_out[_TEXT_ENCODER].append(key)
        else:
            sorted_out[_NOTHING].append(key)
    return sorted_out


def complaint(names: LayerNames, sorted_out: Mapping[str, Sequence[str]], *, some_resolve: bool) -> str:
    """Says why a file with keys for no layer is refused, to follow its path in the error."""
    keys = [key for those in sorted_out.values() for key in those]
    named = (model for key in keys for parts, model in _OTHER_MODELS if any(part in key for part in parts))
    if _TEXT_ENCODER not in sorted_out and (model := next(named, None)):
        return f"is a LoRA for {model}, not for Krea 2: it has {shorten(keys[0])}"
    kind = next((kind for kind in _UNREAD if kind in sorted_out), None)
    if kind is not None:
        has = f"has keys of {kind}" if some_resolve else f"is an adapter of {kind}"
        lenient = "; lora_lenient leaves them out" if some_resolve else ""
        return f"{has} ({_shown(sorted_out[kind])}), which is not read: {_INSTEAD}{lenient}"
    if sorted_out.keys() == {_TEXT_ENCODER} and some_resolve:
        what = f"changes the text encoder too ({shorten(keys[0])})"
        return f"{what}, which is not supported: lora_lenient leaves that out"
    if not some_resolve and any(names.resolve(key.removesuffix(".weight")) for key in keys[:_MOST_TRIED]):
        return "holds weights of Krea 2's transformer itself, no LoRA: it is to be given as transformer or model"
    first = keys[:_MOST_TRIED]
    larger = next((key for key in first if (split := split_key(key)) and names.is_of_another_block(split[0])), None)
    if larger is not None:
        what = f"is a LoRA for a model with more blocks than this one: it has {shorten(larger)}"
        return f"{what}; use it with the model that it is for, such as krea/Krea-2-Turbo"
    if not some_resolve:
        what = f"none of its tensors, such as {shorten(keys[0])}, is for a layer of Krea 2"
        return f"is not a Krea 2 LoRA: {what}"
    listed = []
    for key in keys[:_MOST_LISTED]:
        closest = (split := split_key(key)) and names.closest(split[0])
        listed.append(shorten(key) + (f" (the closest layer is {closest})" if closest else ""))
    more = f" and {len(keys) - _MOST_LISTED} more" if len(keys) > _MOST_LISTED else ""
    return f"has tensors that are for no layer of Krea 2: {', '.join(listed)}{more}; lora_lenient leaves them out"


def describe_left_out(sorted_out: Mapping[str, Sequence[str]], keys: int) -> str:
    """Says what lenient reading has left out of a file with so many keys, and what that means; empty if nothing."""
    if not sorted_out:
        return ""
    count = sum(map(len, sorted_out.values()))
    parts = [
        f"{len(those)} {f'of {what}, which is not read' if what in _UNREAD else f'for {what}'} ({_shown(those)})"
        for what, those in sorted_out.items()
    ]
    what_for = "what it changes is missing" if count == 1 else "what they change is missing"
    return f"lora_lenient leaves out {count} of {keys} keys, and {what_for} from pictures: {', '.join(parts)}"


def _unread(key: str) -> tuple[str, str] | None:
    """Returns the path and the kind of a tensor that is not read."""
    ending = _UNREAD_ENDING.search(key) if len(key) <= LONGEST_KEY else None
    if ending is None:
        return None
    kind = tuple(_UNREAD)[int(str(ending.lastgroup).removeprefix("kind"))]
    return key[: ending.start()].removesuffix(".weight"), kind


def _shown(keys: Sequence[str]) -> str:
    return ", ".join(map(shorten, keys[:_MOST_LISTED])) + (" …" if len(keys) > _MOST_LISTED else "")
