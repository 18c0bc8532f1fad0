"""The last table of bench/gpu.sh: of every part what came of it, and its key figures beside their floors.

    python -m bench.summary RESULTS [LOG] < PARTS

PARTS has a line for each part, in the order they ran: its name, the bytes of RESULTS before and after it, and its
outcome, separated by tabs. Figures are read from these bytes alone, so those of earlier runs do not count. Why a part
failed is read from LOG. Ends with 3 if a part says that it is ok and has no figure, or if no part has one.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from bench.summary.table import HEADER, table

NO_FIGURES = 3  # the exit status


def main(arguments: Sequence[str]) -> int:
    if len(arguments) not in (1, 2):
        print((__doc__ or "").split("\n\n")[1].strip(), file=sys.stderr)
        return 2
    parts = [line.rstrip("\n").split("\t") for line in sys.stdin if line.strip()]
    file, log = Path(arguments[0]), Path(arguments[1]) if len(arguments) == 2 else None
    made = table(file, [(name, int(a), int(b), outcome) for name, a, b, outcome in parts], log)
    widths = [max(len(row[column]) for row in (HEADER, *made.rows)) for column in range(len(HEADER))]
    for row in (HEADER, tuple("-" * width for width in widths), *made.rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if not made.any_figure:
        print("error: nothing was measured: no part has left a number")
    return NO_FIGURES if made.lacks_figures or not made.any_figure else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
