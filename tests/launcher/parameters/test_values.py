"""Values as forms and other programs send them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.errors import ArgumentError
from launcher.messages.parameter_names import read


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ({"n": "2", "seed": "42", "steps": " 8 ", "width": "1024", "height": "96.0"},
         {"n": 2, "seed": 42, "steps": 8, "width": 1024, "height": 96}),
        ({"seed": "-1", "priority": "+3", "num_inference_steps": 8.0}, {"seed": -1, "priority": 3,
         "num_inference_steps": 8}),
        ({"seed": "18446744073709551615"}, {"seed": 2**64 - 1}),
        ({"guidance": "3.5", "guidance_scale": "1", "mu": ".5", "timeout_s": "1e2"},
         {"guidance": 3.5, "guidance_scale": 1.0, "mu": 0.5, "timeout_s": 100.0}),
        ({"stream": "True", "explain": "false", "progress": True},
         {"stream": True, "explain": False, "progress": True}),
        ({"output_format": "JPG"}, {"output_format": "jpeg"}),
        ({"size": "", "response_format": "", "model": "", "output_format": "", "n": "", "seed": "", "loras": ""}, {}),
        ({"size": "Auto", "steps": None}, {}),
        ({"prompt": "", "negative_prompt": "", "output": ""}, {"prompt": "", "negative_prompt": "", "output": ""}),
        ({"prompt": " 8 ", "size": "512x96"}, {"prompt": " 8 ", "size": "512x96"}),
        ({"cache": "Fast", "guidance_outside": "LAST", "guidance_from": "0.25", "guidance_until": ""},
         {"cache": "fast", "guidance_outside": "last", "guidance_from": 0.25}),
        ({"cache": "method=Velocity, order=0,warmup_steps=3.0"},
         {"cache": {"method": "velocity", "order": 0, "warmup_steps": 3}}),
        ({"cache": {"threshold": "0.5", "first_blocks": "2", "order": None, "method": ""}},
         {"cache": {"threshold": 0.5, "first_blocks": 2}}),
        ({"cache": False}, {"cache": "off"}),
        ({"sigmas": "1, 0.5,.2"}, {"sigmas": (1.0, 0.5, 0.2)}),
        ({"sigmas": "[1, 0.5]"}, {"sigmas": (1.0, 0.5)}),
        ({"sigmas": ["1", 0.5]}, {"sigmas": (1.0, 0.5)}),
        ({"sigmas": np.array([1, 0.5])}, {"sigmas": (1.0, 0.5)}),
        ({"sigmas": "[]"}, {"sigmas": ()}),
        ({"cache": ""}, {}),
    ],
)  # fmt: skip
def test_what_is_plainly_meant_is_taken(given: dict[str, Any], plain: dict[str, Any]) -> None:
    read_values, warnings = read(given)
    assert read_values == plain
    assert {name: type(value) for name, value in read_values.items()} == {
        name: type(value) for name, value in plain.items()
    }
    assert warnings == ()
    assert read(plain) == (plain, ())


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        *(("steps", value, "a whole number") for value in (True, 8.5, "8.5", "eight", "8 9", "0x8", "1e3", "٨", [8])),
        *(("steps", value, "a whole number") for value in (float("inf"), float("nan"), "9" * 50, "1_000")),
        *(
            ("guidance", value, "a number")
            for value in (False, 10**400, -(10**400), "3,5", "nan", "inf", "1_0", "٣", {}, "--1")
        ),
        *(
            ("sigmas", value, "numbers in a list, as 1,0.75,0.5,0.25")
            for value in (0.5, True, {}, "1;0.5", "1,,0.5", [[1]], [1, None])
        ),
        ("sigmas", "0," * 100_000, "at most 10000 numbers"),
        *(("stream", value, "true or false") for value in (1, 0, "yes", "1", [])),
        *((name, 10**400, "a number") for name in ("mu", "timeout_s", "cfg_scale", "flow_shift")),
        *(
            ("cache", value, "off, quality, fast, or fields as method=blocks,threshold=0.1")
            for value in (True, 3, ["fast"], "order=1,order=0", "order=", "order=1,threshold")
        ),
        ("seed", 2**64, f"between {-(2**63)} and {2**64 - 1}"),
        ("seed", str(-(2**63) - 1), f"between {-(2**63)} and {2**64 - 1}"),
        ("seed", 1e30, f"between {-(2**63)} and {2**64 - 1}"),
    ],
)
def test_what_is_not_plain_is_refused_by_name(name: str, value: object, allowed: str) -> None:
    with pytest.raises(ArgumentError) as error:
        read({name: value})
    assert error.value.message.startswith(f"{name} must be {allowed}, got ")
    assert error.value.parameter == name


@pytest.mark.parametrize("threshold", [float("nan"), float("inf"), "1e999"])
def test_a_threshold_that_is_not_finite_is_named(threshold: object) -> None:
    with pytest.raises(ArgumentError) as error:
        read({"cache": {"threshold": threshold}})
    assert error.value.message.startswith("cache.threshold must be a finite number, got ")
    assert error.value.parameter == "cache"
