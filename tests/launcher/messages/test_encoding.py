"""The wire: what is sent is what arrives, and nothing that arrives does harm."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config.engine_config import EngineConfig
from engine.errors import ArgumentError, CheckpointError, Krea2Error, RankError, ServerError, error_from_code
from engine.pictures.pixels import Pixels
from engine.step import Job, Picture, Step, StepTimes
from launcher.messages.client_messages import (
    PROTOCOL_VERSION,
    Acknowledge,
    Cancel,
    Failed,
    Generate,
    Ping,
    Pong,
    Request,
    Status,
)
from launcher.messages.configs import FrontendConfig
from launcher.messages.encoding import MessageError, decode_reply, decode_request, encode, encode_request
from launcher.messages.rank_messages import (
    Execute,
    Load,
    StepDone,
    decode_command,
    decode_report,
    pixel_frames,
    read_pixels,
)

GENERATE = Generate(request_id="r1", prompt="a fox 🦊", seed=2**53 - 1, guidance=3.5, width=64)


@pytest.mark.parametrize("message", [GENERATE, Cancel(request_id="a"), Acknowledge(request_id="b"), Status(), Ping()])
def test_requests_survive_the_wire(message: Request) -> None:
    assert decode_request(encode_request(message)) == message


def test_a_client_leaves_out_what_a_newer_server_adds_to_its_replies() -> None:
    pong = decode_reply(encode({"type": "pong", "version": PROTOCOL_VERSION, "load": [0.5]}))
    assert pong == Pong()


def test_the_pixels_of_each_picture_are_told_apart_by_its_mask() -> None:
    pixels = {
        4: Pixels(2, 1, b"abcdef"),
        5: Pixels(1, 1, b"ghi", mask=b"m"),
        6: Pixels(1, 2, b"jklmno"),
    }
    pictures = [Picture(at, each.width, each.height, each.mask is not None) for at, each in pixels.items()]
    step = Step(0, encode=tuple(reversed(pictures)))
    frames = pixel_frames(step, pixels)
    assert frames == [b"jklmno", b"ghi", b"m", b"abcdef"]
    assert read_pixels(step, frames) == pixels
    assert read_pixels(step, []) == {}  # of the other ranks


def test_steps_and_their_answers_survive_the_wire() -> None:
    job = Job(
        job_id=3,
        prompt_ids=(1, 2, 3),
        negative_ids=None,
        width=64,
        height=80,
        steps=4,
        guidance=0.0,
        mu=1.15,
        seed=2**53 - 1,
    )
    for command in (
        Execute(step=Step(7, (job,), (1, 3), (1,), (2,))),
        Load(engine=EngineConfig(tp=2), warm_up=True, warm_up_sizes=((64, 96),), timeout_s=1.5),
    ):
        assert decode_command(encode(command)) == command
    picture = Picture(3, 64, 80, masked=True)
    step = Step(8, (replace(job, picture=picture, skipped_steps=2),), encode=(picture,), forget=(3,))
    assert decode_command(encode(Execute(step=step))) == Execute(step=step)
    done = StepDone(rank=1, number=7, times=StepTimes(0.25, 1.5))
    assert decode_report(encode(done)) == done
    config = FrontendConfig(engine=EngineConfig(), run_folder="/run")
    assert msgspec.msgpack.decode(encode(config), type=FrontendConfig) == config


def test_numbers_of_numpy_are_numbers() -> None:
    message = Generate(request_id="r", prompt="", seed=np.int64(5), guidance=np.float32(0.5))  # type: ignore[arg-type]
    decoded = decode_request(encode_request(message))
    assert isinstance(decoded, Generate)
    assert (decoded.seed, decoded.guidance) == (5, 0.5)


@pytest.mark.parametrize(
    ("changes", "message", "parameter"),
    [
        ({"width": "64"}, "width must be a whole number or null, got text", "width"),
        ({"width": 64.5}, "width must be a whole number or null, got a number", "width"),
        ({"width": True}, "width must be a whole number or null, got true or false", "width"),
        ({"guidance": "high"}, "guidance must be a number or null, got text", "guidance"),
        ({"prompt": None}, "prompt must be text, got null", "prompt"),
        ({"metadata": 1}, "metadata must be true or false, got a whole number", "metadata"),
        ({"sneed": 1}, "the message does not follow the protocol: Object contains unknown field `sneed`", None),
        ({"type": "generat"}, "the message does not follow the protocol: Invalid value 'generat'", None),
    ],
)
def test_a_wrong_type_is_refused_by_name(changes: dict[str, Any], message: str, parameter: str | None) -> None:
    loose = msgspec.msgpack.decode(encode_request(GENERATE)) | changes
    with pytest.raises(MessageError) as refusal:
        decode_request(msgspec.msgpack.encode(loose))
    assert refusal.value.error.message.startswith(message)
    assert refusal.value.error.parameter == parameter
    assert isinstance(refusal.value.error, ArgumentError)
    assert refusal.value.request_id == "r1"


@pytest.mark.parametrize("version", [0, 1, "2", None, 2**63, "x" * 1000])
def test_another_version_is_refused_as_such(version: object) -> None:
    loose = msgspec.msgpack.decode(encode_request(GENERATE)) | {"version": version}
    if version is not None:
        loose["a_field_of_the_future"] = 1
    with pytest.raises(MessageError) as refusal:
        decode_request(msgspec.msgpack.encode(loose))
    assert len(refusal.value.error.message) < 200
    if version is not None:
        assert isinstance(refusal.value.error, ServerError)


@settings(max_examples=500, deadline=None)
@given(st.binary())
def test_random_frames_are_refused(frame: bytes) -> None:
    with pytest.raises(MessageError):
        decode_request(frame)


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_mutated_frames_are_decoded_or_refused(data: st.DataObject) -> None:
    frame = bytearray(encode_request(GENERATE))
    for _ in range(data.draw(st.integers(1, 5))):
        position = data.draw(st.integers(0, len(frame) - 1))
        match data.draw(st.sampled_from(["flip", "insert", "remove"])):
            case "flip":
                frame[position] = data.draw(st.integers(0, 255))
            case "insert":
                frame.insert(position, data.draw(st.integers(0, 255)))
            case "remove":
                del frame[position]
    try:
        decode_request(bytes(frame))
    except MessageError as refusal:
        encode(Failed(request_id=refusal.request_id, code=refusal.error.code, message=refusal.error.message))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(Generate.__struct_fields__), JSON), st.sampled_from(["generate", "ping", "x"]))
def test_any_values_in_the_right_fields_are_decoded_or_refused(values: dict[str, Any], kind: str) -> None:
    with suppress(MessageError):
        decode_request(msgspec.msgpack.encode(values | {"type": kind}))


@pytest.mark.parametrize(
    "frame", [b"\x91" * 100_000, b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x81\x91\x01\x01"]
)
def test_deep_and_huge_frames_are_refused(frame: bytes) -> None:
    with pytest.raises(MessageError):
        decode_request(frame)


@pytest.mark.parametrize(
    ("message", "match"),
    [
        (Generate(request_id="r", prompt="\ud800"), "lone surrogates"),
        (Generate(request_id="r", prompt="", seed=2**64), "a type that is not allowed"),
        (Generate(request_id="r", prompt=object()), "type object"),  # type: ignore[arg-type]
        (Generate(request_id="r", prompt="x" * 300_000), "at most 262144 bytes, got 300"),
    ],
)
def test_what_cannot_travel_is_refused_before_it_does(message: Request, match: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        encode_request(message)


@pytest.mark.parametrize(
    "error",
    [
        ArgumentError.of("width", "even", 3),
        CheckpointError.of("file", "is gone", expected=1, found=2),
        RankError("rank 0: died"),
        ServerError("bye"),
    ],
)
def test_errors_arrive_as_what_they_were(error: Krea2Error) -> None:
    failed = decode_reply(
        encode(Failed(request_id=None, code=error.code, message=error.message, parameter=error.parameter))
    )
    assert isinstance(failed, Failed)
    received = error_from_code(failed.code, failed.message, failed.parameter)
    assert type(received) is type(error)
    assert (received.message, str(received), received.parameter, received.exit_code) == (
        error.message,
        str(error),
        error.parameter,
        error.exit_code,
    )
