"""Emphasis in captions, (word:1.2), as AUTOMATIC1111's web interface and sd-scripts read it. No torch here."""

from __future__ import annotations

import re

STRONGER, WEAKER = 1.1, 1 / 1.1
# An escaped bracket, an opening bracket, a weight with its closing bracket, a closing bracket, or text.
PIECE = re.compile(r"\\[()\[\]\\]|[(\[]|:\s*([+-]?[.\d]+)\s*\)|[)\]]|[^\\()\[\]:]+|\\|:")


def parse(text: str) -> list[tuple[str, float]]:
    """The text in pieces, each with its weight. (a) weighs 1.1, [a] 1/1.1, (a:1.3) 1.3, each times what is around
    it; \\( and its like are plain characters, and a bracket that is never closed weighs to the end.

    >>> parse("a (red:1.5) cat")
    [('a ', 1.0), ('red', 1.5), (' cat', 1.0)]
    """
    pieces: list[list[float | str]] = []
    round_open: list[int] = []  # where their contents begin in `pieces`
    square_open: list[int] = []

    def weigh(start: int, factor: float) -> None:
        for piece in pieces[start:]:
            piece[1] = float(piece[1]) * factor

    for match in PIECE.finditer(text):
        part, weight = match[0], match[1]
        if len(part) == 2 and part[0] == "\\":
            pieces.append([part[1], 1.0])
        elif part == "(":
            round_open.append(len(pieces))
        elif part == "[":
            square_open.append(len(pieces))
        elif weight is not None and round_open and _number(weight) is not None:
            weigh(round_open.pop(), _number(weight) or 0.0)
        elif part == ")" and round_open:
            weigh(round_open.pop(), STRONGER)
        elif part == "]" and square_open:
            weigh(square_open.pop(), WEAKER)
        else:
            pieces.append([part, 1.0])
    for start in round_open:
        weigh(start, STRONGER)
    for start in square_open:
        weigh(start, WEAKER)

    merged: list[tuple[str, float]] = []
    for piece, factor in pieces:
        if merged and merged[-1][1] == factor:
            merged[-1] = (merged[-1][0] + str(piece), merged[-1][1])
        else:
            merged.append((str(piece), float(factor)))
    return merged or [("", 1.0)]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
