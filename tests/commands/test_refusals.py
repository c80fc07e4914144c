"""What a user did wrong: exit code 3, one clear message that names the way out, and nothing changed."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState

from tests.support import posix, tiny
from tests.support.damages import rewrite_manifest
from trainer import __main__, files
from trainer.checkpoints import preflight
from trainer.options.config import Config
from trainer.options.writing import to_toml
from trainer.runs import manifest, run_folder
from trainer.runs.run_folder import RunFolder

Train = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images and a run of 4 steps with a checkpoint every 2."""
    folder = tmp_path_factory.mktemp("finished")
    tiny.make_images(folder / "images", count=4)
    preset(folder, model)
    assert run(folder) == 0
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of that folder to do harm to."""
    copy = tmp_path / "work"
    shutil.copytree(finished, copy)
    text = (copy / "preset.toml").read_text().replace(str(finished), str(copy))
    (copy / "preset.toml").write_text(text)
    return copy


def preset(folder: Path, model: Path, **options: Any) -> None:
    values: dict[str, Any] = {
        "pretrained_model_name_or_path": str(model),
        "train_data_dir": str(folder / "images"),
        "output_dir": str(folder / "output"),
        "output_name": "run",
        "resolution": "64",
        "network_dim": 2,
        "train_batch_size": 2,
        "max_train_steps": 4,
        "save_every_n_steps": 2,
        "max_data_loader_n_workers": 0,
    }
    (folder / "preset.toml").write_text(to_toml({**values, **options}, complete=False))


def run(folder: Path, *options: str) -> int:
    AcceleratorState._reset_state(reset_partial_state=True)
    return __main__.main(["train", "--config", str(folder / "preset.toml"), *options])


@pytest.fixture
def refused(folder: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run with options, see that it is refused without a traceback and that no checkpoint changed; the message."""

    def attempt(*options: str) -> str:
        before = {
            path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "checkpoints" in path.parts
        }
        assert run(folder, *options) == 3
        after = {
            path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "checkpoints" in path.parts
        }
        assert after == before
        message = capfd.readouterr().err
        assert "Traceback" not in message
        lines = [line for line in message.splitlines() if "Refused: " in line]
        assert lines
        return "\n".join(line.split("Refused: ", 1)[1] for line in lines)

    return attempt


RESUME = ("--resume_from_checkpoint", "latest", "--max_train_steps", "6")


def test_a_model_that_does_not_exist(refused: Callable[..., str]) -> None:
    assert "there is no folder or file" in refused(
        "--pretrained_model_name_or_path", "/nowhere/model", "--overwrite_run"
    )


def test_a_folder_without_images(refused: Callable[..., str], folder: Path) -> None:
    (folder / "empty").mkdir()
    assert "no images in" in refused("--train_data_dir", str(folder / "empty"), *RESUME)


def test_an_unknown_option_is_answered_with_the_nearest(refused: Callable[..., str]) -> None:
    assert (
        refused("--networkdim", "4") == "networkdim: there is no such option; did you mean network_dim? (command line)"
    )


def test_all_wrong_options_are_reported_at_once_with_their_lines(refused: Callable[..., str], folder: Path) -> None:
    with (folder / "preset.toml").open("a") as file:
        file.write("\n[more]\nnetwork_dropout = 2\nlr_scheduler = 'cosin'\nflip_aug = 'yes'\n")
    message = refused("--seed", "-1")
    assert len(message.splitlines()) == 4
    number = len((folder / "preset.toml").read_text().splitlines())
    assert f"network_dropout: 2.0 is above 0.99 ({folder / 'preset.toml'}, line {number - 2})" in message
    assert "did you mean cosine?" in message and "'yes' is not true or false" in message and "seed: -1" in message


def test_what_is_missing_is_reported_with_the_wrong_options(refused: Callable[..., str], folder: Path) -> None:
    message = refused("--network_dim=0", "--vae=/nowhere/vae", "--train_data_dir=", "--sample_prompts=a cat --w wide")
    assert [line.split(": ")[0] for line in message.splitlines()] == [
        "network_dim", "train_data_dir", "vae", "sample_prompts"
    ]  # fmt: skip


def test_images_and_a_base_model_that_cannot_be_used_are_told_at_once(
    refused: Callable[..., str], folder: Path
) -> None:
    (folder / "empty").mkdir()
    empty = str(folder / "empty")
    message = refused("--train_data_dir", empty, "--pretrained_model_name_or_path", empty, "--overwrite_run")
    assert "no images in" in message and "it has no model_index.json" in message


