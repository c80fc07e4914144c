"""Switches that save memory: those that must not change a bit change none, the others train right."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import psutil
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.support import single_file, toy_family
from tests.support.runs_at_tiny_size import assert_bit_equal, config_for, run, steps_of, tensors_of
from tests.support.tiny_families import FAMILIES
from trainer.commands import train
from trainer.models import adapters, base_model, blocks, compiling, families, mapped_weights, quantising
from trainer.models import model as models
from trainer.models.model import Model
from trainer.models.streaming import Streamer
from trainer.options.checks import check
from trainer.options.config import Config
from trainer.options.problems import ConfigError, Given
from trainer.options.writing import to_toml
from trainer.refusal import Refused

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=[*FAMILIES, "toy"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    name = str(request.param)
    with pytest.MonkeyPatch.context() as patch:
        if name == "toy":
            patch.setitem(families.TABLE, name, toy_family.FACTS)
        make = toy_family.make_model if name == "toy" else FAMILIES[name].make
        yield make(tmp_path_factory.mktemp(name))


def load(folder: Path, **options: Any) -> Model:
    config = Config(
        pretrained_model_name_or_path=str(folder),
        resolution="64",
        network_dim=4,
        gradient_checkpointing=True,
        **options,
    )
    dtype = torch.bfloat16 if config.mixed_precision == "bf16" else torch.float32
    model = models.load(config, folder, dtype, CPU)
    model.stream_blocks(CPU)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in trained(model).values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.train()
    return model


def trained(model: Model) -> dict[str, nn.Parameter]:
    adapter = adapters.load(model.config)
    return {name: value for target in model.targets for name, value in adapter.parameters(target).items()}


def batch_for(model: Model) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    shape = (2, model.latent_channels, 8, 8)
    flow = "flow" in model.config.facts.traits
    captions = ("a red thing", "")
    return {
        "latent_mean": torch.randn(shape, generator=generator),
        "latent_std": torch.ones(shape),
        "latent_noise": torch.zeros(shape),
        "noise": torch.randn(shape, generator=generator),
        "timesteps": torch.full((2,), 0.5) if flow else torch.full((2,), 500),
        "geometry": torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2),
        **(model.tokenize(captions) if model.tokenize else {"captions": captions}),
    }


def results(model: Model, steps: int = 1) -> dict[str, Tensor]:
    """The losses and gradients of some micro-batches."""
    batch = batch_for(model)
    found: dict[str, Tensor] = {}
    for step in range(steps):
        model.zero_grad()
        with model.autocast():
            losses = model.module()(batch)
        losses.sum().backward()
        found[f"loss {step}"] = losses.detach()
        found |= {
            f"{name} {step}": parameter.grad.clone()
            for name, parameter in trained(model).items()
            if parameter.grad is not None
        }
    return found


@pytest.mark.parametrize(
    "options",
    [{"blocks_to_swap": 3}, {"blocks_to_swap": 100, "cpu_offload_checkpointing": True, "mixed_precision": "bf16"}],
    ids=["some blocks", "every block and the activations"],
)
def test_where_tensors_are_kept_changes_no_bit(options: dict[str, Any], folder: Path) -> None:
    precision = options.get("mixed_precision", "no")
    plain, saving = load(folder, mixed_precision=precision), load(folder, **options)
    expected = results(plain)
    assert_bit_equal(results(saving), expected)
    assert saving.probe() == plain.probe()
    assert_bit_equal(results(saving), expected)  # in the order that is known now


def test_streamed_weights_are_in_the_network_only_while_their_block_computes(tiny_model: Path) -> None:
    plain, model = load(tiny_model).denoiser, load(tiny_model, blocks_to_swap=2)
    whole = sum(parameter.nbytes for parameter in plain.parameters())
    names = [name for name, _ in plain.named_parameters()]
    first = model.denoiser.get_submodule(blocks.streamed(names, 2)[0])
    held = sum(parameter.nbytes for parameter in model.denoiser.parameters())
    during: list[int] = []
    first.register_forward_hook(
        lambda *_: during.append(sum(p.nbytes for p in model.denoiser.parameters())), prepend=True, always_call=True
    )  # the second forward pass ends early, when it has what the backward pass needs
    results(model)
    assert held < whole
    assert sum(parameter.nbytes for parameter in model.denoiser.parameters()) == held
    assert len(during) == 2 and all(held < count < whole for count in during)  # forward, and again for the backward


def test_each_block_is_on_its_way_before_it_is_asked_for(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(tiny_model, blocks_to_swap=4)
    late: list[int] = []
    asked = Streamer._before

    def before(streamer: Streamer, block: Any) -> None:
        if block.place not in streamer._arriving:
            late.append(block.place)
        asked(streamer, block)

    monkeypatch.setattr(Streamer, "_before", before)
    results(model)
    assert late[:4] == [0, 1, 2, 3] and late[4] == 3  # nothing is known of the order yet
    late.clear()
    results(model)
    results(model)
    assert late == [0, 3, 0, 3]  # the first of each pass, and the last one, which computes twice in a row


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_weights_in_8_bit_floats_train_in_nearly_the_same_direction(precision: str, tiny_model: Path) -> None:
    plain, small = load(tiny_model), load(tiny_model, fp8_base=True, mixed_precision=precision)
    kept = small.denoiser.get_submodule("mid_block.resnets.0.conv1").get_parameter("weight")
    assert kept.dtype == torch.float8_e4m3fn
    expected, found = results(plain), results(small)
    assert found.keys() == expected.keys()
    assert 0.98 < cosine(expected, found) < 0.9999999
    assert kept.dtype == torch.float8_e4m3fn  # again
    assert_bit_equal(results(small), found)


def test_compiled_blocks_train_alike(tiny_model: Path) -> None:
    plain, compiled = load(tiny_model), load(tiny_model, torch_compile=True, dynamo_backend="aot_eager")
    expected, found = results(plain), results(compiled)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-5)


def cosine(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """Between all gradients of the U-Net."""
    names = [name for name in left if name.startswith("unet")]
    one, two = (torch.cat([tensors[name].flatten().float() for name in names]) for tensors in (left, right))
    return float(torch.nn.functional.cosine_similarity(one, two, dim=0))


def test_weights_quantised_by_torchao_train_in_nearly_the_same_direction(tiny_model: Path) -> None:
    pytest.importorskip("torchao")
    plain, small = load(tiny_model), load(tiny_model, quantize="int8wo", mixed_precision="bf16")
    found = results(small)
    assert 0.98 < cosine(results(plain), found) < 0.9999999
    assert_bit_equal(results(small), found)


def write_gguf(tiny_model: Path, path: Path) -> Path:
    """The tiny model's U-Net in its original names, the linear layers of its blocks in 8 bits."""
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_model, safety_checker=None)
    tensors = load_file(single_file.write(pipeline, path.with_suffix(".safetensors")))
    writer = gguf.GGUFWriter(path, "sd1")
    kind = gguf.GGMLQuantizationType.Q8_0
    for name, tensor in tensors.items():
        if name.startswith("model.diffusion_model."):
            values = tensor.float().numpy()
            if "transformer_blocks" in name and values.ndim == 2:
                writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
            else:
                writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_frozen_weights_of_a_gguf_file_train_and_another_file_is_another_base_model(
    tiny_model: Path, tiny_images: Path, tmp_path: Path
) -> None:
    file = write_gguf(tiny_model, tmp_path / "unet.gguf")
    plain, small = load(tiny_model), load(tiny_model, base_gguf=str(file))
    layer: Any = small.denoiser.get_submodule("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.base_layer")
    assert type(layer).__name__ == "GGUFLinear" and layer.weight.dtype == torch.uint8
    assert 0.98 < cosine(results(plain), results(small)) < 0.9999999

    config = config_for(tiny_model, tiny_images, tmp_path / "out", base_gguf=str(file), max_train_steps=1)
    run(config)
    resumed = config.replace(resume_from_checkpoint="latest", max_train_steps=2)
    assert run(resumed) == "finished"
    file.write_bytes(file.read_bytes() + b"another")
    with pytest.raises(Refused, match="base_gguf"):
        run(resumed.replace(max_train_steps=3))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"blocks_to_swap": 2}, "blocks_to_swap: needs gradient_checkpointing = true"),
        ({"fp8_base": True}, "fp8_base: needs gradient_checkpointing = true"),
        ({"cpu_offload_checkpointing": True}, "cpu_offload_checkpointing: needs gradient_checkpointing = true"),
        ({"gradient_checkpointing": True, "fp8_base": True, "quantize": "nf4"}, "fp8_base: cannot go with quantize"),
        ({"gradient_checkpointing": True, "blocks_to_swap": 1, "quantize": "nf4"}, "blocks_to_swap: cannot go with"),
        ({"base_gguf": "unet.safetensors"}, "base_gguf: 'unet.safetensors' is not a .gguf file"),
        ({"quantize": "int8wo"}, "quantize: int8wo computes in bfloat16"),
        ({"torch_compile": True, "dynamo_backend": "no"}, "dynamo_backend: 'no' compiles nothing"),
        (
            {"torch_compile": True, "dynamo_backend": "eager", "dynamo_mode": "max-autotune"},
            "dynamo_mode: 'max-autotune' is one of inductor",
        ),
        (
            {"torch_compile": True, "gradient_checkpointing": True, "blocks_to_swap": 1},
            "torch_compile: cannot go with blocks_to_swap",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else ",".join(value),
)
def test_what_does_not_go_together_is_refused_by_name(options: dict[str, Any], words: str) -> None:
    (problem,) = check({name: Given(value, "") for name, value in options.items()}).problems
    assert str(problem).startswith(words)


