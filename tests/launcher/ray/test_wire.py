"""What crosses deployments: bytes, which an older release can read, too."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.messages.client_messages import PROTOCOL_VERSION, Accepted, Failed, Generate, Image, Progress
from launcher.messages.encoding import encode, encode_request
from launcher.ray.wire import Hints, decode_hints, decode_replies, encode_hints, encode_replies

TEXT = st.text(max_size=8)
REPLIES = st.one_of(
    st.builds(Accepted, request_id=TEXT, position=st.integers(0, 9), estimated_s=st.none(), attempt=st.integers(1, 3)),
    st.builds(
        Progress, request_id=TEXT, step=st.integers(0, 9), steps=st.integers(1, 9), estimated_s=st.floats(0, 9),
        attempt=st.integers(1, 3),
    ),
    st.builds(Failed, request_id=st.none() | TEXT, code=TEXT, message=TEXT, retry_after_s=st.none() | st.floats(0, 9)),
    st.builds(
        Image, request_id=TEXT, index=st.integers(0, 9), num_images=st.just(10), seed=st.integers(0, 2**53 - 1),
        width=st.just(64), height=st.just(64), output_format=st.just("png"), warnings=st.just(("cut",)),
        timings=st.just({"total": 0.5}), attempt=st.integers(1, 3),
    ),
)  # fmt: skip


@given(st.lists(st.tuples(REPLIES, st.binary(max_size=40)), max_size=5))
def test_replies_come_as_they_were(replies):
    assert decode_replies(encode_replies(replies)) == replies


@given(st.builds(Hints, ticket=TEXT, avoid=st.lists(TEXT).map(tuple), key=st.none() | TEXT, work=st.floats(0, 1e9)))
def test_hints_come_as_they_were(hints):
    assert decode_hints(encode_hints(hints)) == hints


def test_what_a_newer_release_adds_is_left_out():
    known = Accepted(request_id="a", position=0, estimated_s=1.0, attempt=1)
    newer = encode({**msgspec.to_builtins(known), "type": "accepted", "mood": "good"})
    assert decode_replies(encode([(newer, b"")])) == [(known, b"")]


@pytest.mark.parametrize("chunk", [b"", b"\xc1", encode({"a": 1}), encode([(b"\xc1", b"")])])
def test_what_is_none_raises_one_kind_of_error(chunk):
    with pytest.raises(msgspec.DecodeError):
        decode_replies(chunk)


def test_an_older_engine_is_asked_for_nothing_that_nobody_asked_for():
    """Nor does a message go without its version, which says what its fields mean."""
    sent = msgspec.msgpack.decode(encode_request(Generate(request_id="a", prompt="p", seed=3)))
    assert sent == {"type": "generate", "version": PROTOCOL_VERSION, "request_id": "a", "prompt": "p", "seed": 3}
