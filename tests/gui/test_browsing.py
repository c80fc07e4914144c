"""Folders of the server as the page shows them, and files that a browser sends: inside their bounds only."""

from __future__ import annotations

from pathlib import Path

import fastapi
import pytest
from starlette.testclient import TestClient

from gui import routes
from gui.places import Places, usual_places
from gui.server import browsing, uploads
from gui.server.uploads import UploadRefused
from gui.views.monitor import Watch
from tests.support import posix


@pytest.fixture
def places(tmp_path: Path) -> Places:
    home = tmp_path / "home"
    for name in ("images/1_fox", "images/.hidden", "models"):
        (home / name).mkdir(parents=True)
    (home / "models" / "base.safetensors").write_bytes(b"12345")
    (tmp_path / "outside").mkdir()
    return Places(home, tmp_path / "state")


def names(told: browsing.Listing) -> tuple[list[str], list[str]]:
    return [one.name for one in told.folders], [one.name for one in told.files]


def test_a_folder_is_told_with_what_a_field_gets_for_each(places: Places) -> None:
    told = browsing.listing(places, "models")
    assert [(one.name, one.text, one.bytes) for one in told.files] == [
        ("base.safetensors", "models/base.safetensors", 5)
    ]
    assert [one.name for one in told.above] == ["home", "models"]
    assert (told.here.text, told.above[0].text, told.note) == ("models", ".", "")
    assert names(browsing.listing(places, "")) == (["images", "models"], [])
    assert names(browsing.listing(places, "images")) == (["1_fox"], [])


@pytest.mark.parametrize(
    ("asked", "shown", "words"),
    [
        ("models/base.safetensors", "models", ""),
        ("images/2_fox/deep", "images", "There is no"),
        ("../outside", ".", "outside of what is shown here"),
        ("/etc/passwd", ".", "outside of what is shown here"),
        ("images/../../outside", ".", "outside of what is shown here"),
        ("a\0b", ".", "no path"),
        ("~nobody-of-that-name/x", ".", ""),
    ],
)
def test_what_cannot_be_shown_leads_to_the_nearest_that_can(places: Places, asked: str, shown: str, words: str) -> None:
    told = browsing.listing(places, asked)
    assert told.here.text == shown
    assert words in told.note


@posix.posix_only
def test_a_link_that_leads_out_is_neither_shown_nor_followed(places: Places, tmp_path: Path) -> None:
    (places.home / "way-out").symlink_to(tmp_path / "outside")
    (places.home / "within").symlink_to(places.home / "images")
    assert names(browsing.listing(places, ""))[0] == ["images", "models", "within"]
    assert "outside of what" in browsing.listing(places, "way-out").note


def test_the_owner_names_what_may_be_browsed(places: Places, tmp_path: Path) -> None:
    variables = {
        "REKINDLE_HOME": str(places.home),
        "XDG_STATE_HOME": str(tmp_path),
        "REKINDLE_BROWSE": str(tmp_path / "outside"),
    }
    named = usual_places(variables)
    told = browsing.listing(named, "")
    assert told.here.text == str((tmp_path / "outside").resolve())
    assert "outside of what is shown here" in browsing.listing(named, str(places.home)).note


def test_the_page_is_answered_in_json(places: Places) -> None:
    server = fastapi.FastAPI()
    routes.add(server, places, Watch())
    client = TestClient(server)
    told = client.get("/browse", params={"path": "images"}).json()
    assert [one["name"] for one in told["folders"]] == ["1_fox"]
    sent = client.post("/datasets/file", params={"dataset": "foxes", "file": "a.png"}, content=b"picture")
    assert sent.status_code == 200
    assert (places.home / "datasets" / "foxes" / "a.png").read_bytes() == b"picture"
    refused = client.post("/datasets/file", params={"dataset": "..", "file": "a.png"}, content=b"picture")
    assert refused.status_code == 409 and "cannot be a dataset's name" in refused.json()["refused"]


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\\b", ".hidden", "con", "a\0", "x" * 99])
def test_a_datasets_name_never_leads_elsewhere(places: Places, name: str) -> None:
    with pytest.raises(UploadRefused, match="cannot be a dataset's name"):
        uploads.keep(places, name, "a.png", b"")


def test_only_pictures_and_captions_arrive_and_none_takes_the_place_of_another(places: Places) -> None:
    kept = uploads.keep(places, "foxes", "C:\\pictures\\..\\a.PNG", b"one")
    assert kept == places.home / "datasets" / "foxes" / "a.PNG"
    assert uploads.keep(places, "foxes", "a.PNG", b"one") == kept
    with pytest.raises(UploadRefused, match=r"another a[.]PNG"):
        uploads.keep(places, "foxes", "a.PNG", b"two")
    for name in ("run.sh", "..", ".txt", "page.html"):
        with pytest.raises(UploadRefused):
            uploads.keep(places, "foxes", name, b"")
    assert [path.name for path in kept.parent.iterdir()] == ["a.PNG"]
