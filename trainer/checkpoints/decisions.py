"""What resumes decide - learning rates and permissions -, each once, and how that is kept. No torch here.

A decision belongs to the resume at which it was taken. The rules, which make a repeated command harmless:

* A learning rate decision is taken unless it repeats the last one that the checkpoint records. So it is taken again
  where the process was killed before the first save after it, and where the run goes back to an older step: there it
  has not been taken yet. Leaving the options out decides nothing and undoes nothing.
* A word of resume_allow (an option's name, "dataset", "all") allows whatever it names at the first resume of the run
  that it is given at. Later it allows only what it allowed then, as long as no checkpoint has taken that over.
* What a rollback decides (trainer.runs.rollbacks) is decided by the run and kept in its record until a checkpoint has
  it; options that ask for something else do not touch it, and max_rollbacks = 0 leaves it out.
* `name:digest` in resume_allow allows one difference, by its content. This is what a refusal tells, what the page
  writes, and what a run's own config.toml keeps of the words it was given.
* What a training is given at its start by resume_from_checkpoint = "auto" counts as given at step 0: where it is
  interrupted must not matter. Decisions of another run are that run's, although its curve goes on.

The digest counts the permissions that the state has behind it, so that a change which is undone and made again is
another difference.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from trainer import files
from trainer.checkpoints.choosing import LATEST, ResumeRefused, begins_by_choice, choose
from trainer.options.config import Config
from trainer.recipe.schedule import Decision, LrCurve, asked
from trainer.runs import lineage, manifest, rollbacks, run_folder
from trainer.runs.manifest import Manifest
from trainer.runs.rollbacks import Rollback
from trainer.runs.run_folder import RunFolder, RunUnreadable

DIGEST_LENGTH = 8


@dataclass(frozen=True)
class Allowed:
    """A difference that was allowed. `name`: an option's, or "dataset"; `change`: what it is, for people."""

    name: str
    digest: str
    change: tuple[str, ...]
    step: int  # of the resume

    @property
    def word(self) -> str:
        """What allows this difference and nothing else."""
        return f"{self.name}:{self.digest}"


