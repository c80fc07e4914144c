"""Every kind of network: its files are what LyCORIS reads, and add what the training adds."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from tests.models.test_network import folder
from tests.support import tiny_families
from tests.support.exactness import check_every_resume
from tests.support.runs_at_tiny_size import assert_bit_equal, config_for, exported_tensors_of
from trainer.checkpoints import checkpoint, checkpoint_size, export, preflight, resume
from trainer.models import adapters
from trainer.models import model as models
from trainer.models.adapters import KINDS, divided
from trainer.models.adapters.base import LimitsNorms, NetworkFileError
from trainer.models.families import TABLE
from trainer.models.model import Model
from trainer.options import checks, writing
from trainer.options.config import Config
from trainer.options.network_kinds import NETWORK_KINDS
from trainer.options.problems import ConfigError, Given
from trainer.runs import manifest
from trainer.runs.run_folder import RunFolder
from trainer.training.state import State

__all__ = ["folder"]  # the fixture

CPU = torch.device("cpu")
FULL: dict[str, Any] = {"network_preset": "full", "network_dim": 4, "network_alpha": 2.0, "conv_dim": 3}
WAYS: dict[str, dict[str, Any]] = {
    **{kind: {"network_kind": kind} for kind in KINDS},
    "loha, tucker": {"network_kind": "loha", "use_tucker": True},
    "lokr, tucker": {"network_kind": "lokr", "use_tucker": True, "network_dim": 1, "conv_dim": 1},
    "lokr, thin": {"network_kind": "lokr", "decompose_both": True, "network_dim": 1, "conv_dim": 1},
    "lokr, whole": {"network_kind": "lokr", "network_dim": 100_000, "conv_dim": 100_000, "factor": 6},
    "ia3, input": {"network_kind": "ia3", "train_on_input": True},
    "ia3, its own layers": {"network_kind": "ia3", "network_preset": "ia3", "conv_dim": None},
    "diag-oft, rescaled": {"network_kind": "diag-oft", "rescaled": True, "constraint": 0.001},
}


def of(folder: Path, **options: Any) -> Model:
    config = Config(pretrained_model_name_or_path=str(folder), resolution="64", save_precision="float", **options)
    if config.kind.extra:
        pytest.importorskip(config.kind.extra)
    return models.load(config, folder, torch.float32, CPU)


def way(folder: Path, name: str, **more: Any) -> Model:
    return of(folder, **{**FULL, **WAYS[name], **more})


def parameters(model: Model) -> dict[str, nn.Parameter]:
    adapter = adapters.load(model.config)
    return {name: parameter for target in model.targets for name, parameter in adapter.parameters(target).items()}


@torch.no_grad()
def randomise(model: Model) -> None:
    generator = torch.Generator().manual_seed(5)
    for name, parameter in parameters(model).items():
        start = parameter if name.endswith(("dora_scale", "rescale")) else torch.zeros(())
        parameter.copy_(start + torch.randn(parameter.shape, generator=generator) * 0.1)


def write(model: Model, path: Path) -> Path:
    weights = {name: parameter.detach().numpy() for name, parameter in parameters(model).items()}
    stored = adapters.tensors_of_file(weights, adapters.naming_of(model.config), model.config)
    checkpoint.write_model_file(path, {name: torch.from_numpy(item.array) for name, item in stored.items()}, {})
    return path


def trained(model: Model) -> Iterator[tuple[str, str, nn.Module, nn.Module]]:
    """(name in a file, our name, the layer as it is used, the layer of the base) of each trained layer."""
    naming = adapters.naming_of(model.config)
    plain = of(Path(model.config.pretrained_model_name_or_path), network_dim=1, network_kind="lora")
    bases = {target.name: target.module for target in plain.targets}
    for target in model.targets:
        for path in sorted(paths(model, target.name)):
            layer = bases[target.name].get_submodule(path)
            base: nn.Module = getattr(layer, "base_layer", layer)
            yield naming.kohya(target.name, path), f"{target.name}.{path}", target.module.get_submodule(path), base


def weight_in_use(layer: nn.Module, base: nn.Module) -> Tensor:
    """The matrix or kernel that a layer amounts to: what it makes of ones in one place each, without its bias."""
    weight = base.get_parameter("weight")
    if isinstance(base, nn.Linear):
        answer: Tensor = layer(torch.eye(base.in_features)) - layer(torch.zeros(1, base.in_features))
        return answer.T
    assert isinstance(base, nn.Conv2d)
    side = weight.shape[-1]
    ones = torch.zeros(base.in_channels, base.in_channels, 2 * side + 1, 2 * side + 1)
    middle = side - side % base.stride[0]  # where the stride reaches
    for channel in range(base.in_channels):
        ones[channel, channel, middle, middle] = 1
    answer = layer(ones) - layer(torch.zeros_like(ones[:1]))
    kernel = torch.zeros_like(weight)
    pad, stride = int(base.padding[0]), base.stride[0]
    for row in range(side):
        for column in range(side):
            place = [(middle + pad - offset) / stride for offset in (row, column)]
            if all(position == int(position) for position in place):
                kernel[:, :, row, column] = answer[:, :, int(place[0]), int(place[1])].T
            else:
                kernel[:, :, row, column] = float("nan")  # no output sees this pixel of the kernel
    return kernel


def merged_by_lycoris(model: Model, ours: str, base: nn.Module, key: str, tensors: dict[str, Tensor]) -> Tensor:
    """The weight that LyCORIS' own module, made with the same options, has with a file's tensors."""
    config, (rank, alpha) = model.config, adapters.ranked_of(model.config, ours)
    file, _, name = {
        "loha": "loha.LohaModule", "lokr": "lokr.LokrModule", "ia3": "ia3.IA3Module", "glora": "glora.GLoRAModule",
        "diag-oft": "diag_oft.DiagOFTModule",
    }.get(config.network_kind, "locon.LoConModule").partition(".")  # fmt: skip
    theirs = getattr(importlib.import_module(f"lycoris.modules.{file}"), name)(
        key, base, lora_dim=rank, alpha=alpha, factor=config.factor, decompose_both=config.decompose_both,
        use_tucker=config.use_tucker, train_on_input=adapters.on_input(config, ours.partition(".")[2]),
        constraint=config.constraint, rescaled=config.rescaled, weight_decompose=config.network_kind == "dora",
        rs_lora=config.network_kind == "rslora",
    )  # fmt: skip
    state = {place.removeprefix(f"{key}."): values for place, values in tensors.items() if place.startswith(f"{key}.")}
    assert state.pop("alpha", torch.tensor(0.0)) == pytest.approx(float(getattr(theirs, "alpha", 0.0)), rel=1e-4) or (
        {"lokr_w1", "lokr_w2"} <= state.keys()
    )
    own = dict(theirs.named_parameters()) | dict(theirs.named_buffers())
    for place, values in state.items():
        assert own[place].shape == values.shape, place
        own[place].copy_(values)
    weight = base.get_parameter("weight")
    if config.network_kind in ("loha", "lokr"):  # as it trains; its merge scales twice
        return weight + theirs.get_weight(weight.shape)
    merged: Tensor = theirs.get_merged_weight(shape=weight.shape)[0]
    return merged


# --- what a file holds ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WAYS)
def test_lycoris_reads_of_a_file_the_weights_that_the_training_uses(name: str, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("lycoris")
    model = way(folder, name)
    model.eval()
    randomise(model)
    tensors = safetensors.torch.load_file(write(model, tmp_path / "a.safetensors"))
    layers = list(trained(model))
    assert {key.split(".")[0] for key in tensors} == {name for name, *_ in layers}
    changed = 0
    with torch.no_grad():
        for key, ours, layer, base in layers:
            merged = merged_by_lycoris(model, ours, copy.deepcopy(base), key, tensors)
            used = weight_in_use(layer, base)
            merged = torch.where(used.isnan(), used, merged)
            torch.testing.assert_close(used, merged, rtol=2e-4, atol=2e-5, equal_nan=True, msg=ours)
            changed += int(float((used - base.get_parameter("weight")).nan_to_num().abs().max()) > 1e-6)
    assert changed > 0.8 * len(layers)


@pytest.mark.parametrize("name", WAYS)
def test_a_file_is_read_back_as_it_was(name: str, folder: Path, tmp_path: Path) -> None:
    model, other = way(folder, name), way(folder, name, seed=7)
    randomise(model)
    path = write(model, tmp_path / "a.safetensors")
    adapters.load(other.config).from_file(other.targets, adapters.naming_of(other.config), path)
    for ours, parameter in parameters(model).items():
        torch.testing.assert_close(parameters(other)[ours], parameter, rtol=0, atol=0, msg=ours)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_file_of_another_kind_is_refused_and_nothing_is_changed(kind: str, folder: Path, tmp_path: Path) -> None:
    model = of(folder, network_kind=kind, network_dim=4)
    before = {name: parameter.detach().clone() for name, parameter in parameters(model).items()}
    another = of(folder, network_kind="lokr" if kind == "loha" else "loha", network_dim=4)
    path = write(another, tmp_path / "a.safetensors")
    with pytest.raises(NetworkFileError, match="does not fit"):
        adapters.load(model.config).from_file(model.targets, adapters.naming_of(model.config), path)
    assert all(torch.equal(parameter, before[name]) for name, parameter in parameters(model).items())


def test_dora_and_lora_are_told_apart(folder: Path, tmp_path: Path) -> None:
    path = write(of(folder, network_kind="dora", network_dim=4), tmp_path / "dora.safetensors")
    model = of(folder, network_dim=4)
    with pytest.raises(NetworkFileError, match="is DoRA"):
        adapters.load(model.config).from_file(model.targets, adapters.naming_of(model.config), path)


def test_whole_matrices_of_lokr_have_no_alpha(folder: Path, tmp_path: Path) -> None:
    """Readers leave alpha out there; a small one must not have scaled the training down."""
    model = way(folder, "lokr, whole", network_alpha=1.0)
    randomise(model)
    tensors = safetensors.torch.load_file(write(model, tmp_path / "a.safetensors"))
    ours, layer, base = next((ours, layer, base) for _, ours, layer, base in trained(model) if ours.endswith("to_q"))
    name = adapters.naming_of(model.config).layer(ours)
    expected = np.kron(tensors[f"{name}.lokr_w1"].numpy(), tensors[f"{name}.lokr_w2"].numpy())
    with torch.no_grad():
        added = weight_in_use(layer, base) - base.get_parameter("weight")
    np.testing.assert_allclose(added.flatten(1), expected.reshape(added.flatten(1).shape), atol=1e-5)


@pytest.mark.parametrize("factor", [-1, 4, 6, 16])
@pytest.mark.parametrize("dimension", [1, 7, 12, 127, 320, 768, 1280])
def test_a_dimension_is_divided_as_lycoris_divides_it(dimension: int, factor: int) -> None:
    pytest.importorskip("lycoris")
    from lycoris.functional.general import factorization

    assert divided(dimension, factor) == factorization(dimension, factor)


# --- what is trained -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WAYS)
def test_the_shapes_are_told_from_the_headers_alone(name: str, folder: Path) -> None:
    model = way(folder, name)
    expected = {ours: tuple(parameter.shape) for ours, parameter in parameters(model).items()}
    assert dict(checkpoint_size.trained(model.config, folder)) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_network_changes_nothing_and_depends_on_the_seed_alone(kind: str, folder: Path) -> None:
    torch.manual_seed(1)
    first = way(folder, kind)
    torch.manual_seed(2)
    second = parameters(way(folder, kind))
    assert all(torch.equal(value, second[ours]) for ours, value in parameters(first).items())
    assert first.probe() == pytest.approx(of(folder, network_dim=4).probe(), rel=1e-5)


SOME_BLOCKS = ",".join(["4", "2", "0", "3"] + ["2"] * 21)
RESUMED: dict[str, dict[str, Any]] = {
    "lora": {
        "block_dims": SOME_BLOCKS,
        "block_alphas": SOME_BLOCKS,
        "conv_dim": 2,
        "down_lr_weight": "cosine+.25",
        "mid_lr_weight": "0.5",
        "up_lr_weight": "0,1,0.5",
        "loraplus_lr_ratio": 4.0,
    },
    "rslora": {"conv_dim": 2, "network_dropout": 0.2, "rank_dropout": 0.1},
    "dora": {"conv_dim": 2, "mixed_precision": "bf16", "gradient_checkpointing": True},
    "loha": {"network_preset": "full", "rank_dropout": 0.2, "module_dropout": 0.2, "scale_weight_norms": 0.5},
    "lokr": {"network_preset": "full", "factor": 4, "mixed_precision": "bf16", "use_ema": True, "ema_decay": 0.5},
    "ia3": {"network_preset": "ia3", "learning_rate": 0.1},
    "glora": {"conv_dim": 2, "module_dropout": 0.2, "mixed_precision": "bf16"},
    "diag-oft": {"gradient_checkpointing": True, "conv_dim": 2, "rescaled": True},
}


def test_every_kind_is_resumed() -> None:
    assert RESUMED.keys() == KINDS.keys() == NETWORK_KINDS.keys()


@pytest.mark.parametrize("kind", RESUMED)
def test_a_resumed_run_is_bit_equal_and_its_checkpoint_is_exported_and_as_large_as_told(
    kind: str, tiny_model: Path, tiny_images: Path, tmp_path: Path
) -> None:
    if extra := NETWORK_KINDS[kind].extra:
        pytest.importorskip(extra)
    options = {"network_kind": kind, "network_dim": 4, **RESUMED[kind]}
    assert check_every_resume(tiny_model, tiny_images, tmp_path, options, steps=2) == 1
    config = config_for(tiny_model, tiny_images, tmp_path / "straight", max_train_steps=2, **options)
    found = manifest.listing(RunFolder(config.run_dir).checkpoints)[0]
    exported = export.model_file(found.path, tmp_path / "exported.safetensors")
    assert_bit_equal(safetensors.torch.load_file(exported), exported_tensors_of(config))
    fresh = config.replace(output_dir=str(tmp_path / "fresh"))
    assert found.manifest and preflight.examine(fresh).bytes_of_save == pytest.approx(found.manifest.bytes, rel=0.03)


@pytest.mark.parametrize("kind", [name for name, kind in NETWORK_KINDS.items() if "module_dropout" in kind.dropouts])
def test_layers_that_are_left_out_have_a_gradient_of_zero(kind: str, folder: Path) -> None:
    model = of(folder, network_kind=kind, network_dim=2, module_dropout=0.99, network_train_unet_only=True)
    randomise(model)
    model.train()
    torch.manual_seed(1)
    sample = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    text = torch.randn(1, 7, 32, generator=torch.Generator().manual_seed(2))
    output = model.denoiser(sample, torch.tensor([3]), encoder_hidden_states=text).sample
    output.square().mean().backward()
    gradients = [parameter.grad for parameter in parameters(model).values()]
    assert all(gradient is not None for gradient in gradients)
    assert sum(bool(gradient.any()) for gradient in gradients if gradient is not None) < len(gradients) / 4


@pytest.mark.parametrize("kind", NETWORK_KINDS)
def test_the_table_says_which_kinds_have_norms_to_be_limited(kind: str) -> None:
    if NETWORK_KINDS[kind].extra:
        pytest.importorskip(NETWORK_KINDS[kind].extra)
    adapter = adapters.load(Config(network_kind=kind))
    assert isinstance(adapter, LimitsNorms) == NETWORK_KINDS[kind].limits_norms


def test_limited_norms_are_those_of_the_whole_change(folder: Path) -> None:
    for kind in ("loha", "lokr"):
        model = of(folder, network_kind=kind, network_dim=4)
        randomise(model)
        adapter = adapters.load(model.config)
        assert isinstance(adapter, LimitsNorms)
        for target in model.targets:
            adapter.limit_norms(target, 0.01)
        with torch.no_grad():
            layers = [(layer, base) for *_, layer, base in trained(model)]
            changes = [weight_in_use(layer, base) - base.get_parameter("weight") for layer, base in layers]
            norms = [float(change[~change.isnan()].norm()) for change in changes]
        assert max(norms) == pytest.approx(0.01, rel=1e-2)


# --- which layers --------------------------------------------------------------------------------------------------


def paths(model: Model, component: str = "unet") -> set[str]:
    start = f"{component}."
    names = [name.removeprefix(start) for name in parameters(model) if name.startswith(start)]
    return {name.removesuffix(f".{adapters.entry_of(name)}") for name in names}


def test_the_layers_of_conv_dim_are_those_of_sd_scripts(folder: Path) -> None:
    with_convolutions = paths(of(folder, network_dim=2, conv_dim=2)) - paths(of(folder, network_dim=2))
    assert {path.split(".")[-1] for path in with_convolutions} == {
        "conv1", "conv2", "conv_shortcut", "time_emb_proj", "conv",
    }  # fmt: skip


def test_a_run_that_was_begun_with_fewer_layers_keeps_them(tmp_path: Path, folder: Path) -> None:
    written = writing.to_toml(Config(family="sd", network_dim=2, conv_dim=2))
    path = tmp_path / "config.toml"
    path.write_text(written)
    assert not checks.read_config(path).conv_kernels_only
    path.write_text("".join(line for line in written.splitlines(True) if not line.startswith("conv_kernels_only")))
    then = checks.read_config(path)
    assert then.conv_kernels_only
    layers = paths(of(folder, network_dim=2, conv_dim=2, conv_kernels_only=True))
    assert not any(layer.endswith(("time_emb_proj", "conv_shortcut")) for layer in layers)
    assert any(layer.endswith("conv1") for layer in layers)
    (difference,) = resume.compare_options(then, then.replace(conv_kernels_only=False), 1, 1)
    assert (difference.name, difference.on_resume) == ("conv_kernels_only", "locked")


def test_kernels_are_known_by_their_names(folder: Path) -> None:
    model = of(folder, **FULL)
    for target in model.targets:
        for path, (layer, _) in target.layers(model.config).items():
            larger = isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1)
            assert target.part.has_larger_kernel(path.removesuffix(".base_layer")) == larger


def test_blocks_have_ranks_alphas_and_rates_of_their_own(folder: Path) -> None:
    """The tiny U-Net has blocks 1, 3 (its downsampler) and 4 on the way down, 12, and 13 to 17 on the way up."""
    dims = ["4", "3", "6", "0", "5", *["2"] * 8, "7", *["2"] * 11]
    options = {"block_dims": ",".join(dims), "block_alphas": ",".join(["1.5"] * 25), "conv_dim": 2, "conv_alpha": 1.0}
    model = of(folder, network_dim=16, network_alpha=8.0, learning_rate=1e-3, **options)
    state = State(model.config, model, CPU)
    ranks = {name: tuple(parameter.shape) for name, parameter in parameters(model).items()}
    assert ranks["unet.down_blocks.0.attentions.0.proj_in.lora_A.weight"][0] == 3
    assert ranks["unet.down_blocks.0.downsamplers.0.conv.lora_A.weight"][0] == 2
    assert ranks["unet.down_blocks.1.resnets.0.time_emb_proj.lora_A.weight"][0] == 5
    assert ranks["unet.up_blocks.0.resnets.0.conv_shortcut.lora_A.weight"][0] == 7
    assert {shape[0] for name, shape in ranks.items() if name.startswith("text") and "lora_A" in name} == {16}
    assert adapters.ranked_of(model.config, "unet.down_blocks.0.attentions.0.proj_in") == (3, 1.5)
    assert adapters.ranked_of(model.config, "unet.down_blocks.0.downsamplers.0.conv") == (2, 1.0)
    assert list(state.peaks) == ["unet", "text_encoder"]
    assert dict(checkpoint_size.trained(model.config, folder)) == ranks

    rates = {"down_lr_weight": "0.5,0.25", "up_lr_weight": "0.2", "block_lr_zero_threshold": 0.2, "mid_lr_weight": "2"}
    model = of(folder, network_dim=2, learning_rate=1e-3, loraplus_unet_lr_ratio=4.0, **rates)
    state = State(model.config, model, CPU)
    assert {name: round(peak * 1e3, 6) for name, peak in state.peaks.items()} == {
        "unet block 1": 0.25, "unet block 12": 2.0, "unet block 16": 1.0, "unet block 17": 1.0,
        "unet block 1 plus": 1.0, "unet block 12 plus": 8.0, "unet block 16 plus": 4.0, "unet block 17 plus": 4.0,
        "text_encoder": 1.0,
    }  # fmt: skip
    without = paths(of(folder, network_dim=2, up_lr_weight="1,1,1,0"))
    assert not any(path.startswith("up_blocks.1.attentions.0") for path in without) and without


@pytest.mark.parametrize(
    ("preset", "is_in"),
    [
        ("full", lambda path: True),
        ("full-lin", lambda path: not path.endswith(("conv", "conv1", "conv2", "conv_in", "conv_out"))),
        ("attn-mlp", lambda path: "attentions" in path),
        ("attn-only", lambda path: ".attn" in path),
        ("ia3", lambda path: path.endswith(("to_k", "to_v", "ff.net.2"))),
    ],
)
def test_a_preset_of_layers_is_lycoris(preset: str, is_in: Any, folder: Path) -> None:
    everything = {
        path
        for path, layer in of(folder, network_dim=1).denoiser.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and "lora_" not in path
    }
    every = {path.removesuffix(".base_layer") for path in everything}
    assert paths(of(folder, **{**FULL, "network_preset": preset})) == {path for path in every if is_in(path)}


@pytest.mark.parametrize("family", TABLE)
def test_a_kind_fits_every_family(family: str, tmp_path: Path) -> None:
    """Its files are named as LoRAs of the family, but for layers that LoRAs of FLUX.1 join."""
    made = tiny_families.FAMILIES[family].make(tmp_path / "model")
    for kind in ("lokr", "dora"):
        model, other = (of(made, network_kind=kind, network_dim=2, seed=seed) for seed in (1, 2))
        shapes = {name: tuple(parameter.shape) for name, parameter in parameters(model).items()}
        assert dict(checkpoint_size.trained(model.config, made)) == shapes
        randomise(model)
        path = write(model, tmp_path / f"{kind}.safetensors")
        adapters.load(other.config).from_file(other.targets, adapters.naming_of(other.config), path)
        for name, parameter in parameters(model).items():
            torch.testing.assert_close(parameters(other)[name], parameter, msg=name)


@pytest.mark.parametrize("kind", [name for name, kind in NETWORK_KINDS.items() if not kind.folded])
def test_what_nothing_reads_of_a_transformer_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TABLE, "sd", dataclasses.replace(TABLE["sd"], keys="folded"))
    (problem,) = checks.check({"family": Given("sd", ""), "network_kind": Given(kind, "")}).problems
    assert problem.key == "network_kind" and "nothing reads a file of" in problem.message


def test_what_is_not_installed_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'rekindle\[lycoris\]'"):
        adapters.check(Config(network_kind="glora"))
    adapters.check(Config(network_kind="lokr"))


def test_every_family_says_which_of_its_kernels_are_larger() -> None:
    for facts in TABLE.values():
        assert not facts.denoiser.convolutions or facts.denoiser.kernels
