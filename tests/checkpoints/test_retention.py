"""Which checkpoints are deleted: never the newest sound one, a pinned one or the one resumed from, come what may."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.support import tiny
from tests.support.faults import Deadly, Death, FileCalls
from tests.support.runs_at_tiny_size import config_for, temporary_in
from tests.support.runs_at_tiny_size import run as train
from trainer.checkpoints import preflight
from trainer.checkpoints.preflight import Inputs
from trainer.data.epochs import Origin
from trainer.models import model as models
from trainer.options.config import Config
from trainer.recipe import schedule
from trainer.recipe.early_stopping import Record
from trainer.runs import branches, manifest, run_folder
from trainer.runs.manifest import to_prune
from trainer.runs.run_folder import RunFolder
from trainer.training import beginning, environment, preparing
from trainer.training.loader import Plan
from trainer.training.saving import Saver
from trainer.training.session import Session
from trainer.training.state import State

# --- the rule ------------------------------------------------------------------------------------------------------

steps_of_checkpoints = st.sets(st.integers(1, 60), max_size=12)


@given(
    steps=steps_of_checkpoints,
    keep_last=st.integers(0, 4),
    keep_every=st.integers(0, 10),
    within=st.integers(0, 20),
    protected=steps_of_checkpoints,
)
def test_what_goes_is_neither_new_nor_a_multiple_nor_protected(
    steps: set[int], keep_last: int, keep_every: int, within: int, protected: set[int]
) -> None:
    gone = set(
        to_prune(steps, keep_last=keep_last, keep_every=keep_every, within_last_steps=within, protected=protected)
    )
    newest_first = sorted(steps, reverse=True)
    for place, step in enumerate(newest_first):
        stays = (
            keep_last == 0
            or place < keep_last
            or (keep_every > 0 and step % keep_every == 0)
            or (within > 0 and step > newest_first[0] - within)
            or step in protected
        )
        assert (step in gone) == (not stays)


@given(steps=steps_of_checkpoints, keep_last=st.integers(1, 4))
def test_pruning_twice_is_pruning_once(steps: set[int], keep_last: int) -> None:
    left = steps - set(to_prune(steps, keep_last=keep_last))
    assert to_prune(left, keep_last=keep_last) == []
    assert len(left) == min(len(steps), keep_last)


# --- the real thing ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loaded:
    """What all examples share: the model, which no rule changes, and what was found for it."""

    config: Config
    inputs: Inputs
    state: State
    here: dict[str, Any]


@functools.cache
def loaded(folder: Path) -> Loaded:
    AcceleratorState._reset_state(reset_partial_state=True)
    config = config_for(
        tiny.make_model(folder / "model"),
        tiny.make_images(folder / "images"),
        folder,
        network_dim=1,
        network_train_text_encoder_only=True,
        max_train_steps=10_000,
    )
    accelerator = beginning.make_accelerator(config)
    inputs = preflight.examine_inputs(config)
    model = models.load(inputs.config, inputs.model_path, preparing.DTYPES[config.mixed_precision], accelerator.device)
    here = environment.describe(config, accelerator.device, 1)
    return Loaded(config, inputs, State(config, model, accelerator.device), here)


class Checkpoints(RuleBasedStateMachine):
    """A run's sessions with the real Session and Saver: saves, pins, deaths, damage, resumes.

    `expected` holds the steps of the checkpoints that have to be there; after a death during a save the files decide.
    """

    folder: Path

    def __init__(self) -> None:
        super().__init__()
        self.of = loaded(self.folder)
        self.output = Path(tempfile.mkdtemp(dir=self.folder))
        self.expected: set[int] = set()
        self.pinned: set[int] = set()
        self.damaged: set[int] = set()
        self.measured: dict[int, float | None] = {}  # validation losses of the checkpoints
        self.once_sound = False
        self.session = contextlib.ExitStack()
        self.done: Counter[str] = Counter()

    # --- sessions ---

    @initialize(
        keep_last=st.integers(1, 3),
        keep_every=st.sampled_from((0, 4)),
        within=st.sampled_from((0, 3)),
        epochs=st.sampled_from((0, 1)),
        best=st.booleans(),
    )
    def start(self, keep_last: int, keep_every: int, within: int, epochs: int, best: bool) -> None:
        self.config = self.of.config.replace(
            output_dir=str(self.output),
            keep_last_n_checkpoints=keep_last,
            keep_every_n_steps=keep_every,
            save_last_n_steps_state=within,
            save_last_n_epochs_state=epochs,
            keep_best_checkpoint=best,
        )
        self.run = RunFolder(self.config.run_dir)
        self._begin("")

    def _begin(self, wanted: str) -> None:
        """What the loop does at a session's start."""
        config, of = self.config.replace(resume_from_checkpoint=wanted), self.of
        self.session.enter_context(run_folder.locked(self.run))
        verdict = preflight.examine_checkpoint(dataclasses.replace(of.inputs, config=config), of.here)
        session = Session(config, self.run, verdict, of.inputs.total_steps)
        self.session.enter_context(session.recorded())
        self.plan = plan = Plan(
            config, of.inputs.scan.entries, of.inputs.batches_per_step, verdict.origin if verdict else Origin()
        )
        self.resumed_from = verdict.step if verdict else None
        of.state.global_step = verdict.step if verdict else 0
        if verdict:
            session.resumed(0.0, epochs=plan.place(verdict.step)[0])
            for path, _ in verdict.rejected:
                self.expected.discard(int(path.name.removeprefix("step-")))
            self.expected = {step for step in self.expected if step <= verdict.step}
            self.pinned &= self.expected
            self.damaged &= self.expected
        curve = schedule.new_curve(config, of.inputs.total_steps)
        self.saver = Saver(config, self.run, of.state, plan, curve, of.inputs, session, of.here)

    def _end(self) -> None:
        with contextlib.suppress(Death):
            self.saver.close()
        self.session.close()

    def sound(self) -> list[int]:
        return [item.step for item in manifest.listing(self.run.checkpoints, thorough=True) if item.manifest]

    def checkpoint(self, step: int) -> Path:
        return self.run.checkpoints / manifest.folder_name(step)

    @rule()
    @precondition(lambda self: self.once_sound)
    def resume_latest(self) -> None:
        self.done["resumes"] += 1
        self._end()
        newest = self.sound()[0]
        self._begin("latest")
        assert self.resumed_from == newest

    @rule(data=st.data())
    @precondition(lambda self: self.once_sound)
    def go_back(self, data: st.DataObject) -> None:
        self.done["steps back"] += 1
        self._end()
        step = data.draw(st.sampled_from(self.sound()))
        self._begin(str(step))
        assert self.resumed_from == step

    # --- saves ---

    def _will_stay(self, existing: set[int], newest: int) -> set[int]:
        config = self.config
        counted = sorted(existing | {newest}, reverse=True)
        measured = [(loss, step) for step in counted if (loss := self.measured[step]) is not None]
        best = min(measured)[1] if config.keep_best_checkpoint and self.measured[newest] is not None else None
        epoch = self.plan.place(newest)[0]
        return {
            step
            for place, step in enumerate(counted)
            if place < config.keep_last_n_checkpoints
            or (config.keep_every_n_steps and step % config.keep_every_n_steps == 0)
            or (config.save_last_n_steps_state and step > newest - config.save_last_n_steps_state)
            or (config.save_last_n_epochs_state and self.plan.place(step)[0] > epoch - 1)
            or step in self.pinned
            or step in (best, self.resumed_from)
        }

    def _validated(self, loss: float | None) -> None:
        """As if the weights of now had this validation loss."""
        step = self.of.state.global_step
        self.of.state.validation = Record("images", step, loss)
        self.measured[step] = loss

    @rule(steps=st.integers(1, 3), loss=st.sampled_from((None, 0.1, 0.2, 0.3)))
    def save(self, steps: int, loss: float | None) -> None:
        self.done["saves"] += 1
        self.of.state.global_step += steps
        self._validated(loss)
        step = self.of.state.global_step
        self.saver.save([branches.step_file(self.config, step)], checkpoint=True)
        self.saver._writer.wait()
        assert self.saver.last_error == ""
        self.expected = self._will_stay(self.expected, step)
        self.damaged &= self.expected
        self.once_sound = True
        assert temporary_in(self.output) == []
        assert self.sound()[0] == step

    @rule(steps=st.integers(1, 3), after=st.integers(0, 110), loss=st.sampled_from((None, 0.15)))
    def die_in_a_save(self, steps: int, after: int, loss: float | None) -> None:
        self.done["deaths"] += 1
        self.of.state.global_step += steps
        self._validated(loss)
        step = self.of.state.global_step
        with FileCalls(Deadly(after)), contextlib.suppress(Death):
            self.saver.save([], checkpoint=True)
            self.saver._writer.wait()
        self._end_dead()
        there = {item.step for item in manifest.listing(self.run.checkpoints)}
        assert there <= self.expected | {step}
        assert there >= (self._will_stay(self.expected, step) if step in there else self.expected) - {step}
        self.expected = there
        self.damaged &= there
        self.once_sound = self.once_sound or step in there
        self._begin("latest" if self.once_sound else "")
        assert temporary_in(self.output) == []

    def _end_dead(self) -> None:
        """The lock goes with the process; nothing is recorded."""
        with contextlib.suppress(Death):
            self.saver.close()
        record = self.run.run_file.read_bytes()
        self.session.close()
        self.run.run_file.write_bytes(record)

    # --- what users and disks do ---

    @rule(data=st.data())
    @precondition(lambda self: self.expected)
    def pin(self, data: st.DataObject) -> None:
        self.done["pins"] += 1
        step = data.draw(st.sampled_from(sorted(self.expected)))
        manifest.pin(self.checkpoint(step))
        self.pinned.add(step)

    @rule(data=st.data())
    @precondition(lambda self: self.pinned)
    def unpin(self, data: st.DataObject) -> None:
        step = data.draw(st.sampled_from(sorted(self.pinned)))
        manifest.pin(self.checkpoint(step), pinned=False)
        self.pinned.remove(step)

    @rule(data=st.data())
    @precondition(lambda self: len(self.expected - self.damaged) > 1)
    def damage(self, data: st.DataObject) -> None:
        self.done["damages"] += 1
        step = data.draw(st.sampled_from(sorted(self.expected - self.damaged)))
        path = self.checkpoint(step) / "weights.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"\x55")
        self.damaged.add(step)

    # --- always ---

    @invariant()
    def the_right_ones_are_there_and_one_of_them_is_sound(self) -> None:
        if not hasattr(self, "run"):
            return
        found = manifest.listing(self.run.checkpoints, thorough=True)
        assert {item.step for item in found} == self.expected
        assert {item.step for item in found if item.problem} == self.damaged
        assert {item.step for item in found if item.pinned} == self.pinned
        assert not self.once_sound or self.sound()

    def teardown(self) -> None:
        if hasattr(self, "saver"):
            self._end()
        shutil.rmtree(self.output)


def test_no_sequence_of_saves_pins_deaths_damage_and_resumes_deletes_what_has_to_stay(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    Checkpoints.folder = tmp_path_factory.mktemp("retention")
    run_state_machine_as_test(Checkpoints, settings=settings(max_examples=20, stateful_step_count=15))


def test_what_a_killed_session_could_not_prune_goes_also_where_nothing_is_left_to_train(
    tiny_model: Path, tiny_images: Path, tmp_path: Path
) -> None:
    config = config_for(tiny_model, tiny_images, tmp_path, max_train_steps=4)
    assert train(config) == "finished"
    folder = RunFolder(config.run_dir)
    assert [item.step for item in manifest.listing(folder.checkpoints)] == [4, 3, 2, 1]
    assert train(config.replace(resume_from_checkpoint="latest", keep_last_n_checkpoints=2)) == "finished"
    assert [item.step for item in manifest.listing(folder.checkpoints)] == [4, 3]