@pytest.mark.parametrize("quantize", ["int8", "nf4"])
def test_what_needs_a_gpu_is_refused_by_the_dry_run_without_one(
    quantize: str, tiny_model: Path, tiny_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preset = tmp_path / "preset.toml"
    preset.write_text(to_toml(config_for(tiny_model, tiny_images, tmp_path, quantize=quantize)))
    assert train.dry_run(str(preset), [], as_json=False) == train.REFUSED
    assert f"Refused: quantize: {quantize} needs an NVIDIA or AMD GPU" in capsys.readouterr().out


def test_a_package_that_is_missing_is_named_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for config, extra in ((Config(quantize="int8wo"), "torchao"), (Config(base_gguf="a.gguf"), "gguf")):
        with pytest.raises(ConfigError, match=rf"pip install 'rekindle\[{extra}\]'"):
            quantising.check(config)


def test_a_model_that_declares_no_repeated_blocks_is_not_compiled() -> None:
    with pytest.raises(Refused, match="torch_compile: Linear declares no repeated blocks"):
        compiling.compile_blocks(nn.Linear(1, 1), Config(torch_compile=True))


def test_a_single_file_is_not_quantised(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4, 4, 3, 3),
               "cond_stage_model.a": torch.zeros(1)}, file)  # fmt: skip
    with pytest.raises(Refused, match="quantize: needs a base model in a diffusers folder"):
        base_model.settle(Config(pretrained_model_name_or_path=str(file), quantize="nf4"), file)


