"""What scores mean: by thresholds they become findings, of which the strictest is the verdict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from engine.errors import ModerationBlockedError
from launcher.filters.protocol import Scores
from launcher.filters.spec import EVERY, thresholds_of
from launcher.logs import log_event
from launcher.messages.configs import FilterSpec

ALLOW, LOG, BLUR, BLOCK = "allow", "log", "blur", "block"
STRICTNESS = (ALLOW, LOG, BLUR, BLOCK)  # strictest last
UNCHECKED = "unchecked"  # the category of what is let through, or marked in vain, because its filter has failed
DEFAULT_THRESHOLDS = {EVERY: 0.5}  # of filters that have none


@dataclass(frozen=True)
class Finding:
    """What a filter has found that has a consequence.

    filter: its label. kind: of what: `prompt`, `upload`, `preview` or `image`. action: `log`, `blur` or `block`.
    """

    filter: str
    kind: str
    action: str
    category: str
    score: float


def judge(spec: FilterSpec, own: Mapping[str, float], kind: str, scores: Scores, moderation: str) -> list[Finding]:
    """Say what a filter's scores of one thing come to, the strictest first.

    own: the thresholds that the filter has itself, from which a category blocks for which the operator has said neither
    `block` nor `blur`. A prompt or upload that would be blurred is blocked.
    """
    given = thresholds_of(spec, moderation)
    findings = []
    for category, score in scores.items():
        thresholds = {action: _threshold(given.get(action, {}), category) for action in (BLOCK, BLUR, LOG)}
        if thresholds[BLOCK] is None and thresholds[BLUR] is None:
            thresholds[BLOCK] = _threshold(own, category)
        action = next((action for action, least in thresholds.items() if least is not None and score >= least), ALLOW)
        if action == BLUR and kind in ("prompt", "upload"):
            action = BLOCK
        if action != ALLOW:
            findings.append(Finding(spec.label, kind, action, category, score))
    return sorted(findings, key=lambda each: (-STRICTNESS.index(each.action), -each.score, each.category))


def strictest(findings: Iterable[Finding]) -> str:
    """The action of the strictest finding, `allow` where there is none."""
    return max((each.action for each in findings), key=STRICTNESS.index, default=ALLOW)


class BlockedError(ModerationBlockedError, code=ModerationBlockedError.code):
    """What was blocked, with the findings of all filters."""

    findings: tuple[Finding, ...] = ()


def blocked_error(findings: Sequence[Finding], parameter: str | None = None) -> BlockedError:
    """Make the error of what was blocked. It names filter and category, never what in a prompt was found.

    parameter: what of the request was blocked: prompt, negative_prompt or image; None for a picture that was made.
    """
    finding = next(each for each in findings if each.action == BLOCK)
    what = {
        "prompt": "the negative prompt" if parameter == "negative_prompt" else "the prompt",
        "upload": "the picture that was sent",
    }.get(finding.kind, "the image")
    message = f"{what} was blocked by the content filter {finding.filter} ({finding.category})"
    error = BlockedError(message, parameter=parameter, category=finding.category)
    error.findings = tuple(findings)
    return error


def log_findings(request_id: str, findings: Iterable[Finding]) -> None:
    """Write what was found of a request to the log, and what went unchecked, each in a line."""
    for each in findings:
        level = "warning" if each.category == UNCHECKED else "info"
        log_event("content found", level=level, request_id=request_id, **asdict(each))


def _threshold(thresholds: Mapping[str, float], category: str) -> float | None:
    return thresholds.get(category, thresholds.get(EVERY))
