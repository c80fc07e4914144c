"""What every family of the table has to do, at a tiny size of its real classes: be given to the denoiser what the
official pipeline gives it, train all its layers, resume exactly, and write files that the official pipeline reads."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.support import tiny, tiny_families
from tests.support.runs_at_tiny_size import assert_bit_equal, config_for, run, steps_of, tensors_of
from tests.support.tiny_families import Tiny
from trainer.checkpoints import checkpoint, checkpoint_size
from trainer.models import adapters, base_model, families, previews
from trainer.models import model as models
from trainer.models.adapters import Layer
from trainer.models.adapters.base import Target
from trainer.models.base_model import BaseModelMissing
from trainer.models.families.facts import CONVOLUTIONAL, FLOW, TRAINS_ENCODERS, Facts
from trainer.models.keys import Naming
from trainer.models.model import TEXT, Model
from trainer.models.parts import Parts
from trainer.options.config import Config
from trainer.recipe.prompts import Prompt

CPU = torch.device("cpu")
SIDE = 64
CAPTION = "a red thing"
GEOMETRY = torch.tensor([[float(SIDE), SIDE, 0, 0, SIDE, SIDE]])  # as the pipelines have it by default


@pytest.fixture(scope="module", params=list(tiny_families.FAMILIES))
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def facts(variant: str) -> Facts:
    return families.TABLE[variant.split()[0]]


@pytest.fixture(scope="module")
def of(variant: str) -> Tiny:
    return tiny_families.FAMILIES[variant]


@pytest.fixture(scope="module")
def folder(of: Tiny, variant: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return of.make(tmp_path_factory.mktemp(variant.replace(" ", "-")))


def load(folder: Path, **options: Any) -> Model:
    config = Config(
        pretrained_model_name_or_path=str(folder), resolution=str(SIDE), network_dim=4, network_alpha=2.0, **options
    )
    return models.load(config, folder, torch.float32, CPU)


def official(folder: Path, of: Tiny) -> Any:
    pipeline = of.official(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def batch_for(model: Model, captions: tuple[str, ...] = (CAPTION, "")) -> dict[str, Any]:
    """What the loader gives for so many captions."""
    generator = torch.Generator().manual_seed(3)
    count, side = len(captions), SIDE // model.latent_factor
    shape = (count, model.latent_channels, side, side)
    flow = FLOW in model.config.facts.traits
    return {
        "latent_mean": torch.randn(shape, generator=generator),
        "latent_std": torch.ones(shape),
        "latent_noise": torch.zeros(shape),
        "noise": torch.randn(shape, generator=generator),
        "timesteps": torch.full((count,), 0.5) if flow else torch.full((count,), 500),
        "geometry": GEOMETRY.expand(count, -1),
        **(model.tokenize(captions) if model.tokenize else {"captions": captions}),
    }


def randomise(model: Model, strength: float = 0.1) -> dict[str, Tensor]:
    """Give every trained parameter that is reached random values, so that a lost one is noticed; all by name."""
    generator = torch.Generator().manual_seed(5)
    adapter = adapters.load(model.config)
    weights = {}
    with torch.no_grad():
        for target in model.targets:
            for name, parameter in adapter.parameters(target).items():
                if parameter.requires_grad:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * strength)
                weights[name] = parameter.detach().clone()
    return weights


# --- the official pipeline -----------------------------------------------------------------------------------------


class Calls:
    """What a network is called with, by the names of its arguments, without those at their defaults."""

    def __init__(self, network: nn.Module) -> None:
        self.arguments: list[dict[str, Any]] = []
        self._signature = inspect.signature(type(network).forward)
        self._hook = network.register_forward_pre_hook(self._record, with_kwargs=True)

    def _record(self, network: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        given = self._signature.bind(network, *positional, **named).arguments
        defaults = {name: parameter.default for name, parameter in self._signature.parameters.items()}
        self.arguments.append(
            {
                name: value
                for name, value in given.items()
                if name not in ("self", "return_dict") and (isinstance(value, Tensor) or value != defaults[name])
            }
        )

    def __enter__(self) -> list[dict[str, Any]]:
        return self.arguments

    def __exit__(self, *_: object) -> None:
        self._hook.remove()


def leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from leaves(inner, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for place, inner in enumerate(value):
            yield from leaves(inner, f"{name}.{place}")
    elif value is not None:
        yield name, value


def assert_alike(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Equal names, kinds and values; a timestep may stand for those of the whole batch."""
    left, right = dict(leaves(ours, "")), dict(leaves(theirs, ""))
    assert left.keys() == right.keys()
    for name, value in left.items():
        other = right[name]
        if not isinstance(value, Tensor):
            assert value == other, name
            continue
        assert (value.dtype == torch.bool) == (other.dtype == torch.bool), name
        one, two = torch.broadcast_tensors(value, other)
        torch.testing.assert_close(one.float(), two.float(), atol=1e-5, rtol=1e-5, msg=f"{name}: {value} and {other}")


