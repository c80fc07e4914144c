"""Each option changed in turn: told with its class, and refused before the base model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.support.runs_at_tiny_size import config_for, run, steps_of
from trainer.checkpoints import preflight
from trainer.checkpoints.resume import ResumeRefused
from trainer.models import families
from trainer.options.config import OPTIONS, Config
from trainer.options.declaration import Option
from trainer.refusal import Refused
from trainer.runs import manifest
from trainer.runs.run_folder import RunFolder
from trainer.training import beginning, environment

# They say what to resume and where it is, so there is no run to compare with when they differ.
OF_THE_PLACE = ("output_dir", "output_name", "resume_from_checkpoint", "family")  # the family is what the files say


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tiny_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run stopped halfway."""
    config = config_for(
        tiny_model, tiny_images, tmp_path_factory.mktemp("trained"), save_every_n_steps=2, optimizer_type="Lion"
    )
    run(config.replace(max_train_steps=2))
    return config.replace(resume_from_checkpoint="latest")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Options that name folders to write to get relative names here."""
    monkeypatch.chdir(tmp_path)


def another(known: Option, now: Any) -> Any:
    """A value of the option's kind that is not the present one; None where there is none."""
    if known.kind == "bool":
        return not now
    if known.name == "training_kind":
        return "finetune"
    if known.kind == "choice":
        return next((choice for choice in reversed(known.choices) if choice != now), None)
    if known.kind == "list":
        return ("weight_decay=0.5",)
    if known.kind == "str":
        return "128" if known.name == "resolution" else "another"
    number = (now or 0) + (1 if known.kind == "int" else 0.25)
    return number if known.high is None or number <= known.high else known.low


def changed(known: Option, config: Config) -> Config:
    value = another(known, getattr(config, known.name))
    if value is None:
        pytest.skip("it has one value only")
    return config.replace(**{known.name: value})


COMPARED = [known for known in OPTIONS.values() if known.name not in OF_THE_PLACE and not known.by_content]


@pytest.mark.parametrize("known", COMPARED, ids=lambda known: known.name)
def test_a_changed_option_is_told_with_its_class(known: Option, trained: Config) -> None:
    config = changed(known, trained)
    here = environment.describe(trained, beginning.make_accelerator(trained).device, 1)
    try:
        inputs = preflight.examine_inputs(config)
        verdict = preflight.examine_checkpoint(inputs, here)
    except Refused as error:  # a file that is not there, an argument that the schedule does not have
        assert known.name in str(error)
        return
    assert verdict
    [difference] = [item for item in verdict.differences if item.name == known.name]
    assert difference.on_resume == known.on_resume
    refused = [line for line in verdict.refusals if line.startswith(f"{known.name}: ")]
    assert len(refused) == (known.on_resume != "free")
    of_the_curve = known.name in ("resume_lr_policy", "resume_lr_scale", "resume_warmup_steps")
    assert (verdict.grade == "bit-exact") == (known.on_resume == "free" and not of_the_curve), verdict.lines()


@pytest.mark.parametrize(
    "known", [known for known in COMPARED if known.on_resume != "free"], ids=lambda known: known.name
)
def test_a_difference_is_refused_before_the_base_model_is_loaded_and_changes_nothing(
    known: Option, trained: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object) -> NoReturn:
        raise AssertionError("the base model would be loaded")

    monkeypatch.setattr(families, "get", load)
    before = RunFolder(trained.run_dir).run_file.read_bytes()
    with pytest.raises(Refused, match=known.name) as refusal:
        run(changed(known, trained))
    if known.on_resume == "locked" and isinstance(refusal.value, ResumeRefused):
        with pytest.raises(Refused, match=known.name):
            run(changed(known, trained).replace(resume_allow=("all",)))
    assert RunFolder(trained.run_dir).run_file.read_bytes() == before
    assert [item.step for item in manifest.listing(RunFolder(trained.run_dir).checkpoints)] == [2]
    assert max(steps_of(trained)) == 2
