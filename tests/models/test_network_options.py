"""What is done to LoRA layers in training: dropouts, limited norms, LoRA+, ranks taken from a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from tests.models.test_network import folder, load, randomise
from tests.support.runs_at_tiny_size import config_for, run, tensors_of
from trainer.models import network_file
from trainer.models.adapters import lora
from trainer.models.network_file import RanksUnknown
from trainer.options.config import Config
from trainer.training.state import State

__all__ = ["folder"]  # the fixture


def deltas(layer: lora.LoraLayer) -> Tensor:
    """What a layer adds to its base's weight."""
    up, down = layer.lora_B["default"].weight, layer.lora_A["default"].weight
    product: Tensor = up.flatten(1) @ down.flatten(1) * layer.scaling["default"]
    return product.detach()


@pytest.mark.parametrize(("module", "shape", "ranks"), [
    (nn.Linear(4, 8), (50, 3, 8), 2), (nn.Conv2d(4, 8, 3), (50, 8, 3, 3), 1),
])  # fmt: skip
def test_rank_dropout_leaves_whole_ranks_of_an_image_out(module: nn.Module, shape: tuple[int, ...], ranks: int) -> None:
    torch.manual_seed(0)
    hook = lora._dropout(0.0, 0.25)
    kept = hook(module, (), torch.ones(shape))
    of_rank = kept.movedim(ranks, 1).flatten(2)  # (image, rank, the rest)
    assert torch.equal(of_rank.amin(2), of_rank.amax(2))
    assert of_rank.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert 0.15 < (of_rank[:, :, 0] == 0).float().mean() < 0.35
    assert torch.equal(hook(module.eval(), (), torch.ones(shape)), torch.ones(shape))


def test_module_dropout_leaves_whole_layers_out() -> None:
    torch.manual_seed(0)
    module, hook = nn.Linear(2, 2), lora._module_dropout(0.5)
    shares = [hook(module, (), torch.ones(3)).tolist() for _ in range(40)]
    assert [0.0] * 3 in shares and [1.0] * 3 in shares and len({tuple(share) for share in shares}) == 2
    assert hook(module.eval(), (), torch.ones(3)).tolist() == [1.0] * 3


def test_norms_above_the_limit_come_down_to_it_and_others_keep_every_bit(folder: Path) -> None:
    model = load(folder, network_dim=4, network_alpha=2.0, conv_dim=2)
    randomise(model)
    [unet, _] = model.targets
    before = {path: deltas(layer) for path, layer in lora.layers(unet).items()}
    norms = {path: float(delta.norm()) for path, delta in before.items()}
    limit = sorted(norms.values())[len(norms) // 2]
    lora.Lora().limit_norms(unet, limit)
    for path, layer in lora.layers(unet).items():
        after = deltas(layer)
        if norms[path] < limit * 0.999:
            assert torch.equal(after, before[path])
        else:
            assert float(after.norm()) == pytest.approx(min(limit, norms[path]), rel=1e-4)
            torch.testing.assert_close(after / after.norm(), before[path] / before[path].norm(), rtol=1e-3, atol=1e-5)


def test_a_layer_that_is_still_zero_stays_so(folder: Path) -> None:
    model = load(folder, network_dim=4)
    [unet, _] = model.targets
    lora.Lora().limit_norms(unet, 1.0)
    for layer in lora.layers(unet).values():
        assert torch.isfinite(layer.lora_A["default"].weight).all() and not layer.lora_B["default"].weight.any()


def test_lora_plus_gives_the_second_matrices_a_rate_of_their_own(folder: Path) -> None:
    options = {"loraplus_lr_ratio": 16.0, "loraplus_text_encoder_lr_ratio": 4.0, "learning_rate": 1e-3}
    model = load(folder, network_dim=2, **options)
    state = State(model.config, model, torch.device("cpu"))
    rates = {
        state.names[parameter]: peak
        for group, peak in zip(state.optimizer.param_groups, state.peaks.values(), strict=True)
        for parameter in group["params"]
    }
    assert rates.keys() == state.weights.keys()
    for name, rate in rates.items():
        ratio = (4 if name.startswith("text_encoder") else 16) if "lora_B" in name else 1
        assert rate == pytest.approx(1e-3 * ratio)


# --- ranks of a file -----------------------------------------------------------------------------------------------


def write(path: Path, ranks: dict[str, tuple[int, float]], dtype: torch.dtype = torch.float16) -> Config:
    tensors = {}
    for name, (rank, alpha) in ranks.items():
        kernel = (3, 3) if name.startswith("conv") else ()
        tensors[f"{name}.lora_down.weight"] = torch.zeros(rank, 8, *kernel)
        tensors[f"{name}.lora_up.weight"] = torch.zeros(8, rank, *[1 for _ in kernel])
        tensors[f"{name}.alpha"] = torch.tensor(alpha, dtype=dtype)
    safetensors.torch.save_file(tensors, path)
    return Config(network_weights=str(path), dim_from_weights=True, network_dim=64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rank_and_alpha_are_those_of_the_file(dtype: torch.dtype, tmp_path: Path) -> None:
    config = write(tmp_path / "a.safetensors", {"linear1": (4, 2.0), "linear2": (4, 2.0), "conv1": (2, 1.5)}, dtype)
    taken = network_file.with_ranks_of_file(config)
    assert (taken.network_dim, taken.network_alpha, taken.conv_dim, taken.conv_alpha) == (4, 2.0, 2, 1.5)
    assert network_file.with_ranks_of_file(config.replace(dim_from_weights=False)).network_dim == 64


def test_layers_of_different_ranks_are_refused_with_what_they_have(tmp_path: Path) -> None:
    config = write(tmp_path / "a.safetensors", {"linear1": (4, 2.0), "linear2": (8, 2.0)})
    with pytest.raises(RanksUnknown, match="rank 4 with alpha 2, rank 8 with alpha 2"):
        network_file.with_ranks_of_file(config)


def test_what_is_no_lora_file_is_refused(tmp_path: Path) -> None:
    config = write(tmp_path / "a.safetensors", {})
    with pytest.raises(RanksUnknown, match="is no LoRA file"):
        network_file.with_ranks_of_file(config)


def test_a_run_takes_the_rank_of_the_file_it_begins_from(tiny_model: Path, tiny_images: Path, tmp_path: Path) -> None:
    first = config_for(tiny_model, tiny_images, tmp_path / "first", max_train_steps=1, network_dim=3, network_alpha=1.5)
    run(first)
    file = tmp_path / "first" / "run.safetensors"
    second = config_for(
        tiny_model, tiny_images, tmp_path / "second", max_train_steps=1, network_dim=16, network_weights=str(file),
        dim_from_weights=True,
    )  # fmt: skip
    assert run(second) == "finished"
    assert {name: tensor.shape for name, tensor in tensors_of(second, 1).items()} == {
        name: tensor.shape for name, tensor in tensors_of(first, 1).items()
    }