def conditioning(model: Model, caption: str) -> dict[str, Tensor]:
    return model.conditioning_of(caption, None) | {"geometry": GEOMETRY} | model.guidance(1)


def test_the_denoiser_is_given_what_the_official_pipeline_gives_it(
    folder: Path, facts: Facts, of: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, pipeline = load(folder), official(folder, of)
    pipeline.scheduler = previews.scheduler(model, "euler" if FLOW in facts.traits else "ddim")
    noise: list[Tensor] = []

    def known_noise(shape: tuple[int, ...], **_: Any) -> Tensor:
        noise.append(torch.randn(shape, generator=torch.Generator().manual_seed(1)))
        return noise[0]

    module = getattr(pipeline, "draws", inspect.getmodule(type(pipeline)))
    monkeypatch.setattr(module, "randn_tensor", known_noise)
    with Calls(getattr(pipeline, facts.denoiser.component)) as theirs, torch.no_grad():
        pipeline(prompt=CAPTION, height=SIDE, width=SIDE, num_inference_steps=2, output_type="latent", **of.call)

    side = SIDE // facts.factor
    latents, given = noise[0].reshape(1, facts.channels, side, side), conditioning(model, CAPTION)
    with Calls(model.denoiser) as ours, torch.no_grad():
        for place, timestep in enumerate(pipeline.scheduler.timesteps):
            t = (timestep / 1000 if FLOW in facts.traits else timestep).view(1)
            predicted = model.family.predict(model.denoiser, latents, t, given)
            if FLOW in facts.traits:
                latents = (
                    latents + (pipeline.scheduler.sigmas[place + 1] - pipeline.scheduler.sigmas[place]) * predicted
                )
            else:
                latents = pipeline.scheduler.step(predicted, timestep, latents).prev_sample
    assert len(ours) == len(theirs) == 2
    for mine, other in zip(ours, theirs, strict=True):
        assert_alike(mine, of.same(other))


def pictures(model: Model, pipeline: Any, of: Tiny) -> tuple[np.ndarray[Any, Any], ...]:
    """Of one prompt: ours, and the official pipeline's."""
    sampler = "euler" if FLOW in model.config.facts.traits else "ddim"
    prompt = Prompt(CAPTION, of.negative, SIDE, SIDE, seed=3, guidance_scale=2.0, steps=3)  # embedded: 3.5, the default
    [ours] = model.sample([prompt], sampler, CPU)
    pipeline.scheduler = previews.scheduler(model, sampler)
    generator = torch.Generator().manual_seed(3)
    takes_negative = "negative_prompt" in inspect.signature(pipeline.__call__).parameters
    negative = {"negative_prompt": of.negative} if takes_negative else {}
    theirs = pipeline(
        prompt=CAPTION, height=SIDE, width=SIDE, num_inference_steps=3, generator=generator, **negative, **of.guided
    ).images[0]
    return tuple(np.asarray(picture).astype(int) for picture in (ours, theirs))


def test_a_sample_is_the_picture_of_the_official_pipeline(folder: Path, facts: Facts, of: Tiny) -> None:
    ours, theirs = pictures(load(folder), official(folder, of), of)
    assert np.abs(ours - theirs).max() <= 1


@pytest.mark.parametrize("convolutions", [False, True], ids=["attention", "convolutions"])
def test_the_official_pipeline_draws_the_same_with_the_file(
    convolutions: bool, folder: Path, facts: Facts, of: Tiny, tmp_path: Path
) -> None:
    if convolutions and CONVOLUTIONAL not in facts.traits:
        pytest.skip("it has no convolutions")
    model = load(folder, save_precision="float", **({"conv_dim": 2, "conv_alpha": 4.0} if convolutions else {}))
    weights = {name: tensor.numpy() for name, tensor in randomise(model, 0.5 if FLOW in facts.traits else 0.1).items()}
    naming = adapters.naming_of(model.config)
    if naming.scheme == "fused":  # which diffusers reads at the real widths alone, see test_flow.py
        naming = Naming("folded", naming.targets)
    stored = adapters.tensors_of_file(weights, naming, model.config)
    file = {name: torch.from_numpy(tensor.array) for name, tensor in stored.items()}
    checkpoint.write_model_file(tmp_path / "lora.safetensors", file, {})
    pipeline = official(folder, of)
    _, before = pictures(load(folder), pipeline, of)
    pipeline.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    ours, theirs = pictures(model, pipeline, of)
    assert np.abs(ours - before).max() > 10  # the file changes the picture
    assert np.abs(ours - theirs).max() <= 2

    again = load(folder, seed=7, **({"conv_dim": 2, "conv_alpha": 4.0} if convolutions else {}))
    adapter = adapters.load(again.config)
    adapter.from_file(again.targets, naming, tmp_path / "lora.safetensors")
    for target in again.targets:
        for name, parameter in adapter.parameters(target).items():
            torch.testing.assert_close(parameter.detach().numpy(), weights[name], msg=name)


# --- files of one component ----------------------------------------------------------------------------------------


def merged(folder: Path) -> dict[str, Tensor]:
    """The weights in a component's folder."""
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def test_a_file_of_the_denoiser_alone_is_known_and_loaded(folder: Path, facts: Facts, tmp_path: Path) -> None:
    if not facts.denoiser_alone:
        pytest.skip("its single files are whole models")
    weights = merged(folder / facts.denoiser.component)
    file = tmp_path / "transformer.safetensors"
    save_file(weights, file)
    with pytest.raises(BaseModelMissing, match=f"single_file_config: .* holds the transformer of {facts.title} alone"):
        base_model.settle(Config(), file)
    config = base_model.settle(Config(single_file_config=str(folder), cache_dir=str(tmp_path)), file)
    assert families.TABLE[config.family] is facts
    parts = Parts(config, file, torch.float32)
    loaded = parts[facts.denoiser.component].state_dict()
    assert loaded.keys() == weights.keys() and all(torch.equal(loaded[name], weights[name]) for name in weights)
    encoders = [part.component for part in facts.encoders]
    identities = [base_model.identity_of(config, path, encoders) for path in (file, folder)]
    assert identities[0] == identities[1]  # so that a cache serves both


def test_each_component_can_be_taken_from_a_file_of_its_weights(folder: Path, facts: Facts, tmp_path: Path) -> None:
    named = {option: component for option, component in facts.overrides.items() if option != "vae"}
    files: dict[str, Any] = {}
    for option, component in named.items():
        weights = {name: tensor * 2 for name, tensor in merged(folder / component).items()}
        save_file(weights, tmp_path / f"{option}.safetensors")
        files[option] = str(tmp_path / f"{option}.safetensors")
    config = base_model.settle(Config(cache_dir=str(tmp_path), **files), folder)
    parts, plain = (
        Parts(config, folder, torch.float32),
        Parts(config.replace(**dict.fromkeys(files, "")), folder, torch.float32),
    )
    for component in named.values():
        ours, theirs = (dict(of[component].named_parameters()) for of in (parts, plain))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name] * 2) for name in ours)
        assert base_model.identity_of(config, folder, [component]) != base_model.identity_of(
            config.replace(**dict.fromkeys(files, "")), folder, [component]
        )
    assert base_model.digests(config, folder).keys() == {"pretrained_model_name_or_path", *files}


