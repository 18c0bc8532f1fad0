"""Types of the command line's numbers, whose digits are those of ASCII: Python reads Arabic and many others, too."""

from __future__ import annotations

from typing import Any

import click


class _InAscii(click.ParamType):  # type: ignore[type-arg]  # only newer versions of click have arguments
    """Comes before a type of click's, and refuses what that should not see."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and not value.isascii():
            self.fail(f"{value!r} is not a number in the digits 0 to 9", param, ctx)
        return super().convert(value, param, ctx)


class _WholeNumber(_InAscii, click.types.IntParamType):
    pass


class _Number(_InAscii, click.types.FloatParamType):
    pass


class WholeRange(_InAscii, click.IntRange):
    """As `click.IntRange`."""


WHOLE_NUMBER, NUMBER = _WholeNumber(), _Number()
