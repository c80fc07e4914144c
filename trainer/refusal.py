"""The base of every reason why a training may not begin (exit code 3). No torch here."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

First = TypeVar("First")
Second = TypeVar("Second")


class Refused(Exception):
    """Something the user can put right; the message says what is wrong, where, and the way out."""


def both(first: Callable[[], First], second: Callable[[], Second]) -> tuple[First, Second]:
    """What two functions return. The second is called even where the first refuses, so that both reasons are told.

    Raises Refused.
    """
    try:
        result = first()
    except Refused as reason:
        try:
            second()
        except Refused as other:
            raise Refused(f"{reason}\n{other}") from reason
        raise
    return result, second()
