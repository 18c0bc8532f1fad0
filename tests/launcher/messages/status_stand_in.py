"""What a front-end that never ran says of itself."""

from __future__ import annotations

import msgspec

from launcher.messages.client_messages import StatusReply

STATUS = StatusReply(
    model="demo", tp=1, device="cpu", ready=True, uptime_s=5.0, waiting=1, running=2, done=3, failed=4,
    dropped_messages=5, restarts=6, rank_memory=(), loras=(), merged_loras=(), memory_plan=(), backlog_s=2.5,
)  # fmt: skip


def status(**changes: object) -> StatusReply:
    """The same with other values."""
    return msgspec.structs.replace(STATUS, **changes)
