"""Where `krea2 generate` takes its prompts from."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from engine.errors import ArgumentError
from launcher.cli import prompts
from launcher.cli.prompts import collect
from launcher.messages.message_parts import LoraChoice
from launcher.messages.parameter_names import GUIDANCE_IS_OFF
from tests.launcher.conftest import Krea2
from tests.launcher.processes import Marked


def write(folder: Path, data: str | bytes) -> str:
    path = folder / "prompts.txt"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return str(path)


def test_prompts_come_from_arguments_options_and_a_file_in_this_order(tmp_path: Path) -> None:
    file = write(tmp_path, "third\nfourth")
    assert [each.prompt for each in collect(["first", ""], ["-"], file)] == ["first", "", "-", "third", "fourth"]


def test_a_line_is_a_prompt_whatever_ends_it_and_blank_ones_are_none(tmp_path: Path) -> None:
    file = write(tmp_path, b"\xef\xbb\xbfa fox\r\n\r\n  two blanks before \n \t\n\xe9\x9b\xaa\x0bx\n# no comment")
    asked = collect([], [], file)
    assert [each.prompt for each in asked] == ["a fox", "  two blanks before ", "雪\x0bx", "# no comment"]
    assert [each.where for each in asked] == [f"{file}, line {number}" for number in (1, 3, 5, 6)]


def test_a_line_that_begins_with_a_brace_is_an_object_with_parameters(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        '\n {"prompt": "", "size": "96x64", "n": 2, "mu": 1, "output": "a.png", "seed": null, "guidance_scale": 1}\r\n'
        '{"prompt": "y", "num_inference_steps": 3, "metadata": false, '
        '"loras": ["a", {"name": "b", "strength": 0.5}], "sigmas": [1, 0.5, 0.2]}\n',
    )
    first, second = collect([], [], file)
    assert first.prompt == ""
    assert first.parameters == {"width": 96, "height": 64, "num_images": 2, "mu": 1, "guidance": 0.0}
    assert (first.output, first.warnings) == ("a.png", (GUIDANCE_IS_OFF,))
    loras = (LoraChoice(name="a"), LoraChoice(name="b", strength=0.5))
    assert second.parameters == {"steps": 3, "metadata": False, "loras": loras, "sigmas": (1, 0.5, 0.2)}


def test_values_and_names_of_other_programs_are_read_as_everywhere(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        '{"prompt": "x", "seed": "42", "steps": "8", "num_outputs": 2.0, "image_size": "square", "size": "",'
        ' "sampler": "DDIM", "quality": "ultra", "image_loras": [{"path": "ink", "scale": 0.5}]}',
    )
    (asked,) = collect([], [], file)
    loras = (LoraChoice(name="ink", strength=0.5),)
    numbers = {"seed": 42, "steps": 8, "num_images": 2, "width": 512, "height": 512}
    assert asked.parameters == {**numbers, "loras": loras}
    assert asked.warnings == ("sampler was ignored: there is one sampler, Euler's, on the checkpoint's schedule",)


def test_a_file_may_be_one_list_in_json_or_one_object_on_several_lines(tmp_path: Path) -> None:
    file = write(tmp_path, '[\n "a fox",\n {"prompt": "an [owl]", "seed": 4}\n]\n')
    asked = collect([], [], file)
    assert [(each.prompt, dict(each.parameters)) for each in asked] == [("a fox", {}), ("an [owl]", {"seed": 4})]
    assert [each.where for each in asked] == [f"{file}, prompt {number}" for number in (1, 2)]
    assert [each.prompt for each in collect([], [], write(tmp_path, '["x", "y"]'))] == ["x", "y"]
    (one,) = collect([], [], write(tmp_path, '{\n  "prompt": "x",\n  "steps": 3\n}\n'))
    assert (one.prompt, one.parameters) == ("x", {"steps": 3})


def test_a_prompt_in_brackets_is_one(tmp_path: Path) -> None:
    lines = ["[photo] a fox", "[1] an owl", "]"]
    assert [each.prompt for each in collect([], [], write(tmp_path, "\n".join(lines)))] == lines


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("[\n]", ": there is no prompt in it"),
        ('[\n "x",\n]', ": is no list in JSON, as it begins: "),
        ("[\n" + "[" * 100_000, ": is no list in JSON, as it begins: "),
        ('["x", 3]', ", prompt 2: each must be a prompt, or an object with one, got 3"),
        ('["x", {"promt": "x"}]', ", prompt 2: unknown parameter 'promt': did you mean prompt?"),
    ],
)
def test_a_mistake_in_a_list_names_the_prompt(krea2: Krea2, tmp_path: Path, data: str, message: str) -> None:
    file = write(tmp_path, data)
    code, stdout, stderr = krea2("generate", "--prompts", file)
    assert (code, stdout, stderr.count("\n")) == (2, "", 1)
    assert stderr.startswith(f"error: {file}{message}")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("plain", "is no object in JSON, as the first line is: Expecting value"),
        ("[1]", "is no object in JSON, as the first line is"),
        ("{" * 100_000, "is no object in JSON, as the first line is"),
        ('{"a":' * 100_000, "is no object in JSON, as the first line is"),
        ('{"steps": 1}', "prompt is required"),
        ('{"prompt": null}', "prompt is required"),
        ('{"prompt": 3}', "prompt must be text, got 3"),
        ('{"prompt": "x", "step": 3}', "unknown parameter 'step': did you mean steps?"),
        ('{"prompt": "x", "response_format": "url"}', "unknown parameter 'response_format'"),
        ('{"prompt": "x", "steps": true}', "steps must be a whole number, got True"),
        ('{"prompt": "x", "steps": 2.5}', "steps must be a whole number, got 2.5"),
        ('{"prompt": "x", "guidance": "much"}', "guidance must be a number, got 'much'"),
        ('{"prompt": "x", "cfg_scale": 0.5}', "cfg_scale must be 1, which is off, or more, got 0.5"),
        ('{"prompt": "x", "num_outputs": 11}', "num_outputs must be between 1 and 10, got 11"),
        (
            '{"prompt": "x", "image_size": "64x5000"}',
            "image_size 64x5000: height must be between 64 and 4096, got 5000",
        ),
        ('{"prompt": "x", "extra_body": {"size": "64x5000"}}', "height must be between 64 and 4096, got 5000"),
        ('{"prompt": "x", "loras": "a"}', "loras must be a list, as "),
        ('{"prompt": "x", "output": 3}', "output must be text, got 3"),
        ('{"prompt": "x", "size": "wide"}', "size must be WIDTHxHEIGHT, as 512x768, got 'wide'"),
        ('{"prompt": "x", "steps": 2, "num_inference_steps": 3}', "steps 2 contradicts num_inference_steps"),
        (
            '{"prompt": "x", "loras": [{"nam": "a"}]}',
            """loras[0] must be a name, or {"name": "NAME", "strength": 0.8}""",
        ),
        ('{"prompt": "x", "loras": ["a", 3]}', "loras[1] must be a name"),
        # And what only the model and the limits tell:
        ('{"prompt": "x", "steps": 900}', "steps must be between 1 and 200, got 900"),
        ('{"prompt": "x", "num_inference_steps": 900}', "num_inference_steps must be between 1 and 200, got 900"),
        ('{"prompt": "x", "size": "64x5000"}', "size 64x5000: height must be between 64 and 4096, got 5000"),
        ('{"prompt": "x", "n": 0}', "n must be between 1 and 10, got 0"),
        ('{"prompt": "x", "guidance": NaN}', "guidance must be between 0 and 20, got nan"),
        (
            '{"prompt": "x", "loras": ["none"]}',
            "loras must be among the loaded ones (none; --lora, or loras of launch, ",
        ),
        ('{"prompt": "\\ud800"}', "prompt must be valid Unicode text, got lone surrogates"),
        ('{"prompt": "x", "output": "x.gif"}', "output must be a path that ends in .png"),
    ],
)
def test_a_mistake_names_file_line_and_parameter_before_anything_starts(
    krea2: Krea2, tmp_path: Path, line: str, message: str
) -> None:
    file = write(tmp_path, f'{{"prompt": "x"}}\n\n{line}\n')
    code, stdout, stderr = krea2("generate", "--prompts", file)
    assert (code, stdout, stderr.count("\n")) == (2, "", 1)
    assert stderr.startswith(f"error: {file}, line 3: {message}")


def test_names_of_lines_that_two_images_would_have_are_not_said_of_the_option(krea2: Krea2, tmp_path: Path) -> None:
    file = write(tmp_path, '{"prompt": "x", "output": "a.png", "n": 2}\n{"prompt": "y", "output": "a_1.png"}')
    message = "output must have {index} in it: two images would be a_1.png"
    assert krea2("generate", "--prompts", file) == (2, "", f"error: {message}\n")


def test_what_an_option_says_of_all_lines_is_told_of_the_option(krea2: Krea2, tmp_path: Path) -> None:
    file = write(tmp_path, '{"prompt": "x", "width": 96}')
    assert krea2("generate", "--prompts", file, "--steps", "900")[2].startswith("error: --steps must be between")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"ok\n\xff", "{file}, line 2: is no text in UTF-8"),
        (b"\n \r\n", "{file}: there is no prompt in it"),
        (b"x" * 1001, "{file}: has more than 0 MiB"),
    ],
)
def test_a_file_without_prompts_is_refused(
    krea2: Krea2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, message: str
) -> None:
    monkeypatch.setattr(prompts, "MAX_BYTES", 1000)
    file = write(tmp_path, data)
    assert krea2("generate", "--prompts", file) == (2, "", f"error: {message.format(file=file)}\n")


def test_a_file_that_is_missing_is_answered_with_the_one_beside_it(krea2: Krea2, tmp_path: Path) -> None:
    file = write(tmp_path, "x")
    code, _, stderr = krea2("generate", "--prompts", file.replace("prompts.txt", "promts.txt"))
    assert code == 2
    assert stderr.endswith(f"cannot be read: No such file or directory; did you mean {file}?\n")
    assert krea2("generate", "--prompts", "a red fox")[2].endswith(
        "file or directory; if it is a prompt, write --prompt\n"
    )
    assert krea2("generate", "--prompts", str(tmp_path))[2] == f"error: {tmp_path}: cannot be read: Is a directory\n"


@pytest.mark.parametrize(
    ("prompt", "instead"),
    [
        ("prompts.txt", "--prompts prompts.txt"),
        ("none.jsonl", "--prompts none.jsonl"),
        ("notes", "--prompts notes"),
        ("-", "--prompts -"),
        (".", "--output ./"),
        ("./", "--output ./"),
        ("fox.png", "--output fox.png"),
        ("krea/Krea-2-Turbo", "--model krea/Krea-2-Turbo"),
        ("demo-raw", "--model demo-raw"),
        ("—seed", "--seed"),
    ],
)
def test_what_looks_like_a_name_is_not_drawn_unless_it_is_said_to_be_a_prompt(
    krea2: Krea2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompt: str, instead: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "x")
    (tmp_path / "notes").touch()
    code, _, stderr = krea2("generate", prompt)
    assert code == 2
    assert f": {instead}" in stderr
    assert stderr.endswith(f"; to draw this very text: --prompt {prompt}\n")
    assert [each.prompt for each in collect([], [prompt], None)] == [prompt]


def test_other_words_are_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fox").mkdir()
    texts = ["fox", "a.b", "read prompts.txt", "…", "\0", "x" * 5000, "and/or", "v1.5", "-5 degrees"]
    assert [each.prompt for each in collect(texts, [], None)] == texts


def test_no_stdin_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ArgumentError, match="there is no stdin to read prompts from"):
        collect([], [], "-")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a fox\n")))
    assert [(each.prompt, each.where) for each in collect([], [], "-")] == [("a fox", "stdin, line 1")]


def test_lines_are_drawn_each_with_its_own_parameters(marked: Marked, tmp_path: Path) -> None:
    marked.use_hollow_ranks()
    file = write(
        tmp_path,
        '{"prompt": "a red fox", "size": "96x96", "steps": 1}\n'
        '{"prompt": "x", "seed": -1, "output": "OUT/own/{prompt}-{seed}.webp", "num_images": 2}\n'.replace(
            "OUT", str(tmp_path)
        )
        + '{"prompt": "y", "steps": 4, "cache": {"method": "velocity", "warmup_steps": "2"}}\n',
    )
    code, stdout, stderr = marked.run_krea2(
        "generate", "--prompts", file, "--device", "cpu", "--seed", "40", "--steps", "2", "-o", f"{tmp_path}/new/"
    )
    assert code == 0
    assert "note" not in stderr
    (drawn,) = (line.rpartition(" ")[2] for line in stderr.splitlines() if line.startswith(f"seed of {file}, line 2: "))
    own = [tmp_path / "own" / f"x-{int(drawn) + index}.webp" for index in range(2)]
    shared = [tmp_path / "new" / f"krea2_{index}.png" for index in (0, 3)]
    assert sorted(stdout.splitlines()) == sorted(map(str, (*own, *shared)))
    *_, last_but_one, last_line = stderr.splitlines()
    assert last_but_one.endswith(f"; seeds 40, {drawn}, {int(drawn) + 1}, 43")
    assert last_line == "18 of 24 block evaluations, 25 % saved; computed steps: 1-2,4"
    first, last = map(Image.open, shared)
    made = [json.loads(image.info["krea2"]) for image in (first, last)]
    assert (first.size, made[0]["prompt"], made[0]["seed"]) == ((96, 96), "a red fox", 40)
    assert (last.size, made[1]["prompt"], made[1]["seed"]) == ((128, 128), "y", 43)
    assert made[1]["computed"] == {"prompt": "1-2,4", "block_evaluations": "18 of 24"}
    marked.expect_nothing_left()


def test_words_that_may_be_one_prompt_without_quotes_are_told_of(marked: Marked, tmp_path: Path) -> None:
    marked.use_hollow_ranks()
    code, stdout, stderr = marked.run_krea2(
        "generate", "a", "fox", "--device", "cpu", "--steps", "1", "--seed", "-1", "-o", f"{tmp_path}/{{index}}.png"
    )
    assert (code, len(stdout.splitlines())) == (0, 2)
    note, *_, last = stderr.splitlines()
    assert note == "note: these are 2 prompts; one of several words is to be in quotes"
    first, second = map(int, last.partition("; seeds ")[2].split(" to "))
    assert second == first + 1
