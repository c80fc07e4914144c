"""Who may talk to the server: wrapped around everything it serves. It knows nothing of training or of Gradio."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hmac
import ipaddress
import os
import secrets
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from html import escape
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
LARGEST_BODY = 32 << 20  # bytes of one request, uploads included
HEALTH = "/healthz"
TOKEN_FIELD = (
    '<form method="get" action="./"><label>Token <input name="token" type="password" autofocus></label> '
    "<button>Open</button></form>"
)
SAFE_HEADERS = (
    (b"x-frame-options", b"SAMEORIGIN"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (
        b"content-security-policy",
        b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'; base-uri 'self'",
    ),
)


@dataclass(frozen=True)
class Policy:
    """Who is let in.

    `hosts`: the names under which the server answers; None when it answers under any, because a secret protects it.
    `proxies`: names whose pages are this server's own, whatever Host header a proxy sends. Without token and username
    everybody who reaches the server under such a name is let in.
    """

    hosts: frozenset[str] | None
    token: str = ""
    username: str = ""
    password: str = ""
    cookie: str = "rekindle_token"
    proxies: frozenset[str] = frozenset()
    largest_body: int = LARGEST_BODY


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can be reached from this machine only."""
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    return False


def make_policy(
    listen: str, port: int, *, username: str, password: str, token: str, allowed_hosts: Iterable[str]
) -> Policy:
    """The policy of a server. Beyond loopback it is never open: give a username and password, or a token."""
    guarded = bool(token or username)
    if not is_loopback(listen) and not guarded:
        raise ValueError("a server that others can reach needs a token or a username and password")
    proxies = frozenset(name.lower().strip("[]") for name in allowed_hosts)
    hosts = proxies | LOOPBACK_NAMES | {listen.lower().strip("[]")} if is_loopback(listen) else None
    token = "" if username else token
    return Policy(hosts, token, username, password, cookie=f"rekindle_token_{port}", proxies=proxies)


