"""`krea2` and `python -m launcher`: the command line, a process that the launcher starts itself, or a torchrun rank."""

from __future__ import annotations

import os
import signal
import sys

from launcher.messages.connections.open_files import hold_standard_files, raise_limit


def main() -> None:
    """Run what the first argument names: a `Child`'s role, which begins with an underscore, or a command."""
    # Until a role takes over, there is nothing to clean up: Ctrl-C ends us without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    hold_standard_files()
    raise_limit()
    # Ranks wait for torch, and everything waits for them: each role imports no more than it needs.
    role = sys.argv[1] if len(sys.argv) > 1 else ""
    if role == "_frontend":
        from launcher.auto_mode.measurements import keep_speed
        from launcher.frontend.process import run_frontend

        run_frontend(keep_speed)
    elif role == "_http":
        from launcher.http.app import run_http

        run_http()
    elif role == "_cluster":
        from launcher.ray.one_machine.keeper import run_keeper

        run_keeper()
    elif role == "_devices":
        from launcher.auto_mode.choice import report_gpus

        report_gpus()
    elif role == "_fingerprint":
        from launcher.audit.fingerprint_process import run_fingerprint

        run_fingerprint()
    elif role == "_pictures":
        from launcher.pictures.process import run_pictures

        run_pictures()
    elif role == "_filter":
        from launcher.filters.process import run_filter

        run_filter()
    elif role == "_rank":
        from launcher.ranks.worker import run_spawned

        run_spawned()
    else:
        from launcher.ranks import torchrun

        if torchrun.is_rank() and role in ("generate", "serve"):
            torchrun.run_rank()
        elif not torchrun.is_rank() or os.environ["RANK"] == "0":  # other commands run once
            from launcher.cli.main import run

            run()


if __name__ == "__main__":
    main()
