"""A run that begins with a state of sd-scripts: folders in the layout that accelerate writes for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from tests.support import tiny_families
from tests.support.runs_at_tiny_size import config_for, events_of, run, steps_of, tensors_of
from trainer.checkpoints.choosing import ResumeRefused
from trainer.models import adapters
from trainer.models.keys import original_unet_path
from trainer.options.config import Config
from trainer.runs.run_folder import RunFolder, read_run

AT = 3  # step of the state
SDXL_BLOCKS = ("input_blocks", "middle_block", "output_blocks")


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_families.make_sdxl(tmp_path_factory.mktemp("sdxl"))


def moved(names: list[str], item: str, after: str) -> list[str]:
    """The names with this child behind that one."""
    if item not in names or after not in names:
        return names
    rest = [name for name in names if name != item]
    place = rest.index(after) + 1
    return [*rest[:place], item, *rest[place:]]


def layers_of(module: nn.Module, path: str = "") -> list[str]:
    """The linear layers and convolutions of diffusers' model in the order of sd-scripts' own, whose transformer blocks
    have the feed-forward part before the second attention."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        return [path]
    children = dict(module.named_children())
    names = moved(list(children), "ff", "attn1")
    return [layer for name in names for layer in layers_of(children[name], f"{path}.{name}".lstrip("."))]


def order_of(model: Path, config: Config) -> list[str]:
    """Our names of the trained layers as sd-scripts' optimizer has them."""
    ordered = []
    for part in (*config.facts.encoders, config.facts.denoiser):
        kind: Any = UNet2DConditionModel
        if part.tokenizer:
            kind = CLIPTextModelWithProjection if part.component == "text_encoder_2" else CLIPTextModel
        paths = layers_of(kind.from_pretrained(model / part.component))
        if part is config.facts.denoiser and config.facts.keys == "sai":
            place = {path: original_unet_path(path) for path in paths if "transformer" in path or "proj_" in path}
            attentions = [path for path in paths if path in place]
            # sorted is stable: only the blocks are put into the original file's order
            paths = sorted(
                attentions,
                key=lambda path: (SDXL_BLOCKS.index(place[path].split(".")[0]), *map(int, place[path].split(".")[1:2])),
            )
        ordered += [f"{part.component}.{path}" for path in paths]
    return ordered


def write_state(config: Config, model: Path, folder: Path, **progress: int) -> dict[str, Tensor]:
    """Write the checkpoint of step AT as sd-scripts would have; returns its tensors under our names."""
    tensors = tensors_of(config, AT)
    naming = adapters.naming_of(config)
    weights: dict[str, Tensor] = {}
    state: list[dict[str, Tensor | None]] = []
    groups: list[list[int]] = []
    for part in (*config.facts.encoders, config.facts.denoiser):
        first = len(state)
        for layer in order_of(model, config):
            if not layer.startswith(f"{part.component}.") or f"weights/{layer}.lora_A.weight" not in tensors:
                continue
            kohya = naming.kohya(*layer.split(".", 1))
            weights[f"{kohya}.alpha"] = torch.tensor(2.0)
            for ours, theirs in (("lora_A", "lora_down"), ("lora_B", "lora_up")):
                name = f"{layer}.{ours}.weight"
                weights[f"{kohya}.{theirs}.weight"] = tensors[f"weights/{name}"]
                entries = ("step", "exp_avg", "exp_avg_sq")
                state.append({entry: tensors.get(f"optimizer/{name}/{entry}") for entry in entries})
        groups.append(list(range(first, len(state))))
    kept = {number: entries for number, entries in enumerate(state) if entries["exp_avg"] is not None}
    rate, options = config.learning_rate, {"betas": (0.9, 0.999), "weight_decay": 0.01}
    described = [{"lr": rate, "params": group, **options} for group in groups]
    folder.mkdir()
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    torch.save({"state": kept, "param_groups": described}, folder / "optimizer.bin")
    torch.save({"last_epoch": AT, "_last_lr": [rate] * len(groups)}, folder / "scheduler.bin")
    (folder / "random_states_0.pkl").write_bytes(b"never opened")
    (folder / "train_state.json").write_text(json.dumps({"current_epoch": 1, "current_step": AT} | progress))
    return tensors


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_the_step_after_an_import_is_adamw_on_the_states_moments(
    family: str, tiny_model: Path, sdxl: Path, tiny_images: Path, tmp_path: Path
) -> None:
    model = tiny_model if family == "sd" else sdxl
    options = {"family": family, "max_train_steps": AT + 1, "lr_scheduler": "constant"}
    straight = config_for(model, tiny_images, tmp_path / "straight", **options)
    run(straight)
    before = write_state(straight, model, tmp_path / "x-state")
    imported = straight.replace(output_dir=str(tmp_path / "new"), resume_from_checkpoint=str(tmp_path / "x-state"))
    assert run(imported) == "finished"
    after, theirs = tensors_of(imported, AT + 1), tensors_of(straight, AT + 1)
    assert list(steps_of(imported)) == [AT + 1]
    seen = 0
    for name, weight in before.items():
        if not name.startswith("weights/"):
            continue
        inner = name.removeprefix("weights/")
        assert torch.equal(after[name], theirs[name]), name
        first, second = f"optimizer/{inner}/exp_avg", f"optimizer/{inner}/exp_avg_sq"
        if first not in before:
            continue
        gradient = (theirs[first].double() - 0.9 * before[first].double()) / (1 - 0.9)
        one = 0.9 * before[first].double() + 0.1 * gradient
        two = 0.999 * before[second].double() + 0.001 * gradient.square()
        rate, count = straight.learning_rate, AT + 1
        expected = weight.double() * (1 - rate * 0.01)
        expected -= rate * (one / (1 - 0.9**count)) / ((two / (1 - 0.999**count)).sqrt() + 1e-8)
        assert float((after[name].double() - expected).abs().max()) < 3e-8, name
        seen += bool((before[first] != 0).any())
    assert seen > 60
    record = read_run(RunFolder(imported.run_dir))
    assert record
    assert record["sessions"][-1]["grade"] == "imported"
    assert record["sessions"][-1]["from_step"] == AT
    [event] = events_of(imported, "imported")
    assert (event["step"], event["grade"], event["differences"]) == (AT, "imported", [])


