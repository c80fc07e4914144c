"""What Gradio keeps of every opened page, held within bounds."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import fastapi
import gradio as gr

MOST = 10  # pages of which Gradio remembers something, the latest used ones; each takes more than a megabyte
SECONDS = 30.0  # between two looks for copies


def bound(blocks: gr.Blocks, server: fastapi.FastAPI) -> None:
    """Keep what `server`, before the page is mounted there, holds of the pages that are opened within bounds."""
    blocks.state_session_capacity = MOST
    server.router.lifespan_context = lambda _: _forgetting(blocks)


@contextlib.asynccontextmanager
async def _forgetting(blocks: gr.Blocks) -> AsyncIterator[None]:
    task = asyncio.create_task(_forget_now_and_then(blocks))
    try:
        yield
    finally:
        task.cancel()


async def _forget_now_and_then(blocks: gr.Blocks) -> None:
    while True:
        await asyncio.sleep(SECONDS)
        forget_copies(blocks)


def forget_copies(blocks: gr.Blocks) -> None:
    """Forget copies of components that nothing refers to. Runs on the event loop, where Gradio makes and reads them.

    Gradio makes every output that is skipped anew and files it under another number at its next use, so that a page
    that is left open would grow by 40 MB an hour.
    """
    own = blocks.default_config.blocks.keys()
    for session in list(blocks.state_holder.session_data.values()):
        for kept in (session.blocks_config.blocks, session.config_values):
            for number in kept.keys() - own:
                del kept[number]