def test_8_bit_weights_can_be_streamed(tiny_model: Path) -> None:
    cast, streamed = load(tiny_model, fp8_base=True), load(tiny_model, fp8_base=True, blocks_to_swap=100)
    assert_bit_equal(results(streamed), results(cast))


@pytest.mark.parametrize(
    "options",
    [
        {"blocks_to_swap": 3, "cpu_offload_checkpointing": True, "fp8_base": True, "mixed_precision": "bf16"},
        {"torch_compile": True, "dynamo_backend": "aot_eager", "enable_bucket": True, "bucket_reso_steps": 16},
    ],
    ids=["less memory", "compiled"],
)
def test_a_run_with_these_switches_is_resumed_bit_equal(
    options: dict[str, Any], tiny_model: Path, tiny_images: Path, tmp_path: Path
) -> None:
    common = {"gradient_checkpointing": True, "max_train_steps": 4, "save_every_n_steps": 0, "min_bucket_reso": 32}
    straight = config_for(tiny_model, tiny_images, tmp_path / "straight", **common | options)
    assert run(straight) == "finished"
    halved = config_for(tiny_model, tiny_images, tmp_path / "halved", **common | options)
    run(halved.replace(max_train_steps=2))
    run(halved.replace(resume_from_checkpoint="latest"))
    assert steps_of(halved) == steps_of(straight)
    assert_bit_equal(tensors_of(halved, 4), tensors_of(straight, 4))
    if "blocks_to_swap" in options:
        plain = straight.replace(blocks_to_swap=0, cpu_offload_checkpointing=False, output_dir=str(tmp_path / "plain"))
        run(plain)
        assert_bit_equal(tensors_of(plain, 4), tensors_of(straight, 4))


# --- weights that are mapped from files ----------------------------------------------------------------------------


def resident_of_files() -> int:
    return dict(psutil.Process().memory_info()._asdict())["shared"]  # of Linux alone


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell what is mapped")
def test_a_weight_that_is_laid_out_anew_is_in_memory_once(tmp_path: Path) -> None:
    kernels, matrix = nn.Conv2d(512, 512, 3), nn.Linear(512, 512)  # 9 MB and 1
    large = nn.Sequential(kernels, matrix)
    save_file(large.state_dict(), tmp_path / "large.safetensors")
    expected = kernels.weight.detach().clone()
    tensors = load_file(tmp_path / "large.safetensors")
    large.load_state_dict(tensors, assign=True)
    before = resident_of_files()
    assert float(tensors["0.weight"].sum()) == float(expected.sum())  # which touches it
    assert resident_of_files() - before > 8e6
    mapped_weights.to_channels_last(large)
    assert resident_of_files() - before < 2e6
    assert kernels.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(kernels.weight, expected)
    assert torch.equal(tensors["0.weight"], expected)  # read from the file again
    assert torch.equal(matrix.weight, load_file(tmp_path / "large.safetensors")["1.weight"])


def test_weights_that_lie_in_no_file_are_laid_out_anew_too() -> None:
    network = nn.Conv2d(64, 64, 3)
    kept = network.weight.detach()
    expected = kept.clone()
    mapped_weights.to_channels_last(network)
    assert network.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(network.weight, expected) and torch.equal(kept, expected)
