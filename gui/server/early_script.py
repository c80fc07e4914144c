"""A script in the head of the page, before any of Gradio's: `head` of a page comes only after they have begun."""

from __future__ import annotations

from gui.server.security import App, Message, Receive, Scope, Send

# Gradio's sign that something is loading counts its time at every frame, also once it is hidden or gone: that alone
# takes a twentieth of a core for as long as the page is open. Nothing here shows that time.
NO_COUNTING = rb"""<script>
(() => {
  const frame = window.requestAnimationFrame.bind(window);
  const counts = new WeakMap(); // whether a function is such a count
  window.requestAnimationFrame = (callback) => {
    if (!counts.has(callback)) counts.set(callback, /performance\.now\(\)-.{1,20}\/1e3/.test(callback));
    const idle = () => !document.querySelector('[data-testid="status-tracker"]:not(.hide)');
    return counts.get(callback) && idle() ? 0 : frame(callback);
  };
})();
</script>"""


class EarlyScript:
    """An ASGI application around another one, whose page begins with a script. All else goes through as it is."""

    def __init__(self, app: App, script: bytes = NO_COUNTING) -> None:
        self._app = app
        self._script = script

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].removeprefix(scope.get("root_path", "")) not in ("", "/"):
            await self._app(scope, receive, send)
            return
        plain = [(name, value) for name, value in scope["headers"] if name.lower() != b"accept-encoding"]
        begun: list[Message] = []
        body = b""

        async def sending(message: Message) -> None:
            nonlocal body
            if message["type"] == "http.response.start":
                begun.append(message)
                return
            if message["type"] != "http.response.body":
                await send(message)
                return
            body += message.get("body", b"")
            if message.get("more_body"):
                return
            whole = body.replace(b"<head>", b"<head>" + self._script, 1)
            headers = [(name, value) for name, value in begun[0]["headers"] if name.lower() != b"content-length"]
            headers.append((b"content-length", str(len(whole) if scope["method"] != "HEAD" else len(body)).encode()))
            await send({**begun[0], "headers": headers})
            await send({"type": "http.response.body", "body": whole})

        await self._app({**scope, "headers": plain}, receive, sending)
