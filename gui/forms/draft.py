"""What was in the form last, kept on disk: a reload or a restart of the server loses nothing. No widget here."""

from __future__ import annotations

import contextlib
import json
import threading
import uuid
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gui.forms import form as forms
from trainer import files
from trainer.options.config import OPTIONS


@dataclass(frozen=True)
class Draft:
    """`values`: every option as the form has it, right or wrong. `base`: those it began with, of the preset `name`."""

    values: Mapping[str, Any]
    name: str
    base: Mapping[str, Any]

    def changes(self) -> list[str]:
        """The options that are no longer as they were in the base."""
        right = forms.check_values(self.values).values
        now = {**self.values, **right}  # as the options' own types: 1 is 1.0, a list is a tuple
        return [name for name in OPTIONS if now[name] != self.base[name]]


class Fillings:
    """Which edits come too late: those of a form that was filled anew after they were made.

    A field tells that it was left after the click that took the focus from it was answered, or as late as the network
    likes. So every page has a stamp that is another one after each filling, and its edits carry the stamp they had.
    """

    MOST = 500  # pages that are remembered

    def __init__(self) -> None:
        self.lock = threading.RLock()  # held while a draft is judged and written
        self._latest: OrderedDict[str, int] = OrderedDict()

    def opened(self) -> str:
        """The stamp of a page that is opened."""
        return f"{uuid.uuid4().hex}:0"

    def filled(self, stamp: Any) -> str:
        """The stamp of a page whose form gets other values now; what still comes with an earlier one is late."""
        page, number = _page_and_number(stamp)
        with self.lock:
            latest = max(number, self._latest.pop(page, 0)) + 1
            self._latest[page] = latest
            while len(self._latest) > self.MOST:
                self._latest.popitem(last=False)
        return f"{page}:{latest}"

    def is_late(self, stamp: Any) -> bool:
        page, number = _page_and_number(stamp)
        with self.lock:
            return number < self._latest.get(page, 0)


def _page_and_number(stamp: Any) -> tuple[str, int]:
    page, _, number = str(stamp or "").partition(":")
    return page, int(number) if number.isdecimal() else 0


def afresh() -> Draft:
    """Every option at its default."""
    return Draft(forms.complete({}), "", forms.complete({}))


def keep(path: Path, draft: Draft) -> None:
    """Write the draft. A disk that refuses costs the draft, nothing else."""
    with contextlib.suppress(OSError, TypeError, ValueError):
        files.write_text(path, json.dumps(asdict(draft), allow_nan=False))


def read(path: Path) -> Draft | None:
    """The last draft, values that are wrong at their defaults; None when there is no draft."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or not isinstance(content.get("values"), dict):
        return None
    base = content.get("base")
    return Draft(
        _right(content["values"]), str(content.get("name", "")), _right(base if isinstance(base, dict) else {})
    )


def _right(values: Mapping[str, Any]) -> dict[str, Any]:
    options = {name: value for name, value in values.items() if name in OPTIONS}
    return forms.complete(forms.check_values(options).values)
