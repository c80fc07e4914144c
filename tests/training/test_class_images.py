"""Class images for DreamBooth: drawn by the base model, each by its address."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.runs_at_tiny_size import config_for, events_of, run, steps_of
from trainer.checkpoints import preflight
from trainer.data import class_images
from trainer.options.checks import check
from trainer.options.config import Config
from trainer.options.problems import Given
from trainer.refusal import Refused

COUNT = 3


def config_of(model: Path, images: Path, folder: Path, **options: Any) -> Config:
    given = {"num_class_images": COUNT, "class_prompt": "a thing --s 2 --l 1", "max_train_steps": 1}
    return config_for(model, images, folder, **{**given, "reg_data_dir": str(folder / "class"), **options})


def pictures(config: Config) -> list[bytes]:
    return [class_images.path_of(config, number).read_bytes() for number in range(COUNT)]


def test_class_images_are_drawn_once_and_again_the_same_where_one_is_missing(
    tiny_model: Path, tiny_images: Path, tmp_path: Path
) -> None:
    config = config_of(tiny_model, tiny_images, tmp_path, training_kind="finetune", max_train_steps=2)
    looked = preflight.examine(config)
    assert looked.refusals == () and "3 class images to be drawn first, and not counted yet" in looked.lines()
    assert not Path(config.reg_data_dir).exists()
    assert run(config) == "finished"
    first = pictures(config)
    assert len(set(first)) == COUNT and class_images.path_of(config, 0).with_suffix(".txt").read_text() == "a thing\n"
    started = events_of(config, "run_started")[0]
    assert started["images"] == 7 + COUNT

    class_images.path_of(config, 1).unlink()  # as if it had been stopped there
    other = config_of(tiny_model, tiny_images, tmp_path, training_kind="finetune", max_train_steps=2, output_name="b")
    assert run(other) == "finished"
    assert pictures(config) == first and steps_of(other) == steps_of(config)


def test_images_of_another_prompt_are_refused_and_not_mixed(
    tiny_model: Path, tiny_images: Path, tmp_path: Path
) -> None:
    config = config_of(tiny_model, tiny_images, tmp_path)
    assert run(config) == "finished"
    with pytest.raises(Refused, match=r"other settings \(text\); name another folder"):
        run(config.replace(class_prompt="a dog --s 2 --l 1", output_name="other"))


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"class_prompt": "a dog"}, "reg_data_dir"),
        ({"reg_data_dir": "reg"}, "class_prompt"),
        ({"reg_data_dir": "reg", "class_prompt": "a dog", "dataset_config": "x.toml"}, "num_class_images"),
    ],
)
def test_what_they_need_is_said(options: dict[str, Any], key: str) -> None:
    given = {"num_class_images": 4, **options}
    assert key in {problem.key for problem in check({name: Given(value, "") for name, value in given.items()}).problems}
