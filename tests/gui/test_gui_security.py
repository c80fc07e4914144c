"""Who is let in: the real application behind its guard, asked by friends and strangers."""

from __future__ import annotations

import base64
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from gui import app as gui_app
from gui.places import CODE, Places
from gui.server import security
from gui.server.security import Guard, Policy
from tests.gui.test_gui_fake_run import make_run

TOKEN = "t" * 43
HERE = "http://127.0.0.1:7860"
ROUTES = (
    "/",
    "/config",
    "/theme.css",
    "/gradio_api/info",
    "/gradio_api/queue/data?session_hash=x",
    "/gradio_api/upload",
)
OPEN = security.make_policy("127.0.0.1", 7860, username="", password="", token="", allowed_hosts=["train.example"])
WITH_TOKEN = security.make_policy("0.0.0.0", 7860, username="", password="", token=TOKEN, allowed_hosts=[])
WITH_PASSWORD = security.make_policy("0.0.0.0", 7860, username="anna", password="gehéim", token="", allowed_hosts=[])
COOKIE = {"Cookie": f"{WITH_TOKEN.cookie}={TOKEN}"}

Client = Callable[..., TestClient]
Launch = Callable[..., subprocess.Popen[str]]


def basic(username: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    folder = tmp_path_factory.mktemp("security")
    make_run(folder / "output")
    return Places(folder, folder / "state")


@pytest.fixture(scope="module")
def application(places: Places) -> Iterator[security.App]:
    inner = gui_app.make_application(places)
    with TestClient(inner):  # its start-up, once for all
        yield inner


@pytest.fixture
def client(application: security.App) -> Client:
    def make(policy: Policy, base_url: str = HERE) -> TestClient:
        return TestClient(Guard(application, policy), base_url=base_url, follow_redirects=False)

    return make


# --- Host ---


@pytest.mark.parametrize("name", ["127.0.0.1:7860", "localhost:7860", "LOCALHOST", "[::1]:7860", "train.example"])
def test_the_servers_own_names_are_answered(client: Client, name: str) -> None:
    assert client(OPEN).get("/", headers={"Host": name}).status_code == 200


@pytest.mark.parametrize(
    "name",
    [
        "evil.example",
        "127.0.0.1.evil.example:7860",
        "evil.example:7860",
        "localhost@evil.example",
        "",
        "a b",
        "127.0.0.1:x",
    ],
)
@pytest.mark.parametrize("path", ROUTES)
def test_a_foreign_host_is_refused_everywhere(client: Client, path: str, name: str) -> None:
    assert client(OPEN).get(path, headers={"Host": name}).status_code == 403


def test_two_host_headers_are_refused(client: Client) -> None:
    headers = [("Host", "127.0.0.1:7860"), ("Host", "evil.example")]
    assert client(OPEN).get("/", headers=headers).status_code == 403


# --- Origin ---


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:9999", "http://127.0.0.1:7860.evil.example"]
)
@pytest.mark.parametrize("policy", [OPEN, WITH_TOKEN], ids=["open", "token"])
def test_a_foreign_origin_is_refused_everywhere(client: Client, policy: Policy, origin: str) -> None:
    for path in ROUTES:
        assert client(policy).get(path, headers={"Origin": origin, **COOKIE}).status_code == 403
        assert client(policy).post(path, headers={"Origin": origin, **COOKIE}).status_code == 403
        assert client(policy).options(path, headers={"Origin": origin, **COOKIE}).status_code == 403


def test_the_pages_own_origin_is_let_through(client: Client) -> None:
    assert client(OPEN).get("/", headers={"Origin": HERE}).status_code == 200


def test_behind_a_proxy_that_tells_its_own_host_a_named_origin_is_let_through(client: Client) -> None:
    upload = {"files": ("x.toml", b"seed = 1")}
    for origin in ("https://train.example", "http://train.example:8080"):
        assert client(OPEN).post("/gradio_api/upload", files=upload, headers={"Origin": origin}).status_code == 200
    for origin in ("https://train.example.evil", "ftp://train.example", "https://x@train.example"):
        assert client(OPEN).post("/gradio_api/upload", files=upload, headers={"Origin": origin}).status_code == 403


