"""Trying a resume before it is needed: `python -m trainer drill` as a process that the page only watches."""

from __future__ import annotations

import glob
import shutil
import sys

from gui import look
from gui.places import Places
from gui.server import runner
from gui.server.side_process import Kind, Work
from trainer import files
from trainer.options import writing
from trainer.options.config import Config
from trainer.runs.run_folder import RunFolder

STEPS = 8
COLOURS = {"passed": "good", "stopped": ""}  # of verdicts; others are bad
DRILLS = Kind("drills", "A drill")
read = DRILLS.read


def start(settings: Config, places: Places) -> RunFolder:
    """Begin a drill of these options. Raises StartRefused."""
    run = RunFolder(places.home / settings.run_dir)
    config = DRILLS.file(run, ".toml")
    try:
        files.write_text(config, writing.to_toml(settings))
    except OSError as error:
        raise runner.StartRefused(f"A drill could not be started: {error}") from error
    DRILLS.start(run, ["drill", "--json", "--steps", str(STEPS), "--config", str(config)], places.home)
    return run


def stop(run: RunFolder) -> bool:
    """End a drill and the trainings it started; whether there was one. Nothing of the run itself is touched."""
    ended = DRILLS.stop(run)
    if ended and sys.platform == "win32":  # there it could not clean up
        for folder in run.path.parent.glob(f".drill-{glob.escape(run.path.name)}-*"):
            shutil.rmtree(folder, ignore_errors=True)
    return ended


def show(drill: Work | None, now: float) -> str:
    """In HTML: how far it is, or its verdict with the figures."""
    if drill is None:
        return ""
    if verdict := drill.last("verdict"):
        first, *others = [line for text in verdict["lines"] for line in text.splitlines() if line.strip()]
        return look.note(first, others, kind=COLOURS.get(verdict["verdict"], "bad"))
    if not drill.alive:
        return look.note("The drill ended without a verdict: it was killed.", kind="warn", log=drill.text)
    stage = drill.last("stage") or {"stage": 0, "of": 1, "doing": "Starting"}
    passed = max(0.0, now - drill.began)
    words = f"stage {stage['stage']} of {stage['of']}: {stage['doing']}" if stage["stage"] else stage["doing"]
    return look.note(f"Drill, for {passed:.0f} s, {words} ...") + look.progress(
        "drill", stage["stage"] / (stage["of"] + 1)
    )
