"""Starts and ends the command line, whose subcommands are in a file each.

Files written and what was asked for go to stdout; progress, notes and errors to stderr, an error being one line.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from importlib import import_module
from types import FrameType
from typing import NoReturn

import click

import engine
from engine.errors import ArgumentError, Krea2Error, printable
from launcher.cli.convert import convert
from launcher.cli.generate import generate
from launcher.cli.info import info
from launcher.cli.options.command import SETTINGS, Commands
from launcher.cli.serve import keys, serve
from launcher.processes import ORDERLY_S, SIGNALS, exit_after, watch_parent
from launcher.ranks import torchrun

_AGAIN_S = 0.05  # for a finalizer to end
# They stand above all other commands: the options of cluster are those of `serve`.
_cluster: click.Command = import_module("launcher.cli.cluster.group").cluster
_audit: click.Command = import_module("launcher.cli.audit.group").audit


def run() -> NoReturn:
    """Be the command line, from its arguments to its exit code."""
    sys.unraisablehook = _stop_after_all
    for number in SIGNALS:
        signal.signal(number, _stop)
    if torchrun.external_ranks() is not None:
        watch_parent(_stop_without_rank)
    code = execute()
    _give_up_unwritable_stdout()
    for number in SIGNALS:  # all is done, and nobody would catch what `_stop` raises while Python ends
        signal.signal(number, signal.SIG_DFL)
    sys.exit(code)


def execute(arguments: Sequence[str] | None = None) -> int:
    """Run a command, by default this process' own. Returns the exit code, after telling an error in one line."""
    try:
        return commands.main(arguments, prog_name="krea2", standalone_mode=False) or 0
    except click.exceptions.NoArgsIsHelpError as help_text:
        print(help_text.format_message(), file=sys.stderr)
        return help_text.exit_code
    except click.ClickException as error:
        return _complain(error.format_message(), ArgumentError.exit_code)
    except Krea2Error as error:
        return _complain(error.message, error.exit_code)
    except _Stopped as stopped:
        return 128 + stopped.args[0]
    except Exception as error:
        return _complain(f"{type(error).__name__}: {error}", 1)


@click.command("help")
@click.argument("command", nargs=-1)
@click.pass_context
def show_help(context: click.Context, command: tuple[str, ...]) -> None:
    """Tell what a command does, as its --help."""
    outer = context.parent
    assert outer is not None
    for word in command:
        if not isinstance(outer.command, Commands):
            break  # a command's own argument
        name, found, _ = outer.command.resolve_command(outer, [word])
        assert found is not None
        outer = click.Context(found, info_name=name, parent=outer)
    click.echo(outer.get_help())


@click.group(
    cls=Commands,
    commands=(generate, serve, info, convert, _cluster, keys, _audit, show_help),
    context_settings=SETTINGS,
)
@click.version_option(engine.__version__)
def commands() -> None:
    """Generate images with Krea 2, on one GPU or several.

    \b
    To begin with, on any machine, with the small demo that is in the package:
      krea2 generate "a red heart on a white background"
      krea2 serve
    With the model, which is downloaded:
      krea2 generate "a fox in the snow" --model krea/Krea-2-Turbo
    """


class _Stopped(BaseException):
    """Unwinds everything after SIGINT, SIGTERM or SIGHUP, its argument, so that no process and no file is left."""


def _stop(number: int, _: FrameType | None) -> None:
    for signal_number in SIGNALS:
        signal.signal(signal_number, signal.SIG_IGN)
    raise _Stopped(number)


def _stop_after_all(unraised: sys.UnraisableHookArgs) -> None:
    """Stop a little later, after a signal in a finalizer or the like, which no exception leaves: an import has some."""
    if isinstance(unraised.exc_value, _Stopped):
        (number,) = unraised.exc_value.args
        signal.signal(number, _stop)
        again = threading.Timer(_AGAIN_S, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(unraised)


def _stop_without_rank(_: bool) -> None:
    exit_after(ORDERLY_S)
    os.kill(os.getpid(), signal.SIGTERM)


def _complain(message: str, code: int) -> int:
    if sys.stderr is not None:  # print would take stdout instead
        print(f"error: {printable(' '.join(message.split()))}", file=sys.stderr)
    return code


def _give_up_unwritable_stdout() -> None:
    """Keep Python from trying once more at exit to write what is left, and from complaining of it."""
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