def test_a_file_in_8_bit_floats_is_cast_and_one_that_needs_scales_is_refused(
    folder: Path, facts: Facts, tmp_path: Path
) -> None:
    if not facts.denoiser_alone:
        pytest.skip("its single files are whole models")
    name, file = facts.denoiser.component, tmp_path / "transformer.safetensors"
    weights = {key: tensor.to(torch.float8_e4m3fn) for key, tensor in merged(folder / name).items()}
    save_file(weights, file)
    given = Config(single_file_config=str(folder), cache_dir=str(tmp_path))
    loaded = Parts(base_model.settle(given, file), file, torch.bfloat16)[name].state_dict()
    for key, tensor in weights.items():
        assert torch.equal(loaded[key].float(), tensor.float()), key

    layer = next(key for key in weights if key.endswith(".weight")).removesuffix(".weight")
    for scale in ("scale_weight", "weight_scale", "comfy_quant", "weight.quant_state.bitsandbytes__nf4"):
        save_file({**weights, f"{layer}.{scale}": torch.ones(1)}, file)
        with pytest.raises(BaseModelMissing, match=f"^pretrained_model_name_or_path: .* holds quantised .*{scale}"):
            base_model.settle(given, file)
        with pytest.raises(BaseModelMissing, match=f"^vae: .* holds quantised .*{scale}"):
            base_model.settle(given.replace(vae=str(file)), folder)


# --- training ------------------------------------------------------------------------------------------------------


