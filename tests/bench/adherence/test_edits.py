"""Pictures that are drawn from others: what is asked for, what counts as right, and the command, on what the renderer
draws."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageFilter

from bench.adherence import tasks
from bench.adherence.__main__ import main
from bench.adherence.edits import CLEAN, FEATHER, TASKS, Edit, edits, judge
from demo.captions import Prompt, held_out, parse
from demo.pictures import PALETTE, Placed, paint, place_objects
from launcher import Result

FEW = ("--prompts", "4", "--width", "128", "--height", "128")

Change = Callable[[list[Placed]], list[Placed]]


def drawn(edit: Edit, change: Change = lambda placed: placed, *, pasted: bool = True) -> Image.Image:
    """What a perfect engine makes of an edit, after `change`."""
    return edited(edit.case.prompt, edit.source(), edit.mask() if pasted else None, edit.case.seed, change)


def edited(prompt: Prompt, source: Image.Image, mask: Image.Image | None, seed: int, change: Change) -> Image.Image:
    placed = change(place_objects(prompt, *source.size, random.Random(seed)))
    picture = paint(placed, PALETTE[prompt.background], *source.size)
    return picture if mask is None else Image.composite(picture, source, mask)


@pytest.mark.parametrize("task", TASKS)
def test_what_is_asked_for_is_held_out_and_the_same_however_many_there_are(task: str) -> None:
    asked = edits(task, 60, None)
    assert asked[:20] == edits(task, 20, None)
    assert len({edit.case.prompt for edit in asked}) == 60
    for edit in asked:
        after, before = edit.case.prompt, edit.before
        assert held_out(after)
        assert (after.background, after.relation, after.place) == (before.background, before.relation, before.place)
        different = [new != old for new, old in zip(after.objects, before.objects, strict=True)]
        assert different == [index == edit.changed for index in range(len(different))]
        new, old = after.objects[edit.changed], before.objects[edit.changed]
        assert (new.colour != old.colour, new.shape != old.shape) == (True, task == "inpaint")
    assert {edit.case.size for edit in edits(task, 5, (160, 96))} == {"160x96"}


def test_masks_cover_the_changed_object_alone_and_do_not_fade_over_the_other() -> None:
    for edit in edits("inpaint", 14, None):
        mask = edit.mask()
        assert mask is not None
        background = PALETTE[edit.before.background]
        alone = [paint([placed], background, *mask.size) for placed in edit.placed]
        empty = paint([], background, *mask.size)
        faded = mask.filter(ImageFilter.MaxFilter(2 * FEATHER + 1))
        for index, picture in enumerate(alone):
            inside = ImageChops.difference(picture, empty)
            inside.paste((0, 0, 0), mask=mask if index == edit.changed else ImageChops.invert(faded))
            assert inside.getbbox() is None, edit


@pytest.mark.parametrize("task", TASKS)
def test_what_was_asked_for_is_right(task: str) -> None:
    for edit in edits(task, 3, (128, 128)):
        judged = judge(edit, drawn(edit))
        assert judged.right, (edit, judged)
        assert judged.verdict[CLEAN]


@pytest.mark.parametrize("task", TASKS)
def test_the_source_alone_is_wrong_in_what_was_to_change(task: str) -> None:
    for edit in edits(task, 2, (128, 128)):
        assert judge(edit, edit.source()).wrong == ["new"]


def test_what_is_wrong_is_named() -> None:
    edit = edits("inpaint", 1, (128, 128))[0]
    other = 1 - edit.changed

    def moved(index: int) -> Change:
        return lambda placed: [replace(each, y=each.y + 16 * (at == index)) for at, each in enumerate(placed)]

    assert judge(edit, drawn(edit, pasted=False)).right
    assert judge(edit, drawn(edit, moved(other), pasted=False)).wrong == ["kept", "other"]
    assert "new" in judge(edit, drawn(edit, moved(edit.changed), pasted=False)).wrong
    touched = drawn(edit)
    touched.putpixel((0, 0), (1, 2, 3))
    assert judge(edit, touched).wrong == ["kept"]
    beside = drawn(edit)
    at = edit.placed[edit.changed]
    beside.putpixel((int(at.x - at.radius - 4 - FEATHER), int(at.y)), (1, 2, 3))  # the outermost that may fade
    assert "kept" not in judge(edit, beside).wrong
    assert "kept" in judge(edit, drawn(edit).resize((144, 144))).wrong


def test_a_shape_that_can_be_told_is_right_without_being_clean() -> None:
    edit = next(edit for edit in edits("inpaint", 60, (128, 128)) if _new(edit).shape == "square")
    at = edit.placed[edit.changed]
    picture = drawn(edit)
    box = (int(at.x - at.radius), int(at.y - at.radius), int(at.x + at.radius), int(at.y + at.radius))
    wide = picture.crop(box).resize((box[2] - box[0] + 4, box[3] - box[1]))
    picture.paste(wide, (box[0] - 2, box[1]))
    judged = judge(edit, picture)
    assert judged.right
    assert not judged.verdict[CLEAN]


def _new(edit: Edit) -> Any:
    return edit.case.prompt.objects[edit.changed]


class Editor:
    """An engine's stand-in, which changes pictures as it is asked to, but for every fourth, which stays as it was."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def generate(self, prompt: str, **parameters: Any) -> Result:
        self.asked.append(parameters)
        asked, seed = parse(prompt), parameters["seed"]
        assert asked is not None
        size = parameters["width"], parameters["height"]
        source = parameters.get("image") or Image.new("RGB", size)
        picture = edited(asked, source, parameters.get("mask"), seed, lambda placed: placed)
        if "image" in parameters and seed % 4 == 3:
            picture = source
        if "image" not in parameters:  # a place of its own
            picture = ImageChops.offset(picture, 64, 0)
        file = io.BytesIO()
        picture.save(file, "png")
        return Result("id", 0, [file.getvalue()], [seed], *picture.size, "png", {}, ())


