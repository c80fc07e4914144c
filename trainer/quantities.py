"""Sizes and counts as people read them. No torch here."""

from __future__ import annotations

LONGEST = 3e9  # seconds that anything takes, a century


def size(count: float) -> str:
    """Bytes: 12.3 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB" if count < 999.5 else f"{count:,.0f} TB"


def duration(seconds: float) -> str:
    """45 minutes, 3.5 hours."""
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.3g} hours"


def counted(number: int, noun: str) -> str:
    """1 image, 1,234 images."""
    return f"1 {noun}" if number == 1 else f"{number:,} {noun}s"


def brief_duration(seconds: float) -> str:
    """A length of time in two units at most: 45 s, 3 min, 2 h 5 min, 3 d 4 h; a dash when a clock was badly wrong."""
    if seconds > LONGEST:
        return "–"
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    minutes = round(total / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} d {hours % 24} h" if hours % 24 else f"{hours // 24} d"
