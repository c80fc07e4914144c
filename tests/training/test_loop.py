"""What the loop does beside resuming: samples, requests, names of files, lengths, numbers that are not finite."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import safetensors
import torch
from PIL import Image

from tests.support.runs_at_tiny_size import (
    STEPS,
    assert_bit_equal,
    config_for,
    events_of,
    exported_tensors_of,
    run,
    steps_of,
    tensors_of,
)
from trainer.checkpoints.resume import ResumeRefused
from trainer.models import previews
from trainer.models.model import Model
from trainer.options.config import Config
from trainer.runs import manifest, run_folder
from trainer.runs.failures import TrainingFailed
from trainer.runs.run_folder import RunFolder
from trainer.training.state import State


@pytest.fixture
def config(tiny_model: Path, tiny_images: Path, tmp_path: Path) -> Config:
    return config_for(tiny_model, tiny_images, tmp_path / "output", save_every_n_steps=0)


def saved_steps(config: Config) -> list[int]:
    return sorted(found.step for found in manifest.listing(RunFolder(config.run_dir).checkpoints))


def model_files(config: Config) -> list[str]:
    return sorted(path.name for path in Path(config.output_dir).glob("*.safetensors"))


# --- samples -------------------------------------------------------------------------------------------------------


def test_a_device_without_room_for_sample_images_does_not_end_the_training(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(config)

    def no_room(model: Model, *_: object) -> None:
        assert not model.training
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(previews, "one_picture", no_room)
    sampled = config.replace(
        output_dir=str(tmp_path / "sampled"), sample_prompts="a thing --s 2", sample_every_n_steps=4
    )
    assert run(sampled) == "finished"
    assert_bit_equal(tensors_of(sampled, STEPS), tensors_of(config, STEPS))
    warnings = events_of(sampled, "warning")
    assert {event["kind"] for event in warnings} == {"sample_failed"}
    assert "out of memory" in warnings[0]["message"] and "--w and --h" in warnings[0]["message"]


def test_sample_images_do_not_disturb_the_training(config: Config, tmp_path: Path) -> None:
    run(config)
    sampled = config.replace(
        output_dir=str(tmp_path / "sampled"),
        sample_prompts="a thing --s 2\na red thing --n blue --w 72 --h 64 --d 7 --l 3 --s 3",
        sample_sampler="euler_a",
        sample_every_n_steps=3,
        sample_at_first=True,
        network_dropout=0.0,
    )
    run(sampled)
    assert steps_of(sampled) == steps_of(config)
    assert_bit_equal(tensors_of(sampled), tensors_of(config))
    events = events_of(sampled, "sample_saved")
    assert [(event["global_step"], event["index"]) for event in events] == [
        (step, index) for step in (0, 3, 6) for index in (0, 1)
    ]
    sizes = {Image.open(sampled.run_dir / event["path"]).size for event in events}
    assert sizes == {(64, 64), (72, 64)}


def test_a_sample_made_again_after_a_resume_is_the_same_picture(config: Config) -> None:
    sampled = config.replace(sample_prompts="a thing --s 2", sample_every_n_steps=6, save_every_n_steps=5)
    run(sampled)
    (event,) = events_of(sampled, "sample_saved")
    before = (sampled.run_dir / event["path"]).read_bytes()
    run(sampled.replace(resume_from_checkpoint="5"))
    assert (sampled.run_dir / event["path"]).read_bytes() == before


# --- saving --------------------------------------------------------------------------------------------------------


def test_files_have_kohyas_names_and_the_last_epoch_has_only_the_result(config: Config) -> None:
    # 7 images x 2 repeats / 2 = 7 steps an epoch
    epochs = config.replace(max_train_epochs=2, save_every_n_epochs=1, save_every_n_steps=5)
    run(epochs)
    assert model_files(epochs) == [
        "run-000001.safetensors",
        "run-step00000005.safetensors",
        "run-step00000010.safetensors",
        "run.safetensors",
    ]
    assert saved_steps(epochs) == [5, 7, 10, 14]


def test_the_model_file_says_what_it_is(config: Config) -> None:
    run(config.replace(training_comment="for the test", clip_skip=2))
    with safetensors.safe_open(Path(config.output_dir) / "run.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_network_module"] == "networks.lora"
    assert metadata["ss_network_dim"] == "2" and metadata["ss_network_alpha"] == "2.0"
    assert metadata["ss_steps"] == "8" and metadata["ss_max_train_steps"] == "8"
    assert metadata["ss_base_model_version"] == "sd_v1" and metadata["ss_v2"] == "False"
    assert metadata["ss_training_comment"] == "for the test"
    assert json.loads(metadata["ss_dataset_dirs"]) == {"2_thing": {"n_repeats": 2, "img_count": 7}}
    assert json.loads(metadata["ss_tag_frequency"])["2_thing"]["thing"] == 7
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert metadata["modelspec.title"] == "run" and metadata["modelspec.encoder_layer"] == "2"
    assert len(metadata["sshs_model_hash"]) == 64


def test_no_metadata_leaves_what_programs_need(config: Config) -> None:
    run(config.replace(no_metadata=True))
    with safetensors.safe_open(Path(config.output_dir) / "run.safetensors", "pt") as file:
        assert set(file.metadata()) == {
            "ss_v2",
            "ss_base_model_version",
            "ss_network_module",
            "ss_network_dim",
            "ss_network_alpha",
            "ss_network_args",
            "sshs_model_hash",
            "sshs_legacy_hash",
        }


def test_the_moving_average_is_what_is_exported(config: Config) -> None:
    averaged = config.replace(use_ema=True, ema_decay=0.9, save_precision="float", network_train_unet_only=True)
    run(averaged)
    exported, checkpoint = exported_tensors_of(averaged), tensors_of(averaged)
    downs = sorted(name for name in exported if name.endswith("lora_down.weight"))
    averages = [tensor for name, tensor in checkpoint.items() if name.startswith("ema/") and "lora_A" in name]
    weights = [tensor for name, tensor in checkpoint.items() if name.startswith("weights/") and "lora_A" in name]
    assert len(downs) == len(averages) == len(weights)
    for name in downs:
        assert any(torch.equal(exported[name], average) for average in averages)
        assert not any(torch.equal(exported[name], weight) for weight in weights)


def test_older_checkpoints_go_and_the_chosen_ones_stay(config: Config) -> None:
    run(config.replace(save_every_n_steps=1, keep_last_n_checkpoints=2, keep_every_n_steps=3))
    assert saved_steps(config) == [3, 6, 7, 8]


def test_model_files_of_steps_long_past_are_deleted(config: Config) -> None:
    run(config.replace(save_every_n_steps=2, save_last_n_steps=3))
    assert model_files(config) == ["run-step00000006.safetensors", "run-step00000008.safetensors", "run.safetensors"]


def test_without_save_state_only_the_last_step_writes_a_checkpoint(config: Config) -> None:
    run(config.replace(save_every_n_steps=2, save_state=False))
    assert saved_steps(config) == [8]
    assert "run-step00000002.safetensors" in model_files(config)


def test_a_save_is_not_repeated_right_after_a_resume(config: Config) -> None:
    run(config.replace(save_every_n_steps=5))
    run(config.replace(save_every_n_steps=5, resume_from_checkpoint="5", max_train_steps=9))
    saved = [event["global_step"] for event in events_of(config, "checkpoint_saved")]
    assert saved == [5, 8, 9]


# --- requests ------------------------------------------------------------------------------------------------------


def request_after(monkeypatch: pytest.MonkeyPatch, config: Config, step: int, request: run_folder.Request) -> None:
    """Have the control folder ask for something during a step."""
    update = State.update

    def ask_too(state: State, finite: torch.Tensor) -> None:
        update(state, finite)
        if state.global_step == step:
            run_folder.ask(RunFolder(config.run_dir), request)

    monkeypatch.setattr(State, "update", ask_too)


def test_stop_saves_and_the_resumed_run_ends_bit_equal(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = config.replace(output_dir=str(tmp_path / "straight"))
    run(straight)
    with monkeypatch.context() as patched:
        request_after(patched, config, 3, "stop")
        assert run(config) == "stopped"
    assert saved_steps(config) == [3]
    assert run_folder.status(RunFolder(config.run_dir)) == "stopped"
    assert run(config.replace(resume_from_checkpoint="latest")) == "finished"
    assert steps_of(config) == steps_of(straight)
    assert_bit_equal(tensors_of(config), tensors_of(straight))
    (resumed,) = events_of(config, "resumed")
    assert resumed["step"] == 3 and resumed["grade"] == "bit-exact"


def test_save_now_writes_a_checkpoint_and_goes_on(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    request_after(monkeypatch, config, 2, "save")
    assert run(config) == "finished"
    assert saved_steps(config) == [2, 8]


def test_sample_now_makes_the_images(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    request_after(monkeypatch, config, 4, "sample")
    run(config.replace(sample_prompts="a thing --s 2"))
    assert [event["global_step"] for event in events_of(config, "sample_saved")] == [4]


# --- numbers that are not finite -----------------------------------------------------------------------------------


def poison(monkeypatch: pytest.MonkeyPatch, calls: set[int]) -> None:
    """Make the loss of these forward passes (counted from 1) not a number."""
    forward, count = Model.forward, [0]

    def poisoned(model: Model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        count[0] += 1
        losses = forward(model, batch)
        return losses * math.nan if count[0] in calls else losses

    monkeypatch.setattr(Model, "forward", poisoned)


@pytest.mark.parametrize("optimizer", ["AdamW", "Lion"])
def test_a_step_without_a_finite_loss_is_left_out(
    config: Config, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    config = config.replace(optimizer_type=optimizer, save_every_n_steps=1, use_ema=True)
    poison(monkeypatch, {3})
    assert run(config) == "finished"
    assert_bit_equal(
        {name: tensor for name, tensor in tensors_of(config, 2).items() if not name.endswith("/step")},
        {name: tensor for name, tensor in tensors_of(config, 3).items() if not name.endswith("/step")},
    )
    assert not torch.equal(
        next(iter(tensors_of(config, 3).values())),
        next(iter(tensors_of(config, 4).values())),
    )
    (warning,) = events_of(config, "warning")
    assert (warning["kind"], warning["global_step"]) == ("nonfinite", 3)
    assert events_of(config, "step")[2]["loss"] == "nan"


def test_too_many_of_them_stop_the_run_with_the_last_good_checkpoint_intact(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.training.progress.FLUSH_SECONDS", 0.0)
    poison(monkeypatch, set(range(4, 100)))
    config = config.replace(save_every_n_steps=3, max_train_steps=50, max_nonfinite_steps=5)
    with pytest.raises(TrainingFailed, match="steps in a row had no finite loss"):
        run(config)
    assert run_folder.status(RunFolder(config.run_dir)) == "failed"
    (failed,) = events_of(config, "run_failed")
    assert "Lower the learning rate" in failed["advice"]
    assert all(found.manifest for found in manifest.listing(RunFolder(config.run_dir).checkpoints, thorough=True))
    assert all(torch.isfinite(tensor).all() for tensor in tensors_of(config, 3).values())


def test_an_error_in_a_step_saves_the_last_completed_one(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, count = Model.forward, [0]

    def failing(model: Model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        count[0] += 1
        if count[0] == 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(model, batch)

    with monkeypatch.context() as patched:
        patched.setattr(Model, "forward", failing)
        with pytest.raises(torch.OutOfMemoryError):
            run(config)
    assert saved_steps(config) == [4]
    (failed,) = events_of(config, "run_failed")
    assert "gradient_checkpointing = true" in failed["advice"]
    assert run(config.replace(resume_from_checkpoint="latest")) == "finished"


def test_an_error_inside_the_optimizer_saves_nothing(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    update = State.update

    def failing(state: State, finite: torch.Tensor) -> None:
        if state.global_step == 4:
            raise RuntimeError("in the middle of the update")
        update(state, finite)

    monkeypatch.setattr(State, "update", failing)
    with pytest.raises(RuntimeError, match="in the middle"):
        run(config)
    assert saved_steps(config) == []


# --- resuming otherwise --------------------------------------------------------------------------------------------


def test_a_finished_run_is_extended_by_more_steps_as_if_it_had_been_longer(config: Config, tmp_path: Path) -> None:
    longer = config.replace(output_dir=str(tmp_path / "longer"), max_train_steps=11)
    run(longer)
    run(config)
    run(config.replace(resume_from_checkpoint="latest", max_train_steps=11))
    assert_bit_equal(tensors_of(config, 11), tensors_of(longer, 11))


def test_going_back_keeps_what_came_after(config: Config) -> None:
    saving = config.replace(save_every_n_steps=2)
    run(saving)
    run(saving.replace(resume_from_checkpoint="4", learning_rate=5e-4, resume_allow=("learning_rate",)))
    kept = config.run_dir / "abandoned" / "before-session-002"
    assert sorted(path.name for path in (kept / "checkpoints").iterdir()) == ["step-00000006", "step-00000008"]
    assert {path.name for path in kept.glob("*.safetensors")} == {
        "run-step00000006.safetensors",
        "run-step00000008.safetensors",
        "run.safetensors",
    }
    assert saved_steps(config) == [2, 4, 6, 8]
    (resumed,) = events_of(config, "resumed")
    assert resumed["grade"] == "changed" and resumed["differences"] == {"learning_rate": [1e-3, 5e-4]}
    assert [event["lr"] for event in events_of(config, "step")[-4:]] == [5e-4] * 4
    assert events_of(config, "step")[-1]["lrs"] == {"unet": 5e-4, "text_encoder": 5e-4}


def test_a_checkpoint_of_one_run_begins_another_that_knows_its_parent(config: Config) -> None:
    run(config.replace(save_every_n_steps=4))
    branch = config.replace(
        output_name="branch", resume_from_checkpoint=str(config.run_dir / "checkpoints" / "step-00000004")
    )
    run(branch)
    record, parent = run_folder.read_run(RunFolder(branch.run_dir)), run_folder.read_run(RunFolder(config.run_dir))
    assert record and parent
    assert record["parent"]["run_id"] == parent["run_id"] != record["run_id"] and record["parent"]["step"] == 4
    assert_bit_equal(tensors_of(branch), tensors_of(config))
    with pytest.raises(ResumeRefused, match="belongs to another run"):
        run(branch)


def test_images_added_with_permission_leave_the_others_draws_as_they_were(
    config: Config, tiny_images: Path, tmp_path: Path
) -> None:
    import shutil

    images = tmp_path / "images"
    shutil.copytree(tiny_images, images)
    changed = config.replace(train_data_dir=str(images), save_every_n_steps=4, resume_allow=("dataset",))
    run(changed)
    Image.new("RGB", (64, 64), "purple").save(images / "2_thing" / "new.png")
    run(changed.replace(resume_from_checkpoint="4"))
    (resumed,) = events_of(changed, "resumed")
    assert resumed["dataset"] == ["added (1): 2_thing/new.png"]
    # The epoch that was under way is left for a new one, over all the images.
    assert [event["epoch"] for event in events_of(changed, "step")[-4:]] == [1] * 4


def test_a_run_can_start_from_the_weights_of_a_file(config: Config, tmp_path: Path) -> None:
    exact = config.replace(save_precision="float")
    run(exact)
    warm = exact.replace(
        output_name="warm", network_weights=str(Path(config.output_dir) / "run.safetensors"), learning_rate=1e-30
    )
    run(warm)
    left, right = exported_tensors_of(exact), exported_tensors_of(warm)
    assert all(torch.allclose(left[name], right[name]) for name in left)
    assert warm.resume_from_checkpoint == "" and events_of(warm, "step")[0]["global_step"] == 1


def test_a_loss_that_is_another_after_the_resume_is_a_warning(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.recipe.resume_watch.FEWEST_BEFORE", STEPS)
    run(config)
    more = config.replace(resume_from_checkpoint="latest", max_train_steps=STEPS + 12)
    run(more)
    assert events_of(config, "warning") == []
    forward = Model.forward
    monkeypatch.setattr(Model, "forward", lambda model, batch: 50 * forward(model, batch))
    run(more.replace(max_train_steps=STEPS + 24))
    assert [(event["kind"], event["global_step"]) for event in events_of(config, "warning")] == [("loss_jump", 30)]


def test_probe_losses_that_differ_stop_the_resume(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    run(config)
    probe = Model.probe
    monkeypatch.setattr(Model, "probe", lambda model: probe(model) * (1 + 1e-12))
    with pytest.raises(ResumeRefused, match="probe loss after loading"):
        run(config.replace(resume_from_checkpoint="latest", max_train_steps=STEPS + 2))


def test_the_average_of_the_loss_does_not_depend_on_when_it_is_written_down(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = []
    for name, seconds in (("at once", -1.0), ("at the end", 3600.0)):
        monkeypatch.setattr("trainer.training.progress.FLUSH_SECONDS", seconds)
        run(config.replace(output_dir=str(tmp_path / name)))
        [checkpoint] = manifest.listing(RunFolder(tmp_path / name / config.output_name).checkpoints)
        saved.append(json.loads((checkpoint.path / "state.json").read_text()))
    assert saved[0]["loss_spread"] == saved[1]["loss_spread"]
    losses = [event["loss"] for event in events_of(config.replace(output_dir=str(tmp_path / "at once")), "step")]
    assert saved[0]["loss_average"] == saved[1]["loss_average"] == pytest.approx(sum(losses) / len(losses))
