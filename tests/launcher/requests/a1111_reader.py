"""A reader of the text that AUTOMATIC1111's web UI writes into files, as its documents describe the format."""

from __future__ import annotations

import json
import re

_VALUE = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_HASHES = re.compile(r", Hashes: (\{[^}]+\})$")  # an extension's, which readers take out first
NEGATIVE = "Negative prompt:"


def read(text: str) -> tuple[str, str, dict[str, str]]:
    """Return the prompt, the negative prompt and the values of the last line. Lines come without space around them."""
    *lines, last = text.strip().split("\n")
    negative_from = next((at for at, line in enumerate(lines) if line.strip().startswith(NEGATIVE)), len(lines))
    prompt = "\n".join(line.strip() for line in lines[:negative_from])
    negative = "\n".join(line.strip().removeprefix(NEGATIVE).strip() for line in lines[negative_from:])
    values = {}
    if found := _HASHES.search(last):
        last = last[: found.start()]
        values["Hashes"] = found[1]
    for name, value in _VALUE.findall(last):
        values[name] = json.loads(value) if value.startswith('"') else value
    return prompt, negative, values


def imported_by_comfyui(text: str) -> tuple[str, str, dict[str, str]] | None:
    """Return the same as ComfyUI's import finds it, which looks from the end; None where it imports nothing."""
    end = text.rfind("\nSteps:")
    middle = text.rfind(f"\n{NEGATIVE}", 0, end + 1)
    if end < 0 or middle < 0:
        return None
    pattern = r'\s*([^:]+:\s*(?:[^"{].*?|".*?"|\{.*?\}))\s*(?:,|$)'
    parts = [part.split(":") for part in re.findall(pattern, text[end + 1 :].split("\n")[0])]
    values = {part[0].strip().lower(): part[1].strip() for part in parts}
    return text[:middle].strip(), text[middle + len(NEGATIVE) + 1 : end].strip(), values
