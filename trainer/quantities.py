"""Sizes and counts as people read them. No torch here."""

from __future__ import annotations


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