def test_a_page_of_another_site_cannot_load_anything_as_an_image(client: Client) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
    assert client(OPEN).get("/theme.css", headers=headers).status_code == 403


def test_a_link_from_another_site_opens_the_page(client: Client) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert client(OPEN).get("/", headers=headers).status_code == 200


# --- token ---


@pytest.mark.parametrize("path", ROUTES)
def test_without_a_token_everything_is_refused(client: Client, path: str) -> None:
    guarded = client(WITH_TOKEN)
    assert guarded.get(path).status_code == 401
    assert guarded.post(path).status_code == 401


@pytest.mark.parametrize("token", ["wrong", TOKEN[:-1], TOKEN + "t", "", "ü"])
def test_a_wrong_token_is_refused(client: Client, token: str) -> None:
    guarded = client(WITH_TOKEN)
    assert guarded.get("/", params={"token": token}).status_code == 401
    assert guarded.get("/", headers=[(b"Authorization", f"Bearer {token}".encode())]).status_code == 401
    assert guarded.get("/", headers=[(b"Cookie", f"{WITH_TOKEN.cookie}={token}".encode())]).status_code == 401


def test_the_token_in_the_address_becomes_a_cookie_that_scripts_and_other_sites_cannot_use(client: Client) -> None:
    answer = client(WITH_TOKEN).get(f"/?__theme=dark&token={TOKEN}")
    assert answer.status_code == 303
    assert answer.headers["location"] == "./?__theme=dark"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    assert client(WITH_TOKEN).get("/", headers={"Cookie": cookie.split(";")[0]}).status_code == 200


def test_the_way_from_the_token_leads_to_no_other_site(client: Client) -> None:
    answer = client(WITH_TOKEN).get(f"//evil.example/?token={TOKEN}")
    assert answer.headers["location"] == "./"


def test_the_token_works_as_a_bearer_for_scripts(client: Client) -> None:
    assert client(WITH_TOKEN).get("/config", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_behind_a_token_any_host_is_answered(client: Client) -> None:
    assert client(WITH_TOKEN, "http://gpu-box.lan:7860").get("/", headers=COOKIE).status_code == 200


# --- username and password ---


@pytest.mark.parametrize(
    "headers",
    [
        {},
        basic("anna", "wrong"),
        basic("eve", "gehéim"),
        basic("", ""),
        {"Authorization": "Basic !"},
        {"Authorization": "x"},
    ],
)
def test_without_the_right_name_and_password_everything_is_refused(client: Client, headers: dict[str, str]) -> None:
    for path in ROUTES:
        answer = client(WITH_PASSWORD).get(path, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Basic ")


def test_the_right_name_and_password_are_let_in(client: Client) -> None:
    assert client(WITH_PASSWORD).get("/", headers=basic("anna", "gehéim")).status_code == 200


# --- health, web sockets, uploads, files ---


@pytest.mark.parametrize("policy", [OPEN, WITH_TOKEN, WITH_PASSWORD], ids=["open", "token", "password"])
def test_health_is_answered_to_everybody(client: Client, policy: Policy) -> None:
    answer = client(policy, "http://evil.example").get("/healthz")
    assert (answer.status_code, answer.text) == (200, "ok")


@pytest.mark.parametrize(
    ("policy", "headers"),
    [
        (OPEN, {"Origin": "http://evil.example"}),
        (OPEN, {"Host": "evil.example"}),
        (WITH_TOKEN, {}),
        (WITH_PASSWORD, {}),
    ],
)
def test_a_strangers_web_socket_is_closed(client: Client, policy: Policy, headers: dict[str, str]) -> None:
    with pytest.raises(WebSocketDisconnect), client(policy).websocket_connect("/gradio_api/ws", headers=headers):
        pass


def test_a_stranger_cannot_upload(client: Client) -> None:
    files = {"files": ("x.txt", b"x")}
    assert (
        client(OPEN).post("/gradio_api/upload", files=files, headers={"Origin": "http://evil.example"}).status_code
        == 403
    )
    assert client(WITH_TOKEN).post("/gradio_api/upload", files=files).status_code == 401


def test_an_upload_that_says_it_is_too_large_is_refused(client: Client) -> None:
    headers = {"Content-Length": str(security.LARGEST_BODY + 1)}
    assert client(OPEN).post("/gradio_api/upload", content=b"x", headers=headers).status_code == 413


def test_an_upload_that_does_not_say_its_length_is_cut_off(application: security.App) -> None:
    small = Policy(OPEN.hosts, largest_body=1000)

    def endless() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="files"; filename="x"\r\n\r\n'
        for _ in range(100):
            yield b"x" * 100

    answer = TestClient(Guard(application, small), base_url=HERE).post(
        "/gradio_api/upload", content=endless(), headers={"Content-Type": "multipart/form-data; boundary=b"}
    )
    assert answer.status_code == 413


def test_uploads_lie_in_a_folder_of_this_page_alone(client: Client, places: Places) -> None:
    answer = client(OPEN).post("/gradio_api/upload", files={"files": ("x.toml", b"seed = 1")})
    assert Path(answer.json()[0]).is_relative_to(places.uploads)
    assert places.uploads.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "{home}/output/fox/config.toml", "{home}/output/fox/samples/00000050-0.png"]
)
def test_files_of_the_disk_are_not_served(client: Client, places: Places, path: str) -> None:
    asked = "/gradio_api/file=" + path.format(home=places.home)
    assert client(OPEN).get(asked).status_code in (403, 404)


