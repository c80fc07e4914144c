"""Every optimizer of the table: what it keeps, and that it goes on bit-equal from what was kept."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from trainer.options.checks import check as check_options
from trainer.options.config import Config
from trainer.options.optimizer_table import OPTIMIZERS
from trainer.options.problems import ConfigError, Given
from trainer.recipe import optimizers

CUSTOM = "torch.optim.NAdam"
ARGUMENTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "AdamW": ((), ("fused=False", "betas=0.8,0.9")),
    "Adafactor": ((), ("beta1=0.9", "scale_parameter=True")),
    "Prodigy": ((), ("safeguard_warmup=True", "use_bias_correction=True", "slice_p=3")),
    "DAdaptAdam": ((), ("decouple=True", "weight_decay=0.1", "growth_rate=1.5")),
    "AdamWScheduleFree": ((), ("warmup_steps=3",)),
    "AdamW8bit": ((), ("min_8bit_size=64",)),
    "SGDScheduleFree": (("weight_decay=0.01",),),
}
EACH = [(name, arguments) for name in (*OPTIMIZERS, CUSTOM) for arguments in ARGUMENTS.get(name, ((),))]
SHAPES = ((96, 64), (64, 96), (8, 4))


class Training:
    """Three parameters, the second of which begins as zeros, with gradients that depend on the step and on them."""

    def __init__(self, name: str, arguments: tuple[str, ...]) -> None:
        self.config = Config(optimizer_type=name, optimizer_args=arguments, learning_rate=0.1)
        draw = torch.Generator().manual_seed(0)
        self.parameters = [nn.Parameter(torch.randn(shape, generator=draw)) for shape in SHAPES]
        with torch.no_grad():
            self.parameters[1].zero_()
        groups = [("first", self.parameters[:2], 0.1), ("second", self.parameters[2:], 0.1)]
        self.optimizer = optimizers.build(self.config, groups)
        self.names: dict[Tensor, str] = {parameter: f"p{i}" for i, parameter in enumerate(self.parameters)}

    def run(self, start: int, end: int) -> None:
        for step in range(start, end):
            draw = torch.Generator().manual_seed(step + 1)
            for parameter in self.parameters:
                parameter.grad = parameter.detach() * 0.1 + torch.randn(parameter.shape, generator=draw)
            for group in self.optimizer.param_groups:
                group["lr"] = 0.1 / (1 + step)
            self.optimizer.step()

    def save(self, folder: Path) -> dict[str, Tensor]:
        """What a checkpoint would hold."""
        tensors, values = optimizers.state(self.optimizer, self.names)
        weights = {self.names[parameter]: parameter.detach() for parameter in self.parameters}
        copies = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        safetensors.torch.save_file(copies, folder / "optimizer.safetensors")
        safetensors.torch.save_file({name: tensor.clone() for name, tensor in weights.items()}, folder / "weights")
        (folder / "state.json").write_text(json.dumps(values))
        return tensors

    def load(self, folder: Path) -> None:
        weights = safetensors.torch.load_file(folder / "weights")
        with torch.no_grad():
            for parameter in self.parameters:
                parameter.copy_(weights[self.names[parameter]])
        tensors = safetensors.torch.load_file(folder / "optimizer.safetensors")
        optimizers.restore(self.optimizer, self.names, tensors, json.loads((folder / "state.json").read_text()))


@pytest.mark.parametrize(("name", "arguments"), EACH, ids=str)
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_it_goes_on_bit_equal_from_what_a_checkpoint_keeps(
    name: str, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    straight = Training(name, arguments)
    straight.run(0, 3)
    straight.save(tmp_path)
    straight.run(3, 8)
    resumed = Training(name, arguments)
    resumed.load(tmp_path)
    resumed.run(3, 8)
    began = Training(name, arguments).parameters
    for ours, theirs, first in zip(resumed.parameters, straight.parameters, began, strict=True):
        assert torch.equal(ours, theirs)
        assert not torch.equal(ours, first)


@pytest.mark.parametrize(("name", "arguments"), [each for each in EACH if each[0] != CUSTOM], ids=str)
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_the_table_knows_the_tensors_it_keeps_and_their_size(
    name: str, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    training = Training(name, arguments)
    training.run(0, 2)
    kept = {key: tensor.nbytes for key, tensor in training.save(tmp_path).items()}
    config = training.config
    expected = {
        f"p{number}/{entry}": size
        for number, shape in enumerate(SHAPES)
        for entry, size in config.optimizer.keeps(shape, config.optimizer_arguments, number == 1).items()
    }
    assert kept == expected


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_table_knows_which_hold_an_average_of_their_own(name: str) -> None:
    assert optimizers.averages(Training(name, ()).optimizer) == OPTIMIZERS[name].averages


@pytest.mark.parametrize("name", [name for name, entry in OPTIMIZERS.items() if entry.averages])
def test_looking_at_the_average_changes_no_bit_of_what_is_trained(name: str) -> None:
    plain, looked_at = Training(name, ()), Training(name, ())
    plain.run(0, 6)
    for step in range(6):
        looked_at.run(step, step + 1)
        trained = [parameter.detach().clone() for parameter in looked_at.parameters]
        with optimizers.averaged(looked_at.optimizer):
            assert step < 5 or not torch.equal(looked_at.parameters[0], trained[0])
        assert all(torch.equal(now, then) for now, then in zip(looked_at.parameters, trained, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters, looked_at.parameters, strict=True))


def test_the_average_is_the_one_of_the_paper() -> None:
    """Of the points z that plain SGD visits at an even rate, each counts alike: x is their mean."""
    training = Training("SGDScheduleFree", ("momentum=0.9",))
    points = []
    for step in range(4):
        draw = torch.Generator().manual_seed(step)
        for parameter in training.parameters:
            parameter.grad = torch.randn(parameter.shape, generator=draw)
        training.optimizer.step()
        points.append(training.optimizer.state[training.parameters[0]]["z"].clone())
    with optimizers.averaged(training.optimizer):
        torch.testing.assert_close(training.parameters[0].detach(), torch.stack(points).mean(0))


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer_type": "torch.optim.Nothing"}, "torch.optim.Nothing cannot be imported"),
        ({"optimizer_type": "no_such_package.Class"}, "no_such_package.Class cannot be imported"),
        ({"optimizer_type": "os.system"}, "os.system is not a class of torch.optim.Optimizer's kind"),
        ({"optimizer_type": "CAME", "optimizer_args": ("beta=1",)}, "CAME has no argument 'beta'"),
        ({"optimizer_args": ("lr=1",)}, "AdamW has no argument 'lr'"),
    ],
)
def test_what_is_no_optimizer_or_no_argument_of_it_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        optimizers.check(Config(**options))


@pytest.mark.parametrize(
    ("name", "extra"), [("AdamW8bit", "bitsandbytes"), ("DAdaptAdam", "optimizers"), ("Lion", "optimizers")]
)
def test_one_that_is_not_installed_names_the_extra(name: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = OPTIMIZERS[name].path.rpartition(".")[0]
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"pip install 'rekindle\[{extra}\]'"):
        optimizers.check(Config(optimizer_type=name))


def problems_of(**options: Any) -> list[str]:
    checked = check_options({name: Given(value, "") for name, value in options.items()})
    return [str(problem) for problem in checked.problems]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer_type": "DAdaptAdam", "text_encoder_lr": 0.5, "learning_rate": 1.0}, "finds one rate"),
        ({"optimizer_type": "Prodigy", "text_encoder_lr": 0.5, "learning_rate": 1.0}, "finds one rate"),
        ({"optimizer_type": "AdamWScheduleFree", "lr_scheduler": "cosine"}, "needs none: set constant"),
        ({"optimizer_type": "SGDScheduleFree", "use_ema": True}, "an average of its own"),
        ({"optimizer_type": "Adafactor", "optimizer_args": ["relative_step=True"]}, 'lr_scheduler = "adafactor"'),
        ({"lr_scheduler": "adafactor"}, "belongs to Adafactor"),
        ({"optimizer_type": "Adafactor", "optimizer_args": ["warmup_init=True"]}, "warmup_init belongs to"),
        ({"optimizer_type": "not a path"}, "is not one of AdamW, "),
    ],
)
def test_what_an_optimizer_cannot_go_with_is_refused(options: dict[str, Any], message: str) -> None:
    (problem,) = problems_of(**options)
    assert message in problem


def test_a_rate_of_0_goes_with_one_that_finds_its_own() -> None:
    assert problems_of(optimizer_type="Prodigy", learning_rate=1.0, text_encoder_lr=0.0) == []


def test_an_import_path_is_taken_and_said_to_be_untested() -> None:
    checked = check_options({"optimizer_type": Given(CUSTOM, "")})
    assert checked.problems == [] and "drill" in checked.notices[0]
    assert problems_of(optimizer_type="dadaptadam") == []  # as before, in any spelling of a name of the table
