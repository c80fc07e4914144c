"""Images and base models that lie elsewhere are copied here once, and again only where they changed."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from tests.support.runs_at_tiny_size import (
    assert_bit_equal,
    config_for,
    events_of,
    run,
    steps_of,
    tensors_of,
)
from trainer.checkpoints import preflight
from trainer.data import addresses, dataset, fetching
from trainer.models import base_model
from trainer.options.config import Config
from trainer.refusal import Refused


class Elsewhere(LocalFileSystem):
    """A folder behind a network; `got` are the names of the files that were asked for."""

    protocol = "elsewhere"
    got: ClassVar[list[str]] = []
    down: Callable[[int], bool] = staticmethod(lambda asked: False)

    def find(self, path: str, *arguments: Any, **options: Any) -> Any:
        self._ask()
        return super().find(path, *arguments, **options)

    def get_file(self, rpath: str, lpath: str, *arguments: Any, **options: Any) -> Any:
        if not Path(rpath).is_dir():
            Elsewhere.got.append(Path(rpath).name)
            self._ask()
        return super().get_file(rpath, lpath, *arguments, **options)

    def _ask(self) -> None:
        if Elsewhere.down(len(Elsewhere.got)):
            raise ConnectionError("the network is down")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.register_implementation("elsewhere", Elsewhere, clobber=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(Elsewhere, "got", [])
    monkeypatch.setattr(Elsewhere, "down", staticmethod(lambda asked: False))


@pytest.fixture
def folder(tiny_images: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_images, tmp_path / "there" / "images"))


def address(folder: Path) -> str:
    return f"elsewhere://{folder}"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_training_from_addresses_is_bit_equal_and_resumes_on_another_machine(
    tiny_model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = config_for(tiny_model, folder, tmp_path / "straight")
    run(straight)
    there = straight.replace(
        pretrained_model_name_or_path=address(tiny_model),
        train_data_dir=address(folder),
        output_dir=str(tmp_path / "away"),
    )
    run(there.replace(max_train_steps=3))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    run(there.replace(resume_from_checkpoint="latest"))
    assert [event["grade"] for event in events_of(there, "resumed")] == ["bit-exact"]
    assert steps_of(there) == steps_of(straight)
    assert_bit_equal(tensors_of(there), tensors_of(straight))


def test_only_what_changed_is_copied_again(folder: Path) -> None:
    copy = addresses.fetched("train_data_dir", address(folder))
    assert contents(copy) == contents(folder)
    Elsewhere.got.clear()
    addresses.fetched("train_data_dir", address(folder))
    assert Elsewhere.got == []
    (changed, gone, *_) = sorted(path for path in folder.rglob("*.txt"))
    changed.write_text("another caption, longer than before")
    gone.unlink()
    (folder / "new.txt").write_text("new")
    next(copy.rglob("*.png")).unlink()
    addresses.fetched("train_data_dir", address(folder))
    assert contents(copy) == contents(folder)
    assert len(Elsewhere.got) <= 3 and {"new.txt", changed.name} <= set(Elsewhere.got)


def test_a_copy_that_was_broken_off_is_taken_up_and_not_trained_before(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "AT_ONCE", 2)
    monkeypatch.setattr(Elsewhere, "down", staticmethod(lambda asked: asked > 4))
    config = Config(train_data_dir=address(folder))
    with pytest.raises(
        Refused, match=r"train_data_dir: elsewhere://.* cannot be copied .*: the network is down; check"
    ):
        dataset.scan(config)
    first = len(Elsewhere.got)
    monkeypatch.setattr(Elsewhere, "down", staticmethod(lambda asked: False))
    copy = addresses.fetched("train_data_dir", address(folder))
    assert contents(copy) == contents(folder)
    assert len(Elsewhere.got) - first < len(contents(folder))


def test_without_a_network_a_whole_copy_is_used_with_a_warning(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    addresses.fetched("train_data_dir", address(folder))
    monkeypatch.setattr(Elsewhere, "down", staticmethod(lambda asked: True))
    with caplog.at_level(logging.WARNING):
        copy = addresses.fetched("train_data_dir", address(folder))
    assert contents(copy) == contents(folder)
    assert "cannot be reached (the network is down); the copy that is here is used" in caplog.text


def test_a_single_file_is_copied_under_its_name(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    file = tmp_path / "there" / "model.safetensors"
    file.write_bytes(b"weights")
    copy = base_model.locate(address(file))
    assert copy.name == "model.safetensors" and copy.read_bytes() == b"weights"
    assert base_model.locate(address(file), download=False) == copy


def test_names_that_lead_out_of_the_copy_are_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(self: Any, path: str, **options: Any) -> dict[str, Any]:
        return {f"{path}/../../outside.txt": {"name": f"{path}/x", "size": 1, "type": "file"}}

    monkeypatch.setattr(Elsewhere, "find", find)
    with pytest.raises(Refused, match=r"train_data_dir: .*outside\.txt' cannot be a file here"):
        addresses.fetched("train_data_dir", address(folder))
    assert not list(tmp_path.rglob("outside.txt"))


@pytest.mark.parametrize("name", ["train_data_dir", "pretrained_model_name_or_path"])
def test_an_address_that_nothing_reaches_is_told_before_a_start(name: str, tiny_model: Path, folder: Path) -> None:
    config = Config(pretrained_model_name_or_path=str(tiny_model), train_data_dir=str(folder))
    (problem,) = preflight.missing(config.replace(**{name: "nothing://there"}))
    assert problem.key == name and "is nothing that fsspec reaches" in problem.message
    assert preflight.missing(config.replace(**{name: "s3://bucket/there"})) == []


def test_what_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"pretrained_model_name_or_path: elsewhere://.*nowhere cannot be copied"):
        base_model.locate(address(tmp_path / "nowhere"))
    with pytest.raises(Refused, match=r"is not copied to this machine yet"):
        base_model.locate(address(tmp_path / "nowhere"), download=False)