def gradients(model: Model, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor | None]]:
    model.zero_grad()
    losses = model.module()(batch)
    losses.sum().backward()
    trained = {
        name: parameter
        for target in model.targets
        for name, parameter in adapters.load(model.config).parameters(target).items()
    }
    return losses.detach(), {name: parameter.grad for name, parameter in trained.items()}


def test_every_layer_gets_a_gradient_or_is_known_to_get_none(folder: Path, facts: Facts) -> None:
    model = load(folder)
    for target in model.targets:
        for parameter in adapters.load(model.config).parameters(target).values():
            parameter.requires_grad_(True)
    randomise(model)
    _, found = gradients(model, batch_for(model))
    without = {name for name, gradient in found.items() if gradient is None or not gradient.any()}
    names = list(found)
    idle = {
        name
        for part in model.config.trained_parts
        for name in part.idle_among(name for name in names if name.startswith(f"{part.component}."))
    }
    assert without == idle
    assert {name.split(".")[0] for name in found} == {part.component for part in facts.parts}


def test_gradient_checkpointing_gives_the_same_loss_and_gradients(folder: Path) -> None:
    results = []
    for checkpointing in (False, True):
        model = load(folder, gradient_checkpointing=checkpointing)
        randomise(model)
        model.train()
        results.append(gradients(model, batch_for(model)))
    (loss, plain), (same_loss, checkpointed) = results
    assert torch.equal(loss, same_loss)
    for name, gradient in plain.items():
        other = checkpointed[name]
        assert (gradient is None) == (other is None)
        if gradient is not None and other is not None:
            torch.testing.assert_close(gradient, other, msg=name)


def test_a_cached_caption_trains_as_one_that_is_encoded_in_the_step(folder: Path, facts: Facts) -> None:
    unet_only = {"network_train_unet_only": True} if TRAINS_ENCODERS in facts.traits else {}
    model = load(folder, **unet_only)
    assert not unet_only or len(model.targets) == 1
    batch = batch_for(model)
    rows = [
        model.conditioning_of(caption, lambda text, _=None: model.encode_captions([text])[0])
        for caption in (CAPTION, "")
    ]
    in_step = model.module()(batch)
    for place, row in enumerate(rows):
        one = {name: value[place : place + 1] for name, value in batch.items() if isinstance(value, Tensor)}
        cached = one | {f"{TEXT}{name}": tensor for name, tensor in row.items()}
        torch.testing.assert_close(model.module()(cached), in_step[place : place + 1], atol=1e-5, rtol=1e-5)


def test_pictures_become_latents_of_the_layout_and_come_back(folder: Path, facts: Facts) -> None:
    model = load(folder)
    pixels = torch.rand((1, 3, SIDE, 2 * SIDE), generator=torch.Generator().manual_seed(1)) * 2 - 1
    mean, std = model.encode_images(pixels)
    assert mean.shape == std.shape == (1, facts.channels, SIDE // facts.factor, 2 * SIDE // facts.factor)
    assert (std > 0).all()
    vae = model.components["vae"]
    frames = pixels[:, :, None] if hasattr(vae, "temperal_downsample") else pixels  # of a video's VAE
    theirs = vae.decode(vae.encode(frames).latent_dist.mean).sample
    ours = model.latents.decode(mean, SIDE, 2 * SIDE)
    torch.testing.assert_close(ours, theirs.reshape(ours.shape), atol=1e-4, rtol=1e-4)


def test_learning_one_latent_lowers_its_loss(folder: Path, facts: Facts) -> None:
    if FLOW in facts.traits:
        pytest.skip("the next test says more")
    model = load(folder)
    batch = batch_for(model, (CAPTION,))
    adapter = adapters.load(model.config)
    trained = [parameter for target in model.targets for parameter in adapter.parameters(target).values()]
    optimizer = torch.optim.AdamW([parameter for parameter in trained if parameter.requires_grad], lr=2e-2)
    first = last = float("nan")
    for step in range(12):
        loss = model.module()(batch).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        first, last = (float(loss), float(loss)) if step == 0 else (first, float(loss))
    assert last < 0.95 * first


def test_what_all_weights_learn_is_what_the_official_pipeline_draws(folder: Path, facts: Facts) -> None:
    if FLOW not in facts.traits:
        pytest.skip("learning noise takes longer")
    before, after = overfitted(folder, steps=35)
    assert before < 0.6 and after > 0.8


def overfitted(folder: Path, steps: int) -> tuple[float, float]:
    """How much what the official pipeline draws is like a latent, before and after so many steps that learn it."""
    model = load(folder, max_sequence_length=16)
    batch = batch_for(model, (CAPTION,) * 2)
    text = model.conditioning_of(CAPTION, None)
    batch |= {f"{TEXT}{name}": tensor.expand(2, *tensor.shape[1:]) for name, tensor in text.items()}
    latent = batch["latent_mean"][:1]
    batch["latent_mean"] = latent.expand(2, -1, -1, -1)
    batch["noise"] = torch.randn(latent.shape, generator=torch.Generator().manual_seed(1)).expand(2, -1, -1, -1)
    before = drawn(model, latent)
    model.denoiser.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.denoiser.parameters(), lr=1e-2)
    draw = torch.Generator().manual_seed(11)
    for _ in range(steps):
        batch["timesteps"] = torch.rand(2, generator=draw)
        model.module()(batch).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return before, drawn(model, latent)