def kept_token(path: Path) -> str:
    """The token in a file that only its owner can read, made when there is none. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        stat = path.lstat()
        own = os.name == "nt" or stat.st_mode & 0o077 == 0  # on Windows the profile's folder is the user's alone
        text = path.read_text(encoding="ascii", errors="replace").strip()
        if path.is_file() and not path.is_symlink() and own and len(text) >= 32:
            return text
        path.unlink()  # others could read it, or it is no token
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    token = secrets.token_urlsafe(32)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(token + "\n")
    return token


class Guard:
    """An ASGI application around another one, which sees only the requests that the policy lets through."""

    def __init__(self, app: App, policy: Policy) -> None:
        self._app = app
        self._policy = policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] not in ("http", "websocket"):
            return
        headers = _headers(scope)
        if scope["type"] == "http" and scope["path"] == HEALTH:
            await _answer(send, 200, "ok")
            return
        status, reason = self._refusal(scope, headers)
        if status == 303:
            await _answer(send, 303, "", [(b"location", reason.encode()), (b"set-cookie", self._cookie().encode())])
        elif status:
            await self._refuse(scope, receive, send, status, reason)
        elif scope["type"] == "websocket":
            await self._app(scope, receive, send)
        else:
            await self._bounded(scope, receive, _with_headers(send))

    # --- deciding ---------------------------------------------------------------------------------------------------

    def _refusal(self, scope: Scope, headers: dict[str, list[str]]) -> tuple[int, str]:
        """The status and reason of a refusal; 0: let through; 303: the token in the address is right, go there."""
        hosts, origins = headers.get("host", []), headers.get("origin", [])
        name = _host_name(hosts[0]) if len(hosts) == 1 else ""
        if not name or (self._policy.hosts is not None and name not in self._policy.hosts):
            return 403, "This server does not answer under that name; --allowed_host NAME adds one."
        if len(origins) > 1 or (origins and not self._is_ours(origins[0], hosts[0])):
            return 403, "Requests from pages of other sites are refused."
        sites, modes = headers.get("sec-fetch-site", []), headers.get("sec-fetch-mode", [])
        if "cross-site" in sites and "navigate" not in modes:
            return 403, "Requests from pages of other sites are refused."
        if self._policy.username:
            return (0, "") if self._has_password(headers) else (401, "A username and password are needed.")
        if self._policy.token:
            return self._check_token(scope, headers)
        return 0, ""

    def _is_ours(self, origin: str, host: str) -> bool:
        """Whether a page of that origin is this server's own."""
        scheme, _, netloc = origin.partition("://")
        return _same_place(origin, host) or (scheme in ("http", "https") and _host_name(netloc) in self._policy.proxies)

    def _check_token(self, scope: Scope, headers: dict[str, list[str]]) -> tuple[int, str]:
        query = parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
        given = [value for name, value in query if name == "token"]
        if given and scope["type"] == "http" and scope["method"] in ("GET", "HEAD"):
            if not self._is_token(given[0]):
                return 401, "That token is not right."
            rest = urlencode([(name, value) for name, value in query if name != "token"])
            return 303, f"./?{rest}" if rest else "./"  # relative: it cannot lead to another site
        for header in headers.get("cookie", []):
            with contextlib.suppress(CookieError):
                cookie = SimpleCookie(header).get(self._policy.cookie)
                if cookie is not None and self._is_token(cookie.value):
                    return 0, ""
        for header in headers.get("authorization", []):
            scheme, _, value = header.partition(" ")
            if scheme.lower() == "bearer" and self._is_token(value.strip()):
                return 0, ""
        return 401, "A token is needed: open the address that was printed when the server started."

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), self._policy.token.encode())

    def _has_password(self, headers: dict[str, list[str]]) -> bool:
        for header in headers.get("authorization", []):
            scheme, _, value = header.partition(" ")
            if scheme.lower() != "basic":
                continue
            try:
                given = base64.b64decode(value.strip(), validate=True)
            except (binascii.Error, ValueError):
                continue
            username, _, password = given.partition(b":")
            right_name = hmac.compare_digest(username, self._policy.username.encode())
            right_password = hmac.compare_digest(password, self._policy.password.encode())
            if right_name & right_password:
                return True
        return False

    def _cookie(self) -> str:
        return f"{self._policy.cookie}={self._policy.token}; Path=/; HttpOnly; SameSite=Strict"

    # --- answering --------------------------------------------------------------------------------------------------

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, status: int, reason: str) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": reason[:120]})
            return
        extra = []
        if status == 401 and self._policy.username:
            extra.append((b"www-authenticate", b'Basic realm="Rekindle", charset="UTF-8"'))
        field = ""
        if status == 401 and self._policy.token:
            field = TOKEN_FIELD
        page = f"<!doctype html><title>Rekindle</title><p>{escape(reason)}</p>{field}"
        await _answer(send, status, page, extra, "text/html; charset=utf-8")

    async def _bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application on a request whose body is bounded, whether it says its length or not."""
        largest = self._policy.largest_body
        length = _headers(scope).get("content-length", ["0"])[0]
        too_large = f"A request may have {largest >> 20} MiB at most."
        if not length.isdigit() or int(length) > largest:
            await _answer(send, 413, too_large)
            return
        received, begun, refused = 0, False, False

        async def counted() -> Message:
            nonlocal received, refused
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > largest:
                    refused = True
                    if not begun:
                        await _answer(send, 413, too_large)
                    raise _TooLarge
            return message

        async def sending(message: Message) -> None:
            nonlocal begun
            begun = True
            if not refused:  # the application would answer its own failure
                await send(message)

        with contextlib.suppress(_TooLarge):
            await self._app(scope, counted, sending)


class _TooLarge(Exception):
    """The body of a request goes beyond its bound."""


def _headers(scope: Scope) -> dict[str, list[str]]:
    result: dict[str, list[str]] = {}
    for name, value in scope.get("headers", []):
        result.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    return result


def _host_name(netloc: str) -> str:
    """The name in `name:port`, in lower case; empty when it is not of that form."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(f"//{netloc}")
        if parts.netloc == netloc and parts.username is None and not (parts.path or parts.query or parts.fragment):
            _ = parts.port  # raises when it is no number
            return (parts.hostname or "").rstrip(".")
    return ""


def _same_place(origin: str, host: str) -> bool:
    """Whether an Origin header names the host and port that the Host header names."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(origin)
        usual = {"http": 80, "https": 443}.get(parts.scheme)
        if usual is None:
            return False
        there = urlsplit(f"//{host}")
        return (parts.hostname, parts.port or usual) == (there.hostname, there.port or usual)
    return False


async def _answer(
    send: Send, status: int, text: str, extra: Iterable[tuple[bytes, bytes]] = (), kind: str = "text/plain"
) -> None:
    body = text.encode()
    headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
    headers += [(b"cache-control", b"no-store"), *SAFE_HEADERS, *extra]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *SAFE_HEADERS]
        await send(message)

    return sending