def test_nothing_the_page_does_is_offered_as_an_interface(client: Client) -> None:
    offered = client(OPEN).get("/gradio_api/info").json()
    assert (offered["named_endpoints"], offered["unnamed_endpoints"]) == ({}, {})


def test_the_password_and_the_state_are_not_in_the_page(client: Client, places: Places) -> None:
    page = client(WITH_PASSWORD).get("/", headers=basic("anna", "gehéim")).text
    assert "gehéim" not in page


def test_no_page_may_frame_this_one_and_nothing_comes_from_outside(client: Client) -> None:
    headers = client(OPEN).get("/").headers
    assert headers["x-frame-options"] == "SAMEORIGIN"
    assert "default-src 'self'" in headers["content-security-policy"]


# --- policies and the token file ---


def test_a_server_that_others_can_reach_is_never_open() -> None:
    with pytest.raises(ValueError, match="needs a token"):
        security.make_policy("0.0.0.0", 7860, username="", password="", token="", allowed_hosts=[])


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("localhost", True), ("::1", True), ("0.0.0.0", False),
     ("192.168.1.2", False), ("::", False), ("gpu-box", False), ("", False)],
)  # fmt: skip
def test_only_loopback_counts_as_private(host: str, loopback: bool) -> None:
    assert security.is_loopback(host) is loopback


def test_the_token_is_kept_in_a_file_of_its_owner_and_stays_the_same(tmp_path: Path) -> None:
    path = tmp_path / "state" / "token"
    token = security.kept_token(path)
    assert len(token) >= 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert security.kept_token(path) == token


def test_a_token_that_others_could_read_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "token"
    token = security.kept_token(path)
    path.chmod(0o644)
    assert security.kept_token(path) != token
    assert path.stat().st_mode & 0o777 == 0o600


# --- the command line ---


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Starts `python app.py` with a home of its own; what still runs at the end is killed."""
    begun: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(CODE / "app.py"), "--headless", *arguments],
            env=os.environ | {"REKINDLE_HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "state")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        begun.append(process)
        return process

    yield start
    for process in begun:
        process.kill()
        process.communicate()


def test_a_taken_port_is_told_in_a_sentence(launch: Launch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = launch("--server_port", str(taken.getsockname()[1]))
        _, told = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "Address already in use" in told and "--server_port" in told
    assert "Traceback" not in told


def test_a_username_without_a_password_is_refused(launch: Launch) -> None:
    process = launch("--username", "anna")
    _, told = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "go together" in told


def test_listening_to_others_prints_the_token_once_and_sigterm_ends_the_server(launch: Launch, tmp_path: Path) -> None:
    process = launch("--listen", "0.0.0.0", "--server_port", "0")
    assert process.stdout is not None
    first = process.stdout.readline()
    token = (tmp_path / "state" / "rekindle" / "token").read_text().strip()
    assert first.strip().endswith(f"/?token={token}")
    process.send_signal(signal.SIGTERM)
    rest, errors = process.communicate(timeout=300)
    assert process.returncode == 0
    assert token not in rest + errors
    assert "Traceback" not in errors
