"""Prompts of the sample images: each of kohya's ways to write them, and what is said of a wrong one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trainer.options.config import Config
from trainer.options.problems import ConfigError
from trainer.recipe import prompts
from trainer.recipe.prompts import Prompt

CONFIG = Config(resolution="512", seed=42)
FOX = Prompt("a fox", "bad", 640, 512, 7, 5.0, 20)
CAT = Prompt("a cat", "", 512, 512, 43, 7.5, 30)  # everything by default
LINE = "a fox --n bad --w 640 --d 7 --l 5 --s 20"
FIELDS = {"prompt": "a fox", "negative_prompt": "bad", "width": 640, "seed": 7, "scale": 5.0, "sample_steps": 20}
TOML = """
[prompt]
width = 640
sample_steps = 20

[[prompt.subset]]
prompt = "a fox"
negative_prompt = "bad"
seed = 7
scale = 5

[[prompt.subset]]
prompt = "a cat"
width = 512  # its own wins
sample_steps = 30
"""


def read(text: str, **options: Any) -> list[Prompt]:
    return prompts.read(CONFIG.replace(sample_prompts=text, **options))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", f"# animals\n{LINE}\n\na cat\n"),
        ("p.json", json.dumps([FIELDS, {"prompt": "a cat", "seed": None}])),
        ("p.json", json.dumps([LINE, "a cat"])),
        ("p.toml", TOML),
    ],
)
def test_a_prompt_file_in_any_of_the_ways_of_sd_scripts_means_the_same(name: str, content: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(content)
    assert read(str(path)) == [FOX, CAT]
    assert read(f"{LINE}\na cat") == [FOX, CAT]


def test_a_model_that_is_told_its_guidance_is_told_that_of_the_prompt(tmp_path: Path) -> None:
    plain, told = read("a cat\na cat --g 2.5 --l 3", family="flux")
    assert (plain.guidance_scale, plain.embedded_guidance) == (1.0, 3.5)
    assert (told.guidance_scale, told.embedded_guidance) == (3.0, 2.5)
    with pytest.raises(ConfigError, match="--g: Stable Diffusion XL is told no guidance; --l guides it"):
        read("a cat --g 2.5", family="sdxl")
    with pytest.raises(ConfigError, match=r"--g nan is not finite; 4\.0 is usual"):
        read("a cat --g nan", family="flux2")


def test_a_size_that_is_left_out_is_one_that_the_model_takes() -> None:
    [prompt] = read("a cat", resolution="1000,520", family="z_image")
    assert (prompt.width, prompt.height) == (992, 512)


def test_a_sampler_of_its_own_is_right_where_it_is_the_one_of_all(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps([{"prompt": "a cat", "sample_sampler": "k_euler_a"}, "a dog --ss euler_a"]))
    assert [prompt.text for prompt in read(str(path), sample_sampler="euler_a")] == ["a cat", "a dog"]
    with pytest.raises(ConfigError) as refused:
        read(str(path), sample_sampler="ddim")
    assert [problem.where for problem in refused.value.problems] == [f"{path}, prompt 1", f"{path}, prompt 2"]
    assert "all prompts are sampled with ddim" in refused.value.problems[1].message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a --l nan", "--l nan is not finite; 7.5 is usual"),
        ("a --l inf", "--l inf is not finite"),
        ("a --l 1e999", "--l inf is not finite"),
        ("a --l much", "--l much: that is not a number"),
        ("a --s nan", "--s nan: that is not a whole number"),
        ("a --s 0", "--s 0 is not between 1 and 1000"),
        ("a --d -1", "--d -1 is not a seed"),
        ("a --w 12", "width 12 is not a multiple of 8"),
        ("a --x 1", "--x is unknown; known are --n, --w"),
    ],
)
def test_a_wrong_prompt_is_refused_with_its_line_and_the_way_out(line: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read(f"a cat\n{line}")
    (problem,) = refused.value.problems
    assert problem.where == "sample_prompts, line 2"
    assert problem.message.startswith(message)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale": float("nan")}, "scale nan is not finite"),
        ({"width": "wide"}, "width wide: that is not a whole number"),
        ({"width": True}, "width: True is not a number"),
        ({"width": [8]}, "width: [8] is not a number"),
        ({"prompt": 3}, "prompt: 3 is not text"),
        ({"style": "a.png"}, "style is unknown; known are prompt, negative_prompt, width"),
        (7, "7 is neither a text nor a table"),
    ],
)
def test_a_wrong_entry_of_a_json_file_is_refused_with_its_number(fields: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps(["a cat", {"prompt": "a", **fields} if isinstance(fields, dict) else fields]))
    with pytest.raises(ConfigError) as refused:
        read(str(path))
    (problem,) = refused.value.problems
    assert (problem.key, problem.where) == ("sample_prompts", f"{path}, prompt 2")
    assert problem.message.startswith(message)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.json", "{", "is not valid JSON"),
        ("p.json", "[" * 100_000, "is not valid JSON"),
        ("p.json", '{"prompt": "a"}', "holds no list of prompts"),
        ("p.toml", "prompt = [", "is not valid TOML"),
        ("p.toml", "prompt = 'a'", "holds no prompts"),
        ("p.toml", "[prompt]\nsubset = [1]", "holds no prompts"),
        ("p.toml", "other = 1", "holds no prompts"),
    ],
)
def test_a_prompt_file_that_is_none_is_refused(name: str, content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ConfigError) as refused:
        read(str(path))
    (problem,) = refused.value.problems
    assert problem.where == str(path) and problem.message.startswith(message)
