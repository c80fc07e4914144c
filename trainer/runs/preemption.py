"""Notices that this machine is about to be taken away, where a cloud gives them to the machine itself. No torch here.

Which one is a property of the machine, so the environment says it: a preset that somebody shares asks no address.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trainer.refusal import Refused

logger = logging.getLogger(__name__)
VARIABLE = "REKINDLE_PREEMPTION_NOTICE"
POLL_SECONDS = 5.0  # a notice comes 30 s (Google, Azure) or 2 minutes (Amazon) before the end
ANSWER_SECONDS = 2.0
METADATA = "http://169.254.169.254"
ENDING = ("Preempt", "Terminate")  # Azure's kinds of events after which the machine is gone
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # what the machine says is asked of no proxy


@dataclass(frozen=True)
class Notice:
    """Where a notice is looked for. `is_one` says whether an answer is one; `token`: a PUT address and the header that
    its answer goes into."""

    address: str
    is_one: Callable[[str], bool]
    headers: Mapping[str, str] = field(default_factory=dict)
    token: tuple[str, Mapping[str, str], str] | None = None

    def is_given(self) -> bool:
        """Whether the machine is about to be taken away; False where nobody answers, or says that there is none."""
        headers = dict(self.headers)
        try:
            if self.token:
                address, asking, header = self.token
                headers[header] = _answer(address, asking, "PUT")
            return self.is_one(_answer(self.address, headers))
        except (OSError, ValueError):  # Amazon answers 404 while there is no notice
            return False


def _answer(address: str, headers: Mapping[str, str], method: str = "GET") -> str:
    request = urllib.request.Request(address, headers=dict(headers), method=method)
    with _OPENER.open(request, timeout=ANSWER_SECONDS) as answer:
        return str(answer.read(1 << 16).decode(errors="replace"))


def _is_anything(answer: str) -> bool:
    return answer.strip().lower() not in ("", "false", "none", "no")


def _has_ending(answer: str) -> bool:
    events = json.loads(answer).get("Events", [])
    return any(event.get("EventType") in ENDING for event in events)


def clouds(metadata: str = METADATA, google: str = "http://metadata.google.internal") -> dict[str, Notice]:
    """The notices of clouds by their names, as the clouds document them."""
    return {
        "aws": Notice(
            f"{metadata}/latest/meta-data/spot/instance-action",
            _is_anything,
            token=(
                f"{metadata}/latest/api/token",
                {"X-aws-ec2-metadata-token-ttl-seconds": "300"},
                "X-aws-ec2-metadata-token",
            ),
        ),
        "gcp": Notice(f"{google}/computeMetadata/v1/instance/preempted", _is_anything, {"Metadata-Flavor": "Google"}),
        "azure": Notice(
            f"{metadata}/metadata/scheduledevents?api-version=2020-07-01", _has_ending, {"Metadata": "true"}
        ),
    }


def notice_of(environment: Mapping[str, str] = os.environ) -> Callable[[], bool] | None:
    """What tells whether a notice is given; None where none is to be looked for. Raises Refused."""
    value = environment.get(VARIABLE, "").strip()
    if not value:
        return None
    if notice := clouds().get(value):
        return notice.is_given
    if value.startswith(("http://", "https://")):
        return Notice(value, _is_anything).is_given
    path = Path(value).expanduser()
    if path.is_absolute():
        return path.exists
    raise Refused(
        f"{VARIABLE} (in the environment): {value!r} is none of {', '.join(clouds())}, no http:// address and no "
        "absolute path of a file"
    )


@contextlib.contextmanager
def watched(is_given: Callable[[], bool] | None, tell: Callable[[], None]) -> Iterator[None]:
    """Within, a thread looks for the notice every few seconds; `tell` is called once, when it is given."""
    if is_given is None:
        yield
        return
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            if is_given():
                tell()
                return
            over.wait(POLL_SECONDS)

    thread = threading.Thread(target=look, name="preemption", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