def test_files_that_never_end_are_refused_at_once(
    refused: Callable[..., str], folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    posix.make_pipe_or_skip(folder / "prompts.txt")
    (folder / "large.toml").write_bytes(b"#" * 10_000_001)
    plain = "cannot be read: it is not a plain file"
    assert plain in refused("--sample_prompts", str(folder / "prompts.txt"))
    assert plain in refused("--dataset_config", "/dev/zero", "--overwrite_run")
    assert "it is larger than 10" in refused("--dataset_config", str(folder / "large.toml"), "--overwrite_run")
    assert __main__.main(["train", "--config", "/dev/zero"]) == 3
    assert plain in capfd.readouterr().err


def test_latest_without_a_checkpoint_is_never_a_fresh_start(refused: Callable[..., str], folder: Path) -> None:
    message = refused("--output_name", "other", "--resume_from_checkpoint", "latest")
    assert "there is no checkpoint in" in message and 'resume_from_checkpoint = ""' in message
    assert run_folder.read_run(RunFolder(folder / "output" / "other")) is None


def test_a_step_without_a_checkpoint_names_those_there_are(refused: Callable[..., str]) -> None:
    assert "this run has 4, 2" in refused("--resume_from_checkpoint", "3")


def test_a_folder_that_is_no_checkpoint_is_not_called_a_damaged_one(refused: Callable[..., str], folder: Path) -> None:
    message = refused("--resume_from_checkpoint", str(folder / "images"))
    assert f"there is no checkpoint {folder / 'images'}; this run has 4, 2" in message


def test_a_state_of_sd_scripts_begins_another_run_and_is_refused_where_it_would_run_code(
    refused: Callable[..., str], folder: Path
) -> None:
    state = folder / "cat-step00000001-state"
    state.mkdir()
    for name in ("model.safetensors", "optimizer.bin", "scheduler.bin", "random_states_0.pkl", "train_state.json"):
        (state / name).write_bytes(f"cos\nsystem\n(S'touch {folder / 'opened'}'\ntR.".encode())
    assert "choose another output_name" in refused("--resume_from_checkpoint", str(state))
    message = refused("--resume_from_checkpoint", str(state), "--output_name", "other")
    assert f"resume_from_checkpoint: {state}" in message
    assert not (folder / "opened").exists()


def test_a_model_file_is_no_checkpoint(refused: Callable[..., str], folder: Path) -> None:
    path = folder / "output" / "run.safetensors"
    message = refused("--resume_from_checkpoint", str(path))
    assert "is a model file" in message and f'network_weights = "{path}"' in message


def test_a_fresh_start_over_checkpoints(refused: Callable[..., str]) -> None:
    message = refused()
    assert "already holds checkpoints" in message and "overwrite_run" in message


def test_a_locked_difference(refused: Callable[..., str]) -> None:
    message = refused(*RESUME, "--network_dim", "4")
    assert "network_dim: 2 in the checkpoint, 4 now" in message and "set network_dim = 2" in message


def test_a_locked_difference_cannot_be_allowed(refused: Callable[..., str]) -> None:
    assert "cannot be allowed" in refused(*RESUME, "--network_dim", "4", "--resume_allow", "network_dim")
    assert "network_dim: 2 in the checkpoint" in refused(*RESUME, "--network_dim", "4", "--resume_allow", "all")


def test_a_difference_of_the_trajectory_unless_allowed_by_name(refused: Callable[..., str], folder: Path) -> None:
    message = refused(*RESUME, "--learning_rate", "5e-5")
    assert 'resume_allow = ["learning_rate"]' in message
    assert run(folder, *RESUME, "--learning_rate", "5e-5", "--resume_allow", "learning_rate") == 0


def test_another_base_model(refused: Callable[..., str], model: Path, folder: Path) -> None:
    shutil.copytree(model, folder / "other")
    path = folder / "other" / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    message = refused(*RESUME, "--pretrained_model_name_or_path", str(folder / "other"))
    assert "trained on another base model" in message


def test_a_base_model_whose_files_changed_in_place(refused: Callable[..., str], model: Path, folder: Path) -> None:
    shutil.copytree(model, folder / "copy")
    preset(folder, folder / "copy", output_name="mine")
    assert run(folder) == 0
    weights = folder / "copy" / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-9] ^= 1
    weights.write_bytes(content)
    message = refused(*RESUME, "--resume_allow", "all")
    assert "the files of" in message and "have changed since the checkpoint was saved: restore them" in message


def test_a_checkpoint_of_a_newer_program_is_neither_passed_over_nor_set_aside(
    refused: Callable[..., str], folder: Path
) -> None:
    newest = RunFolder(folder / "output" / "run").checkpoints / "step-00000004"
    rewrite_manifest(newest, version=2)
    message = refused(*RESUME)
    assert f"{newest}: it is of version 2; this program reads up to 1: update it" in message
    assert "resume_from_checkpoint = 2" in message
    assert run(folder, "--resume_from_checkpoint", "2", "--max_train_steps", "2") == 0


