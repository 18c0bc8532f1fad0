"""Bars for a person who waits, and whether there is one."""

from __future__ import annotations

import sys
import warnings
from typing import Any


def is_watched() -> bool:
    """Whether a person sees what is shown: in a notebook, or on stderr, if that is a terminal."""
    return _is_notebook() or (sys.stderr is not None and sys.stderr.isatty())


def make_bar(**settings: Any) -> Any:
    """Make one of tqdm's bars, with its settings: on stderr if they name no file, or as a notebook's own in a notebook.
    Closing it takes it away."""
    with warnings.catch_warnings():  # without ipywidgets, a notebook's bar is text
        warnings.simplefilter("ignore")
        from tqdm.auto import tqdm  # here, it costs no time that anybody waits for

    return tqdm(leave=False, miniters=0, dynamic_ncols=True, **settings)


def _is_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in shell.config
