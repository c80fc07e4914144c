"""Checkpoint folders made by others, or by an enemy: refused with a reason, nothing outside them touched."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support import posix
from tests.support.damages import checkpoint_of, rewrite_manifest
from tests.support.faults import Call, FileCalls
from tests.support.runs_at_tiny_size import config_for, run
from trainer import files
from trainer.__main__ import main
from trainer.checkpoints import checkpoint, choosing, preflight
from trainer.options.config import Config
from trainer.refusal import Refused
from trainer.runs import manifest
from trainer.runs.manifest import MANIFEST, REQUIRED, CheckpointDamaged
from trainer.runs.run_folder import RunFolder
from trainer.training import beginning, environment

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def make_checkpoint(checkpoints: Path, step: int = 1) -> Path:
    """A folder that verifies."""
    folder = checkpoints / manifest.folder_name(step)
    folder.mkdir(parents=True)
    for name in REQUIRED:
        (folder / name).write_bytes(f"{name} of step {step}".encode())
    (folder / MANIFEST).write_bytes(manifest.compose(folder, step, "run", time.time(), epoch=0, loss=0.5))
    manifest.verify(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "checkpoints")


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointDamaged) as damaged:
        manifest.verify(folder)
    assert str(damaged.value)
    return str(damaged.value)


# --- a manifest that contradicts itself ----------------------------------------------------------------------------

HOSTILE_FIELDS: dict[str, Any] = {
    "version": [None, "2", "1", 1.5, [], {}, 0, -1, True, 2, 10**30],
    "step": [None, "x", [], -1, 1.5, True, 10**30, 1e300],
    "run_id": [None, 1, [], {}],
    "created": [None, "now", [], 10**400],
    "epoch": [None, "x", [], 1e300, 1.5],
    "loss": ["0.1", [], {}, True, 10**400],
    "files": [None, [], {}, "x", 1, {"weights.safetensors": None}, {"weights.safetensors": {"bytes": 1}}],
}


@pytest.mark.parametrize(("field", "value"), [(name, value) for name, all in HOSTILE_FIELDS.items() for value in all])
def test_a_field_of_the_wrong_kind_is_refused_although_the_digest_fits(field: str, value: Any, folder: Path) -> None:
    rewrite_manifest(folder, **{field: value})
    refused(folder)
    assert main(["verify", str(folder)]) == 1
    assert main(["list", str(folder.parent.parent)]) == 0
    assert main(["list", "--json", str(folder.parent.parent)]) == 0


@pytest.mark.parametrize("field", ["version", "step", "run_id", "created", "epoch", "loss", "files", "digest"])
def test_a_field_that_is_missing_is_refused(field: str, folder: Path) -> None:
    body = json.loads((folder / MANIFEST).read_bytes())
    del body[field]
    (folder / MANIFEST).write_bytes(files.json_bytes(body))
    assert MANIFEST in refused(folder)


@pytest.mark.parametrize(
    "name",
    ["../outside", "/etc/passwd", "..", ".", "", "a/b", "a/../../outside", "x\0y", "x\ny", "x\x7f", "a//b", "outside/"],
)
def test_a_file_name_that_leads_elsewhere_is_refused_before_anything_is_opened(name: str, folder: Path) -> None:
    (folder.parent / "outside").write_bytes(b"")
    entries = json.loads((folder / MANIFEST).read_bytes())["files"]
    rewrite_manifest(folder, files={name: entries["state.json"], **entries})
    opened: list[str] = []
    with FileCalls(lambda call: opened.append(call.path), thread="MainThread"):
        assert "names a file outside the checkpoint" in refused(folder)
    assert opened == [str(folder / MANIFEST)]


@pytest.mark.parametrize(
    "entry",
    [None, [], "x", {}, {"bytes": -1, "sha256": ""}, {"bytes": 10**400, "sha256": ""}, {"bytes": "x", "sha256": ""},
     {"bytes": None, "sha256": None}, {"bytes": 1e300, "sha256": "0" * 64}, {"bytes": 2**63, "sha256": "0" * 64}],
)  # fmt: skip
def test_an_entry_that_declares_nonsense_or_a_huge_size_is_refused(entry: Any, folder: Path) -> None:
    entries = json.loads((folder / MANIFEST).read_bytes())["files"]
    rewrite_manifest(folder, files={**entries, "weights.safetensors": entry})
    refused(folder)


@given(field=st.sampled_from(list(HOSTILE_FIELDS)), value=json_values)
def test_any_field_with_any_value_is_accepted_or_refused(
    field: str, value: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = make_checkpoint(tmp_path_factory.mktemp("hostile") / "checkpoints")
    rewrite_manifest(folder, **{field: value})
    try:
        manifest.verify(folder)
    except CheckpointDamaged:
        return
    assert main(["list", str(folder.parent.parent)]) == 0


# --- bytes that are no manifest ------------------------------------------------------------------------------------

NO_MANIFESTS = {
    "nothing": b"",
    "no JSON": b"{",
    "a list": b"[]",
    "null": b"null",
    "a number": b"1",
    "nested lists": b"[" * 500_000,
    "nested objects": b'{"a":' * 100_000,
    "a number of many digits": b'{"version": ' + b"9" * 100_000 + b"}",
    "not a number": b'{"version": NaN}',
    "infinity": b'{"version": 1, "step": Infinity}',
    "another encoding": '{"version": 1}'.encode("utf-16"),
    "no text": bytes(range(256)) * 100,
    "too much": b" " * (manifest.MAX_MANIFEST_BYTES + 1),
    "half a surrogate pair": b'{"version": 1, "run_id": "\\ud800"}',
}


@pytest.mark.parametrize("kind", NO_MANIFESTS)
def test_bytes_that_are_no_manifest_are_refused(kind: str, folder: Path) -> None:
    (folder / MANIFEST).write_bytes(NO_MANIFESTS[kind])
    assert MANIFEST in refused(folder)


@given(data=st.binary(max_size=300))
def test_any_bytes_are_refused(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = make_checkpoint(tmp_path_factory.mktemp("hostile"))
    (folder / MANIFEST).write_bytes(data)
    assert MANIFEST in refused(folder)


def test_a_key_given_twice_is_refused(folder: Path) -> None:
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text.replace('"epoch": 0,', '"epoch": 0,\n "epoch": 0,'))
    assert "was changed" in refused(folder)


# --- files that are none -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [MANIFEST, "state.json", "weights.safetensors"])
@pytest.mark.parametrize(
    "kind", ["a pipe", "a device", "a link to itself", "a link to a file", "a folder", "a huge hole"]
)
def test_what_is_no_plain_file_of_the_right_size_is_refused_unopened(name: str, kind: str, folder: Path) -> None:
    path, original = folder / name, folder.parent / "original"
    path.rename(original)
    if kind == "a pipe":
        posix.make_pipe_or_skip(path)
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a huge hole":
        path.touch()
        os.truncate(path, 1 << 40)
    else:
        targets: dict[str, Path] = {
            "a device": Path("/dev/zero"),
            "a link to itself": path,
            "a link to a file": original,
        }
        path.symlink_to(targets[kind])
    opened: list[str] = []

    def note(call: Call) -> None:
        opened.append(call.path)

    with FileCalls(note, thread="MainThread"):
        assert name in refused(folder)
    assert str(path) not in opened


# --- a folder full of oddities -------------------------------------------------------------------------------------


def test_a_listing_has_what_is_named_like_a_checkpoint_and_is_a_folder(tmp_path: Path) -> None:
    sound = make_checkpoint(tmp_path, 7)
    for name in ("step-1", "step-00000001x", "x-step-00000001", "step-", ".tmp-step-00000002-0123abcd", "rejected"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000003").write_text("a file")
    (tmp_path / "step-00000004").symlink_to(tmp_path / "step-00000004")
    (tmp_path / "step-00000005").symlink_to(tmp_path / "nowhere")
    (tmp_path / "step-00000006").mkdir()
    found = manifest.listing(tmp_path, thorough=True)
    assert [(item.step, bool(item.manifest)) for item in found] == [(7, True), (6, False)]
    assert found[0].path == sound
    assert "never completed" in found[1].problem


def test_a_folder_that_does_not_exist_or_is_none_lists_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert manifest.listing(tmp_path / "no") == []
    assert manifest.listing(tmp_path / "file") == []


def test_what_is_set_aside_replaces_nothing_and_keeps_its_reason(tmp_path: Path) -> None:
    places = []
    for reason in ("first", "second", "third"):
        place = manifest.set_aside(make_checkpoint(tmp_path), reason)
        assert place.with_name(place.name + ".txt").read_text() == reason + "\n"
        places.append(place.name)
    assert places == ["step-00000001", "step-00000001-2", "step-00000001-3"]


def test_a_pin_goes_with_its_checkpoint(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path)
    manifest.pin(folder)
    assert [item.pinned for item in manifest.listing(tmp_path)] == [True]
    manifest.move_aside(folder, tmp_path / "aside")
    assert [item.pinned for item in manifest.listing(tmp_path / "aside")] == [True]
    make_checkpoint(tmp_path)
    assert [item.pinned for item in manifest.listing(tmp_path)] == [False]
    manifest.pin(folder)
    manifest.pin(folder, pinned=False)
    assert [item.pinned for item in manifest.listing(tmp_path)] == [False]


def test_sha256sum_checks_what_sums_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_checkpoint(tmp_path / "checkpoints", 1)
    damaged = make_checkpoint(tmp_path / "checkpoints", 2)
    assert main(["verify", "--sums", str(tmp_path)]) == 0
    lines = capsys.readouterr().out
    check = ["sha256sum", "--check", "--strict", "--quiet"]
    assert subprocess.run(check, input=lines, text=True, capture_output=True).returncode == 0
    (damaged / "state.json").write_text("x")
    failed = subprocess.run(check, input=lines, text=True, capture_output=True)
    assert failed.returncode == 1
    assert failed.stdout == f"{damaged}/state.json: FAILED\n"


# --- sound in bytes, hostile in content ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tiny_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = config_for(tiny_model, tiny_images, tmp_path_factory.mktemp("trained"), max_train_steps=1)
    run(config)
    return config.replace(max_train_steps=2, resume_from_checkpoint="latest")


def recompose(folder: Path) -> None:
    """Give the folder a manifest that fits its files."""
    old = manifest.read(folder)
    data = manifest.compose(folder, old.step, old.run_id, old.created, old.epoch, old.loss)
    (folder / MANIFEST).write_bytes(data)


def every_place(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [place for key, item in inner for place in every_place(item, (*path, key))]


def replaced(document: Any, place: tuple[Any, ...], value: Any) -> Any:
    result = copy.deepcopy(document)
    inner = result
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return result


@pytest.mark.parametrize("name", ["state.json", "dataset.json", "environment.json"])
def test_a_document_with_a_wrong_value_anywhere_gives_a_verdict_or_a_refusal(
    name: str, trained: Config, tmp_path: Path
) -> None:
    shutil.copytree(trained.run_dir, tmp_path / "run")
    config = trained.replace(output_dir=str(tmp_path), resume_allow=("all",))
    inputs = preflight.examine_inputs(config)
    here = environment.describe(config, beginning.make_accelerator(config).device, 1)
    path = checkpoint_of(config, 1) / name
    document = json.loads(path.read_bytes())
    places = every_place(document)
    assert len(places) > 10
    answers = set()
    for place in places:
        for value in (None, "x", -1, 1e300, [], {}, [None], {"x": None}, 10**30, True):
            path.write_bytes(files.json_bytes(replaced(document, place, value)))
            recompose(path.parent)
            try:
                preflight.examine_checkpoint(inputs, here)
                answers.add("verdict")
            except Refused as error:
                assert "step-00000001" in str(error), (place, value)
                answers.add("refusal")
    assert answers == {"verdict", "refusal"}


def test_a_document_of_a_newer_version_is_refused(trained: Config, tmp_path: Path) -> None:
    shutil.copytree(trained.run_dir, tmp_path / "run")
    folder = checkpoint_of(trained.replace(output_dir=str(tmp_path)), 1)
    state = manifest.read_json(folder, "state.json")
    (folder / "state.json").write_bytes(files.json_bytes({**state, "version": 2}))
    recompose(folder)
    with pytest.raises(CheckpointDamaged, match=r"state\.json is of version 2"):
        manifest.read_json(folder, "state.json")


HOSTILE_TENSORS = {
    "no safetensors": b"nonsense",
    "a header longer than the file": (1 << 62).to_bytes(8, "little") + b"{}",
    "a header of nothing": (0).to_bytes(8, "little"),
    "a header that is no JSON": (4).to_bytes(8, "little") + b"\xff\xff\xff\xff",
    "a huge tensor": b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}',
    "an offset outside": b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[100,104]}}' + bytes(4),
    "an unknown type": b'{"a":{"dtype":"X99","shape":[1],"data_offsets":[0,4]}}' + bytes(4),
    "a negative shape": b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}' + bytes(4),
}


@pytest.mark.parametrize("kind", HOSTILE_TENSORS)
@pytest.mark.parametrize("name", ["weights", "optimizer"])
def test_tensors_that_are_none_are_refused(name: str, kind: str, trained: Config, tmp_path: Path) -> None:
    shutil.copytree(trained.run_dir, tmp_path / "run")
    folder = checkpoint_of(trained.replace(output_dir=str(tmp_path)), 1)
    weights = safetensors.torch.load_file(folder / "weights.safetensors")
    data = HOSTILE_TENSORS[kind]
    if data.startswith(b"{"):
        data = data.index(b"}}").__add__(2).to_bytes(8, "little") + data
    (folder / f"{name}.safetensors").write_bytes(data)
    recompose(folder)
    with pytest.raises(CheckpointDamaged):
        checkpoint.load(folder, manifest.verify(folder), weights, with_ema=False)


@pytest.mark.parametrize("change", ["missing", "more", "another shape"])
def test_weights_of_another_network_are_refused_by_name(change: str, trained: Config, tmp_path: Path) -> None:
    shutil.copytree(trained.run_dir, tmp_path / "run")
    folder = checkpoint_of(trained.replace(output_dir=str(tmp_path)), 1)
    weights = safetensors.torch.load_file(folder / "weights.safetensors")
    name = sorted(weights)[0]
    stored = dict(weights)
    if change == "missing":
        del stored[name]
    elif change == "more":
        name = "unet.foreign"
        stored[name] = torch.zeros(1)
    else:
        stored[name] = torch.zeros(1)
    safetensors.torch.save_file(stored, folder / "weights.safetensors")
    recompose(folder)
    with pytest.raises(CheckpointDamaged, match=f"is of another network: {name}"):
        checkpoint.load(folder, manifest.verify(folder), weights, with_ema=False)


# --- what may stand for a checkpoint -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wanted",
    [
        "²",
        "9" * 5000,
        "0",
        "-1",
        "1.5",
        "nowhere",
        "/nowhere",
        "~no-such-user/x",
        "x" * 5000,
        "..",
        "/",
        "/etc/passwd",
        "/dev",
    ],
)
def test_what_is_no_checkpoint_is_refused_as_one(wanted: str, trained: Config) -> None:
    with pytest.raises(Refused, match="resume_from_checkpoint"):
        choosing.choose(trained.replace(resume_from_checkpoint=wanted))


@pytest.mark.parametrize("path", ["", "nowhere", "/dev/null"])
def test_verify_and_list_of_what_is_no_folder_are_refused(path: str, tmp_path: Path) -> None:
    place = str(tmp_path / path / "x") if not path.startswith("/") else path
    assert main(["verify", place]) == 3
    assert main(["list", place]) == 3


def test_a_checkpoint_copied_elsewhere_can_be_named_by_its_path(trained: Config, tmp_path: Path) -> None:
    shutil.copytree(checkpoint_of(trained, 1), tmp_path / "the good one")
    assert choosing.choose(trained.replace(resume_from_checkpoint=str(tmp_path / "the good one"))).manifest.step == 1
    shutil.copytree(trained.run_dir, tmp_path / "moved")
    by_run = choosing.choose(trained.replace(resume_from_checkpoint=str(tmp_path / "moved")))
    assert by_run.path == RunFolder(tmp_path / "moved").checkpoints / "step-00000001"
