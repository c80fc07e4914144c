"""Values go from TOML to the form and back unchanged; presets are saved under plain names; no torch is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from gui.forms import draft as drafts
from gui.forms import form as forms
from gui.forms import marks, presets
from gui.forms.draft import Draft
from gui.forms.form import Form
from gui.places import CODE, Places
from gui.tabs import launching, train_tab
from gui.views import plan
from tests.gui.test_gui_fake_run import make_run
from trainer import files
from trainer.checkpoints.memory_size import OVERHEAD
from trainer.options import checks, sources, writing
from trainer.options.config import OPTIONS
from trainer.options.declaration import Option
from trainer.recipe import prompts
from trainer.runs import resources
from trainer.runs.resources import GpuSample


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path, tmp_path / "state")


def other_values(known: Option) -> Iterator[Any]:
    """Values that differ from the default, awkward ones among them."""
    special: dict[str, list[Any]] = {
        "resolution": ["768,512"],
        "control_resolution": ["768,512"],
        "optimizer_args": [("weight_decay=0.01", "betas=(0.9, 0.99)"), ("a=1",)],
        "resume_allow": [("learning_rate", "dataset"), ("all",)],
        "seed": [0, 2**63 - 1, 2**53 + 1],
        "learning_rate": [0.0, 1e-7, 3e-5],
        "sample_prompts": ['a "fox" --n bad\nein Fuchs – größer --w 512'],
        "output_name": ["näme with space"],
        "bucket_reso_steps": [8],
    }
    if known.name in special:
        yield from special[known.name]
    elif known.kind == "bool":
        yield not known.default
    elif known.kind == "choice":
        yield from (choice for choice in known.choices if choice != known.default)
    elif known.kind == "str":
        yield from (r"C:\some\path", 'it\'s "quoted" ü', "#5")
    elif known.kind == "list":
        yield ("a=1", "b=2")
    else:
        low = known.low if known.low is not None else -1
        yield int(low) if known.kind == "int" else float(low)
        high = known.high if known.high is not None else (12345 if known.kind == "int" else 0.123456789012345)
        yield int(high) if known.kind == "int" else float(high)
    if known.optional:
        yield None


@pytest.fixture(scope="module")
def form() -> Form:
    with gr.Blocks():
        return Form()


def through_the_browser(item: gr.components.Component, known: Option, value: Any) -> Any:
    """The value as it comes back from its widget untouched, by way of JSON in both directions."""
    shown = item.postprocess(forms.to_browser(known, value))
    return forms.from_browser(known, json.loads(json.dumps(shown)))


@pytest.mark.parametrize("known", OPTIONS.values(), ids=OPTIONS)
def test_every_option_comes_back_from_its_widget_and_from_its_preset_as_it_was(form: Form, known: Option) -> None:
    for value in [known.default, *other_values(known)]:
        came_back = through_the_browser(form.widgets[known.name], known, value)
        checked = forms.check_values({known.name: came_back})
        assert forms.wrong_values({known.name: came_back}, checked) == set()
        values = forms.complete(checked.values)
        assert values[known.name] == value
        assert type(values[known.name]) is type(value)
        text = writing.to_toml(values, complete=False)
        reread = forms.complete(checks.check(sources.read_toml_text(text, "preset")).values)
        assert reread == values


@pytest.mark.parametrize("known", OPTIONS.values(), ids=OPTIONS)
def test_every_option_has_a_widget_with_its_name_help_and_bounds(form: Form, known: Option) -> None:
    item = form.widgets[known.name]
    assert item.elem_id == f"opt-{known.name}"
    assert item.label and known.help in item.info
    if isinstance(item, gr.Dropdown):
        assert [value for _, value in item.choices] == list(known.choices)
    if isinstance(item, gr.Number):
        assert (item.minimum, item.maximum) == (known.low, known.high)


def test_the_form_has_every_option_once(form: Form) -> None:
    assert sorted(form.widgets) == sorted(OPTIONS)


@pytest.mark.parametrize(
    ("name", "raw", "words"),
    [
        ("network_dim", 0, "Network › Network dim (rank): 0 is below 1"),
        ("network_dim", None, "Network › Network dim (rank): is empty; the default is 16"),
        ("max_train_epochs", "ten", "Training › Max train epochs: 'ten' is not a number"),
        ("max_train_epochs", "2.5", "Training › Max train epochs: 2.5 is not a whole number"),
        ("lr_scheduler", "cosin", "Training › LR scheduler: 'cosin' is not one of"),
        ("lr_scheduler", None, "Training › LR scheduler: is empty"),
        ("learning_rate", "nan", "Training › Learning rate: nan is not a finite number"),
        ("resolution", "7", "Dataset › Resolution: '7': each side must be between 8 and 8192 pixels"),
    ],
)
def test_a_wrong_value_is_named_with_its_section_and_label(name: str, raw: Any, words: str) -> None:
    checked = forms.check_values({name: forms.from_browser(OPTIONS[name], raw)})
    assert [forms.describe(problem)[: len(words)] for problem in checked.problems] == [words]


@pytest.mark.parametrize("raw", ["", None, "  "])
def test_an_empty_field_of_an_optional_number_means_not_given(raw: Any) -> None:
    value = forms.from_browser(OPTIONS["unet_lr"], raw)
    assert forms.complete(forms.check_values({"unet_lr": value}).values)["unet_lr"] is None


def test_zero_in_an_optional_number_is_zero() -> None:
    assert forms.from_browser(OPTIONS["unet_lr"], "0") == 0


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("weight_decay=0.1 betas=0.9,0.99", ["weight_decay=0.1", "betas=0.9,0.99"]),
        ("learning_rate, seed", ["learning_rate", "seed"]),
        ("a=1\n\n  b=(1, 2)  \n", ["a=1", "b=(1, 2)"]),
        ("", []),
    ],
)
def test_a_list_may_be_written_on_lines_or_on_one_line(text: str, items: list[str]) -> None:
    assert forms.from_browser(OPTIONS["optimizer_args"], text) == items


# --- the draft ---


def test_the_draft_brings_back_what_was_right_and_defaults_for_the_rest(places: Places) -> None:
    path = places.draft_file
    assert drafts.read(path) is None
    values = {"network_dim": 64, "learning_rate": "fast", "unet_lr": None, "gone": 1}
    drafts.keep(path, Draft(values, "demo", {"network_dim": 8}))
    draft = drafts.read(path)
    assert draft is not None
    assert draft.values == forms.complete({"network_dim": 64})
    assert (draft.name, draft.base) == ("demo", forms.complete({"network_dim": 8}))


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"values": 3}', '{"network_dim": 3}', '"\\ud800"'])
def test_a_damaged_draft_is_no_draft(places: Places, content: str) -> None:
    places.state.mkdir()
    places.draft_file.write_text(content)
    assert drafts.read(places.draft_file) is None


def test_unsaved_changes_are_told_with_both_values_and_lead_to_their_options() -> None:
    base = forms.complete({"optimizer_args": ("a=1",), "network_alpha": 8.0})
    assert Draft({**base, "optimizer_args": ["a=1"], "network_alpha": 8}, "demo", base).changes() == []
    draft = Draft({**base, "network_dim": 0, "flip_aug": True, "unet_lr": None}, "demo", base)
    assert draft.changes() == ["flip_aug", "network_dim"]
    told = train_tab.changes_line(draft, draft.changes())
    assert "2 unsaved changes since demo:" in told
    assert 'data-option="network_dim">Network dim (rank) 16 → 0</a>' in told
    assert "Flip augmentation off → on" in told


def test_what_a_preset_takes_the_place_of_can_be_had_back_only_when_it_was_unsaved(places: Places) -> None:
    base = forms.complete({})
    assert not train_tab.put_aside(places, Draft(base, "demo", base))
    changed = Draft({**base, "network_dim": 7}, "demo", base)
    assert train_tab.put_aside(places, changed)
    assert drafts.read(places.put_aside_file) == changed
    assert not train_tab.put_aside(places, Draft(base, "demo", base))
    assert not places.put_aside_file.exists()


# --- presets ---


@pytest.mark.parametrize(
    "name",
    ["../x", "a/b", "a\\b", "..", ".hidden", "", "  ", "x\0y", "x\ny", "con", "NUL.toml", "a" * 81, "~", "-x", "x."],
)
def test_a_preset_is_only_saved_under_a_plain_name(places: Places, name: str) -> None:
    with pytest.raises(presets.NameRefused):
        presets.save(places, name, {})
    assert not places.user_presets.exists()


@pytest.mark.parametrize("name", ["fox", "my fox 2", "fox.v1", "füchse", "user/fox", "fox.toml"])
def test_a_plain_name_is_saved_in_the_users_folder(places: Places, name: str) -> None:
    path = presets.save(places, name, {"network_dim": 4})
    assert path.parent == places.user_presets
    assert forms.complete(presets.read(places, f"user/{path.stem}").values)["network_dim"] == 4


@pytest.mark.parametrize("name", ["../../etc/passwd", "user/../fox", "/etc/passwd", "user/", "none"])
def test_only_a_listed_preset_can_be_read(places: Places, name: str) -> None:
    (places.home / "fox.toml").write_text("network_dim = 4\n")
    with pytest.raises(presets.NameRefused):
        presets.read(places, name)


def test_a_link_out_of_the_users_folder_is_not_listed(places: Places) -> None:
    presets.save(places, "good", {})
    (places.home / "secret.toml").write_text("network_dim = 4\n")
    (places.user_presets / "link.toml").symlink_to(places.home / "secret.toml")
    assert [name for name in presets.listing(places) if name.startswith("user/")] == ["user/good"]


def test_loading_a_preset_gives_every_option_a_value(places: Places) -> None:
    presets.save(places, "fox", {"network_dim": 4, "unet_lr": 0.0})
    values, message = train_tab.load_preset(places, "user/fox")
    assert values is not None and set(values) == set(OPTIONS)
    assert (values["network_dim"], values["unet_lr"], values["learning_rate"]) == (4, 0.0, 1e-4)
    assert "was loaded" in message


def test_a_preset_with_mistakes_is_loaded_except_for_them_and_they_are_named(places: Places) -> None:
    places.user_presets.mkdir(parents=True)
    (places.user_presets / "odd.toml").write_text("network_dim = 4\nlearning_rat = 1\nseed = -1\n")
    values, message = train_tab.load_preset(places, "user/odd")
    assert values is not None and values["network_dim"] == 4
    assert "did you mean learning_rate?" in message
    assert "Training › Seed: -1 is below 0" in message and "line 3" in message


def test_a_preset_that_is_no_toml_is_refused_in_words(places: Places) -> None:
    places.user_presets.mkdir(parents=True)
    (places.user_presets / "odd.toml").write_text("network_dim = = 4\n")
    values, message = train_tab.load_preset(places, "user/odd")
    assert values is None
    assert "is not valid TOML" in message


def test_values_that_are_wrong_are_not_saved(places: Places) -> None:
    saved, message = train_tab.save_preset(places, "odd", forms.complete({"network_dim": 0}))
    assert saved is None
    assert "0 is below 1" in message
    assert not places.user_presets.exists()


def test_options_that_do_not_go_together_yet_can_be_saved_with_a_remark(places: Places) -> None:
    saved, message = train_tab.save_preset(places, "half", forms.complete({"sample_every_n_steps": 5}))
    assert saved == "user/half"
    assert "Before it can start" in message and "sample_prompts" not in message.split("Before")[0]


def test_starting_with_mistakes_lists_all_of_them_and_starts_nothing(places: Places) -> None:
    values = forms.complete({"network_dim": 0, "learning_rate": -1.0, "output_name": "a/b"})
    checked = launching.check(places, values)
    assert checked.settings is None
    message = launching.not_started(checked.problems)
    for words in ("5 things", "Network dim", "Learning rate", "Output name", "Pretrained model", "Train data folder"):
        assert words in message
    assert list(places.home.iterdir()) == []


def test_starting_without_a_model_or_images_says_so(places: Places) -> None:
    checked = launching.check(places, forms.complete({}))
    assert checked.settings is None
    message = launching.not_started(checked.problems)
    assert "Pretrained model name or path: is empty" in message
    assert "Train data folder: is empty" in message


def test_messages_are_escaped(places: Places) -> None:
    _, message = train_tab.save_preset(places, "<img src=x>", forms.complete({}))
    assert "<img" not in message


SHIPPED = sorted(path.stem for path in (CODE / "presets").glob("*.toml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_preset_can_be_trained_as_it_is_and_says_when_to_use_it(places: Places, name: str) -> None:
    checked = presets.read(places, name)
    assert (checked.problems, checked.notices) == ([], [])
    settings = checks.build(checked.values).replace(sample_prompts="a cat")  # --cn names a picture of the user's
    assert checked.values["sample_prompts"]
    assert settings.pretrained_model_name_or_path and settings.train_data_dir and settings.output_name != "last"
    assert settings.save_every_n_steps and settings.sample_every_n_steps and prompts.read(settings)
    assert settings.max_train_steps % settings.save_every_n_steps == 0
    if name != "demo":
        assert "Use it " in presets.about(places, name)
        assert settings.cache_latents and settings.mixed_precision != "no"


U_NETS = ("sd15-", "sd21-", "sdxl-")  # a transformer's activations leave the range of fp16


@pytest.mark.parametrize("name", [one for one in SHIPPED if one.startswith(U_NETS) and one.endswith(("-6gb", "-8gb"))])
def test_a_preset_for_a_small_card_trains_one_image_at_a_time_in_a_precision_that_old_cards_have(
    places: Places, name: str
) -> None:
    settings = checks.build(presets.read(places, name).values)
    assert (settings.train_batch_size, settings.mixed_precision) == (1, "fp16")
    assert settings.gradient_checkpointing or settings.cache_text_encoder_outputs


def test_there_is_a_preset_for_each_subject_and_size_of_card() -> None:
    wanted = {f"sd15-lora-{what}-{size}gb" for what in ("character", "style", "object") for size in (8, 12, 24)}
    assert wanted <= set(SHIPPED)
    assert len([name for name in SHIPPED if name != "demo"]) >= 12


def test_an_uploaded_preset_is_checked_like_any_other_and_never_saved(places: Places) -> None:
    values, message = train_tab.load_upload(b"network_dim = 4\nlearning_rat = 1\n", "mine.toml")
    assert values == forms.complete({"network_dim": 4})
    assert "mine.toml, line 2" in message and "did you mean learning_rate?" in message
    assert not places.user_presets.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xfe", "not text in UTF-8"),
        (b"network_dim = = 4", "is not valid TOML"),
        (b"#" * (presets.LARGEST + 1), "more than 262,144 bytes"),
        (b"PK\x03\x04\x00", "is not valid TOML"),
    ],
)
def test_an_upload_that_is_no_preset_is_refused_in_words(content: bytes, words: str) -> None:
    values, message = train_tab.load_upload(content, "mine.toml")
    assert values is None
    assert words in message


def test_only_own_presets_can_be_deleted(places: Places) -> None:
    presets.save(places, "mine", {})
    for name in ("demo", "user/../../demo", "user/none", ""):
        with pytest.raises(presets.NameRefused):
            presets.delete(places, name)
    presets.delete(places, "user/mine")
    assert list(places.user_presets.iterdir()) == []
    assert "demo" in presets.listing(places)


def test_saving_under_the_name_of_another_preset_is_noticed(places: Places) -> None:
    presets.save(places, "mine", {})
    assert train_tab.would_replace(places, "mine", "demo") == "user/mine"
    assert train_tab.would_replace(places, " mine.toml ", "user/mine") == ""
    assert train_tab.would_replace(places, "other", "demo") == ""


# --- checks before a start ---


def test_what_is_missing_is_listed_before_anything_is_started(places: Places) -> None:
    places.home.mkdir(exist_ok=True)
    values = forms.complete(
        {
            "pretrained_model_name_or_path": "no/such/model",
            "train_data_dir": "none",
            "vae": "vae.safetensors",
            "sample_prompts": "a cat --w wide",
            "resume_from_checkpoint": "latest",
        }
    )
    checked = launching.check(places, values)
    assert checked.settings is None
    message = launching.not_started(checked.problems)
    for option in values.keys() & {
        "pretrained_model_name_or_path", "train_data_dir", "vae", "sample_prompts", "resume_from_checkpoint"
    }:  # fmt: skip
        assert f'data-option="{option}"' in message
    assert "5 things" in message
    assert not (places.home / "output").exists()


def test_a_folder_or_file_that_is_no_model_is_told_before_anything_is_started(places: Places) -> None:
    (places.home / "images").mkdir(parents=True)
    (places.home / "model.ckpt").touch()
    for model, words in (("images", "has no model_index.json"), ("model.ckpt", "is not a .safetensors file")):
        values = forms.complete({"pretrained_model_name_or_path": model, "train_data_dir": "images"})
        problems = launching.check(places, values).problems
        assert ['data-option="pretrained_model_name_or_path"' in line and words in line for line in problems] == [True]


@pytest.mark.parametrize("name", ["x" * 300, "/x" * 3000])
def test_a_name_that_no_disk_can_hold_is_a_name_of_nothing(places: Places, name: str) -> None:
    places.home.mkdir(exist_ok=True)
    folders = ("pretrained_model_name_or_path", "train_data_dir", "vae")
    problems = launching.check(places, forms.complete(dict.fromkeys(folders, name))).problems
    assert [option for option in folders if f'data-option="{option}"' in "".join(problems)] == list(folders)
    pictures(places.home / "images", 1)
    told = plan.told(places, forms.complete({"train_data_dir": "images", "output_dir": name}))
    assert "1 image" in told[0]


def test_a_disk_without_room_for_a_checkpoint_is_told_before_the_start(
    places: Places, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures(places.home / "images", 2)
    options = {"train_data_dir": "images", "pretrained_model_name_or_path": str(tiny_model)}
    assert launching.check(places, forms.complete(options)).problems == []
    monkeypatch.setattr(files, "SPARE_BYTES", 1 << 60)
    [problem] = launching.check(places, forms.complete(options)).problems
    assert 'data-option="output_dir"' in problem and "the disk is too small" in problem


# --- what is said at the fields ---


def test_at_a_field_stands_what_is_wrong_with_what_was_written_and_what_it_was(places: Places) -> None:
    (places.home / "images").mkdir(parents=True)
    base = forms.complete({"train_data_dir": "images"})
    changed = {"train_data_dir": "imagse", "network_dim": 0, "vae": "", "seed": None}
    draft = Draft({**base, **changed}, "mine", base)
    wrong = marks.problems(places, draft)
    assert wrong["train_data_dir"] == f"there is no folder or file {places.home / 'imagse'}"
    assert wrong["network_dim"] == "0 is below 1"
    assert wrong["seed"].startswith("is empty; the default is")
    assert "pretrained_model_name_or_path" not in wrong  # it is yet to be written
    said = json.loads(unescape(marks.marks(places, draft, ["train_data_dir", "network_dim"]).split('"')[1]))
    assert said == {"problems": wrong, "changed": {"train_data_dir": "images", "network_dim": "16"}}
    assert marks.problems(places, Draft(base, "mine", base)) == {}


def test_presets_stand_by_what_they_are_for_those_for_the_least_memory_first(places: Places) -> None:
    presets.save(places, "a-lora-style-8gb", {})
    grouped = presets.grouped(places)
    assert list(grouped) == [*dict.fromkeys(presets.PURPOSES.values()), presets.PARTICULAR, presets.OWN]
    assert grouped[presets.OWN] == ["user/a-lora-style-8gb"]
    assert grouped[presets.TRY_OUT][0] == "demo"
    memories = [int(name.rpartition("-")[2].removesuffix("gb")) for name in grouped["A character or person"]]
    assert memories == sorted(memories) and len(set(memories)) > 3
    assert sorted(name for names in grouped.values() for name in names) == sorted(presets.listing(places))
    assert {value for _, value in train_tab.preset_choices(places)} == {"", *presets.listing(places)}


# --- what it will amount to ---


def pictures(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number}.png").touch()


def test_the_learning_rate_is_drawn_over_the_steps_of_the_training(places: Places) -> None:
    pictures(places.home / "images", 4)
    options = {"train_data_dir": "images", "learning_rate": 2e-4, "lr_scheduler": "cosine", "max_train_steps": 100}
    html = plan.shown(places, forms.complete(options | {"lr_warmup_steps": 10}))
    assert "Learning rate (cosine): 0 at first, 0.0002 at most" in html
    heights = [float(point.partition(",")[2]) for point in html.partition('points="')[2].partition('"')[0].split()]
    assert heights[0] == plan.CURVE_HEIGHT and min(heights[10:20]) == 0 and heights[-1] > 39
    assert "polyline" not in plan.shown(places, forms.complete(options | {"train_data_dir": "none"}))


def test_steps_and_epochs_are_computed_from_the_folders(places: Places) -> None:
    pictures(places.home / "images" / "10_cat", 20)
    options: dict[str, Any] = {"train_data_dir": "images", "train_batch_size": 4, "max_train_steps": 2000}
    first = plan.told(places, forms.complete(options))[0]
    assert first == "20 images × 10 repeats / batch 4 = 50 steps an epoch; 2,000 steps = 40 epochs"
    pictures(places.home / "images" / "1_dog", 1)
    options |= {"train_batch_size": 2, "gradient_accumulation_steps": 2, "max_train_epochs": 3}
    assert plan.told(places, forms.complete(options))[0] == (
        "21 images in 2 folders, repeated 201 times / batch 4 (2 × 2 accumulated) = 51 steps an epoch; "
        "153 steps = 3 epochs"
    )


def test_time_is_told_where_an_earlier_run_had_the_same_settings(places: Places) -> None:
    pictures(places.home / "images", 8)
    run = make_run(places.home / "output", "fox", status="finished")
    like_it = asdict(checks.read_config(run.config_file)) | {"train_data_dir": "images", "output_name": "next"}
    told = plan.told(places, like_it | {"max_train_steps": 9000, "save_every_n_steps": 50})
    assert "about 1 h at the speed of fox" in told
    assert len(plan.told(places, like_it | {"network_dim": 99})) == 2
    rarely = plan.told(places, like_it | {"max_train_steps": 9000, "save_every_n_minutes": 0.0})
    assert "Nothing is saved before the end: a crash would cost the whole training, 60 minutes of it" in rarely[2]


def test_the_size_of_what_is_kept_is_told_from_the_base_models_headers(places: Places, tiny_model: Path) -> None:
    pictures(places.home / "images", 8)
    options = {"train_data_dir": "images", "pretrained_model_name_or_path": str(tiny_model), "save_every_n_steps": 50}
    told = plan.told(places, forms.complete(options))
    assert told[1].startswith("3 checkpoints of about ") and told[1].endswith(" free")
    told = plan.told(places, forms.complete(options | {"pretrained_model_name_or_path": "nobody/nothing"}))
    assert told[1].endswith("free; what a checkpoint takes is known when the base model is here")


def test_the_gpus_memory_is_told_and_what_would_make_it_fit(
    places: Places, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures(places.home / "images", 8)
    options = {"train_data_dir": "images", "pretrained_model_name_or_path": str(tiny_model), "resolution": "64"}
    assert plan.told(places, forms.complete(options))[-1].startswith("about 6")
    gpu = GpuSample("GPU", None, None, None, None, OVERHEAD + 3_000_000, False)
    monkeypatch.setattr(resources, "gpus_here", lambda: SimpleNamespace(read=lambda: [gpu]))
    told = plan.told(places, forms.complete(options))[-1]
    assert "of GPU memory; that does not fit the 603 MB of this GPU; it would with cache_latents = true" in told


def test_a_folder_without_images_is_said_to_be_so(places: Places) -> None:
    assert plan.told(places, forms.complete({})) == []
    assert "there is no folder" in plan.told(places, forms.complete({"train_data_dir": "none"}))[0]
    (places.home / "empty").mkdir(parents=True)
    assert "no images in" in plan.told(places, forms.complete({"train_data_dir": "empty"}))[0]


def test_every_option_can_be_found_with_its_accordions() -> None:
    found = {entry["name"]: entry["inside"] for entry in forms.index()}
    assert list(found) == list(OPTIONS)
    assert found["network_dim"] == ["section-network"]
    assert found["min_timestep"] == ["section-loss-and-noise", "section-loss-and-noise-advanced"]


# --- imports ---


def test_the_browser_interface_imports_no_torch_and_no_diffusers() -> None:
    code = (
        "import sys, gui, gui.app; "
        "print([name for name in ('torch', 'diffusers', 'transformers', 'accelerate', 'peft') if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], cwd=CODE, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


def test_what_a_kind_of_training_or_a_family_does_not_have_is_hidden() -> None:
    network, finetune = (forms.hiding("sd", kind) for kind in ("network", "finetune"))
    assert "#opt-train_text_encoder" in network and "#opt-network_dim" not in network
    assert "#opt-network_dim" in finetune and "#section-network" in finetune
    assert "#opt-train_text_encoder" not in finetune and "#section-textual-inversion" in finetune
    assert "#opt-train_text_encoder" in forms.hiding("flux", "finetune")
    assert '#sections a[href="#section-textual-inversion"]' in network
    assert "#section-textual-inversion" not in forms.hiding("sd", "textual_inversion")
    assert "#opt-clip_skip" not in forms.hiding(None, "network")  # the model's files have not told yet
