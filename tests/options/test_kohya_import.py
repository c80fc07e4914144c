"""What presets of kohya_ss and sd-scripts become, key by key."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from gui.forms import presets
from tests.support.exactness import check_every_resume
from tests.support.kohya_presets import NEWER, NEWEST, PRESETS, RESTING
from trainer.__main__ import main
from trainer.options.checks import resolve
from trainer.options.config import OPTIONS, Config
from trainer.options.kohya import reading, tables, translation
from trainer.options.kohya.translation import Imported
from trainer.options.optimizer_table import OPTIMIZERS
from trainer.options.problems import ConfigError
from trainer.options.sources import read_toml_text

FATES = Path(__file__).with_name("kohya_fates.txt")  # write it anew with WRITE_FATES=1, and read what has changed
SD_LORA = PRESETS["SD, LoRA"]
LORA_TOML = 'network_module = "networks.lora"\nresolution = "512,512"\n'


def of(preset: dict[str, Any], leave_out: tuple[str, ...] = ()) -> Imported:
    return translation.read(json.dumps(preset), "preset.json", leave_out, seed=lambda: 7)


def of_toml(text: str) -> Imported:
    return translation.read(text, "config.toml", seed=lambda: 7)


def values_of(preset: dict[str, Any]) -> Config:
    imported = of(preset)
    assert imported.refusals == ()
    return Config(**imported.checked.values)


def fate(imported: Imported, key: str) -> tuple[str, str]:
    (found,) = [item for item in imported.fates if item.key == key]
    return found.outcome, found.message


# --- all of it -----------------------------------------------------------------------------------------------------


def test_the_fate_of_every_key_of_eight_presets_is_as_it_was_agreed() -> None:
    table = "\n\n".join("\n".join([f"### {name}", *of(preset).lines()]) for name, preset in PRESETS.items()) + "\n"
    if os.environ.get("WRITE_FATES"):
        FATES.write_text(table, encoding="utf-8")
    assert table == FATES.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PRESETS)
def test_every_key_has_one_fate(name: str) -> None:
    fates = [item.key for item in of(PRESETS[name]).fates if item.outcome != "default"]
    named = {key for key in fates if key not in ("lr_scheduler_type", "lr_scheduler_args", "max_grad_norm")}
    assert len(fates) == len(set(fates))
    assert PRESETS[name].keys() <= set(fates) and named <= PRESETS[name].keys()


@pytest.mark.parametrize("value", ["", 1, True, "x", ["a"], -1.5], ids=str)
def test_no_value_of_any_key_is_left_out_or_ends_in_an_error(value: Any) -> None:
    for key in sorted({*RESTING, *NEWER, *NEWEST, *OPTIONS, *reading.NAMES_OF_OTHERS}):
        if key == "additional_parameters":
            continue  # a command line, which may be none
        (found,) = [item for item in of({"network_dim": 4, key: value}).fates if item.key == key]
        assert found.message


def test_a_key_that_nobody_knows_is_refused_by_name() -> None:
    imported = of({**SD_LORA, "learning_rat": 1})
    assert any("learning_rat: there is no such key; did you mean learning_rate?" in line for line in imported.refusals)


def test_a_refused_key_can_be_left_out_on_purpose() -> None:
    assert of({**SD_LORA, "full_fp16": True}).refusals != ()
    imported = of({**SD_LORA, "full_fp16": True}, ("full_fp16",))
    assert imported.refusals == () and fate(imported, "full_fp16") == ("no effect", "left out, as asked for")


def test_secrets_are_not_repeated() -> None:
    assert not any("not to be told" in line for line in of(PRESETS["FLUX.1"]).lines())


# --- which training it is ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"prompts_file": "x", "network_dim": 4}, "a LECO training"),
        ({"network_dim": 4, "sdxl_checkbox": True}, "Stable Diffusion XL"),
        ({"network_dim": 4, "sd3_checkbox": True}, "Stable Diffusion 3"),
        ({"LoRA_type": "Flux1"}, "FLUX.1"),
        ({"LoRA_type": "Flux1", "model_type": "chroma"}, "Chroma"),
        ({"network_dim": 4, "anima_checkbox": True}, "Anima"),
        ({"network_dim": 4, "lumina_checkbox": True}, "Lumina Image 2.0"),
        ({"network_dim": 4, "hunyuan_image_checkbox": True}, "HunyuanImage 2.1"),
        ({"LoRA_type": "LyCORIS/BOFT"}, "LyCORIS' BOFT"),
        ({"LoRA_type": "Kohya DyLoRA"}, "DyLoRA"),
        ({"LoRA_type": "Unheard of"}, "there is no network 'Unheard of'"),
    ],
)
def test_what_cannot_be_trained_yet_is_refused_by_name(
    keys: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    possible = {need.options.get("family") for need in tables.FAMILIES.values()} & set(OPTIONS["family"].choices)
    titles = {need.title for need in tables.FAMILIES.values() if need.options["family"] in possible}
    if words in titles:
        pytest.skip("it can be trained by now")
    assert any(words in reason for reason in of(keys).refused)


@pytest.mark.parametrize(
    ("text", "family"),
    [
        ('network_module = "networks.lora_flux"', "flux"),
        ('network_module = "networks.lora_sd3"', "sd3"),
        ('network_module = "networks.lora"\nqwen3 = "x"', "anima"),
        ('network_module = "networks.lora"\ngemma2 = "x"', "lumina"),
        ('network_module = "networks.lora"', "sd"),
    ],
)
def test_the_family_of_a_toml_is_told_by_its_module_or_its_encoders(text: str, family: str) -> None:
    assert of_toml(text).family == family


def test_what_a_preset_needs_is_there_as_soon_as_an_option_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = tables.KINDS["LyCORIS/LoHa"]
    monkeypatch.setitem(tables.KINDS, "LyCORIS/LoHa", type(needs)(needs.title, needs.module, needs.arguments))
    assert of({"LoRA_type": "LyCORIS/LoHa", "network_dim": 4}).refused == ()


def test_a_textual_inversion_becomes_one() -> None:
    keys = {"token_string": "mycat", "init_word": "cat", "num_vectors": 3, "template": "caption", "learning_rate": 1e-5}
    config = values_of({**keys, "train_batch_size": 1})
    assert (config.training_kind, config.token_string, config.init_word) == ("textual_inversion", "mycat", "cat")
    assert config.num_vectors_per_token == 3 and config.learning_rate == 1e-5
    assert any("templates" in line for line in of({**keys, "template": "style template"}).refusals)


WHOLE = {"train_batch_size": 1, "learning_rate": 2e-6}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"create_caption": True}, {"train_text_encoder": False, "enable_bucket": True}),
        ({"create_caption": True, "train_text_encoder": True}, {"train_text_encoder": True}),
        ({"learning_rate_te": 1e-6}, {"train_text_encoder": True, "text_encoder_lr": 1e-6}),
        ({"learning_rate_te": 0}, {"train_text_encoder": False}),
        ({"stop_text_encoder_training": 30}, {"train_text_encoder": True, "stop_text_encoder_training": 0.3}),
        ({"stop_text_encoder_training": -1}, {"train_text_encoder": False, "stop_text_encoder_training": 0.0}),
        (
            {"sdxl": True, "learning_rate_te1": 0, "learning_rate_te2": 1e-6},
            {"train_text_encoder": True, "text_encoder_lr": 0.0, "text_encoder_lr2": 1e-6},
        ),
        ({"sdxl": True, "learning_rate_te1": 0, "learning_rate_te2": 0}, {"train_text_encoder": False}),
        ({"flux1_checkbox": True}, {"train_text_encoder": False, "family": "flux"}),
        ({"save_model_as": "diffusers_safetensors"}, {"save_model_as": "diffusers"}),
        ({"save_model_as": "ckpt"}, {"save_model_as": "safetensors"}),
        ({"full_bf16": True, "mixed_precision": "bf16"}, {"full_bf16": True}),
    ],
    ids=str,
)
def test_a_preset_of_a_whole_model_becomes_that(keys: dict[str, Any], expected: dict[str, Any]) -> None:
    config = values_of({**WHOLE, **keys})
    assert config.training_kind == "finetune" and config.learning_rate == 2e-6
    assert {name: getattr(config, name) for name in expected} == expected


# --- defaults ------------------------------------------------------------------------------------------------------


def test_what_a_json_leaves_out_is_as_on_kohyas_page() -> None:
    config = values_of({"network_dim": 8})
    assert (config.optimizer_type, config.lr_scheduler, config.mixed_precision) == ("AdamW8bit", "cosine", "fp16")
    assert (config.lr_warmup_steps, config.max_train_steps, config.max_bucket_reso) == (160.0, 1600, 2048)
    assert config.enable_bucket and config.bucket_no_upscale and config.cache_latents
    assert (config.unet_lr, config.text_encoder_lr) == (1e-4, 1e-4)


def test_what_a_toml_leaves_out_is_as_in_sd_scripts_and_said() -> None:
    imported = of_toml(LORA_TOML)
    config = Config(**imported.checked.values)
    assert (config.learning_rate, config.network_dim, config.caption_extension) == (2e-6, 4, ".caption")
    assert (config.save_precision, config.seed, config.resize_interpolation) == ("float", 7, "automatic")
    said = {item.key for item in imported.fates if item.outcome == "default"}
    assert {"learning_rate", "network_dim", "caption_extension", "save_precision", "seed"} <= said


def test_a_seed_is_drawn_once_and_stays() -> None:
    for given in ("", 0, None):
        imported = of({**SD_LORA, "seed": given})
        assert imported.checked.values["seed"] == 7 and fate(imported, "seed")[0] == "changed"
    assert values_of({**SD_LORA, "seed": "123"}).seed == 123


@pytest.mark.parametrize(
    ("arguments", "expected", "scheduler"),
    [
        ("", {"relative_step=True", "scale_parameter=True", "warmup_init=False"}, "adafactor"),
        ("scale_parameter=False", {"relative_step=True", "scale_parameter=False", "warmup_init=False"}, "adafactor"),
        ("relative_step=False", {"relative_step=False", "scale_parameter=True", "warmup_init=False"}, "constant"),
        ("warmup_init=True", {"relative_step=True", "scale_parameter=True", "warmup_init=True"}, "adafactor"),
    ],
)
def test_adafactor_has_sd_scripts_defaults(arguments: str, expected: set[str], scheduler: str) -> None:
    config = values_of({**SD_LORA, "optimizer": "Adafactor", "optimizer_args": arguments, "text_encoder_lr": "0.0001"})
    assert set(config.optimizer_args) == expected and config.lr_scheduler == scheduler


# --- single keys ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"unet_lr": 1e-3, "text_encoder_lr": 0}, {"network_train_unet_only": True, "unet_lr": 1e-3}),
        ({"unet_lr": 0, "text_encoder_lr": 1e-3}, {"network_train_text_encoder_only": True, "text_encoder_lr": 1e-3}),
        ({"unet_lr": 0, "text_encoder_lr": "", "learning_rate": 3e-3}, {"learning_rate": 3e-3}),
        ({"max_train_epochs": "7", "max_train_steps": "900"}, {"max_train_epochs": 7}),
        ({"max_train_steps": "900", "epoch": 3}, {"max_train_steps": 900}),
        ({"max_train_steps": "", "epoch": 3}, {"max_train_epochs": 3}),
        ({"lr_scheduler": "cosine", "lr_warmup": 5, "max_train_steps": 900}, {"lr_warmup_steps": 45.0}),
        ({"lr_scheduler": "cosine", "lr_warmup": 5, "max_train_steps": ""}, {"lr_warmup_steps": 0.05}),
        ({"lr_scheduler": "cosine", "lr_warmup": 5, "lr_warmup_steps": 20}, {"lr_warmup_steps": 20.0}),
        ({"huber_scale": 2, "huber_schedule": "snr"}, {"huber_scale": 1.0}),
        ({"huber_scale": 2, "huber_schedule": "constant"}, {"huber_scale": 2.0}),
        ({"bucket_reso_steps": 1}, {"bucket_reso_steps": 64}),
        ({"clip_skip": 1}, {"clip_skip": None}),
        ({"LoRA_type": "Kohya LoCon", "conv_dim": 8, "conv_alpha": 4}, {"conv_dim": 8, "conv_alpha": 4.0}),
        ({"LoRA_type": "Standard", "conv_dim": 8}, {"conv_dim": None}),
        ({"LoRA_type": "LyCORIS/LoCon", "conv_dim": 8}, {"network_kind": "lora", "network_preset": "full"}),
        ({"LoRA_type": "LyCORIS/LoCon", "dora_wd": True}, {"network_kind": "dora"}),
        ({"LoRA_type": "LyCORIS/LoKr", "factor": 6, "use_cp": True}, {"factor": 6, "use_tucker": True}),
        ({"LoRA_type": "LyCORIS/LoHa", "LyCORIS_preset": "attn-only"}, {"network_preset": "attn-only"}),
        ({"LoRA_type": "LyCORIS/Diag-OFT", "constrain": 0.1}, {"network_kind": "diag-oft", "constraint": 0.1}),
        ({"LoRA_type": "LyCORIS/iA3", "train_on_input": True}, {"network_kind": "ia3", "train_on_input": True}),
        ({"LoRA_type": "Standard", "down_lr_weight": "sine"}, {"down_lr_weight": "sine"}),
        ({"optimizer": "DAdaptation", "text_encoder_lr": "0.0001"}, {"optimizer_type": "DAdaptAdamPreprint"}),
        ({"save_state": False}, {"save_state": True}),
        ({"vae_batch_size": 0}, {"vae_batch_size": 1}),
        ({"additional_parameters": "--min_snr_gamma 3 --flip_aug"}, {"min_snr_gamma": 3.0, "flip_aug": True}),
        ({"optimizer": "AdamW", "additional_parameters": "--optimizer_type=Lion"}, {"optimizer_type": "Lion"}),
        (
            {"noise_offset_type": "Multires", "noise_offset": 0.1, "multires_noise_iterations": 6},
            {"noise_offset": None, "multires_noise_iterations": 6},
        ),
        (
            {"noise_offset_type": "Original", "noise_offset": 0.1, "multires_noise_iterations": 6},
            {"noise_offset": 0.1, "multires_noise_iterations": 0},
        ),
        ({"optimizer": "AdamWScheduleFree", "lr_scheduler": "cosine"}, {"lr_scheduler": "constant"}),
    ],
    ids=str,
)
def test_a_key_means_what_kohya_ss_makes_of_it(keys: dict[str, Any], expected: dict[str, Any]) -> None:
    config = values_of({**SD_LORA, **keys})
    assert {name: getattr(config, name) for name in expected} == expected


def test_a_warm_up_that_is_a_whole_number_written_with_a_point_is_steps_and_said() -> None:
    imported = of_toml(LORA_TOML + 'lr_scheduler = "cosine"\nlr_warmup_steps = 20.0\n')
    assert imported.checked.values["lr_warmup_steps"] == 20.0
    assert fate(imported, "lr_warmup_steps")[0] == "changed"


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_of_the_table_can_be_imported(name: str) -> None:
    assert values_of({**SD_LORA, "optimizer": name, "text_encoder_lr": "0.0001"}).optimizer_type == name


def test_what_sd_scripts_ignores_of_other_architectures_is_said_and_not_refused() -> None:
    imported = of({"LoRA_type": "Flux1", "min_snr_gamma": 7, "noise_offset": 0.1})
    assert fate(imported, "min_snr_gamma") == ("no effect", "sd-scripts does not use it with FLUX.1")
    assert fate(imported, "noise_offset")[0] == "no effect"
    assert values_of({**SD_LORA, "min_snr_gamma": 7}).min_snr_gamma == 7


def test_an_upload_to_the_hub_becomes_a_mirror_and_a_state_what_the_run_begins_with() -> None:
    hub = {"huggingface_repo_id": "me/x", "huggingface_repo_type": "dataset", "huggingface_path_in_repo": "runs/"}
    imported = of(SD_LORA | hub | {"save_state_to_huggingface": True, "resume": "old-state"})
    assert fate(imported, "huggingface_repo_id") == ("used", "checkpoint_mirror = 'hf://datasets/me/x/runs'")
    assert fate(imported, "resume") == ("used", "resume_from_checkpoint = 'old-state'")
    without_states = of(SD_LORA | hub | {"save_state_to_huggingface": False})
    assert fate(without_states, "huggingface_repo_id")[0] == "changed"
    assert fate(of(SD_LORA | hub | {"huggingface_repo_type": "space"}), "huggingface_repo_type")[0] == "refused"
    assert fate(of(SD_LORA | {"resume_from_huggingface": True}), "resume_from_huggingface")[0] == "refused"


def test_network_args_have_a_line_each() -> None:
    imported = of_toml(LORA_TOML + 'network_args = ["conv_dim=8", "conv_alpha=2", "unheard=1"]\n')
    assert "there is no argument 'unheard'" in " ".join(imported.refusals)
    assert fate(imported, "network_args: conv_dim")[0] in ("used", "no effect")


# --- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["{", "[1]", '{"a": {"b": 1}}', '{"seed": 1e999999}', "{" * 10_000, '{"additional_parameters": "x"}']
)
def test_what_is_no_preset_is_refused_and_nothing_worse(text: str) -> None:
    try:
        imported = translation.read(text, "preset.json")
    except ConfigError:
        return
    assert imported.refusals


def test_ours_are_told_from_theirs() -> None:
    assert reading.is_theirs('{"a": 1}') and reading.is_theirs('network_module = "networks.lora"')
    assert not reading.is_theirs("[network]\nnetwork_dim = 4") and not reading.is_theirs("not = = toml")


def test_the_pages_upload_reads_them_by_the_same_function() -> None:
    checked = presets.parse(json.dumps(SD_LORA).encode(), "theirs.json")
    assert checked.problems == [] and Config(**checked.values) == values_of(SD_LORA)
    assert any("bucket_rules = sd-scripts" in notice for notice in checked.notices)
    with pytest.raises(ConfigError, match="a LECO training"):
        presets.parse(json.dumps({**SD_LORA, "prompts_file": "x"}).encode(), "theirs.json")
    partly = presets.parse(json.dumps({**SD_LORA, "full_fp16": True}).encode(), "theirs.json")
    assert [problem.key for problem in partly.problems] == ["full_fp16"]


def test_the_command_writes_a_preset_that_is_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "theirs.json", tmp_path / "ours.toml"
    source.write_text(json.dumps(SD_LORA), encoding="utf-8")
    assert main(["import", str(source), "--output", str(target)]) == 0
    assert f"Written: {target}" in capsys.readouterr().out
    config, _ = resolve(read_toml_text(target.read_text(encoding="utf-8"), "ours.toml"))
    assert config == values_of(SD_LORA) and config.resolution == "512,650"
    assert main(["import", str(source), "--output", str(target)]) == 3
    assert "is there already" in capsys.readouterr().out


def test_the_command_refuses_with_every_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "theirs.json", tmp_path / "ours.toml"
    source.write_text(json.dumps({**SD_LORA, "prompts_file": "x", "unheard_of": 1}), encoding="utf-8")
    assert main(["import", str(source), "--output", str(target)]) == 3
    told = capsys.readouterr().out
    assert "a LECO training" in told and "unheard_of" in told and not target.exists()
    assert main(["import", str(source), "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["trainer"] == "leco"
    assert main(["import", str(tmp_path / "nothing.json")]) == 3


def test_an_imported_preset_trains_and_resumes_bit_equal(tiny_model: Path, tiny_images: Path, tmp_path: Path) -> None:
    """At tiny size, but with its optimizer, precision, losses and its sides that are no multiple of 8."""
    values = of(SD_LORA).checked.values
    kept = ("optimizer_type", "mixed_precision", "noise_offset", "clip_skip", "unet_lr", "text_encoder_lr",
            "bucket_rules", "resize_interpolation", "cache_latents")  # fmt: skip
    options = {name: values[name] for name in kept} | {"resolution": "64,82"}
    assert check_every_resume(tiny_model, tiny_images, tmp_path, options, steps=3) == 2
