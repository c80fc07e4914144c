"""Which folders are trained, and with which options each. No torch here, and no picture is opened."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.data import addresses, arrow_dataset, metadata_files
from trainer.data.findings import Finding
from trainer.data.folder_scan import list_pictures
from trainer.options.config import OPTIONS, Config
from trainer.refusal import Refused

FOLDER_NAME = re.compile(r"(\d+)_(.*)", re.DOTALL)
# What makes an image different from use to use; off where images measure.
UNVARIED = {name: known.default for name, known in OPTIONS.items() if known.varies}


class DatasetError(Refused):
    """The images cannot be trained at all; the message says why and what to do. `findings`: of their files."""

    def __init__(self, message: str, findings: Sequence[Finding] = ()) -> None:
        super().__init__(message)
        self.findings = tuple(findings)


@dataclass(frozen=True)
class Subset:
    """A folder of images and how they are used."""

    folder: Path
    root: Path  # the images' names are told from here on
    options: Config  # the run's, with those of the dataset file in their place
    num_repeats: int = 1
    class_tokens: str = ""  # the caption of an image without one
    is_reg: bool = False  # regularisation images
    is_validation: bool = False
    dataset: int = 0  # regularisation images go with the training images of their dataset
    part: int = 0  # its place in the dataset

    def unvaried(self) -> Subset:
        """The subset with nothing that makes an image different from use to use."""
        return dataclasses.replace(self, options=self.options.replace(**UNVARIED))


def in_folder(folder: str, option: str, config: Config) -> tuple[list[Subset], list[str]]:
    """The subsets of a folder in kohya's layout, <repeats>_<class tokens>, or of one that holds images directly; and
    notices. A folder with a metadata file may name images in any folder below.

    `option` is what the folder's messages begin with. Raises DatasetError.
    """
    root = addresses.local(folder)
    if not root.exists() and addresses.is_address(folder):
        raise DatasetError(f"{option}: {folder} is not copied to this machine yet; the start does that, and counts it")
    if not root.exists():
        raise DatasetError(f"{option}: there is no folder {root}")
    if not root.is_dir():
        raise DatasetError(f"{option}: {root} is not a folder")
    if arrow_dataset.shards(root) and not list_pictures(root):
        root = arrow_dataset.unpack(root, config.cache_path, config.caption_column)
    if metadata := metadata_files.in_folder(root):
        folders = [root, *metadata_files.folders_below(root, metadata, config.caption_column)]
        return [Subset(path, root, config, config.dataset_repeats) for path in folders], []
    notices, chosen = [], []
    subfolders = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    for entry in subfolders:
        match = FOLDER_NAME.fullmatch(entry.name)
        if match and int(match[1]) >= 1:
            chosen.append(Subset(entry, root, config, int(match[1]), match[2].strip()))
        elif match:
            notices.append(f"{entry} is skipped: 0 repeats")
    if not chosen:
        if not list_pictures(root) and subfolders:
            raise DatasetError(
                f"{option}: no images in {root}; its folders are not named <repeats>_<class> "
                f'(like "10_{subfolders[0].name}"), and a plain folder holds the images directly'
            )
        return [Subset(root, root, config, config.dataset_repeats)], notices
    notices += [
        f"{entry} is skipped: its name does not begin with a number of repeats, like 10_{entry.name}"
        for entry in subfolders
        if not FOLDER_NAME.fullmatch(entry.name)
    ]
    if direct := list_pictures(root):
        notices.append(f"{len(direct)} images directly in {root} are skipped: it has folders named <repeats>_<class>")
    return chosen, notices
