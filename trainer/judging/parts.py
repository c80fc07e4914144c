"""Small pieces of HTML that reports are made of, and the numbers of events. No torch here."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.data.pictures import PictureError, thumbnail
from trainer.judging.curves import Event

SIDE = 320  # pixels of a picture's longer side


def table(rows: Iterable[Sequence[Any]], heads: Sequence[str] = ()) -> str:
    """Rows of plain values; "" where there is none."""
    lines = ["".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) for row in rows]
    if not lines:
        return ""
    head = f"<tr>{''.join(f'<th>{html.escape(name)}</th>' for name in heads)}</tr>" if heads else ""
    return f"<table>{head}{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def picture(path: Path, caption: str, within: Path) -> str:
    """A small picture with a line below; "" where it cannot be read or is not inside `within`."""
    if not path.resolve().is_relative_to(within.resolve()):
        return ""
    try:
        small = thumbnail(path, SIDE)
    except (PictureError, OSError):
        return ""
    data = io.BytesIO()
    small.convert("RGB").save(data, "JPEG", quality=85)
    source = f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
    words = html.escape(caption, quote=True)
    return f'<figure><img src="{source}" alt="{words}"><figcaption>{words}</figcaption></figure>'


def number(event: Mapping[str, Any], name: str) -> float | None:
    value = event.get(name)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def points(events: Mapping[int, Event], name: str) -> list[tuple[float, float]]:
    """A value of events by step, where it is a number."""
    return [(step, value) for step, event in sorted(events.items()) if (value := number(event, name)) is not None]


def shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "-"
