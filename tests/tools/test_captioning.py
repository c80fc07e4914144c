"""Captions by models: a small ONNX graph as a tagger, and real architectures of transformers at a tiny size."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    CLIPImageProcessor,
    GitConfig,
    GitForCausalLM,
    GitProcessor,
)

from tests.tools.test_tools import attempt, use
from trainer.tools import captioning

TAGS = (
    ("rating_safe", "9"),
    ("red_sky", "0"),
    ("green_grass", "0"),
    ("blue_sea", "0"),
    ("^_^", "0"),
    ("some_one", "4"),
)
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
SIDE = 8


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "rekindle" / "captioning"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "below").mkdir(parents=True)
    for place, (name, colour) in enumerate(COLOURS.items()):
        Image.new("RGB", (16, 12), colour).save(folder / ("below" if place == 2 else "") / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tagger whose tags are sure of a picture's mean colour: it is given blue first."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    folder = tmp_path_factory.mktemp("tagger")
    weights = np.zeros((3, len(TAGS)), np.float32)
    weights[2, 1] = weights[1, 2] = weights[0, 3] = 0.1  # red, green, blue
    weights[2, 5] = 0.02
    bias = np.array([9, -10, -10, -10, -1, -3], np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["picture", "axes"], ["mean"], keepdims=0),
            helper.make_node("Gemm", ["mean", "weights", "bias"], ["sum"]),
            helper.make_node("Sigmoid", ["sum"], ["probabilities"]),
        ],
        "tagger",
        [helper.make_tensor_value_info("picture", TensorProto.FLOAT, ["batch", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", len(TAGS)])],
        [
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(bias, "bias"),
            numpy_helper.from_array(np.array([1, 2], np.int64), "axes"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
    with (folder / "selected_tags.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["tag_id", "name", "category", "count"])
        writer.writerows([number, *tag, 1] for number, tag in enumerate(TAGS))
    return folder


def written(folder: Path) -> dict[str, str]:
    return {path.stem: path.read_text() for path in sorted(folder.rglob("*.txt"))}


def test_a_tagger_writes_tags_above_the_thresholds(tagger: Path, pictures: Path) -> None:
    done = use("caption", pictures, "--model", tagger, "--prefix", "zkz, ", "--leave_out", "green grass")
    assert (done["written"], done["looked_at"], done["problems"]) == (3, 3, [])
    assert written(pictures) == {"red": "zkz, red sky, some one", "green": "zkz, ", "blue": "zkz, blue sea"}
    sure = use("caption", pictures, "--model", tagger, "--existing", "replace", "--character_threshold", 0.999)
    assert sure["written"] == 3
    assert written(pictures)["red"] == "red sky"


def test_captions_that_are_there_are_skipped_appended_to_or_replaced_and_put_back(tagger: Path, pictures: Path) -> None:
    (pictures / "red.txt").write_text("mine, red sky\n")
    use("caption", pictures, "--model", tagger)
    assert written(pictures) == {"red": "mine, red sky\n", "green": "green grass", "blue": "blue sea"}
    use("caption", pictures, "--model", tagger, "--existing", "append", "--leave_out", "blue sea")
    assert written(pictures) == {"red": "mine, red sky, some one", "green": "green grass", "blue": "blue sea"}
    use("caption", pictures, "--undo")
    assert written(pictures)["red"] == "mine, red sky\n"
    (pictures / "green.txt").write_text("edited since")
    code, told = attempt("caption", pictures, "--undo")
    assert code == 1  # not all of it could be put back
    assert "changed by someone else" in told["problems"][0]
    assert written(pictures) == {"red": "mine, red sky\n", "green": "edited since"}
    assert attempt("caption", pictures, "--undo")[0] == 3


def test_a_preview_writes_nothing(tagger: Path, pictures: Path) -> None:
    (pictures / "red.txt").write_text("mine")
    told = use("caption", pictures, "--model", tagger, "--existing", "append", "--preview")
    assert told["would_be_captioned"] == 3
    assert told["preview"][str(pictures / "red.png")] == "mine, red sky, some one"
    assert written(pictures) == {"red": "mine"}


def test_an_interrupted_captioning_goes_on_where_it_was(
    tagger: Path, pictures: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pictures / "broken.png").write_bytes(b"no picture")
    for path in [*pictures.glob("[gr]*.png"), *pictures.glob("below/*.png")]:
        path.with_suffix(".txt").write_text("old")
    monkeypatch.setattr(captioning, "AT_ONCE", 2)
    asked = ("caption", pictures, "--model", tagger, "--existing", "replace")
    seen: list[int] = []
    captions = captioning._captions

    def interrupted(captioner: Any, paths: Any, *rest: Any) -> Any:
        seen.append(len(paths))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return captions(captioner, paths, *rest)

    monkeypatch.setattr(captioning, "_captions", interrupted)
    with pytest.raises(KeyboardInterrupt):
        attempt(*asked)
    assert list(written(pictures).values()).count("old") == 2
    code, told = attempt(*asked)
    assert code == 0, told
    assert seen == [2, 2, 2]
    assert (told["looked_at"], told["written"]) == (2, 2)
    assert "old" not in written(pictures).values()
    assert not list(state.glob("*/done.jsonl"))
    assert use("caption", pictures, "--undo")["put_back"] == 4 - 1  # all of it, in both parts
    assert set(written(pictures).values()) == {"old"}


def make_git(folder: Path, tokenizer: BertTokenizer) -> None:
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 16, "patch_size": 8}  # fmt: skip
    text = {"vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 16, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}  # fmt: skip
    GitForCausalLM(GitConfig(vision_config=vision, **text)).save_pretrained(folder)
    size = {"height": 16, "width": 16}
    GitProcessor(CLIPImageProcessor(size=size, do_center_crop=False), tokenizer).save_pretrained(folder)


def make_blip(folder: Path, tokenizer: BertTokenizer) -> None:
    text = {"vocab_size": len(tokenizer), "hidden_size": 16, "encoder_hidden_size": 16, "intermediate_size": 16,
            "num_hidden_layers": 1, "num_attention_heads": 2, "bos_token_id": 2, "sep_token_id": 3,
            "eos_token_id": 3, "pad_token_id": 0, "projection_dim": 16}  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 16, "patch_size": 8, "projection_dim": 16}  # fmt: skip
    BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size={"height": 16, "width": 16}), tokenizer).save_pretrained(folder)


@pytest.mark.parametrize("make", [make_git, make_blip])
def test_a_model_of_transformers_writes_what_it_generates(make: Any, pictures: Path, tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "green", "blue", "picture", "of"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizer(str(tmp_path / "vocab.txt"))
    model = tmp_path / "model"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        make(model, tokenizer)
    asked = ("caption", pictures, "--model", model, "--max_new_tokens", 6)
    told = use(*asked, "--preview")["preview"]
    done = use(*asked, "--batch_size", 2)
    assert done["written"] + len([text for text in told.values() if not text]) == 3
    for path, text in told.items():
        assert set(text.split()) <= set(words)
        file = Path(path).with_suffix(".txt")
        assert not text or file.read_text() == text
    prompted = use(*asked, "--existing", "replace", "--prompt", "a picture of", "--preview")
    assert len(prompted["preview"]) == 3


def test_what_is_no_model_is_refused(pictures: Path, tmp_path: Path) -> None:
    for words, model in (("no folder", str(tmp_path / "absent/x/y")), ("neither model.onnx", str(pictures))):
        code, told = attempt("caption", pictures, "--model", model)
        assert code == 3
        assert words in told["refusals"][0]