@pytest.fixture(scope="module")
def state(tiny_model: Path, tiny_images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """A state of an SD 1.x LoRA at a rate of 1e-3, and the options that fit it."""
    home = tmp_path_factory.mktemp("state")
    trained = config_for(tiny_model, tiny_images, home / "straight", max_train_steps=AT, lr_scheduler="constant")
    run(trained)
    write_state(trained, tiny_model, home / "x-state")
    return trained.replace(max_train_steps=AT + 2, resume_from_checkpoint=str(home / "x-state")), home


def test_a_run_that_began_with_a_state_resumes_exactly_and_is_not_imported_twice(
    state: tuple[Config, Path], tmp_path: Path
) -> None:
    config = state[0].replace(output_dir=str(tmp_path / "whole"))
    run(config)
    parted = config.replace(output_dir=str(tmp_path / "parted"))
    run(parted.replace(max_train_steps=AT + 1))
    with pytest.raises(ResumeRefused, match="already holds checkpoints"):
        run(parted)
    run(parted.replace(resume_from_checkpoint="latest"))
    ours, theirs = tensors_of(parted, AT + 2), tensors_of(config, AT + 2)
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


def test_what_does_not_fit_is_refused_at_once_with_the_way_out(state: tuple[Config, Path], tmp_path: Path) -> None:
    config = state[0].replace(output_dir=str(tmp_path))
    refused: dict[str, dict[str, Any]] = {
        "network_kind.*\n.*optimizer_type.*\n.*use_ema": {
            "network_kind": "loha", "optimizer_type": "Prodigy", "use_ema": True,
        },
        'training_kind: .* this is "finetune"': {"training_kind": "finetune"},
        "network_dim: .* set it to the state's": {"network_dim": 3},
        "network_alpha: .* has alpha 2, here 1": {"network_alpha": 1.0},
        "has lora_te.* which is not trained here": {"network_train_unet_only": True},
        "max_train_steps: the state is of step 3": {"max_train_steps": AT},
        "it keeps exp_avg_sq, step": {"optimizer_type": "Lion"},
    }  # fmt: skip
    for words, changes in refused.items():
        with pytest.raises(ResumeRefused, match=words):
            run(config.replace(**changes))


def test_a_pickle_that_would_run_code_and_one_that_is_too_large_are_refused(
    state: tuple[Config, Path], tmp_path: Path
) -> None:
    class Harm:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "harm",)

    folder = tmp_path / "x-state"
    folder.mkdir()
    for file in (state[1] / "x-state").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = state[0].replace(output_dir=str(tmp_path / "output"), resume_from_checkpoint=str(folder))
    torch.save({"state": {}, "param_groups": [Harm()]}, folder / "optimizer.bin")
    with pytest.raises(ResumeRefused, match="cannot be read"):
        run(config)
    assert not (tmp_path / "harm").exists()
    with (folder / "optimizer.bin").open("r+b") as large:
        large.truncate(100 << 20)
    with pytest.raises(ResumeRefused, match="more than such a state can have"):
        run(config)


def test_another_learning_rate_than_the_states_is_told(state: tuple[Config, Path], tmp_path: Path) -> None:
    config = state[0].replace(output_dir=str(tmp_path), learning_rate=5e-4)
    run(config)
    [warning] = [event for event in events_of(config, "warning") if event["kind"] == "imported"]
    assert "would go on at a learning rate of 0.001" in warning["message"]