def test_the_same_base_model_elsewhere_is_fine(model: Path, folder: Path) -> None:
    shutil.copytree(model, folder / "other")
    assert run(folder, *RESUME, "--pretrained_model_name_or_path", str(folder / "other")) == 0


def test_changed_images_unless_allowed(refused: Callable[..., str], folder: Path) -> None:
    images = folder / "images" / "1_thing"
    (images / "picture0.txt").write_text("something else")
    (images / "picture1.png").unlink()
    message = refused(*RESUME)
    assert "removed (1): 1_thing/picture1.png" in message
    assert "caption changed (1): 1_thing/picture0.png" in message
    assert run(folder, *RESUME, "--resume_allow", "dataset") == 0


def test_damaged_checkpoints_only(refused: Callable[..., str], folder: Path) -> None:
    for step in (2, 4):
        (folder / "output" / "run" / "checkpoints" / manifest.folder_name(step) / "state.json").write_text("{}")
    message = refused(*RESUME)
    assert "every checkpoint" in message and message.count("state.json has 2 bytes") == 2


def test_a_damaged_checkpoint_by_step_names_the_newest_sound_one(refused: Callable[..., str], folder: Path) -> None:
    checkpoints = folder / "output" / "run" / "checkpoints"
    (checkpoints / manifest.folder_name(4) / "weights.safetensors").write_bytes(b"")
    message = refused("--resume_from_checkpoint", "4", "--max_train_steps", "6")
    assert "cannot be used" in message and str(checkpoints / manifest.folder_name(2)) in message


def test_a_run_in_use_is_named(refused: Callable[..., str], folder: Path) -> None:
    with run_folder.locked(RunFolder(folder / "output" / "run")):
        message = refused(*RESUME)
    assert re.search(r"in use by process \d+", message)


def test_a_disk_that_is_too_small(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    full = shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: full)
    message = refused(*RESUME)
    assert "the disk is too small" in message and "free some space" in message
    assert "the disk is too small" in refused("--output_name", "fresh")


def test_a_learning_rate_that_would_be_zero_from_here_on(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = ("--output_name", "cosine", "--lr_scheduler", "cosine")
    assert run(folder, *options) == 0
    resumed = (*options, "--resume_from_checkpoint", "latest", "--max_train_steps", "8")
    assert run(folder, *resumed) == 3
    assert "steps 5 to 8 would train at 0" in capfd.readouterr().err
    assert run(folder, *resumed, "--resume_lr_policy", "stretch") == 0


def test_an_optimizer_argument_that_does_not_exist(refused: Callable[..., str]) -> None:
    assert "AdamW has no argument 'beta'" in refused("--optimizer_args", "beta=0.9", *RESUME)


def test_an_optimizer_that_is_not_installed_names_the_extra(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    assert "pip install 'rekindle[bitsandbytes]'" in refused("--optimizer_type", "AdamW8bit", *RESUME)


def test_fp16_without_a_gpu(refused: Callable[..., str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert "fp16 needs an NVIDIA or AMD GPU" in refused("--mixed_precision", "fp16", *RESUME)


def test_a_finished_run_resumed_says_so_and_succeeds(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "--resume_from_checkpoint", "latest") == 0
    assert "The run is complete: step 4 of 4. Raise max_train_steps" in capfd.readouterr().err


def test_overwriting_moves_the_old_run_aside(folder: Path) -> None:
    assert run(folder, "--overwrite_run") == 0
    (aside,) = (folder / "output").glob("run-replaced-*")
    assert len(manifest.listing(aside / "checkpoints", thorough=True)) == 2
    assert {path.name for path in (aside / "model-files").iterdir()} == {
        "run.safetensors",
        "run-step00000002.safetensors",
        "run-step00000004.safetensors",
    }


def test_folders_that_a_dataset_file_replaces_need_not_be_there(tmp_path: Path) -> None:
    (tmp_path / "dataset.toml").write_text("")
    options = Config(
        pretrained_model_name_or_path="owner/name",
        dataset_config=str(tmp_path / "dataset.toml"),
        train_data_dir=str(tmp_path / "nowhere"),
        reg_data_dir=str(tmp_path / "nowhere"),
    )
    assert preflight.missing(options) == []
    assert [problem.key for problem in preflight.missing(options.replace(dataset_config=""))] == [
        "train_data_dir",
        "reg_data_dir",
    ]


def test_the_lora_that_a_run_began_with_is_not_needed_to_resume_it() -> None:
    begun = Config(network_weights="/nowhere/begun.safetensors")
    assert "network_weights" in {problem.key for problem in preflight.missing(begun)}
    resumed = begun.replace(resume_from_checkpoint="latest")
    assert "network_weights" not in {problem.key for problem in preflight.missing(resumed)}
