"""A picture is known again when it was scaled, compressed or stripped, and prompts by whoever has the key alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from engine.errors import ArgumentError
from launcher.audit.entries import Entry, timestamp
from launcher.audit.find import ALIKE, find_picture, select
from launcher.audit.fingerprint import Fingerprint, fingerprint
from launcher.audit.fingerprint_process import look
from launcher.audit.hashes import BITS, dhash, distance, hash_text, pixels_sha256, read_key, sha256
from tests.launcher.audit.pictures import drawn, file_of


def seen(data: bytes) -> Fingerprint:
    return Fingerprint(file_sha256=sha256(data), seen=look(data))


def entry_of(image: Image.Image, file: bytes, seed: int) -> Entry:
    rgb = image.tobytes()
    return Entry(
        time=timestamp(seed), event="image", seed=seed, file_sha256=sha256(file),
        pixels_sha256=pixels_sha256(*image.size, rgb), dhash=dhash(*image.size, rgb),
    )  # fmt: skip


def test_copies_are_found_by_file_by_pixels_and_by_what_is_seen_and_others_are_not() -> None:
    images = [drawn(seed) for seed in range(40)]
    entries = [entry_of(image, file_of(image), seed) for seed, image in enumerate(images)]
    image = images[7]
    copies = {
        "same file": file_of(image),
        "same pixels": file_of(image, compress_level=0),
        "looks alike": file_of(image, "jpeg", quality=40),
    }
    for how, data in copies.items():
        (first, *others) = find_picture(entries, seen(data))
        assert (first.entry.seed, first.how, others) == (7, how, [])
    for scale in (0.25, 0.5, 1.7):
        small = image.resize((round(256 * scale), round(192 * scale)), Image.Resampling.LANCZOS)
        (match,) = find_picture(entries, seen(file_of(small, "webp", quality=60)))
        assert (match.entry.seed, match.how) == (7, "looks alike")
        assert match.differs <= ALIKE // 2
    assert find_picture(entries, seen(file_of(drawn(99)))) == []


def test_the_hash_of_what_is_seen_is_the_difference_of_neighbours() -> None:
    falling = Image.linear_gradient("L").rotate(90).convert("RGB")  # darker to one side
    rising = falling.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    hashes = {dhash(*each.size, each.tobytes()) for each in (falling, rising)}
    assert hashes == {"f" * 16, "0" * 16}
    assert distance(*hashes) == BITS
    flat = Image.effect_noise((512, 512), 4).convert("RGB")  # whose neighbours differ by noise alone
    assert dhash(512, 512, flat.tobytes()) == "0" * 16


def test_a_process_looks_at_a_file_as_we_do_and_says_what_is_wrong_with_one() -> None:
    data = file_of(drawn(1).convert("RGBA"))
    assert fingerprint(data) == seen(data)
    for damaged in (data[:200], b"GIF89a" + bytes(20), b""):
        with pytest.raises(ArgumentError, match=r"^picture ") as caught:
            fingerprint(damaged, "picture")
        assert caught.value.parameter == "picture"


def test_prompts_have_the_same_hash_under_one_key_and_folders_have_their_own(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    keys = [read_key(str(folder)) for folder in folders]
    assert read_key(str(folders[0])) == keys[0] != keys[1]
    assert (folders[0] / "prompt-hashes.key").stat().st_mode & 0o077 == 0
    assert [sorted(os.listdir(folder)) for folder in folders] == [[".prompt-hashes.lock", "prompt-hashes.key"]] * 2
    (folders[1] / "prompt-hashes.key").write_bytes(b"")  # under which anybody could hash
    with pytest.raises(OSError, match="it has 0 bytes, and at least 16 are needed"):
        read_key(str(folders[1]))
    assert hash_text(keys[0], "a fox") == hash_text(keys[0], "a fox") != hash_text(keys[1], "a fox")


def test_lines_are_selected_by_what_they_have() -> None:
    entries = [
        Entry(time="2026-11-30T10:00:00.000Z", event="image", request_id="abc.1f", key="ann", user="u", seed=1),
        Entry(time="2026-11-30T11:00:00.000Z", event="refused", request_id="abcd", key="bob", seed=2, prompt_hash="h"),
    ]

    def found(**wanted: str | tuple[str, ...]) -> list[int | None]:
        return [entry.seed for entry in select(entries, **wanted)]  # type: ignore[arg-type]

    entries.append(Entry(time="2026-11-30T12:00:00.000Z", event="held", request_id="x" * 50 + ".1f", seed=3))
    assert found(request_id="x" * 64) == found(request_id="x" * 50) == found(events=("held",)) == [3]
    assert found(request_id="x" * 49) == []
    entries.pop()
    assert found() == [1, 2]
    assert found(events=("image", "held")) == found(request_id="abc") == found(request_id="abc.1f") == [1]
    assert found(user="u") == found(key="ann") == found(until="2026-11-30T10") == [1]
    assert found(since="2026-11-30T10:30") == found(prompt_hash="h") == [2]
    assert found(since="2026-12") == found(user="x") == []
