"""What the process that keeps a Ray leaves behind."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from launcher.ray.one_machine.keeper import _Keeper


class _EndedError(Exception):
    pass


@pytest.mark.parametrize(("error", "keeps"), [(RuntimeError("no GCS"), True), (SystemExit(143), False)])
def test_logs_of_ray_are_kept_where_it_failed_and_not_where_it_was_told_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, keeps: bool
) -> None:
    (tmp_path / "run" / "session_1_2" / "logs").mkdir(parents=True)
    told: list[str] = []

    def fail(_: _Keeper) -> None:
        raise error

    def end(_: _Keeper) -> None:
        raise _EndedError

    monkeypatch.setattr(_Keeper, "_keep", fail)
    monkeypatch.setattr(_Keeper, "_end", end)
    monkeypatch.setattr(_Keeper, "_tell", lambda _, error: told.append(error.message))
    keeper = object.__new__(_Keeper)
    keeper._folder = SimpleNamespace(path=str(tmp_path / "run"))  # type: ignore[assignment]
    with pytest.raises(_EndedError):
        keeper.run()
    kept = list(tmp_path.glob("krea2-ray-logs-*"))
    assert len(kept) == keeps
    assert len(told) == 1
    assert told[0].startswith("Ray failed: ")
    assert ("Ray's logs are in" in told[0]) is keeps
