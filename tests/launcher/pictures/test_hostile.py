"""Whatever a file is: a picture or an error that names it, in bounded memory and time, and the server goes on."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from engine.config.model_config import ModelConfig
from engine.errors import ArgumentError
from launcher.pictures.prepared import PreparedPicture
from launcher.pictures.process import MOST_MEMORY
from tests.launcher.pictures.files import mask_of, noise, saved
from tests.launcher.pictures.hostile import KINDS, SMALL, hostile
from tests.launcher.pictures.test_process import Reader, run

FILES = 500
BLOCKS = 4  # which can run side by side
SIZE = 120, 150  # of most files, once they are upright
GOOD, GOOD_MASK = saved(noise(*SIZE)), mask_of(SIZE, (16, 16, 64, 64))


async def _read(reader: Reader, seed: int) -> PreparedPicture | ArgumentError:
    """Read a file as an image, as one with a mask, or as a mask."""
    rng = random.Random(seed)
    kind, data = hostile(seed)
    files = rng.choice(({"image": data}, {"image": data, "mask": GOOD_MASK}, {"image": GOOD, "mask": data}))
    answer: PreparedPicture | ArgumentError
    try:
        answer = await reader.reads(**files)
    except ArgumentError as error:
        answer = error
    if isinstance(answer, ArgumentError):
        said = seed, kind, answer.message
        assert answer.parameter in files, said
        assert answer.message.startswith(answer.parameter), said
        assert answer.parameter == "mask" or files["image"] is data, said
        assert not any(word in answer.message for word in ("Traceback", "Error", "exit code", "killed")), said
    return answer


def test_of_each_kind_some_end_in_a_picture_or_an_error_about_it(demo: ModelConfig) -> None:
    async def test() -> None:
        reader = Reader(demo)
        answers = [await _read(reader, seed) for seed in (*SMALL, *(len(KINDS) + seed for seed in SMALL))]
        assert {type(answer) for answer in answers} == {PreparedPicture, ArgumentError}
        reader.close()

    run(test())


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
@pytest.mark.parametrize("block", range(BLOCKS))
def test_500_files_end_in_a_picture_or_an_error_about_them_within_bounds(demo: ModelConfig, block: int) -> None:
    """The small ones of each kind are guarded by the test above."""

    async def test() -> None:
        reader, most, refused = Reader(demo), 0, 0
        count = FILES // BLOCKS
        for seed in range(block * count, (block + 1) * count):
            before = reader._process
            answer = await _read(reader, seed)
            refused += isinstance(answer, ArgumentError)
            if isinstance(answer, ArgumentError):
                print(seed, hostile(seed)[0], answer.message)
            elif sys.platform == "linux" and reader._process is not None:
                status = Path(f"/proc/{reader._process.child._process.pid}/status").read_text()
                most = max(most, *(1024 * int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line))
            if before is not None and reader._process is not before:
                assert isinstance(answer, ArgumentError)
                assert "took longer than" in answer.message, answer.message
            await reader.reads_again()
        print(f"{count} files: {refused} refused, {count - refused} read; {most / 1e6:.0f} MB at most")
        assert 0 < most < MOST_MEMORY
        assert 0 < refused < count
        reader.close()

    run(test())
