"""One architecture of base models = one file; this table finds it."""

from __future__ import annotations

import importlib

from trainer.models.families.base import Family

MODULES = {"sd": "trainer.models.families.sd"}


def get(name: str) -> Family:
    """The family of this name; only its own module is imported."""
    family: Family = importlib.import_module(MODULES[name]).FAMILY
    return family
