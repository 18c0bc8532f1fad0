"""Forms in which other programs quantise weights and that are not read, told by the names of their tensors."""

from __future__ import annotations

from typing import NamedTuple

from engine.checkpoint.files.stored import TensorFile
from engine.errors import CheckpointError

READABLE = "bfloat16, fp8, int8, mxfp8, nvfp4, GGUF, or bitsandbytes' 4 or 8 bits"


class _Form(NamedTuple):
    """What people call it, and the last parts of names that all of its files have."""

    name: str
    signs: frozenset[str]


# The first that fits is named.
_FORMS = (
    _Form("nunchaku (SVDQuant)", frozenset({"qweight", "wscales"})),
    _Form("GPTQ", frozenset({"qweight", "g_idx"})),
    _Form("AWQ", frozenset({"qweight", "qzeros"})),
    _Form("nunchaku, GPTQ or AWQ", frozenset({"qweight"})),
    _Form("compressed-tensors with packed integers", frozenset({"weight_packed"})),
    _Form("SDNQ", frozenset({"svd_up"})),
    _Form("SDNQ", frozenset({"zero_point"})),
    _Form("MLX", frozenset({"scales", "biases"})),
    _Form("torchao", frozenset({"_weight_qdata"})),
    _Form("optimum-quanto in 2 or 4 bits", frozenset({"_shift"})),
    _Form("HQQ", frozenset({"W_q"})),
    _Form("ModelOpt with its quantisers", frozenset({"_amax"})),
)
_SDNQ_SCALE = ".scale"


def refuse(file: TensorFile) -> None:
    """Raise `CheckpointError`, with what the form is called, for a file in one of them."""
    last_parts: dict[str, str] = {}
    for name in file.headers:
        last_parts.setdefault(name.rpartition(".")[2], name)
        if name.endswith(_SDNQ_SCALE) and f"{name.removesuffix(_SDNQ_SCALE)}.weight" in file.headers:
            raise _error(file, "SDNQ", name)
    for form in _FORMS:
        if form.signs <= last_parts.keys():
            raise _error(file, form.name, last_parts[min(form.signs)])


def _error(file: TensorFile, form: str, name: str) -> CheckpointError:
    problem = f"belongs to weights quantised by {form}, which are not read; use another download of this model"
    return CheckpointError.of(file.path, problem, name=name, expected=READABLE)