@pytest.fixture
def editor(monkeypatch: pytest.MonkeyPatch) -> Editor:
    editor = Editor()

    @contextmanager
    def launch(**options: Any) -> Iterator[Editor]:
        assert options["image_input"]
        yield editor

    monkeypatch.setattr(tasks, "launch", launch)
    return editor


def run(arguments: Sequence[str], capsys: pytest.CaptureFixture[str], status: int) -> str:
    assert main(arguments) == status
    return capsys.readouterr().out


def test_the_command_counts_compares_and_records(
    editor: Editor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, sheet, wrong = tmp_path / "lines.jsonl", tmp_path / "sheet.png", tmp_path / "wrong.png"
    words = [
        "--task",
        "inpaint",
        "--prompts",
        "4",
        "--width",
        "128",
        "--height",
        "128",
        "--json",
        str(file),
        "--sheet",
        str(sheet),
    ]
    output = run([*words, "--wrong-sheet", str(wrong), "--fail-under", "0.75"], capsys, 0)
    assert output.splitlines()[-1] == "inpaint: all is right in 3 of 4 pictures, at least 75.0%: passed"
    assert run(words, capsys, 1).splitlines()[-1].endswith("3 of 4 pictures, less than 90.0%: FAILED")
    line = json.loads(file.read_text().splitlines()[0])
    assert (line["benchmark"], line["prompts"], line["passes"]) == ("adherence_inpaint", 4, True)
    assert [rate["right"] for name, rate in line["rates"].items() if name in ("all", "kept", "other", "new")] == [
        *(3, 4, 4, 3)
    ]
    assert [each["seed"] for each in line["wrong"]] == [3]
    assert line["wrong"][0]["fault"].startswith("new; seen: ")
    with Image.open(sheet) as whole, Image.open(wrong) as few:
        assert whole.width > few.width  # two of source, mask and picture in a row, and one
        assert whole.height > few.height
    first = editor.asked[0]
    assert first["mask"].mode == "L"
    assert (first["strength"], first["strength_steps"]) == (None, "partial")


def test_a_colour_is_compared_with_what_the_prompt_alone_gives(
    editor: Editor, capsys: pytest.CaptureFixture[str]
) -> None:
    output = run(["--task", "img2img", *FEW, "--strength", "0.4"], capsys, 1)  # of three in four, too few
    assert "from the picture" in output
    rows = {line.split("  ")[0]: line.split("  ") for line in output.splitlines()}
    assert [cell for cell in rows["says place or size, from the prompt alone"] if cell.strip()][1].strip() == "0"
    assert {each.get("strength") for each in editor.asked} == {0.4, None}
    assert all("mask" not in each for each in editor.asked if "image" not in each)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "inpaint", "--table"], "--task does not go with --table"),
        (["--strength", "0.5"], "--strength needs a --task"),
        (["--task", "inpaint", "--strength", "2"], "--strength: must be a share from 0 to 1, got 2"),
    ],
)
def test_a_mistake_is_named_before_anything_starts(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow  # the tests above hold what is asked for and counted; this draws with the demo
@pytest.mark.timeout(900)
@pytest.mark.parametrize("task", TASKS)
def test_the_demo_changes_what_was_asked_for(task: str, tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    status = main(["--task", task, "--prompts", "40", "--device", "cpu", "--json", str(file)])
    rates = json.loads(file.read_text())["rates"]
    assert status == 0, rates["all"]
    assert task != "inpaint" or rates["kept"]["share"] == rates["other"]["share"] == 1
