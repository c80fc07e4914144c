"""Random histories of a run - started, killed, resumed with options, allowed, branched, extended, damaged - and what
has to be true of every one of them, told by a small model that knows nothing of how the trainer keeps it."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine

from tests.support import paper
from tests.support.faults import Deadly, Death, FileCalls
from tests.support.paper import PICTURES, History, Picture, Training, history_of
from trainer.checkpoints import choosing
from trainer.checkpoints.choosing import Chosen
from trainer.checkpoints.resume import ResumeRefused
from trainer.options.config import Config
from trainer.runs import manifest, run_folder
from trainer.runs.run_folder import RunFolder

# --- the model -----------------------------------------------------------------------------------------------------

CHANGES: dict[str, tuple[Any, ...]] = {
    "learning_rate": (1.0, 0.5),
    "seed": (42, 7),
    "resolution": ("64", "96"),
    "enable_bucket": (True, False),
    "train_batch_size": (2, 3),
}
given_words = st.sampled_from((("all",), ("dataset",), *(("dataset", name) for name in CHANGES), ()))
Asked = tuple[Any, ...] | None  # policy, factor, warm-up, length of a curve that is drawn, name
Key = tuple[Any, ...]  # a difference: what, then, now, and how many were permitted before


Expected = tuple[set[str], list[Key], Asked]  # what is refused, allowed, and decided about the rate


@dataclass(frozen=True)
class Rate:
    """A linear curve with what resumes made of it."""

    start: int
    length: int
    scale: float = 1.0
    rewarm_from: int = 0
    rewarm_steps: int = 0

    def at(self, step: int) -> float:
        fallen = 1 - min(1.0, max(0, step - self.start) / max(1, self.length))
        warm = min(1.0, (step - self.rewarm_from + 1) / self.rewarm_steps) if self.rewarm_steps else 1.0
        return fallen * self.scale * warm

    def decided(self, asked: Asked, step: int, total: int) -> Rate:
        if asked is None:
            return self
        policy, scale, warmup, *_ = asked
        drawn = self
        if policy == "restart":
            drawn = Rate(step, max(1, total - step))
        elif policy == "stretch":
            drawn = replace(self, length=total - self.start)
        drawn = replace(drawn, scale=drawn.scale * scale)
        return replace(drawn, rewarm_from=step, rewarm_steps=warmup) if warmup else drawn


@dataclass(frozen=True)
class Known:
    """What the model knows of a state: in which run it was made, with what, and what was decided on the way."""

    run: str
    options: dict[str, Any]
    pictures: tuple[Picture, ...]
    rate: Rate
    decided: Asked = None
    words: frozenset[str] = frozenset()
    permitted: int = 0
    whole: dict[int, int] = field(default_factory=dict)  # epoch -> its uses of images
    cut: frozenset[int] = frozenset()  # epochs that ended where the order changed

    def order(self) -> tuple[Any, ...]:
        """What the order of the batches hangs on."""
        found = paper.inputs_of(Config(**{**paper.OPTIONS, **self.options}), self.pictures).scan.entries
        sizes = sorted({entry.bucket for entry in found})
        uses = sorted((entry.id, entry.repeats, sizes.index(entry.bucket)) for entry in found)
        return self.options["seed"], self.options["train_batch_size"], tuple(uses)

    def differences(self, options: dict[str, Any], pictures: tuple[Picture, ...]) -> list[Key]:
        """Everything that is not as it was."""
        keys: list[Key] = [
            (name, self.options[name], options[name], self.permitted)
            for name in CHANGES
            if self.options[name] != options[name]
        ]
        then, now = ({picture.name: _content(picture) for picture in of} for of in (self.pictures, pictures))
        news = tuple(
            tuple((name, frozenset(of[name] - other.get(name, frozenset()))) for name in sorted(of))
            for of, other in ((then, now), (now, then))
        )
        old, new = (tuple(item for item in part if item[1]) for part in news)
        if old or new:
            keys.append(("dataset", old, new, self.permitted))
        return keys


def _content(picture: Picture) -> frozenset[tuple[str, Any]]:
    repeats = 1 if picture.validation else picture.repeats
    aspects = {"caption": picture.caption, "repeats": repeats, "mask": picture.mask, "validation": picture.validation}
    return frozenset(aspects.items())


@dataclass
class OfRun:
    """What a run's sessions were given and allowed, wherever they led."""

    words: set[str] = field(default_factory=set)
    allowed: set[Key] = field(default_factory=set)
    began_at: History = ()  # of another run