@torch.no_grad()
def drawn(model: Model, latent: Tensor) -> float:
    """How much what the official pipeline draws from the noise of seed 1 is like a latent: the correlation of their
    pixels."""
    prompt = Prompt(CAPTION, "", SIDE, SIDE, seed=1, guidance_scale=0.0, steps=8)
    pipeline = model.family.pipeline(model.components, previews.scheduler(model, "euler"))
    pipeline.set_progress_bar_config(disable=True)
    text = model.conditioning_of(CAPTION, None)
    made = pipeline(
        **model.family.sample(model.denoiser, text, text, prompt), height=SIDE, width=SIDE, num_inference_steps=8,
        generator=torch.Generator().manual_seed(1), output_type="latent",
    ).images  # fmt: skip
    ours, theirs = (model.latents.decode(latents, SIDE, SIDE).flatten().numpy() for latents in (made, latent))
    return float(np.corrcoef(ours, theirs)[0, 1])


CACHED = {**tiny.CACHED, "mixed_precision": "bf16"}


@pytest.mark.parametrize("options", [{}, CACHED], ids=["in the step", "cached, bf16"])
def test_a_resumed_run_is_bit_equal(
    options: dict[str, Any], folder: Path, facts: Facts, tiny_images: Path, tmp_path: Path
) -> None:
    if not options and TRAINS_ENCODERS not in facts.traits:
        pytest.skip("text that is encoded in the step by a pipeline is tried with the toy family")
    short = {"max_sequence_length": 16} if FLOW in facts.traits else {}
    common = {
        "resolution": str(SIDE),
        "max_train_steps": 2,
        "gradient_checkpointing": bool(options),
        **short,
        **options,
    }
    common["save_every_n_steps"] = 0  # the last step is always saved
    straight = config_for(folder, tiny_images, tmp_path / "straight", **common)
    assert run(straight) == "finished"
    halved = config_for(folder, tiny_images, tmp_path / "halved", **common)
    run(halved.replace(max_train_steps=1))
    run(halved.replace(resume_from_checkpoint="latest"))
    assert steps_of(halved) == steps_of(straight)
    assert_bit_equal(tensors_of(halved, 2), tensors_of(straight, 2))


# --- on paper ------------------------------------------------------------------------------------------------------


def test_the_layers_at_the_real_size_are_those_of_other_trainers(facts: Facts, of: Tiny) -> None:
    with torch.device("meta"):
        target = Target(facts.denoiser, of.denoiser())
    config = Config(conv_dim=4).replace(family=next(name for name in families.TABLE if families.TABLE[name] is facts))
    assert len(target.layers(config.replace(conv_dim=None))) == of.layers
    assert len(target.layers(config)) == of.with_convolutions
    naming = adapters.naming_of(config)
    kind = adapters.kind_of(config)
    weights = {
        f"{facts.denoiser.component}.{path}.{name}": np.zeros((1,) * len(shape), np.float32)
        for path, (layer, ranked) in target.layers(config).items()
        for name, shape in kind.shapes(Layer(path, tuple(layer.weight.shape), ranked.rank), config).items()
    }
    assert len(kind.to_file(weights, naming, config)) >= 2 * of.with_convolutions or naming.scheme == "fused"


def test_the_trained_layers_are_told_from_the_headers_alone(folder: Path) -> None:
    config = base_model.settle(Config(pretrained_model_name_or_path=str(folder), network_dim=4, conv_dim=2), folder)
    model = models.load(config, folder, torch.float32, CPU)
    expected = {
        name: tuple(parameter.shape)
        for target in model.targets
        for name, parameter in adapters.load(config).parameters(target).items()
    }
    assert dict(checkpoint_size.trained(config, folder)) == expected


def test_every_family_of_the_table_is_tried() -> None:
    assert families.TABLE.keys() == {variant.split()[0] for variant in tiny_families.FAMILIES}
