"""Tells what is wrong with options by their names on the command line, in place of those that they have in Python."""

from __future__ import annotations

import re

import click

from engine.config.engine_config import PARTS
from engine.errors import ArgumentError, Krea2Error

# Words, but for those in paths and quotes.
_WORD = re.compile(r"(?<![\w./'\"-])[a-z][a-z0-9]*(?:_[a-z0-9]+)*(?![\w/'\"\[-]|\.\w)")
_SUBJECT = re.compile(r"[a-z0-9_]+(?: × [a-z0-9_]+)*")  # what a message begins with, as width × height
OPTIONS_ALONE = ("tp", "sp", "offload")  # which mean the option wherever an error about options has them
# Options that the engine calls otherwise, each the first of these that the command has: convert merges every --lora.
_ENGINES = {"merge_loras": ("merge_lora", "loras")}
_WHOLE = re.compile(r"(, got -?\d+)\.0$")  # of an option that may have a fraction, and was given none


TYPED = "krea2.typed"  # in a context's `meta`: the options that were given under other names, by their own


class LineError(ArgumentError, code=ArgumentError.code, exit_code=ArgumentError.exit_code):
    """An error about a line of a file, which calls parameters what they are called there."""


def as_typed(error: Krea2Error, context: click.Context) -> str:
    """Return the message of an error, in which the options of the command have the names that are typed.

    What counts as a name is what has a `_` and, in an `ArgumentError`, what it begins with: others may be English. No
    word that was typed counts, since paths may have spaces.
    """
    if isinstance(error, LineError):
        return error.message
    options = [option for option in context.command.params if isinstance(option, click.Option) and not option.hidden]
    flags = {str(option.name): option.opts[0] for option in options} | context.meta.get(TYPED, {})
    arguments = (str(each.name) for each in context.command.params if isinstance(each, click.Argument))
    flags |= {name: name.upper() for name in arguments}
    given = {flags[name] for name in flags if context.params.get(name) not in (None, ())}
    flags |= {flag.strip("-").replace("-", "_"): flag for flag in flags.values()}  # as `limit`, of limits
    for name, known in _ENGINES.items():
        if (option := next(filter(flags.__contains__, known), None)) is not None:
            flags[name] = flags[option]
    names = {name for name in flags if "_" in name and name not in PARTS}
    subject = None
    if isinstance(error, ArgumentError):
        names |= {*OPTIONS_ALONE}
        subject = _SUBJECT.match(error.message)
    names.difference_update(re.findall("[a-z0-9_]+", repr([*context.params.values()])))
    if isinstance(error, ArgumentError) and error.message.startswith("missing: "):
        names |= {"model", *PARTS}

    def typed(match: re.Match[str]) -> str:
        flag = flags.get(match[0], match[0])
        begins = subject is not None and match.end() <= subject.end() and flag in given
        return flag if begins or match[0] in names else match[0]

    return _WHOLE.sub(r"\1", _WORD.sub(typed, error.message))
