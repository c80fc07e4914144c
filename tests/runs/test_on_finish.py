"""What is done when a session ends: a command or a web address of the owner's, and never a shell."""

from __future__ import annotations

import http.server
import json
import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer.runs import on_finish, run_folder
from trainer.runs.run_folder import RunFolder

SECRET = "tok-3n"


def ended_run(folder: Path, status: run_folder.Status = "finished") -> RunFolder:
    """A run whose last session was this process's."""
    run = RunFolder(folder / "fox")
    run.path.mkdir()
    session = {"session": 1, "to_step": 40, "total_steps": 40, "reason": "finished", **run_folder.this_process()}
    run_folder.write_run(run, run_folder.new_run("fox") | {"status": status, "sessions": [session]})
    return run


@pytest.fixture
def address() -> Iterator[tuple[str, list[dict[str, object]]]]:
    """A web address, and what it is sent."""
    sent: list[dict[str, object]] = []

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(404 if "gone" in self.path else 204)
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/hook", sent
    server.shutdown()
    thread.join()
    server.server_close()


def test_by_default_nothing_is_done(tmp_path: Path) -> None:
    run = ended_run(tmp_path)
    on_finish.tell(run, {})
    assert on_finish.described({}) == ""


def test_the_command_gets_its_words_as_they_are_and_the_message_on_its_input(tmp_path: Path) -> None:
    run, kept = ended_run(tmp_path), tmp_path / "kept.json"
    told = "[json.load(sys.stdin), sys.argv[2:], os.environ['REKINDLE_STATUS']]"
    script = f"import json,os,sys; json.dump({told}, open(sys.argv[1],'w'))"
    words = f"{sys.executable} -c \"{script}\" {kept} '$(touch {tmp_path}/shell)' ; | &&"
    on_finish.tell(run, {on_finish.COMMAND: words})
    message, arguments, status = json.loads(kept.read_text())
    assert arguments == [f"$(touch {tmp_path}/shell)", ";", "|", "&&"]
    assert not (tmp_path / "shell").exists()
    assert (message["run"], message["step"], message["total_steps"], status) == ("fox", 40, 40, "finished")
    assert message["text"] == "fox: finished at step 40 of 40"


def test_the_address_is_sent_the_message(tmp_path: Path, address: tuple[str, list[dict[str, object]]]) -> None:
    on_finish.tell(ended_run(tmp_path), {on_finish.WEBHOOK: address[0]})
    assert [one["status"] for one in address[1]] == ["finished"]


@pytest.mark.parametrize(
    "environment",
    [
        {on_finish.COMMAND: f"/nowhere/program --token {SECRET}"},
        {on_finish.COMMAND: f"{sys.executable} -c 'raise SystemExit(3)' {SECRET}"},
        {on_finish.COMMAND: f"program 'never closed {SECRET}"},
        {on_finish.WEBHOOK: f"http://127.0.0.1:1/{SECRET}"},
        {on_finish.WEBHOOK: f"file:///etc/passwd?{SECRET}"},
        {on_finish.WEBHOOK: f"http://127.0.0.1:port/{SECRET}"},
    ],
)
def test_what_goes_wrong_is_a_warning_without_secrets(
    tmp_path: Path, environment: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        on_finish.tell(ended_run(tmp_path), environment)
    assert caplog.messages and SECRET not in caplog.text
    assert SECRET not in on_finish.described(environment)


def test_a_refusing_address_is_a_warning(
    tmp_path: Path, address: tuple[str, list[dict[str, object]]], caplog: pytest.LogCaptureFixture
) -> None:
    on_finish.tell(ended_run(tmp_path), {on_finish.WEBHOOK: f"{address[0]}/gone/{SECRET}"})
    assert "answered 404" in caplog.text and SECRET not in caplog.text


def test_a_session_of_another_process_is_not_told(tmp_path: Path, address: tuple[str, list[dict[str, object]]]) -> None:
    run = ended_run(tmp_path)
    record = run_folder.read_run(run)
    assert record is not None
    record["sessions"][-1]["pid"] += 1
    run_folder.write_run(run, record)
    on_finish.tell(run, {on_finish.WEBHOOK: address[0]})
    assert address[1] == []
