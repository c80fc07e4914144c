"""python -m trainer cache list | prune: what caches hold, and what of it may go. No torch here."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer import quantities
from trainer.caching import stores
from trainer.caching.stores import Collection, Pruned
from trainer.checkpoints import preflight
from trainer.data import dataset
from trainer.options.checks import resolve
from trainer.options.config import Config
from trainer.options.sources import read_toml
from trainer.recipe import prompts
from trainer.refusal import Refused

DONE, REFUSED = 0, 3
DIGEST = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")
SHORTENED = r"\1..."
DEFAULT_FOLDER = ".cache"  # inside an output_dir
HELP = """
A cache holds one collection for each kind (latents, text encoder outputs), base model, precision and batch size. Runs
share them, and a value that was pruned but is needed after all is computed again.

prune removes, of every collection that no run uses at the moment: damaged and duplicate values, and with --config all
whose picture or caption is in none of the datasets of the presets named. Whole collections go with --unused-days, or
all of them with --all. Files of the earlier cache format are always removed. Nothing else in the folder is touched.
"""


def declare(command: str, parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.epilog, parser.formatter_class = HELP, argparse.RawDescriptionHelpFormatter
    actions = parser.add_subparsers(dest="action", required=True)
    for name, text in (("list", "say what there is"), ("prune", "remove what is not needed any more")):
        action = actions.add_parser(name, help=text, epilog=HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
        action.add_argument("path", nargs="?", type=Path, help="a cache folder, or an output_dir that holds one")
        action.add_argument(
            "--config", action="append", default=[], help="a preset, whose cache and dataset are meant (repeatable)"
        )
        action.add_argument("--json", action="store_true", help="print JSON, for programs")
        if name == "prune":
            action.add_argument("--unused-days", type=_days, help="remove what was not used for so many days")
            action.add_argument("--all", action="store_true", help="remove everything")
            action.add_argument("--dry-run", action="store_true", help="say what would go, and remove nothing")


def _days(text: str) -> float:
    """Days from 0 on. Raises ArgumentTypeError."""
    with contextlib.suppress(ValueError):
        if float(text) >= 0:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of days")


def run(arguments: argparse.Namespace, rest: Sequence[str], parser: argparse.ArgumentParser) -> int:
    """Run the command; returns the exit code: 0 done, 3 refused."""
    if rest:
        parser.error(f"unknown: {' '.join(rest)}")
    try:
        configs = [resolve(read_toml(name))[0] for name in arguments.config]
        folder = _folder(arguments.path, configs)
        if arguments.action == "list":
            return _list(folder, configs, as_json=arguments.json)
        return _prune(folder, configs, arguments)
    except Refused as refusal:
        if arguments.json:
            print(json.dumps({"version": 1, "refusal": str(refusal)}, indent=1))
        else:
            print("\n".join(f"Refused: {line}" for line in str(refusal).splitlines()))
        return REFUSED


def _folder(path: Path | None, configs: Sequence[Config]) -> Path:
    """The cache folder that is meant. Raises Refused."""
    if path is None:
        folders = {config.cache_path for config in configs}
        if len(folders) != 1:
            raise Refused(
                f"the presets have {len(folders)} cache folders; name the one that is meant"
                if folders
                else "name a cache folder, or a preset with --config"
            )
        path = folders.pop()
    elif (path / DEFAULT_FOLDER).is_dir():
        path = path / DEFAULT_FOLDER
    if not path.is_dir():
        raise Refused(f"there is no folder {path}")
    return path


def _contents(configs: Sequence[Config]) -> frozenset[bytes] | None:
    """What the datasets of the presets hold; None without presets. Raises DatasetError."""
    if not configs:
        return None
    wanted: set[bytes] = set()
    for config in configs:
        config, _ = preflight.with_settled_family(config)  # which says what conditioning_data_dir holds
        scan = dataset.scan(config)
        sampled = [
            (text, shown)
            for prompt in prompts.read(config)
            for text in (prompt.text, prompt.negative)
            for shown in {None, prompt.control}
        ]
        wanted |= stores.contents_of((*scan.entries, *scan.validation), sampled)
    return frozenset(wanted)


# --- list ----------------------------------------------------------------------------------------------------------


def _list(folder: Path, configs: Sequence[Config], *, as_json: bool) -> int:
    collections, earlier = stores.collections(folder), stores.earlier_format(folder)
    stale: dict[Path, Pruned] = {}
    if configs:
        looked = stores.prune(folder, contents=_contents(configs), dry_run=True)
        stale = {item.collection.path: item for item in looked}
    if as_json:
        counts = {path: item.entries for path, item in stale.items()}
        rows = [{**_as_json(item), "stale": counts.get(item.path)} for item in collections]
        print(
            json.dumps({"version": 1, "path": str(folder), "collections": rows, "earlier": _plain(earlier)}, indent=1)
        )
        return DONE
    size = sum(item.bytes for item in collections)
    print(f"{folder}: {len(collections)} collections, {quantities.size(size)}")
    for item in collections:
        print(f"  {_line(item)}")
        if item.path in stale and stale[item.path].entries:
            print(f"      {stale[item.path].reason}; cache prune removes them")
    if earlier.files:
        print(f"  {_earlier_line(earlier)}; cache prune removes them")
    return DONE


def _line(item: Collection) -> str:
    settings = ", ".join(
        f"{name} {DIGEST.sub(SHORTENED, str(value))}"
        for name, value in item.settings.items()
        if name not in ("family", "preparation")
    )
    used = "in use" if item.in_use else f"used {_ago(time.time() - item.last_used)}"
    return (
        f"{item.kind:7} {item.entries:>9,} values {quantities.size(item.bytes):>9}  {used}\n"
        f"      {item.about.get('model', '?')} ({item.settings.get('family', '?')}: {settings})\n"
        f"      {item.path}"
    )


def _earlier_line(earlier: stores.Earlier) -> str:
    held = quantities.size(earlier.bytes)
    return f"{earlier.files:,} files ({held}) of an earlier cache format, which is not read any more"


def _ago(seconds: float) -> str:
    if seconds < 86400:
        return "today"
    days = int(seconds / 86400)
    return "yesterday" if days == 1 else f"{days} days ago"


def _as_json(item: Collection) -> dict[str, Any]:
    return {**dataclasses.asdict(item), "path": str(item.path)}


def _plain(earlier: stores.Earlier) -> dict[str, int]:
    return dataclasses.asdict(earlier)


# --- prune ---------------------------------------------------------------------------------------------------------


def _prune(folder: Path, configs: Sequence[Config], arguments: argparse.Namespace) -> int:
    earlier = stores.earlier_format(folder)
    pruned = stores.prune(
        folder,
        contents=_contents(configs),
        unused_days=arguments.unused_days,
        everything=arguments.all,
        dry_run=arguments.dry_run,
    )
    if not arguments.dry_run:
        stores.remove_earlier_format(folder)
    if arguments.json:
        rows = [{**dataclasses.asdict(item), "collection": _as_json(item.collection)} for item in pruned]
        outcome = {"version": 1, "path": str(folder), "dry_run": arguments.dry_run, "collections": rows}
        print(json.dumps({**outcome, "earlier": _plain(earlier)}, indent=1))
        return DONE
    verb = "would go" if arguments.dry_run else "removed"
    for item in pruned:
        print(f"  {item.collection.kind:7} {item.collection.path.name}  {_outcome(item, verb)}")
    if earlier.files:
        print(f"  {_earlier_line(earlier)}: {verb}")
    entries = sum(item.entries for item in pruned)
    size = sum(item.bytes for item in pruned) + earlier.bytes
    print(f"{folder}: {entries:,} values and {earlier.files:,} files {verb}, {quantities.size(size)}")
    return DONE


def _outcome(item: Pruned, verb: str) -> str:
    if item.whole:
        return f"all {item.entries:,} values {verb}: {item.reason}"
    if item.entries:
        return f"{item.entries:,} of {item.collection.entries:,} values {verb}: {item.reason}"
    return item.reason or "nothing to remove"
