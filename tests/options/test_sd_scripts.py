"""Presets written for sd-scripts and kohya_ss load as they are; what cannot be honoured is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from trainer.options import sd_scripts
from trainer.options.checks import build, check, resolve
from trainer.options.config import OPTIONS, Config
from trainer.options.problems import Checked, Given
from trainer.options.sources import read_arguments, read_toml_text

KOHYA_SS = """
bucket_no_upscale = true
bucket_reso_steps = 64
cache_latents = true
caption_extension = ".txt"
clip_skip = 1
dynamo_backend = "no"
enable_bucket = true
epoch = 10
gradient_accumulation_steps = 1
huber_c = 0.1
huber_schedule = "snr"
learning_rate = 0.0001
loss_type = "l2"
lr_scheduler = "cosine"
lr_scheduler_args = []
lr_scheduler_num_cycles = 1
lr_scheduler_power = 1
lr_warmup_steps = 160
max_bucket_reso = 2048
max_data_loader_n_workers = 0
max_grad_norm = 1
max_timestep = 1000
max_token_length = 75
max_train_steps = 1600
min_bucket_reso = 256
mixed_precision = "bf16"
network_alpha = 1
network_args = [ "conv_dim=8", "conv_alpha=4",]
network_dim = 8
network_module = "networks.lora"
no_half_vae = true
noise_offset_type = "Original"
optimizer_args = []
optimizer_type = "adamw8bit"
output_dir = "output"
output_name = "last"
pretrained_model_name_or_path = "model"
prior_loss_weight = 1
resolution = "512,512"
sample_sampler = "k_euler_a"
save_every_n_epochs = 1
save_model_as = "safetensors"
save_precision = "fp16"
text_encoder_lr = [ 0.00005,]
train_batch_size = 1
train_data_dir = "images"
unet_lr = 0.0001
v2 = false
xformers = true
"""


def of(**values: Any) -> Checked:
    return check({name: Given(value, "test") for name, value in values.items()})


def test_a_preset_of_kohya_ss_loads_as_it_is() -> None:
    config, notices = resolve(read_toml_text(KOHYA_SS, "kohya.toml"))
    assert (config.network_dim, config.conv_dim, config.conv_alpha) == (8, 8, 4.0)
    assert (config.optimizer_type, config.sample_sampler, config.text_encoder_lr) == ("AdamW8bit", "euler_a", 0.00005)
    assert (config.lr_warmup_steps, config.clip_skip, config.resolution_size) == (160.0, 1, (512, 512))
    assert [notice.split(" ")[0] for notice in notices] == ["epoch", "noise_offset_type", "xformers"]


@pytest.mark.parametrize("name", sorted(sd_scripts.WITHOUT_EFFECT))
def test_what_cannot_change_the_training_is_accepted_with_a_notice(name: str) -> None:
    assert name not in OPTIONS
    outcome = of(**{name: "something"})
    assert outcome.problems == [] and len(outcome.notices) == 1 and name in outcome.notices[0]


@pytest.mark.parametrize("name", sorted(sd_scripts.NOT_SUPPORTED))
def test_what_would_change_it_is_refused_by_name_unless_it_is_off(name: str) -> None:
    assert name not in OPTIONS
    (problem,) = of(**{name: "something"}).problems
    assert problem.key == name and sd_scripts.NOT_SUPPORTED[name] in problem.message
    nothing: list[Any] = [False, 0, "", []]
    for off in nothing:
        assert of(**{name: off}).problems == []


def test_other_network_modules_and_arguments_are_refused_by_name() -> None:
    (module,) = of(network_module="networks.dylora").problems
    assert "networks.lora and lycoris.kohya" in module.message
    (argument,) = of(network_args=["conv_dim=4", "block_size=2"]).problems
    assert "'block_size' is not supported" in argument.message
    (algo,) = of(network_module="lycoris.kohya", network_args=["algo=boft"]).problems
    assert "there is no 'boft' here" in algo.message
    (switch,) = of(network_module="lycoris.kohya", network_args=["algo=loha", "dora_wd=True"]).problems
    assert "dora_wd belongs to LoCon" in switch.message
    (value,) = of(network_args=["conv_dim=0"]).problems
    assert "conv_dim: 0 is below 1" in value.message


LYCORIS: dict[str, dict[str, Any]] = {
    "algo=lokr factor=6 conv_dim=100000 decompose_both=True use_cp=False": {
        "network_kind": "lokr", "factor": 6, "conv_dim": 100_000, "decompose_both": True, "use_tucker": False,
    },
    "algo=loha preset=attn-mlp rank_dropout=0.1 dropout=0": {
        "network_kind": "loha", "network_preset": "attn-mlp", "rank_dropout": 0.1,
    },
    "algo=locon dora_wd=True": {"network_kind": "dora"},
    "rs_lora=True conv_alpha=3 conv_dim=2": {"network_kind": "rslora", "conv_alpha": 3.0, "conv_dim": 2},
    "algo=diag-oft constraint=0.01 rescaled=True": {"network_kind": "diag-oft", "constraint": 0.01, "rescaled": True},
    "algo=ia3 preset=ia3": {"network_kind": "ia3", "network_preset": "ia3"},
    "algo=glora preset=unet-transformer-only bypass_mode=True": {
        "network_kind": "glora", "network_preset": "attn-mlp", "network_train_unet_only": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("arguments", LYCORIS)
def test_lycoris_arguments_are_options_of_ours(arguments: str) -> None:
    for given in (arguments, arguments.split()):
        checked = of(network_module="lycoris.kohya", network_dim=4, network_args=given)
        assert checked.problems == []
        config = build(checked.values)
        expected = {"network_preset": "full", **LYCORIS[arguments]}
        assert {name: getattr(config, name) for name in expected} == expected


def test_lists_of_blocks_are_texts_or_lists() -> None:
    ranks = [4] * 25
    for given in (ranks, ",".join(map(str, ranks))):
        checked = of(family="sd", block_dims=given, mid_lr_weight=0.5, network_args="down_lr_weight=cosine+.25")
        assert checked.problems == []
        assert (checked.values["block_dims"], checked.values["mid_lr_weight"]) == (",".join(["4"] * 25), "0.5")
        assert checked.values["down_lr_weight"] == "cosine+.25"
    for name, value, words in (
        ("block_dims", "4,4", "has 2 numbers, but Stable Diffusion 1.x or 2.x has 25 blocks"),
        ("block_dims", "x", "is not a list of numbers"),
        ("up_lr_weight", "tangent", "nor one of cosine"),
        ("mid_lr_weight", "1,1", "more than the 1 blocks"),
        ("down_lr_weight", ",".join(["-1"] * 12), "none can be below 0"),
    ):
        (problem,) = of(family="sd", **{name: value}).problems
        assert problem.key == name and words in problem.message


@pytest.mark.parametrize(
    ("values", "key", "words"),
    [
        ({"network_dim": 2000}, "network_dim", "only LoKr"),
        ({"network_kind": "loha", "network_dropout": 0.1}, "network_dropout", "none of LoHa"),
        ({"network_kind": "dora", "module_dropout": 0.1}, "module_dropout", "none of DoRA"),
        ({"network_kind": "ia3", "scale_weight_norms": 1.0}, "scale_weight_norms", "no norm"),
        ({"network_kind": "lokr", "loraplus_lr_ratio": 4.0}, "loraplus_lr_ratio", "not for LoKr"),
        ({"optimizer_type": "Prodigy", "learning_rate": 1.0, "up_lr_weight": "sine"}, "down_lr_weight", "one rate"),
    ],
)
def test_what_a_kind_has_not_is_refused_by_name(values: dict[str, Any], key: str, words: str) -> None:
    (problem,) = of(**values).problems
    assert problem.key == key and words in problem.message


def test_an_option_of_another_kind_is_said_to_do_nothing() -> None:
    assert any("factor has no effect on LoRA" in notice for notice in of(factor=4).notices)
    notices = of(network_preset="attn-mlp", conv_dim=4).notices
    assert any("conv_dim has no effect with network_preset" in notice for notice in notices)


def test_an_option_given_by_its_own_name_wins_over_network_args() -> None:
    assert of(conv_dim=2, network_args=["conv_dim=4"]).values["conv_dim"] == 2


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"max_train_epochs": 0}, Config()),
        ({"save_precision": ""}, Config()),
        ({"save_precision": "fp32"}, Config(save_precision="float")),
        ({"text_encoder_lr": []}, Config()),
        ({"text_encoder_lr": [1e-5, 1e-5]}, Config(text_encoder_lr=1e-5)),
        ({"caption_extention": ".cap"}, Config(caption_extension=".cap")),
        ({"resolution": 640}, Config(resolution="640")),
        ({"resolution": [640, 512]}, Config(resolution="640,512")),
        ({"optimizer_type": "lion"}, Config(optimizer_type="Lion")),
    ],
)
def test_their_ways_of_writing_a_value_are_understood(given: dict[str, Any], expected: Config) -> None:
    outcome = of(**given)
    assert outcome.problems == [] and Config(**outcome.values) == expected


@pytest.mark.parametrize(
    "given",
    [
        {"text_encoder_lr": Given([1e-5, 2e-5], "")},
        {"text_encoder_lr": Given("1e-5 2e-5", "")},
        read_arguments(["--text_encoder_lr", "1e-5", "2e-5"]),
        read_arguments(["--text_encoder_lr=1e-5,2e-5"]),
    ],
)
def test_two_text_encoder_rates_are_for_two_text_encoders_and_refused_where_there_is_one(
    given: dict[str, Given],
) -> None:
    assert check(given).values == {"text_encoder_lr": 1e-5, "text_encoder_lr2": 2e-5}
    assert check(given, {"family": Given("sdxl", "")}).problems == []
    (problem,) = check(given, {"family": Given("sd", "")}).problems
    assert str(problem).startswith("text_encoder_lr2: does not apply to Stable Diffusion 1.x or 2.x")


def test_three_text_encoder_rates_are_refused() -> None:
    (problem,) = of(text_encoder_lr=[1e-5, 2e-5, 3e-5]).problems
    assert problem.message.startswith("1e-05, 2e-05, 3e-05: these are for 3 text encoders")


def test_what_sd_scripts_takes_several_values_for_does_so_here() -> None:
    arguments = ["--network_args", "conv_dim=4", "conv_alpha=2", "--text_encoder_lr", "1e-5", "1e-5", "--xformers"]
    assert check(read_arguments(arguments)).values == {"conv_dim": 4, "conv_alpha": 2.0, "text_encoder_lr": 1e-5}
    assert of(network_args="conv_dim=4, conv_alpha=2").values == {"conv_dim": 4, "conv_alpha": 2.0}
