"""What the owner of the machine wants done when a session ends: a command, a web address, or nothing. No torch here.

They are set in the environment and nowhere else: a preset that somebody shares cannot bring a command along, and the
secrets that such addresses hold are in no file of a run. Neither arguments nor addresses are ever logged.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import shlex
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from trainer.runs import run_folder
from trainer.runs.run_folder import RunFolder, RunUnreadable

logger = logging.getLogger(__name__)
COMMAND = "REKINDLE_ON_FINISH"  # words, as for a shell; there is no shell, so that nothing in them is expanded
WEBHOOK = "REKINDLE_ON_FINISH_WEBHOOK"
COMMAND_SECONDS = 60.0
WEBHOOK_SECONDS = 10.0


def described(environment: Mapping[str, str] = os.environ) -> str:
    """What will be done, without its secrets: "runs notify-send and calls ntfy.sh"; empty for nothing."""
    lines = []
    words = _words(environment)
    if words:
        lines.append(f"runs {Path(words[0]).name}")
    if environment.get(WEBHOOK, "").strip():
        lines.append(f"calls {urlsplit(environment[WEBHOOK].strip()).hostname or 'a web address'}")
    return " and ".join(lines)


def silenced(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of a training of whose end nobody wants to hear."""
    return {name: value for name, value in environment.items() if name not in (COMMAND, WEBHOOK)}


def tell(run: RunFolder, environment: Mapping[str, str] = os.environ) -> None:
    """Do it for the session that this process has just ended in the run; nothing where it had none.

    What goes wrong is a warning: a training that ended well has ended well.
    """
    if not environment.get(COMMAND, "").strip() and not environment.get(WEBHOOK, "").strip():
        return
    message = _message(run)
    if message is None:
        return
    words = _words(environment)
    if words:
        _run(words, message, environment)
    if environment.get(WEBHOOK, "").strip():
        _call(environment[WEBHOOK].strip(), message)


def _words(environment: Mapping[str, str]) -> list[str]:
    try:
        return shlex.split(environment.get(COMMAND, ""))
    except ValueError:
        logger.warning("%s cannot be split into words: a quotation mark is not closed", COMMAND)
        return []


def _message(run: RunFolder) -> dict[str, Any] | None:
    """What is told of the session; None when the run's last one is not this process's own."""
    try:
        record = run_folder.read_run(run)
    except RunUnreadable:
        return None
    sessions = record["sessions"] if record else []
    here = run_folder.this_process()
    if not sessions or any(sessions[-1].get(key) != here[key] for key in ("pid", "process_start")):
        return None
    last, name = sessions[-1], run.path.name
    status, reason = record["status"] if record else "", str(last.get("reason", ""))
    step, total = last.get("to_step"), last.get("total_steps")
    steps = f"step {step:,} of {total:,}" if step is not None and total else f"step {step}"
    text = f"{name}: {status} at {steps}"
    return {
        "text": f"{text}. {reason}" if status == "failed" else text,  # what Slack, Mattermost and ntfy show
        "content": text,  # and Discord
        "run": name,
        "path": str(run.path.absolute()),
        "status": status,
        "reason": reason,
        "step": step,
        "total_steps": total,
        "session": last.get("session"),
    }


def _run(words: list[str], message: Mapping[str, Any], environment: Mapping[str, str]) -> None:
    """Run the command with the message as JSON on its standard input and, in short, in its environment."""
    short = {f"REKINDLE_{key.upper()}": str(message[key]) for key in ("run", "path", "status", "reason", "step")}
    program = Path(words[0]).name
    try:
        done = subprocess.run(
            words,
            input=json.dumps(message).encode(),
            env={**environment, **short},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=COMMAND_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        logger.warning("%s: %s took more than %.0f s and was ended", COMMAND, program, COMMAND_SECONDS)
    except (OSError, ValueError) as error:
        logger.warning("%s: %s cannot be run: %s", COMMAND, program, getattr(error, "strerror", None) or "bad words")
    else:
        if done.returncode:
            logger.warning("%s: %s ended with exit code %d", COMMAND, program, done.returncode)


def _call(address: str, message: Mapping[str, Any]) -> None:
    """Send the message as JSON by POST. Only http and https."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        logger.warning("%s is no address that begins with http:// or https://", WEBHOOK)
        return
    request = urllib.request.Request(
        address, json.dumps(message).encode(), {"Content-Type": "application/json", "User-Agent": "Rekindle"}
    )
    try:
        with urllib.request.urlopen(request, timeout=WEBHOOK_SECONDS):
            return
    except urllib.error.HTTPError as error:
        logger.warning("%s: %s answered %d", WEBHOOK, parts.hostname, error.code)
    except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: of a port that is no number
        logger.warning("%s: %s cannot be reached (%s)", WEBHOOK, parts.hostname, type(error).__name__)
