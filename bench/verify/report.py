"""The report: Markdown that can be pasted into an issue, with nothing of whose machine it was but what it is."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from bench.measure.output import json_line
from bench.verify.judging import BETWEEN, LATENTS, Check
from bench.verify.subject.models import Model, Request, describe_shapes

_ROOT = Path(__file__).parent.parent.parent
_OF_GROUPS = (LATENTS, BETWEEN)  # shown by themselves
_MOST_TRACEBACKS = 4  # the first; later ones often follow from them
_LONGEST_TRACEBACK = 3000  # characters of its end


@dataclass(frozen=True)
class Verified:
    """A model, what was checked of it, how, and what was left out. requests: the
    images, by dtype. cannot_judge: why diffusers is nothing to compare with, empty if it is."""

    model: Model
    checks: Sequence[Check]
    notes: Sequence[str] = ()
    requests: Mapping[str, Sequence[Request]] = field(default_factory=dict)
    cannot_judge: str = ""

    @property
    def holds(self) -> bool:
        return not self.cannot_judge and bool(self.checks) and all(check.holds for check in self.checks)

    @property
    def first_difference(self) -> Check | None:
        return next((check for check in self.checks if not check.holds), None)

    @property
    def _holding(self) -> int:
        return sum(check.holds for check in self.checks)

    @property
    def verdict(self) -> str:
        first = self.first_difference
        if self.cannot_judge:
            before = f"; {self._holding} of {len(self.checks)} checks before that hold" if self.checks else ""
            return f"not verified: {self.cannot_judge}{before}"
        if first is None:
            return f"all {len(self.checks)} checks hold" if self.checks else "nothing was checked"
        where = ", ".join(part for part in (first.dtype, "" if first.mode in ("", "one") else first.mode) if part)
        more = len(self.checks) - self._holding - 1
        said = f"first difference: {first.name}" + (f" ({where})" if where else "")
        said += f", error {_error(first)}" if math.isfinite(first.error) else f", {_no_number(first)}"
        if math.isfinite(first.error):
            said += f" where {first.allowed:.1e} is allowed"
            said += f"; {first.detail}" if first.detail else ""
        return said + (f"; {more} more of {len(self.checks)} checks do not hold" if more else "")


def write_report(results: Sequence[Verified], command: str = "", began: datetime | None = None) -> str:
    """command: what was asked for, with no paths. began: when, in UTC."""
    circumstances: dict[str, Any] = json.loads(json_line("verify", {}))
    hardware, versions = circumstances["hardware"], circumstances["versions"]
    machine = f"{hardware['gpus']} × {hardware['gpu']}" if hardware["gpu"] else f"CPU {hardware['cpu']}"
    lines = ["# The engine against diffusers", ""]
    lines += [f"- **{result.model.name}** ({result.model.variant}): {result.verdict}" for result in results]
    if command:
        lines += ["", f"`{command}`" + (f", begun {began:%Y-%m-%d %H:%M} UTC" if began is not None else "")]
    lines += ["", f"{machine}; commit {circumstances['commit']}"]
    lines.append(", ".join(f"{name} {value}" for name, value in versions.items() if value is not None))
    for result in results:
        lines += ["", *_section(result)]
    return _without_paths("\n".join(lines) + "\n", [result.model for result in results])


def _section(result: Verified) -> list[str]:
    model = result.model
    lines = [
        f"## {model.name} ({model.variant})",
        "",
        f"{describe_shapes(model.config)}; weights stored as {', '.join(model.formats)}, not quantised",
        "",
        *_images(result.requests),
        *(f"- {note}" for note in result.notes),
        "",
        "A row is one check, or the worst of those of a kind that hold: of one dtype and mode, with names that differ",
        "in a number alone; of several ranks, all stages. What does not hold has a row of its own.",
        "",
        "| check | dtype | ranks | error | allowed | measured | outcome |",
        "|---|---|---|---|---|---|---|",
    ]
    for (kind, _, _), together in groupby(result.checks, key=lambda check: (_kind(check), check.dtype, check.mode)):
        group = list(together)
        holding = [check for check in group if check.holds]
        if holding:
            worst = max(holding, key=lambda check: check.error / max(check.allowed, 1e-30))
            name = worst.name if len(group) == 1 else f"{kind}: worst of {len(holding)} is {worst.name}"
            lines.append(_row(worst, name, "ok"))
        lines += [_row(check, check.name, "**DIFFERS**") for check in group if not check.holds]
    failures = [check for check in result.checks if not check.holds and "\n" in check.detail]
    for check in failures[:_MOST_TRACEBACKS]:
        lines += ["", f"{check.name}, {check.dtype}, {check.mode}:", "", "```"]
        lines += [check.detail[-_LONGEST_TRACEBACK:].strip(), "```"]
    return lines


def _images(requests: Mapping[str, Sequence[Request]]) -> list[str]:
    """What was drawn: the sizes, steps, guidance, seeds and prompts."""
    lines = []
    for dtype, asked in requests.items():
        sizes = ", ".join(dict.fromkeys(f"{one.width}×{one.height}" for one in asked))
        sizes += " in turn" if "," in sizes else ""
        guidance, first, last = asked[0].guidance, asked[0].seed, asked[-1].seed
        seeds = f"seed {first}" if len(asked) == 1 else f"seeds {first} to {last}"
        count = f"{len(asked)} images" if len(asked) > 1 else "1 image"
        steps = f"{asked[0].steps} step{'s' if asked[0].steps > 1 else ''}"
        lines.append(f"- {dtype}: {count} of {sizes}, {steps}, guidance {guidance:g}, {seeds}")
    every = [one for asked in requests.values() for one in asked]
    texts = {
        "prompts": dict.fromkeys(one.prompt for one in every),
        "negative prompts": dict.fromkeys(one.negative_prompt for one in every if one.guidance > 0),
    }
    lines += [f"- {kind}, in turn: {'; '.join(map(repr, found))}" for kind, found in texts.items() if found]
    return lines


def _row(check: Check, name: str, outcome: str) -> str:
    allowed = f"{check.allowed:.1e}"
    detail = f"; {check.detail}" if check.detail and "\n" not in check.detail else ""
    cells = (name, check.dtype, check.mode, _error(check), allowed, check.measure + detail, outcome)
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _kind(check: Check) -> str:
    """Checks of one kind are one row, where they hold: checks that differ in a number, and a group of ranks' stages."""
    if check.mode not in ("", "one") and not check.name.startswith(_OF_GROUPS):
        return "stages"
    return re.sub(r"\d+.*", "…", check.name)


def _error(check: Check) -> str:
    return f"{check.error:.1e}" if math.isfinite(check.error) else "none"


def _no_number(check: Check) -> str:
    if not check.detail:
        return "which is not a number"
    return check.detail.strip().splitlines()[-1]


def _without_paths(text: str, models: Sequence[Model]) -> str:
    """Where things lie on somebody's machine is nobody else's business."""
    names = [(str(model.folder), model.name) for model in models]
    names += [(str(_ROOT), "."), (sys.prefix, "<python>"), (sys.base_prefix, "<python>"), (str(Path.home()), "~")]
    for path, name in names:
        if len(path) > 1:
            text = text.replace(path, name)
    return text


def json_result(model: Model, check: Check) -> dict[str, Any]:
    """Of one check."""
    return {
        "model": model.name,
        "variant": model.variant,
        **asdict(check),
        "error": check.error if math.isfinite(check.error) else None,
        "detail": _without_paths(check.detail, [model]),
        "holds": check.holds,
    }