@dataclass(frozen=True)
class Decisions:
    """What the resumes that led to a state decided; every checkpoint keeps it. The oldest first."""

    rates: tuple[Decision, ...] = ()
    words: tuple[str, ...] = ()  # of resume_allow, given so far
    allowed: tuple[Allowed, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @property
    def asked(self) -> tuple[Decision, ...]:
        """The decisions about the learning rate that options asked for, and no rollback took."""
        return tuple(decision for decision in self.rates if decision.policy != rollbacks.POLICY)

    def is_new(self, decision: Decision | None) -> bool:
        """Whether a decision about the learning rate is still to be taken."""
        return decision is not None and not (self.asked and decision.repeats(self.asked[-1]))

    def of_rollback(self, back: Rollback | None, checkpoint: Manifest, allowed: bool) -> Decision | None:
        """What the run's last rollback decides at a checkpoint without it; None where that is not its place, or
        rollbacks are not `allowed` any more."""
        if back is None or not allowed or not back.is_at(checkpoint):
            return None
        return Decision(rollbacks.POLICY, back.scale, 0, back.seen_at, f"{rollbacks.POLICY} {back.number}", back.step)

    def after(self, decision: Decision | None, words: Iterable[str], allowed: Iterable[Allowed]) -> Decisions:
        """With what one more resume decided."""
        return Decisions(
            (*self.rates, *((decision,) if decision is not None else ())),
            tuple(dict.fromkeys((*self.words, *words))),
            (*self.allowed, *allowed),
        )


@dataclass(frozen=True)
class Permissions:
    """What resume_allow lets through at one resume.

    `words`: resume_allow; `given`: words that were given at an earlier resume; `repeated`: (name, digest) of what the
    run's sessions were allowed; `count`: how many permissions the state has behind it.
    """

    words: tuple[str, ...]
    given: Collection[str] = ()
    repeated: Collection[tuple[str, str]] = ()
    count: int = 0

    def digest(self, name: str, then: Any, now: Any) -> str:
        """Names a difference by its content."""
        return files.digest([name, then, now, self.count])[:DIGEST_LENGTH]

    def allow(self, name: str, digest: str, *others: str) -> bool:
        """Whether a difference is let through; `others`: words that mean it besides its name and "all"."""
        if f"{name}:{digest}" in self.words:
            return True
        covering = {name, "all", *others} & set(self.words)
        return bool(covering - set(self.given) or (covering and (name, digest) in self.repeated))

    def way_out(self, name: str, digest: str) -> str:
        """What to write to allow a difference."""
        spent = [word for word in (name, "all") if word in self.words and word in self.given]
        if name not in self.given and not spent:
            return f'allow it with resume_allow = ["{name}"]'
        text = f' ("{(spent or [name])[0]}" was for the earlier resume that it was given at)'
        return f'allow it with resume_allow = ["{name}:{digest}"]{text}'


def given(config: Config) -> tuple[str, ...]:
    """The words of resume_allow that a session was given; a fresh start by choice is not given any."""
    return () if begins_by_choice(config) else config.resume_allow


def at_the_start(config: Config, total_steps: int) -> Decisions:
    """What counts as decided by a run that starts from scratch: with "auto", what a resume would decide."""
    by_choice = begins_by_choice(config)
    return Decisions().after(None if by_choice else asked(config, 0, total_steps), given(config), ())


def permissions(config: Config, decided: Decisions, record: Mapping[str, Any] | None) -> Permissions:
    """What resume_allow lets through, by what the checkpoint and the run's record (run.json) keep of earlier resumes.

    What in the record is not as this program writes it is passed over.
    """
    words = set(decided.words)
    repeated: set[tuple[str, str]] = set()
    for entry in (record or {}).get("sessions", ()):
        told, let_through = entry.get("words"), entry.get("allowed")
        words |= {word for word in told if isinstance(word, str)} if isinstance(told, list) else set()
        for item in let_through if isinstance(let_through, list) else ():
            if isinstance(item, dict) and isinstance(item.get("name"), str) and isinstance(item.get("digest"), str):
                repeated.add((item["name"], item["digest"]))
    return Permissions(config.resume_allow, words, repeated, len(decided.allowed))


def of_state(state: Mapping[str, Any], then: Config, curve: LrCurve) -> Decisions:
    """What a checkpoint's state.json records. Raises KeyError, TypeError or ValueError where it is damaged.

    The first checkpoints recorded nothing; their config.toml tells what the session that saved them was given.
    """
    if "decisions" not in state:
        return _of_options(then, curve)
    kept = manifest.of(dict, state["decisions"])
    return Decisions(
        rates=tuple(_decision(item) for item in manifest.of(list, kept["rates"])),
        words=tuple(manifest.of(str, word) for word in manifest.of(list, kept["words"])),
        allowed=tuple(_allowed(item) for item in manifest.of(list, kept["allowed"])),
    )


def _of_options(then: Config, curve: LrCurve) -> Decisions:
    if not then.resume_from_checkpoint:
        return Decisions()
    taken = Decision(
        policy=then.resume_lr_policy,
        scale=then.resume_lr_scale,
        warmup_steps=then.resume_warmup_steps,
        total_steps=curve.end_step,
        name=then.resume_lr_decision,
        step=curve.rewarm_from or curve.start_step,
    )
    nothing = (taken.policy, taken.scale, taken.warmup_steps) == ("keep", 1.0, 0)
    return Decisions(() if nothing else (taken,), then.resume_allow)


def _decision(item: Any) -> Decision:
    kinds = {"policy": str, "scale": float, "warmup_steps": int, "total_steps": int, "name": str, "step": int}
    return Decision(**{name: manifest.of(kind, manifest.of(dict, item)[name]) for name, kind in kinds.items()})


def _allowed(item: Any) -> Allowed:
    fields = manifest.of(dict, item)
    change = tuple(manifest.of(str, line) for line in manifest.of(list, fields["change"]))
    return Allowed(
        manifest.of(str, fields["name"]), manifest.of(str, fields["digest"]), change, manifest.of(int, fields["step"])
    )


# --- a run's own options -------------------------------------------------------------------------------------------


def to_continue(run: RunFolder, then: Config) -> Config:
    """The options that go on with a run at its latest checkpoint, of those that its last session had.

    What that session decided is left out as soon as the checkpoint has it; until then it is still to be decided.
    """
    config = then.replace(output_dir=str(run.path.parent), output_name=run.path.name, resume_from_checkpoint=LATEST)
    undecided = config.replace(
        resume_allow=(), resume_lr_policy="keep", resume_lr_scale=1.0, resume_warmup_steps=0, resume_lr_decision=""
    )
    try:
        sessions = (run_folder.read_run(run) or {}).get("sessions")
        chosen = choose(config)
    except (RunUnreadable, ResumeRefused):
        return config
    here = lineage.of_checkpoint(chosen.path, chosen.manifest.step)
    last = sessions[-1].get("id") if sessions else None
    return undecided if here and last in [name for name, _ in here.sessions] else config