# --- the sequences -------------------------------------------------------------------------------------------------


class Sequences(RuleBasedStateMachine):
    """The invariants are the methods whose names begin with `always` or `check`."""

    folder: Path

    def __init__(self) -> None:
        super().__init__()
        self.output = Path(tempfile.mkdtemp(dir=self.folder))
        self.name = "run"
        self.options: dict[str, Any] = {name: values[0] for name, values in CHANGES.items()}
        self.command: dict[str, Any] = {"max_train_steps": 30}  # the options of resumes, and the run's length
        self.pictures: tuple[Picture, ...] = PICTURES
        self.runs: dict[str, OfRun] = {"run": OfRun()}
        self.known: dict[History, Known] = {}  # of saved states
        self.told: dict[str, Key] = {}  # words of refusals: what each names
        self.training: Training | None = None
        self.now: Known | None = None  # of the process
        self.saved = 0  # the step of the process's last save, or of its resume
        self.branches: list[History] = []  # of which the run's checkpoints have to be
        self.others: dict[Path, tuple[int, ...]] = {}  # files of other runs, as they were
        self.done: Counter[str] = Counter()

    # --- commands ---

    @initialize(steps=st.integers(1, 8))
    def begin(self, steps: int) -> None:
        self._start("auto")
        self.train_and_save(steps)

    @rule(
        policy=st.sampled_from(("keep", "keep", "restart", "stretch")),
        scale=st.sampled_from((1.0, 0.5, 0.25)),
        warmup=st.sampled_from((0, 3)),
        name=st.sampled_from(("", "again")),
    )
    def ask_for_rates(self, policy: str, scale: float, warmup: int, name: str) -> None:
        self.command |= {
            "resume_lr_policy": policy, "resume_lr_scale": scale, "resume_warmup_steps": warmup,
            "resume_lr_decision": name,
        }  # fmt: skip

    @rule(name=st.sampled_from(list(CHANGES)), which=st.integers(0, 1))
    def change_an_option(self, name: str, which: int) -> None:
        self.options = {**self.options, name: CHANGES[name][which]}

    @rule(
        place=st.integers(0, len(PICTURES) - 1),
        change=st.sampled_from(
            ({"caption": "other"}, {"repeats": 3}, {"mask": "f" * 32}, {"validation": True}, "removed", "as it was")
        ),
    )
    def change_a_picture(self, place: int, change: Any) -> None:
        name = PICTURES[place].name
        others = [picture for picture in self.pictures if picture.name != name]
        if change == "removed":
            changed = others
        elif change == "as it was":
            changed = [*others, PICTURES[place]]
        else:
            changed = [*others, replace(PICTURES[place], **change)]
        if sum(not picture.validation for picture in changed) >= 2:
            self.pictures = tuple(sorted(changed, key=lambda picture: picture.name))

    @rule()
    def extend(self) -> None:
        self.command["max_train_steps"] += 10

    def _config(self, wanted: str) -> Config:
        place = {"output_dir": str(self.output), "output_name": self.name, "resume_from_checkpoint": wanted}
        return Config(**{**paper.OPTIONS, **self.options, **self.command, **place})

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.output / self.name)

    # --- processes ---

    @rule(wanted=st.sampled_from(("latest", "auto")))
    def restart_with_the_same_command(self, wanted: str) -> None:
        self.done["restarts"] += 1
        self._start(wanted)

    @rule(words=given_words)
    def restart_with_permission(self, words: tuple[str, ...]) -> None:
        self.done["restarts"] += 1
        self.command["resume_allow"] = words
        self._start("latest")

    @rule(words=given_words, steps=st.integers(1, 6))
    def a_session_that_saves(self, words: tuple[str, ...], steps: int) -> None:
        self.restart_with_permission(words)
        if self.training:
            self.train_and_save(steps)

    @rule(steps=st.integers(1, 6))
    def a_session_of_the_same_command_that_saves(self, steps: int) -> None:
        self.restart_with_the_same_command("auto")
        if self.training:
            self.train_and_save(steps)

    @rule(data=st.data(), steps=st.integers(0, 3))
    def go_back(self, data: st.DataObject, steps: int) -> None:
        found = [item.step for item in manifest.listing(self.run.checkpoints)]
        if found:
            self.done["steps back"] += 1
            self._start(str(data.draw(st.sampled_from(found))))
        if self.training and steps:
            self.train_and_save(steps)

    def left_behind(self) -> list[str]:
        return sorted(map(str, self.run.abandoned.glob("*/checkpoints/step-*")))

    @rule(data=st.data(), steps=st.integers(0, 3))
    @precondition(lambda self: self.left_behind())
    def take_up_what_was_left_behind(self, data: st.DataObject, steps: int) -> None:
        self.done["branches taken up"] += 1
        self._start(data.draw(st.sampled_from(self.left_behind())))
        if self.training and steps:
            self.train_and_save(steps)

    @rule(data=st.data())
    @precondition(lambda self: len(self.runs) < 3)
    def begin_a_new_run(self, data: st.DataObject) -> None:
        """At a checkpoint of this one, or at its latest."""
        steps = [found.step for found in manifest.listing(self.run.checkpoints)]
        if not steps:
            return
        self.done["new runs"] += 1
        self._kill()
        parent, self.name = self.run, f"run{len(self.runs) + 1}"
        self.runs[self.name] = OfRun()
        self.others |= _files(parent.path)
        self.branches = []
        chosen = data.draw(st.sampled_from((None, *steps)))
        self.source = parent.path if chosen is None else parent.checkpoints / manifest.folder_name(chosen)
        self._start(str(self.source))

    @rule()
    @precondition(lambda self: len(self.runs) > 1)
    def repeat_the_command_that_began_the_run(self) -> None:
        self._start(str(self.source))

    @rule(after=st.integers(0, 150), wanted=st.sampled_from(("latest", "auto", "back", "left behind")), data=st.data())
    def die_in_a_resume(self, after: int, wanted: str, data: st.DataObject) -> None:
        if wanted in ("back", "left behind"):
            back = sorted(map(str, self.run.checkpoints.glob("step-*")))
            paths = back if wanted == "back" else self.left_behind()
            if not paths:
                return
            wanted = data.draw(st.sampled_from(paths))
        self.done["deaths in resumes"] += 1
        self._start(wanted, Deadly(after))

    @rule()
    @precondition(lambda self: self.told)
    def allow_what_was_refused(self) -> None:
        self.done["differences allowed by name"] += 1
        self.command["resume_allow"] = tuple(self.told)
        self._start("auto")

    @rule(steps=st.integers(1, 5))
    @precondition(lambda self: self.training)
    def train(self, steps: int) -> None:
        assert self.training and self.now
        first = self.training.step
        self.training.train(steps)
        self.branches = [self.training.history]
        self.check_a_decision_is_taken_once(first)
        self.check_each_use_is_trained_once()

    @rule()
    @precondition(lambda self: self.training and self.training.step > self.saved)
    def save(self) -> None:
        assert self.training and self.now
        self.done["saves"] += 1
        self.training.save()
        self.saved = self.training.step
        self.known[self.training.history] = replace(self.now, whole=dict(self.now.whole))

    @rule(steps=st.integers(1, 5))
    @precondition(lambda self: self.training)
    def train_and_save(self, steps: int) -> None:
        self.train(steps)
        if self.training and self.training.step > self.saved:
            self.save()

    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        found = [item.path for item in manifest.listing(self.run.checkpoints)]
        if found:
            self.done["damages"] += 1
            paper.damage(data.draw(st.sampled_from(found)))

    # --- a start and what it must come to ---

    def _kill(self) -> None:
        if self.training:
            self.training.kill()
        self.training = None

    def _start(self, wanted: str, deadly: Deadly | None = None) -> None:
        self._kill()
        config = self._config(wanted)
        try:
            chosen = None if choosing.starts_from_scratch(config) else choosing.choose(config)
        except ResumeRefused:
            self.done["refused: nothing sound"] += 1
            self._check_there_is_nothing_to_resume(config)
            return
        expected: Expected = self._expected(chosen) if chosen else (set(), [], self._asked())
        before = self._sessions()
        try:
            if deadly is None:
                self.training = Training(config, self.pictures)
            else:
                with FileCalls(deadly, thread=""):
                    self.training = Training(config, self.pictures)
                    deadly.left = sys.maxsize  # it got through, and keeps files open that still tell of their writes
        except Death:
            if self._sessions() != before:  # the record was written, so its permissions were given
                self._accept(chosen, expected)
            if chosen:
                self.branches.append(history_of(chosen.path))
            return
        except ResumeRefused as refused:
            self.done["refused"] += 1
            self._check_refused(chosen, expected, refused)
            return
        self.now = self._accept(chosen, expected)
        self.check_a_permission_is_recorded(expected[1])
        self.branches = [self.training.history]
        self.saved = self.training.step
        if chosen:
            self.done["resumes"] += 1
            assert self.training.history == history_of(chosen.path)
            found = choosing.choose(config.replace(resume_from_checkpoint="latest"))
            assert history_of(found.path) == self.training.history  # at once, not only after the next save

    def _sessions(self) -> list[str]:
        return [entry["id"] for entry in (run_folder.read_run(self.run) or {"sessions": ()})["sessions"]]

    def _asked(self) -> Asked:
        of = {"resume_lr_policy": "keep", "resume_lr_scale": 1.0, "resume_warmup_steps": 0, "resume_lr_decision": ""}
        policy, scale, warmup, name = (self.command.get(option, default) for option, default in of.items())
        if (policy, scale, warmup) == ("keep", 1.0, 0):
            return None
        return policy, scale, warmup, None if policy == "keep" else self.command["max_train_steps"], name

    def _known(self, chosen: Chosen) -> tuple[Known, OfRun]:
        """The state resumed from and what its run's sessions were given. What another run decided is not decided for
        this one."""
        history = history_of(chosen.path)
        known, of_run = self.known[history], self.runs[self.name]
        if known.run == self.name:
            return known, of_run
        foreign = replace(known, decided=None, words=frozenset(), permitted=0)
        return foreign, of_run if of_run.began_at == history else OfRun(began_at=history)

    def _may_differ(self, known: Known, of_run: OfRun, key: Key) -> bool:
        """Whether a difference is permitted: named itself, or covered by a word that is given for the first time or
        was given for this very difference."""
        words = set(self.command.get("resume_allow", ()))
        if any(self.told.get(word) == key for word in words):
            return True
        covering = {"all", key[0]} & words
        return bool(covering - of_run.words - known.words or (covering and key in of_run.allowed))

    def _expected(self, chosen: Chosen) -> Expected:
        (known, of_run), total = self._known(chosen), self.command["max_train_steps"]
        keys = known.differences(self.options, self.pictures)
        allowed = [key for key in keys if self._may_differ(known, of_run, key)]
        refused = {key[0] for key in keys if key not in allowed}
        asked = self._asked()
        decision = asked if asked != known.decided else None
        rate = known.rate.decided(decision, chosen.manifest.step, total)
        if max(chosen.manifest.step, rate.start + rate.length) < total:
            refused.add("learning rate")
        return refused, allowed, decision

    def _accept(self, chosen: Chosen | None, expected: Expected) -> Known:
        """The state of the process that begins."""
        words = frozenset(self.command.get("resume_allow", ()))
        total = self.command["max_train_steps"]
        refused, allowed, decision = expected
        assert refused == set(), "it had to be refused"
        if chosen is None:
            self.runs[self.name] = OfRun(set(words))
            return Known(self.name, self.options, self.pictures, Rate(0, total), decision, words)
        known, of_run = self._known(chosen)
        self.runs[self.name] = of_run
        of_run.words |= words
        of_run.allowed |= set(allowed)
        began = replace(
            known,
            run=self.name,
            options=self.options,
            pictures=self.pictures,
            rate=known.rate.decided(decision, chosen.manifest.step, total),
            decided=decision or known.decided,
            words=known.words | words,
            permitted=known.permitted + len(allowed),
            whole=dict(known.whole),
        )
        if began.order() != known.order():
            uses = Counter(use[2] for trained in history_of(chosen.path) for use in trained.uses)
            began = replace(began, cut=known.cut | {epoch for epoch in uses if uses[epoch] < known.whole[epoch]})
        return began

    # --- what must be true ---

    def check_a_decision_is_taken_once(self, first: int) -> None:
        assert self.training and self.now
        peak = self.now.options["learning_rate"]
        for trained in self.training.history[first:]:
            assert trained.rate == pytest.approx(peak * self.now.rate.at(trained.step - 1), rel=1e-12, abs=1e-15)

    def check_each_use_is_trained_once(self) -> None:
        assert self.training and self.now
        uses = [use for trained in self.training.history for use in trained.uses]
        assert len(set(uses)) == len(uses), "a use was trained twice with one address"
        of_epochs = Counter(use[2] for use in uses)
        samples = sum(picture.repeats for picture in self.now.pictures if not picture.validation)
        for epoch in of_epochs:
            if epoch not in self.now.cut:
                self.now.whole.setdefault(epoch, samples)
        for epoch in set(of_epochs) - {max(of_epochs)} - self.now.cut:
            assert of_epochs[epoch] == self.now.whole[epoch], f"epoch {epoch} was not trained whole"

    def check_a_permission_is_recorded(self, allowed: list[Key]) -> None:
        assert self.training
        record, verdict = run_folder.read_run(self.run), self.training.verdict
        assert record
        told = sorted(item["name"] for item in record["sessions"][-1]["allowed"])
        assert told == sorted(key[0] for key in allowed)
        assert sorted(item.name for item in (verdict.permitted if verdict else ())) == told

    def _check_refused(self, chosen: Chosen | None, expected: Expected, refused: ResumeRefused) -> None:
        """Allowing one thing allows nothing else, and a permission is for one resume: what differs is named, all of it
        and nothing besides."""
        assert chosen, "a start from scratch was refused"
        named = {reason.partition(":")[0] for reason in refused.reasons}
        if "resume_from_checkpoint" in named:
            assert len(self.runs) > 1 and "belongs to another run" in str(refused)
            return
        assert named == expected[0]
        known, _ = self._known(chosen)
        for key in known.differences(self.options, self.pictures):
            word = str(refused).partition(f'["{key[0]}:')[2].partition('"')[0]
            if word:
                self.told[f"{key[0]}:{word}"] = key

    def _check_there_is_nothing_to_resume(self, config: Config) -> None:
        if choosing.wanted(config.resume_from_checkpoint) in ("latest", "auto"):
            assert [item for item in manifest.listing(self.run.checkpoints, thorough=True) if item.manifest] == []

    @invariant()
    def always_latest_is_of_the_branch(self) -> None:
        for item in manifest.listing(self.run.checkpoints):
            if item.manifest:
                history = _whole_history(item.path)
                assert any(branch[: len(history)] == history for branch in self.branches), "of another branch"

    @invariant()
    def always_other_runs_are_untouched(self) -> None:
        for folder in {self.output / name for name in self.runs} - {self.run.path}:
            now = _files(folder)
            assert now == {path: stamp for path, stamp in self.others.items() if folder in path.parents}

    def teardown(self) -> None:
        self._kill()
        shutil.rmtree(self.output)


def _whole_history(folder: Path) -> History:
    """The history of a checkpoint whose weights may be damaged in their last byte."""
    try:
        return history_of(folder)
    except (KeyError, UnicodeDecodeError):
        return ()


def _files(folder: Path) -> dict[Path, tuple[int, ...]]:
    found: dict[Path, tuple[int, ...]] = {}
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root) / name
            stat = path.stat()
            found[path] = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
    return found


def test_no_sequence_of_starts_kills_options_permissions_branches_and_damage_breaks_a_run(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # nothing here loses its power
    Sequences.folder = tmp_path_factory.mktemp("sequences")
    run_machine(Sequences, settings=settings(max_examples=25, stateful_step_count=25))
