"""What a filter is given next."""

from __future__ import annotations

import asyncio
from typing import Any

from launcher.filters.child import CheckFailedError
from launcher.filters.protocol import Picture, Prompt
from launcher.filters.waiting import _BATCH_BYTES, _MOST_WAITING, BatchSizes, Check, Waiting


class Answer:
    """Stands in for a future."""

    def __init__(self, is_done: bool = False) -> None:
        self.done = lambda: is_done


def check(name: str, size: int | None = None, *, kind: str = "image", done: bool = False) -> Check:
    item = Prompt(name) if size is None else Picture(1, 1, bytes(size), kind, name)
    answer: Any = Answer(done)
    return Check("check_prompts" if size is None else "check_images", item, 0.0, answer)


def taken(queue: Waiting, most: int = 8) -> list[str]:
    items = [each.item for each in queue.take(lambda _: most)]
    return [item.text if isinstance(item, Prompt) else item.prompt for item in items]


def test_what_came_first_goes_first_in_batches_of_one_method() -> None:
    queue = Waiting()
    queue.soon.extend([check("a"), check("b"), check("c", 3), check("d")])
    assert [taken(queue) for _ in range(4)] == [["a", "b"], ["c"], ["d"], []]
    queue.soon.extend(check(str(index)) for index in range(5))
    assert [taken(queue, 2) for _ in range(3)] == [["0", "1"], ["2", "3"], ["4"]]


def test_a_second_try_waits_for_nothing_an_image_for_no_prompt_and_a_preview_for_everything() -> None:
    queue = Waiting()
    for each in (
        check("preview", 3, kind="preview"), check("prompt"), check("upload", 3, kind="upload"), check("image", 3)
    ):  # fmt: skip
        queue.add(each)
    queue.again.extend([check("again"), check("and again")])
    assert len(queue) == 6
    assert [taken(queue) for _ in range(6)] == [
        ["again"], ["and again"], ["image"], ["prompt"], ["upload"], ["preview"],
    ]  # fmt: skip


def test_where_too_much_waits_nothing_more_may_but_images() -> None:
    queue = Waiting()
    queue.soon.extend([check("a")] * _MOST_WAITING)
    kinds = ("upload", "preview", "image")
    assert [queue.is_full_for(Picture(1, 1, b"", kind, "")) for kind in kinds] == [True, True, False]
    assert queue.is_full_for(Prompt(""))
    queue.soon.pop()
    assert not queue.is_full_for(Prompt(""))


def test_what_nobody_waits_for_is_not_checked() -> None:
    queue = Waiting()
    queue.again.append(check("a", done=True))
    queue.soon.extend([check("b", done=True), check("c"), check("d", done=True), check("e")])
    queue.later.append(check("f", done=True))
    assert taken(queue) == ["c", "e"]
    assert taken(queue) == []
    assert len(queue) == 0


def test_a_batch_has_as_many_bytes_as_there_is_room_for_or_one_picture() -> None:
    queue = Waiting()
    half = _BATCH_BYTES // 2
    queue.soon.extend([check("a", half), check("b", half), check("c", 3), check("d", _BATCH_BYTES + 3), check("e")])
    assert [taken(queue) for _ in range(4)] == [["a", "b"], ["c"], ["d"], ["e"]]


def test_a_queue_that_fails_tells_all_who_wait() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        queue = Waiting()
        checks = [Check("check_prompts", Prompt("a"), 0.0, loop.create_future()) for _ in range(3)]
        queue.soon.append(checks[0])
        queue.later.append(checks[1])
        queue.again.append(checks[2])
        queue.fail(CheckFailedError("start", "gone"))
        assert [str(each.answer.exception()) for each in checks] == ["gone"] * 3

    asyncio.run(main())


def test_a_filter_gets_as_much_at_once_as_it_does_in_its_time() -> None:
    sizes = BatchSizes(6, 10.0)
    seen = []
    for seconds_each in (1.5, 1.5, 1.5, 1.5, 0.5, 0.5):
        size = sizes.most("check_images")
        seen.append(size)
        sizes.took("check_images", size, seconds_each * size)
    assert seen == [1, 2, 4, 4, 4, 6]
    sizes.took("check_images", 1, 1.0)  # of which nothing follows
    assert (sizes.most("check_images"), sizes.most("check_prompts")) == (6, 1)
    sizes.was_late("check_images", 6)
    sizes.was_late("check_images", 1)
    assert sizes.most("check_images") == 1


def test_turns_are_what_a_second_try_shares_its_time_with() -> None:
    queue = Waiting()
    for each in (check("a"), check("b"), check("c", 3), check("preview", 3, kind="preview")):
        queue.add(each)
    queue.again.append(check("again"))
    assert (queue.turns(1), queue.turns(2)) == (4, 2.5)
