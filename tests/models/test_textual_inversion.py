"""A new word of the text encoders: only it is trained, a resume is bit-equal, and diffusers reads its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support import tiny_families
from tests.support.runs_at_tiny_size import assert_bit_equal, config_for, run, steps_of, tensors_of
from trainer.checkpoints import checkpoint_size, export, preflight
from trainer.models import adapters, base_model
from trainer.models import model as models
from trainer.models.adapters.base import NetworkFileError
from trainer.models.model import Model
from trainer.options.checks import check
from trainer.options.config import Config
from trainer.options.problems import Given
from trainer.runs import branches, manifest
from trainer.runs.run_folder import RunFolder

STEPS, WORD, VECTORS = 3, "thing", 3  # which every caption has
OPTIONS: dict[str, Any] = {
    "training_kind": "textual_inversion", "token_string": WORD, "init_word": "ab", "num_vectors_per_token": VECTORS,
    "max_train_steps": STEPS, "learning_rate": 0.05, "save_precision": "float", "optimizer_args": ("weight_decay=0",),
}  # fmt: skip


def loaded(config: Config, folder: Path) -> Model:
    return models.load(base_model.settle(config, folder), folder, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_a_word_is_learnt_resumed_and_read_by_diffusers(family: str, tiny_images: Path, tmp_path: Path) -> None:
    of = tiny_families.FAMILIES[family]
    folder = of.make(tmp_path / "model")
    straight = config_for(folder, tiny_images, tmp_path / "straight", **OPTIONS)
    shapes = checkpoint_size.trained(preflight.examine(straight).config, folder)
    assert run(straight) == "finished"
    halved = config_for(folder, tiny_images, tmp_path / "halved", **OPTIONS)
    run(halved.replace(max_train_steps=1))
    run(halved.replace(resume_from_checkpoint="latest"))
    assert steps_of(halved) == steps_of(straight)
    trained = tensors_of(straight, STEPS)
    assert_bit_equal(tensors_of(halved, STEPS), trained)
    weights = {name.removeprefix("weights/"): tensor for name, tensor in trained.items() if name.startswith("weights/")}
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == dict(shapes)

    file = branches.last_file(straight)
    tensors = load_file(file)
    assert set(tensors) == ({"emb_params"} if family == "sd" else {"clip_l", "clip_g"})
    [found, *_] = manifest.listing(RunFolder(straight.run_dir).checkpoints)
    assert_bit_equal(load_file(export.model_file(found.path, tmp_path / "exported.safetensors")), tensors)

    model = loaded(straight.replace(weights=str(file)), folder)
    caption = f"a red {WORD}, small"
    before = model.conditioning_of(caption, None)["states"]
    adapters.load(model.config).from_file(model.targets, adapters.naming_of(model.config), file)
    ours = model.conditioning_of(caption, None)["states"]
    assert not torch.allclose(ours, before)
    pipeline = of.official(folder)
    for place, name in enumerate(tensors if family == "sd" else ("clip_l", "clip_g")):
        ending = "_2" if place else ""
        encoder, tokenizer = (getattr(pipeline, f"{kind}{ending}") for kind in ("text_encoder", "tokenizer"))
        pipeline.load_textual_inversion(tensors[name], token=f"<{WORD}>", text_encoder=encoder, tokenizer=tokenizer)
    theirs = pipeline.encode_prompt(
        caption.replace(WORD, f"<{WORD}>"), device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )[0]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_word_begins_as_another_and_a_file_that_does_not_fit_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    config = Config(pretrained_model_name_or_path=str(tiny_model), **OPTIONS)
    model = loaded(config, tiny_model)
    [target] = model.targets
    adapter = adapters.load(model.config)
    [rows] = adapter.parameters(target).values()
    table = load_file(next((tiny_model / "text_encoder").glob("*.safetensors")))
    weight = next(tensor for name, tensor in table.items() if name.endswith("token_embedding.weight"))
    first, second = target.tokenizer("ab", add_special_tokens=False).input_ids
    assert torch.equal(rows.detach(), weight[[first, second, first]])
    for tensors, words in (({"x": weight[:2]}, "2 vectors"), ({"a": weight[:1], "b": weight[1:2]}, "no emb_params")):
        save_file(tensors, tmp_path / "wrong.safetensors")
        with pytest.raises(NetworkFileError, match=words):
            adapter.from_file(model.targets, adapters.naming_of(model.config), tmp_path / "wrong.safetensors")
    save_file({"<mine>": weight[5:8].clone()}, tmp_path / "diffusers.safetensors")
    adapter.from_file(model.targets, adapters.naming_of(model.config), tmp_path / "diffusers.safetensors")
    assert torch.equal(rows.detach(), weight[5:8])


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"token_string": ""}, "token_string"),
        ({"token_string": "two words"}, "token_string"),
        ({"cache_text_encoder_outputs": True}, "cache_text_encoder_outputs"),
        ({"family": "flux"}, "training_kind"),
    ],
)
def test_what_a_word_needs_is_said(options: dict[str, Any], key: str) -> None:
    given = {**OPTIONS, **options}
    assert key in {problem.key for problem in check({name: Given(value, "") for name, value in given.items()}).problems}
