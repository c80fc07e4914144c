"""A machine that says it is about to be taken away: the training stops in time, saved."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.runs_at_tiny_size import config_for, events_of, run, steps_of
from trainer.refusal import Refused
from trainer.runs import preemption

NOTICES = {
    "aws": '{"action": "terminate", "time": "2030-01-01T00:00:00Z"}',
    "gcp": "TRUE",
    "azure": json.dumps({"DocumentIncarnation": 1, "Events": [{"EventId": "1", "EventType": "Preempt"}]}),
}
NONE_YET = {"aws": None, "gcp": "FALSE", "azure": json.dumps({"DocumentIncarnation": 1, "Events": []})}


class Machine(ThreadingHTTPServer):
    """The address on a cloud's machine that tells about it; refuses whoever does not ask as its cloud demands."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.said: dict[str, str | None] = dict(NONE_YET)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answers(BaseHTTPRequestHandler):
    server: Machine

    def do_PUT(self) -> None:
        asked = self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        self._answer("secret" if asked else None)

    def do_GET(self) -> None:
        said = self.server.said
        answers = {
            "/latest/meta-data/spot/instance-action": ("X-aws-ec2-metadata-token", "secret", said["aws"]),
            "/computeMetadata/v1/instance/preempted": ("Metadata-Flavor", "Google", said["gcp"]),
            "/metadata/scheduledevents?api-version=2020-07-01": ("Metadata", "true", said["azure"]),
        }
        header, value, text = answers[self.path]
        self._answer(text if self.headers[header] == value else None)

    def _answer(self, text: str | None) -> None:
        self.send_response(404 if text is None else 200)
        self.end_headers()
        self.wfile.write((text or "").encode())

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("cloud", list(NOTICES))
def test_each_clouds_notice_is_understood(cloud: str, machine: Machine) -> None:
    notice = preemption.clouds(machine.address, machine.address)[cloud]
    assert not notice.is_given()
    machine.said[cloud] = NOTICES[cloud]
    assert notice.is_given()


def test_other_events_of_a_cloud_are_no_notice(machine: Machine) -> None:
    machine.said["azure"] = json.dumps({"Events": [{"EventType": "Freeze"}]})
    assert not preemption.clouds(machine.address)["azure"].is_given()
    machine.said["azure"] = "no JSON"
    assert not preemption.clouds(machine.address)["azure"].is_given()


def test_a_machine_that_does_not_answer_gives_no_notice() -> None:
    assert not preemption.Notice("http://127.0.0.1:9/nothing", bool).is_given()


def test_a_training_stops_and_saves_when_the_notice_comes_and_goes_on_elsewhere(
    tiny_model: Path, tiny_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(tiny_model, tiny_images, tmp_path / "run", save_every_n_steps=0, max_train_steps=10**6)
    notice = tmp_path / "notice"
    monkeypatch.setenv(preemption.VARIABLE, str(notice))
    monkeypatch.setattr(preemption, "POLL_SECONDS", 0.05)
    trained, events = threading.Event(), Path(config.run_dir, "events.jsonl")

    def give_notice() -> None:
        while not trained.wait(0.05):
            if events.exists() and re.search(rb'"event": ?"step"', events.read_bytes()):
                notice.touch()
                return

    giver = threading.Thread(target=give_notice)
    giver.start()
    try:
        assert run(config) == "stopped"
    finally:
        trained.set()
        giver.join()
    (warning,) = events_of(config, "warning")
    assert warning["kind"] == "preemption" and "about to be taken away" in warning["message"]
    stopped = max(steps_of(config))
    assert [event["global_step"] for event in events_of(config, "checkpoint_saved")] == [stopped]
    monkeypatch.delenv(preemption.VARIABLE)
    again = config.replace(resume_from_checkpoint="latest", max_train_steps=stopped + 1)
    assert run(again) == "finished"
    assert max(steps_of(again)) == stopped + 1


@pytest.mark.parametrize("value", ["awz", "notice.txt", "ftp://there"])
def test_what_is_no_notice_is_refused(value: str) -> None:
    with pytest.raises(Refused, match=r"REKINDLE_PREEMPTION_NOTICE .*is none of aws, gcp, azure"):
        preemption.notice_of({preemption.VARIABLE: value})


def test_nothing_is_asked_where_nothing_is_set() -> None:
    assert preemption.notice_of({}) is None
