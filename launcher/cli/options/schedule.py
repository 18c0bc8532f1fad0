"""Options about the denoise steps of images: how many, which of them may be saved, and in which images are guided."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from launcher.cli.options.numbers import NUMBER, WHOLE_NUMBER
from launcher.messages.message_parts import CacheChoice
from launcher.parameters.values import READERS

_OPTIONS = (
    click.option("--steps", type=WHOLE_NUMBER, help="Denoise steps.  [default: the checkpoint's]"),
    click.option("--guidance", type=NUMBER, help="Krea's scale: 0 is off.  [default: the checkpoint's]"),
    click.option("--negative-prompt", help="What to steer away from; needs a guidance above 0."),
    click.option("--mu", type=NUMBER, help="The schedule's shift, instead of the checkpoint's own."),
    click.option(
        "--sigmas", metavar="1,0.75,…", help="The noise level of each step, before mu shifts it.  [default: even ones]"
    ),
    click.option(
        "--cache",
        metavar="off|quality|fast|KEY=VALUE,…",
        help="Compute fewer steps, and reuse earlier ones in their place; or how, as method=velocity,warmup_steps=6.  "
        "[default: off]",
    ),
    click.option(
        "--guidance-from", type=NUMBER, help="Guide only from this part of the schedule on, 0 to 1.  [default: 0]"
    ),
    click.option("--guidance-until", type=NUMBER, help="Guide only up to this part of the schedule.  [default: 1]"),
    click.option(
        "--guidance-outside",
        metavar="off|last",
        help="Of the other steps: no guidance, or that of the last guided step.  [default: off]",
    ),
)
# What has a reader, and is left out of a request where it is not given.
_READ = ("sigmas", "cache", "guidance_from", "guidance_until", "guidance_outside")

Command = TypeVar("Command", bound=Callable[..., Any])


def schedule_options(command: Command) -> Command:
    """Add the options, of which `schedule_fields` makes parameters."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def schedule_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """Give the fields of `Generate` that the options of a command say. Raises `ArgumentError`."""
    fields = {name: options[name] for name in ("steps", "guidance", "negative_prompt", "mu")}
    for name in _READ:
        if options[name] is not None:
            fields[name] = READERS[name](name, options[name])
    if "cache" in fields:
        fields["cache"] = CacheChoice.of(fields["cache"])
    return fields
