"""The dataset TOML of sd-scripts: general, datasets, subsets; the lower level wins. No torch here."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer import files
from trainer.data import addresses
from trainer.data.subsets import Subset
from trainer.models.families.facts import CONTROLS
from trainer.options.config import OPTIONS, Config
from trainer.options.conflicts import combination_problems
from trainer.options.declaration import Scope
from trainer.options.problems import ConfigError, Problem, nearest
from trainer.options.sources import hint_of_backslashes
from trainer.options.values import check_value
from trainer.refusal import Refused

# Where a key is not called like the option it sets.
OURS = {"batch_size": "train_batch_size", "metadata_file": "in_json", "num_repeats": "dataset_repeats"}
_THEIRS = {option: key for key, option in OURS.items()}


def _keys(scope: Scope) -> tuple[str, ...]:
    return tuple(_THEIRS.get(name, name) for name, option in OPTIONS.items() if option.scope == scope)


DATASET_KEYS = _keys("dataset")
SHARED_KEYS = _keys("subset")  # of a subset, but given for all of them at a higher level too
SUBSET_KEYS = ("image_dir", "class_tokens", "is_reg", "metadata_file", "conditioning_data_dir")
ALLOWED = {
    "general": (*DATASET_KEYS, *SHARED_KEYS),
    "datasets": (*DATASET_KEYS, *SHARED_KEYS),
    "subsets": (*SHARED_KEYS, *SUBSET_KEYS),
}
# As in sd_scripts.WITHOUT_EFFECT; custom_attributes are notes to oneself.
WITHOUT_EFFECT = ("cache_info", "custom_attributes")
NOT_SUPPORTED = {"network_multiplier": 1.0}  # key -> the value with which it changes nothing

HEADER = re.compile(r"^\s*\[+\s*([\w.]+)\s*\]+")
KEY = re.compile(r"^\s*([A-Za-z0-9_-]+|\"[^\"]+\")\s*=")
Place = tuple[Any, ...]  # where a table is: ("datasets", 0, "subsets", 1)


def read(config: Config) -> tuple[list[Subset], list[str]]:
    """The subsets of config.dataset_config, and notices. Raises ConfigError with everything that is wrong."""
    path = Path(config.dataset_config)
    try:
        text = files.read_text(path)
        document = tomllib.loads(text)
    except FileNotFoundError:
        raise ConfigError([Problem("dataset_config", f"there is no file {path}")]) from None
    except tomllib.TOMLDecodeError as error:
        hint = hint_of_backslashes(text)
        raise ConfigError([Problem("dataset_config", f"{path} cannot be read: {error}{hint}")]) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError([Problem("dataset_config", f"{path} cannot be read: {error}")]) from error
    reader = _Reader(config, path, _lines(text))
    chosen = reader.subsets(document)
    if reader.problems:
        raise ConfigError(reader.problems)
    return chosen, list(dict.fromkeys(reader.notices))


class _Reader:
    """Checks tables from the top down and gathers what is wrong."""

    def __init__(self, config: Config, path: Path, lines: Mapping[Place, int]) -> None:
        self._config = config
        self._path = path
        self._lines = lines
        self._inherited = set(combination_problems(config))
        self.problems: list[Problem] = []
        self.notices: list[str] = []

    def subsets(self, document: Mapping[str, Any]) -> list[Subset]:
        for key in document.keys() - {"general", "datasets"}:
            self._problem((key,), f"there is no such table{nearest(key, ('general', 'datasets'))}")
        general = self._options(document.get("general", {}), "general", ("general",))
        datasets = self._tables(document, "datasets", ())
        if not datasets:
            self._problem(("datasets",), "there is none; write [[datasets]] and, below it, [[datasets.subsets]]")
        result = []
        for number, dataset in enumerate(datasets):
            place = ("datasets", number)
            values = general | self._options(dataset, "datasets", place, ("subsets",))
            subsets = self._tables(dataset, "subsets", place)
            if not subsets:
                self._problem((*place, "subsets"), "a dataset needs at least one [[datasets.subsets]]")
            for part, subset in enumerate(subsets):
                result += self._subset(subset, values, (number, part), (*place, "subsets", part))
        return result

    def _subset(
        self, table: Mapping[str, Any], values: dict[str, Any], numbers: tuple[int, int], place: Place
    ) -> list[Subset]:
        plain = {name: table.get(name, default) for name, default in (("image_dir", ""), ("class_tokens", ""))}
        for name, value in plain.items():
            if not isinstance(value, str):
                self._problem((*place, name), f"{value!r} is not text")
                return []
        is_reg = table.get("is_reg", False)
        if not isinstance(is_reg, bool):
            self._problem((*place, "is_reg"), f"{is_reg!r} is not true or false")
        own = self._options(table, "subsets", place, ("image_dir", "class_tokens", "is_reg"))
        folder = addresses.local(plain["image_dir"]).expanduser()
        try:
            addresses.fetched("image_dir", plain["image_dir"])
        except Refused as error:
            self._problem((*place, "image_dir"), str(error).removeprefix("image_dir: "))
            return []
        if not plain["image_dir"]:
            self._problem((*place, "image_dir"), "is missing: name the folder that holds the images")
        elif not folder.is_dir():
            self._problem((*place, "image_dir"), f"there is no folder {folder}")
        options = self._config.replace(**{"in_json": "", **values, **own})
        if "conditioning_data_dir" in own and CONTROLS not in options.facts.traits:
            options = options.replace(masked_loss=True)
        for key, message in combination_problems(options):
            if (key, message) not in self._inherited:
                self._problem((*place, key), message)
        return [
            Subset(
                folder=folder,
                root=folder,
                options=options,
                num_repeats=options.dataset_repeats,
                class_tokens=plain["class_tokens"],
                is_reg=is_reg,
                dataset=numbers[0],
                part=numbers[1],
            )
        ]

    def _tables(self, table: Mapping[str, Any], name: str, place: Place) -> list[Mapping[str, Any]]:
        tables = table.get(name, [])
        if not isinstance(tables, list) or not all(isinstance(item, dict) for item in tables):
            self._problem((*place, name), f"is not a list of tables; write [[{'.'.join((*_names(place), name))}]]")
            return []
        return tables

    def _options(
        self, table: Mapping[str, Any], level: str, place: Place, others: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        """The values of a table's options by our names. `others`: keys that are looked at elsewhere."""
        if not isinstance(table, dict):
            self._problem(place, "is not a table")
            return {}
        values = {}
        for key, value in table.items():
            where = (*place, key)
            if key in others:
                continue
            if key in WITHOUT_EFFECT:
                self.notices.append(f"{key} has no effect here ({self._path})")
            elif key in NOT_SUPPORTED:
                if value != NOT_SUPPORTED[key]:
                    self._problem(where, "is not supported; remove it to train without")
            elif key not in ALLOWED[level]:
                self._problem(where, self._not_here(key, level))
            else:
                name = str(OURS.get(key, key))
                values[name], wrong = check_value(name, value)
                if OPTIONS[name].path and isinstance(values[name], str):
                    values[name] = str(Path(values[name]).expanduser())
                if wrong:
                    self._problem(where, wrong)
        return values

    def _not_here(self, key: str, level: str) -> str:
        elsewhere = [other for other, keys in ALLOWED.items() if key in keys]
        if elsewhere:
            return f"does not belong in {level}, but in {' or '.join(elsewhere)}"
        if key in OPTIONS:
            return "is an option of the whole run, not of a dataset; set it beside dataset_config"
        return f"there is no such option{nearest(key, ALLOWED[level])}"

    def _problem(self, place: Place, message: str) -> None:
        nearest_places = [(*place, 0), *(place[:end] for end in range(len(place), 0, -1))]
        line = next((self._lines[place_known] for place_known in nearest_places if place_known in self._lines), None)
        where = f"{self._path}, line {line}" if line else str(self._path)
        self.problems.append(Problem(str(place[-1]), message, where))


def _names(place: Place) -> tuple[str, ...]:
    return tuple(part for part in place if isinstance(part, str))


def _lines(text: str) -> dict[Place, int]:
    """The line of each table and key, as far as they are written one a line."""
    lines: dict[Place, int] = {}
    counts: dict[Place, int] = {}
    place: Place = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if header := HEADER.match(line):
            place = ()
            names = header[1].split(".")
            for depth, name in enumerate(names):
                place = (*place, name)
                if not line.lstrip().startswith("[["):
                    continue
                last = depth == len(names) - 1
                counts[place] = counts.get(place, -1) + last
                place = (*place, max(0, counts[place]))
            lines.setdefault(place, number)
        elif key := KEY.match(line):
            lines.setdefault((*place, key[1].strip('"')), number)
    return lines


def own_options(subset: Subset, config: Config) -> dict[str, Any]:
    """A subset's options where they are not the run's, but for those that are compared by content."""
    names = [name for name, option in OPTIONS.items() if option.scope != "run" and not option.by_content]
    return {name: value for name in names if (value := getattr(subset.options, name)) != getattr(config, name)}
