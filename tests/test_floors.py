"""The house: a folder is a subject, and each imports only what stands before it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GROUND = "the ground floor"
ROOMS = {
    "trainer": (
        *(GROUND, "options", "data", "recipe", "runs", "distributed", "models", "caching", "checkpoints"),
        *("training", "judging", "tools", "commands", "__main__"),
    ),
    "gui": (GROUND, "forms", "server", "views", "tabs", "routes", "app"),
}


FAMILY_FILES = {path.stem for path in (ROOT / "trainer/models/families").glob("*.py")} - {"__init__", "facts"}


def modules(package: str) -> Iterator[tuple[str, Path]]:
    for path in sorted((ROOT / package).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        yield name.removesuffix(".__init__"), path


def imported(path: Path, package: str) -> Iterator[str]:
    """Every module or name of the package that a file imports, inside functions as well."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == package:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == package)


def is_table(module: str) -> bool:
    """The table of families and what it is made of: facts that every room may read."""
    inner = module.split(".")[3:4]
    return module.startswith("trainer.models.families") and not (inner and inner[0] in FAMILY_FILES)


def floor(module: str, package: str) -> int:
    part = module.removeprefix(f"{package}.").split(".")[0]
    return ROOMS[package].index(part) if part in ROOMS[package] else 0


@pytest.mark.parametrize("package", ROOMS)
def test_every_folder_is_a_room_of_the_plan(package: str) -> None:
    folders = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
    assert folders == {room for room in ROOMS[package] if room not in (GROUND, "routes", "app", "__main__")}


@pytest.mark.parametrize("package", ROOMS)
def test_each_room_imports_only_what_stands_before_it(package: str) -> None:
    upward = [
        f"{module} -> {other}"
        for module, path in modules(package)
        for other in imported(path, package)
        if floor(other, package) > floor(module, package) and not is_table(other)
    ]
    assert upward == []


def test_the_trainer_knows_no_page() -> None:
    assert [module for module, path in modules("trainer") if list(imported(path, "gui"))] == []


def test_no_family_knows_another_or_the_loop() -> None:
    families = FAMILY_FILES - {"base"}
    for name in families:
        others = [
            other
            for other in imported(ROOT / f"trainer/models/families/{name}.py", "trainer")
            if other.split(".")[:3] == ["trainer", "models", "families"] and other.split(".")[3] in families
        ]
        assert others == []


def test_the_loop_names_no_family() -> None:
    text = (ROOT / "trainer/training/loop.py").read_text().lower()
    assert not [word for word in ("sdxl", "stable diffusion", "flux", "unet", "clip_skip", "vae") if f" {word}" in text]


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import gui.app", ("torch", "diffusers", "transformers", "accelerate", "peft")),
        ("import trainer.training.loop", ("gradio", "fastapi", "plotly")),
        ("import trainer.checkpoints.preflight", ("torch", "diffusers", "transformers", "gradio")),
    ],
)
def test_what_an_import_leaves_out(code: str, absent: tuple[str, ...]) -> None:
    told = f"import sys; {code}; print([name for name in {absent!r} if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", told], cwd=ROOT, capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == "[]"


def test_a_function_can_be_read_in_one_go() -> None:
    """The longest may have about 110 lines; a longer one wants a name for one of its parts."""
    too_long = [
        f"{module}.{node.name}: {node.end_lineno - node.lineno + 1}"
        for package in ROOMS
        for module, path in modules(package)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if node.end_lineno and node.end_lineno - node.lineno + 1 > 115
    ]
    assert too_long == []
