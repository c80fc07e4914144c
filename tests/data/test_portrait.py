"""What images are like as a whole, and how far they have moved."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from trainer.data import dataset, portrait
from trainer.data.portrait import KINDS, compare, distance
from trainer.options.config import Config
from trainer.runs import kept_portraits
from trainer.runs.run_folder import RunFolder


def pictures(folder: Path, colours: list[tuple[int, int, int]], caption: str, size: int = 64) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, colour in enumerate(colours):
        Image.new("RGB", (size, size), colour).save(folder / f"{caption[:4]}{number}.png")
        (folder / f"{caption[:4]}{number}.txt").write_text(caption)
    return folder


def looked_at(folder: Path, **options: object) -> dict[str, object]:
    settings = {"train_data_dir": str(folder), "output_dir": str(folder.parent / "output"), "resolution": "64"}
    found = dataset.scan(Config(**{**settings, **options}))  # type: ignore[arg-type]
    made = portrait.portrait(found.entries, "digest", ",")
    assert made is not None
    return made


def test_the_distance_is_that_of_jensen_and_shannon() -> None:
    assert distance({"a": 1, "b": 3}, {"a": 2, "b": 6}) == 0.0
    assert distance({"a": 5}, {"b": 1}) == 1.0
    # By hand, in bits: H((1+0)/2...) of p = (1, 0), q = (1/2, 1/2): H(3/4, 1/4) - (H(p) + H(q)) / 2.
    entropy = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    assert distance({"a": 2}, {"a": 1, "b": 1}) == pytest.approx(math.sqrt(entropy - 0.5))
    assert distance({}, {"a": 1}) == 0.0


def test_each_kind_moves_by_itself_and_the_furthest_is_told_first(tmp_path: Path) -> None:
    grey = [(value, value, value) for value in (40, 60, 80)]
    then = looked_at(pictures(tmp_path / "images", grey, "a cat, dark"))
    bright = [(255, 230 - 20 * number, 200) for number in range(3)]
    now = looked_at(pictures(tmp_path / "images", bright, "a dog, bright"))
    shifts = {shift.kind: shift for shift in compare(then, now)}
    assert shifts.keys() == KINDS.keys()
    assert shifts["folder"].distance == shifts["bucket"].distance == shifts["words"].distance == 0.0
    assert min(shifts[kind].distance for kind in ("tag", "brightness", "hue")) > portrait.LARGE
    label, before, after = shifts["hue"].changes[0]
    assert (label, before, after) == ("grey", 1.0, 0.5)
    told = portrait.lines(compare(then, now))
    assert any("large: samples take over the brightness" in line for line in told)
    assert told[-1] == "Hardly different: folders, words of a caption, size of the files, buckets"
    assert [shift.distance for shift in compare(now, now)] == [0.0] * len(KINDS)


def test_the_command_tells_how_far_images_have_moved_from_those_of_a_run(tmp_path: Path) -> None:
    images = pictures(tmp_path / "images", [(10, 10, 10)] * 2, "dark")
    (tmp_path / "preset.toml").write_text(f'train_data_dir = "{images}"\noutput_dir = "{tmp_path}"\n')
    command = [sys.executable, "-m", "trainer", "dataset", "--config", str(tmp_path / "preset.toml")]
    command += ["--against", str(tmp_path / "run"), "--json"]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 3 and "keeps no portrait" in json.loads(refused.stdout)["refusal"]
    run = RunFolder(tmp_path / "run")
    kept_portraits.write(run, {**looked_at(images), "digest": "then"})
    pictures(images, [(250, 250, 250)] * 6, "light", size=256)
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["shifts"]
    assert {item["kind"] for item in told if item["distance"] > portrait.LARGE} >= {"brightness", "tag", "pixels"}
