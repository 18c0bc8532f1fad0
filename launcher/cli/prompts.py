"""Reads the prompts of `krea2 generate`: arguments, options, and lines of a file with parameters of their own."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from engine.config.demo_checkpoints import DEMO_CHECKPOINTS
from engine.errors import ArgumentError
from launcher.cli.options.as_typed import LineError
from launcher.cli.pictures import STDIN, read_stdin
from launcher.messages.message_parts import CacheChoice, LoraChoice, Outpaint
from launcher.messages.parameter_names import ALIASES, SYNONYMS, in_own_names, read
from launcher.parameters.values import PICTURES
from launcher.requests.output_files import FORMATS, OutputName
from launcher.setup.nearest import nearest

MAX_BYTES = 64 * 2**20  # of a file of prompts
_LISTS = (".txt", ".jsonl", ".json", ".csv", ".tsv", ".md", ".yaml", ".yml")
_TEXTS = ("prompt", "negative_prompt", "output", "strength_steps", "guidance_outside", "moderation", "user", *PICTURES)
_LORAS = 'a list, as ["NAME", {"name": "NAME", "strength": 0.8}]'
_KNOWN = (
    *_TEXTS, "seed", "steps", "guidance", "width", "height", "size", "num_images", "mu", "sigmas", "loras",
    "output_compression", "metadata", "priority", "timeout_s", "strength", "outpaint", "mask_crop", "mask_feather",
    "cache", "guidance_from", "guidance_until", *ALIASES,
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """A prompt, with what its line of a file says of it.

    parameters: fields of `Generate`; given: under the names of the line. pictures: paths of those that it is drawn
    from, by parameter. where: the line, for errors; None if there is no file.
    """

    prompt: str
    where: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)
    output: str | None = None
    warnings: tuple[str, ...] = ()
    pictures: Mapping[str, str] = field(default_factory=dict)

    def name_images(self, name: OutputName) -> OutputName:
        """The name of its files: its own, or that of the command. Raises `LineError`."""
        try:
            return name if self.output is None else OutputName(self.output)
        except ArgumentError as error:
            raise self.explain(error) from None

    def explain(self, error: ArgumentError) -> ArgumentError:
        """Name the line that an error is about, and its parameter as the line does; else return it as it is."""
        name = error.parameter
        if self.where is None and name == "prompt":
            return LineError(error.message.replace("prompt", "PROMPT", 1), parameter=name)
        if self.where is None or name not in {*self.parameters, *self.pictures, "prompt", "output"} or name is None:
            return error
        message = error.message
        alias = next((alias for alias, own in SYNONYMS.items() if own == name and alias in self.given), name)
        if alias == name and name in ("width", "height") and name not in self.given:
            names = ("size", *(alias for alias, own in SYNONYMS.items() if own == "size"))
            size = next((alias for alias in names if alias in self.given), None)
            message = message if size is None else f"{size} {self.given[size]}: {message}"
        elif message.startswith(f"{name} "):
            message = alias + message.removeprefix(name)
        return LineError(f"{self.where}: {message}", parameter=name)


def collect(arguments: Sequence[str], options: Sequence[str], file: str | None) -> list[Asked]:
    """List all prompts, in this order. Raises `ArgumentError` if there is none, or one looks like something else."""
    for prompt in arguments:
        _ask_about(prompt)
    asked = [Asked(prompt) for prompt in (*arguments, *options)]
    if file is not None:
        asked += _read(file)
    if not asked:
        raise ArgumentError(
            'no prompt is given: write one in quotes, as krea2 generate "a red circle", or --prompts FILE'
        )
    return asked


def _ask_about(prompt: str) -> None:
    """Refuse a prompt that looks like the name of something, and say what to write if it is one, and if it is not."""
    suffix = Path(prompt).suffix.lower()
    anyway = f"; to draw this very text: --prompt {prompt}"
    if prompt == STDIN:
        raise ArgumentError(f"is - a prompt? To read prompts from stdin, a line each: --prompts -{anyway}")
    if prompt in DEMO_CHECKPOINTS or prompt.lower().startswith("krea/"):
        raise ArgumentError(f"is {prompt!r} a prompt? To draw with that model: --model {prompt}{anyway}")
    if prompt[:1] in ("–", "—") and prompt[1:2].isalpha():
        option = f"--{prompt.strip('–—')}"
        raise ArgumentError(f"is {prompt!r} a prompt? An option begins with two hyphens: {option}{anyway}")
    if not prompt or any(char.isspace() for char in prompt) or "\0" in prompt:
        return
    if suffix in FORMATS:
        raise ArgumentError(f"is {prompt!r} a prompt? To write images there: --output {prompt}{anyway}")
    if os.path.isdir(prompt) and (os.sep in prompt or prompt in (".", "..")):
        raise ArgumentError(
            f"is {prompt!r} a prompt? It is a folder; to write images there: --output {prompt.rstrip('/')}/, to draw "
            f"with a model in it: --model {prompt}{anyway}"
        )
    if suffix in _LISTS or os.path.isfile(prompt):
        raise ArgumentError(f"is {prompt!r} a prompt? To read prompts from that file: --prompts {prompt}{anyway}")


def _read(file: str) -> Iterator[Asked]:
    """Read the prompts of a file, or of stdin for `-`: each line that is not blank is one, or an object in JSON if the
    first begins with a brace; or the whole is JSON, a list of both or one object. Raises `ArgumentError`."""
    shown = "stdin" if file == STDIN else file
    text = _decode(_bytes_of(file), shown)
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    whole = _whole(text, file, lines[0][1].strip()) if lines else []
    if not lines or whole == []:
        raise ArgumentError(f"{shown}: there is no prompt in it", parameter="prompts")
    folder = os.path.dirname(file) or os.curdir
    if whole is not None:
        return (_ask(given, f"{shown}, prompt {number}", folder) for number, given in enumerate(whole, 1))
    if not lines[0][1].lstrip().startswith("{"):
        return (Asked(line.removesuffix("\r"), f"{shown}, line {number}") for number, line in lines)
    return (_parse(line, f"{shown}, line {number}", folder) for number, line in lines)


def _whole(text: str, file: str, first: str) -> list[Any] | None:
    """Read a text that is a list in JSON, or one object on several lines; None for any other, as one in whose `first`
    line a prompt has brackets. Raises `LineError` for what was meant to be a list."""
    if first[0] not in "[{":
        return None
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        if first == "[" or (first[0] == "[" and Path(file).suffix.lower() == ".json"):
            raise LineError(f"{file}: is no list in JSON, as it begins: {error}", parameter="prompts") from None
        return None
    return given if isinstance(given, list) else None if first.endswith("}") else [given]


def _bytes_of(file: str) -> bytes:
    try:
        if file != STDIN:
            with open(file, "rb") as stream:
                data = stream.read(MAX_BYTES + 1)
        else:
            if sys.stdin is None:
                raise ArgumentError("there is no stdin to read prompts from", parameter="prompts")
            if sys.stdin.isatty():
                click.echo("prompts, a line each; Ctrl-D ends them:", err=True)
            data = read_stdin(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or error
        if " " in file and not os.path.lexists(file):
            problem = f"{problem}; if it is a prompt, write --prompt"
        raise ArgumentError(f"{file}: cannot be read: {problem}", parameter="prompts") from None
    if len(data) > MAX_BYTES:
        raise ArgumentError(f"{file}: has more than {MAX_BYTES >> 20} MiB", parameter="prompts")
    return data


def _decode(data: bytes, shown: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise LineError(f"{shown}, line {line}: is no text in UTF-8", parameter="prompts") from None


def _parse(line: str, where: str, folder: str) -> Asked:
    """Read a line that is an object in JSON. Raises `LineError`."""
    problem = f"{where}: is no object in JSON, as the first line is"
    try:
        given = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise LineError(f"{problem}: {error}", parameter="prompts") from None
    if not isinstance(given, dict):
        raise LineError(problem, parameter="prompts")
    return _ask(given, where, folder)


def _ask(given: Any, where: str, folder: str) -> Asked:
    """Take a prompt, or an object with the parameters of a request, in which paths of pictures begin in `folder`.
    Raises `LineError`."""

    def wrong(problem: str) -> LineError:
        return LineError(f"{where}: {problem}", parameter="prompts")

    if isinstance(given, str):
        return Asked(given, where)
    if not isinstance(given, dict):
        raise wrong(ArgumentError.of("each", "a prompt, or an object with one", given).message)
    try:
        named, ignored = read(given)
        if unknown := next((name for name in named if name not in _KNOWN), None):
            close = nearest(unknown, _KNOWN)
            raise wrong(f"unknown parameter {unknown[:60]!a}" + (f": did you mean {close}?" if close else ""))
        for name in PICTURES:
            if isinstance(named.get(name), list) and len(named[name]) == 1:  # as programs name several
                named[name] = named[name][0]
        for name in _TEXTS:
            if not isinstance(named.get(name, ""), str):
                raise wrong(ArgumentError.of(name, "text", named[name]).message)
        if "prompt" not in named:
            raise wrong("prompt is required")
        own, warnings = in_own_names(named)
    except ArgumentError as error:
        raise error if isinstance(error, LineError) else wrong(error.message) from None
    if "loras" in own:
        if not isinstance(own["loras"], list):
            raise wrong(ArgumentError.of("loras", _LORAS, own["loras"]).message)
        own["loras"] = tuple(_lora(each, index, wrong) for index, each in enumerate(own["loras"]))
    if "outpaint" in own:
        own["outpaint"] = Outpaint(**own["outpaint"])
    if "cache" in own:
        own["cache"] = CacheChoice.of(own["cache"])
    pictures = {name: os.path.join(folder, own.pop(name)) for name in PICTURES if name in own}
    return Asked(own.pop("prompt"), where, own, given, own.pop("output", None), ignored + warnings, pictures)


def _lora(choice: Any, index: int, wrong: Any) -> LoraChoice:
    name, strength = choice, None
    if isinstance(choice, dict) and choice.keys() <= {"name", "strength"}:
        name, strength = choice.get("name"), choice.get("strength")
    if not isinstance(name, str) or isinstance(strength, bool) or not isinstance(strength, int | float | None):
        raise wrong(ArgumentError.of(f"loras[{index}]", 'a name, or {"name": "NAME", "strength": 0.8}', choice).message)
    return LoraChoice(name=name, strength=strength)
