"""What all commands have in common: how their arguments are read, and how they answer what they do not know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click
from click.core import ParameterSource

from engine.errors import ArgumentError, Krea2Error, printable
from launcher.cli.options.as_typed import TYPED, as_typed
from launcher.cli.options.other_programs import NO, OTHER_OPTIONS, YES, OtherOption
from launcher.setup.nearest import MODELS, nearest, nearest_to_given

MODEL = "model_argument"  # the name of an argument that is the same as --model
_GIVEN = "krea2.other"  # in a context's `meta`: (option of another program, flag, value)
SETTINGS = {"show_default": True, "help_option_names": ["-h", "--help"]}  # of contexts, also of one command alone
_STARTS_AN_ENGINE = "step_timeout_s"  # an option of each command that does
# What others call our commands.
_MEANT = {
    **dict.fromkeys(("start", "server", "run", "up", "launch"), "serve"),
    **dict.fromkeys(("gen", "draw", "image", "txt2img", "t2i", "create"), "generate"),
    **dict.fromkeys(("show", "inspect", "list", "ls"), "info"),
    **dict.fromkeys(("quantize", "export"), "convert"),
    "version": "--version",
}


class Command(click.Command):
    """A command that knows other programs' options, takes an argument for an option, and whose errors name its options
    as they are typed."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{"context_settings": SETTINGS} | settings)
        own = {str(parameter.name): parameter for parameter in self.params}
        for other in OTHER_OPTIONS:
            if other.option in own or (other.option is None and _STARTS_AN_ENGINE in own):
                kind = None if other.values is not None and not callable(other.values) else own.get(str(other.option))
                self.params += [_hidden(other, flag, kind) for flag in other.flags]
        self._switches = {flag for other in OTHER_OPTIONS if other.switch for flag in other.flags}

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments. Raises `ArgumentError` for what is unknown, or said twice in different ways."""
        try:
            rest = super().parse_args(ctx, self._in_dashes(args))
        except click.NoSuchOption as error:
            raise ArgumentError(self._unknown(ctx, error)) from None
        if ctx.resilient_parsing:  # for a shell's completion
            return rest
        given = sorted(ctx.meta.get(_GIVEN, ()), key=lambda each: OTHER_OPTIONS.index(each[0]))
        for other, flag, theirs in given:
            _take(ctx, other, flag, other.read(flag, theirs, ctx.params), theirs)
        if MODEL in ctx.params and (model := ctx.params.pop(MODEL)) is not None:
            _set(ctx, "model", "MODEL", model)
        return rest

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. Raises what it does."""
        try:
            return super().invoke(ctx)
        except Krea2Error as error:
            meant = nearest_to_given(ctx.params, error.message)
            error.message = as_typed(error, ctx) + (f"; did you mean {meant}?" if meant else "")
            raise

    def _in_dashes(self, args: Sequence[str]) -> list[str]:
        """Write options with a - for each _, as some programs' are, and switches with the value that may follow."""
        options = {flag for parameter in self.params for flag in parameter.opts}
        written: list[str] = []
        rest = [*args]
        while rest:
            word = rest.pop(0)
            if word == "--":
                return [*written, word, *rest]
            flag, equals, value = word.partition("=")
            if flag.startswith("--") and flag.replace("_", "-") in options:
                flag = flag.replace("_", "-")
                if flag in self._switches and not equals:
                    equals, value = "=", rest.pop(0) if rest and rest[0].lower() in YES + NO else "true"
                word = flag + equals + value
            written.append(word)
        return written

    def _unknown(self, ctx: click.Context, error: click.NoSuchOption) -> str:
        name = error.option_name
        if ctx.info_name == "generate" and (not name.startswith("--") or any(char.isspace() for char in name)):
            short = ", but -m, -o and -h" if len(name) == len("-x") else ""
            return f"there is no option {name}{short}; before a prompt that begins with -, write --prompt"
        group = ctx.parent.command if ctx.parent is not None else None
        others = group.commands if isinstance(group, click.Group) else {}
        have = [other for other, command in others.items() if any(name in each.opts for each in command.params)]
        if have:
            more = (
                "; requests to a server say it themselves" if ctx.info_name == "serve" and have == ["generate"] else ""
            )
            return f"there is no option {name} of {ctx.info_name}: it is one of {' and '.join(have)}{more}"
        return error.format_message()


class Commands(click.Group):
    """The commands, of which the nearest is named for one that is none."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is the first argument. Raises `ArgumentError` if there is none."""
        name = args[0]
        if self.get_command(ctx, name) is None and not ctx.resilient_parsing and not name.startswith("-"):
            raise ArgumentError(f"there is no command {name!r}: {self._instead(name)}")
        return super().resolve_command(ctx, args)

    def _instead(self, name: str) -> str:
        meant = _MEANT.get(name.lower())
        if meant is None or (meant not in self.commands and not meant.startswith("-")):
            meant = nearest(name, self.commands)
        if meant:
            return f"did you mean {meant}?"
        model = next((model for model in MODELS if name.lower() in model.lower()), None) if len(name) > 2 else None
        if model is not None:
            return f"it is a model, for krea2 serve {model}, or krea2 generate PROMPT --model {model}"
        if any(char.isspace() for char in name):
            return f"to draw it, write krea2 generate {name!r}"
        return f"there are {', '.join(self.commands)}"


def _hidden(other: OtherOption, flag: str, own: click.Parameter | None) -> click.Option:
    """Make an option that says what it was given to the command, and not to its function."""

    def keep(ctx: click.Context, _: click.Parameter, value: Any) -> None:
        if value is not None:
            ctx.meta.setdefault(_GIVEN, []).append((other, flag, value))

    kind = (
        own.type
        if own is not None and not other.switch and not isinstance(own.type, click.types.BoolParamType)
        else str
    )
    return click.Option(
        [flag, f"other_{flag.strip('-').replace('-', '_')}"],
        hidden=True,
        expose_value=False,
        callback=keep,
        type=kind,
        help=other.said,
    )


def _take(ctx: click.Context, other: OtherOption, flag: str, value: Any, theirs: Any) -> None:
    note = other.note(theirs)
    if other.needless:
        note = f"note: {flag} changes nothing: {other.said}"
    if note is not None:
        click.echo(printable(note), err=True)
    if other.option is not None and value is not None:
        _set(ctx, other.option, flag, value)


def _set(ctx: click.Context, name: str, typed: str, value: Any) -> None:
    """Give a parameter the value that something else stands for. Raises `ArgumentError` if it has another one."""
    have = ctx.params.get(name)
    flags = {each.name: each.opts[0] for each in ctx.command.params} | ctx.meta.get(TYPED, {})
    if isinstance(have, tuple):
        typed = flags.get(name, typed) if have else typed
        value = (*have, *(each for each in value if each not in have))
    elif ctx.get_parameter_source(name) == ParameterSource.COMMANDLINE and have != value:
        raise ArgumentError(f"{typed} {value} contradicts {flags[name]} {have}")
    ctx.params[name] = value
    ctx.set_parameter_source(name, ParameterSource.COMMANDLINE)
    ctx.meta.setdefault(TYPED, {})[name] = typed
