"""Forms in which other programs quantise weights and that are not read, told by the names of their tensors and by the
config.json beside them."""

from __future__ import annotations

from os.path import isfile  # unlike Path's, it raises nothing for a name that is too long
from typing import Any, NamedTuple

from engine.checkpoint.files.stored import TensorFile
from engine.config.json_fields import read_json_object
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
    _Form("compressed-tensors with packed weights", frozenset({"weight_packed"})),
    _Form("SDNQ", frozenset({"svd_up"})),
    _Form("SDNQ", frozenset({"zero_point"})),
    _Form("MLX", frozenset({"scales", "biases"})),
    _Form("torchao", frozenset({"_weight_qdata"})),
    _Form("torchao", frozenset({"weight:qdata"})),
    _Form("optimum-quanto in 2 or 4 bits", frozenset({"_shift"})),
    _Form("HQQ", frozenset({"W_q"})),
    _Form("ModelOpt with its quantisers", frozenset({"_amax"})),
)
_SDNQ_SCALE = ".scale"
# What `quantization_config.quant_method` of a config.json may be where weights are read that nothing in their file
# marks; what is in the file decides how.
_READ_METHODS = (
    *("bitsandbytes", "bitsandbytes_4bit", "bitsandbytes_8bit"),
    *("fp8", "fbgemm_fp8", "compressed-tensors", "modelopt", "quanto"),
)
_LONGEST = 40  # characters


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


def quantization_method(file: TensorFile) -> str | None:
    """Return what the config.json beside a file says of how it was quantised; None if there is none that says it."""
    config = _quantization_config(file)
    return None if config is None else str(config.get("quant_method", "a method without a name"))[:_LONGEST]


def refuse_by_config(file: TensorFile) -> None:
    """Raise `CheckpointError` if the config.json beside a file says that what is quantised there means something else
    than its tensors' names tell."""
    config, method = _quantization_config(file), quantization_method(file)
    if config is None:
        return
    if method not in _READ_METHODS:
        problem = "was quantised in a way that is not read, as the config.json beside it says; use another download"
        raise CheckpointError.of(file.path, f"{problem} of this model", expected=READABLE, found=method)
    if config.get("transform_config"):
        problem = "has weights that were rotated before they were quantised, as the config.json beside it says"
        raise CheckpointError.of(file.path, problem, name="transform_config", expected="none")


def _quantization_config(file: TensorFile) -> dict[str, Any] | None:
    path = file.path.with_name("config.json")
    if not isfile(path):
        return None
    try:
        config = read_json_object(path).get("quantization_config")
    except CheckpointError:  # which whoever needs the config says better
        return None
    return config if isinstance(config, dict) else None


def _error(file: TensorFile, form: str, name: str) -> CheckpointError:
    problem = f"belongs to weights quantised by {form}, which are not read; use another download of this model"
    return CheckpointError.of(file.path, problem, name=name, expected=READABLE)
