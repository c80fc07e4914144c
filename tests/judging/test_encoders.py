"""The networks that judge: the real architectures with random weights, asked one way here and another there."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPTokenizer

from tests.support import judges
from trainer import files
from trainer.judging import encoders, inception
from trainer.judging.encoders import ClipEncoder, DinoEncoder, InceptionEncoder, Missing, Preparation
from trainer.judging.inception import Inception

CPU = torch.device("cpu")
# Of the sorted (name, shape) pairs of torch-fidelity 0.4's FeatureExtractorInceptionV3.
NAMES_AND_SHAPES = "d1c9a52dc8072dcb7e0b68516f97ca745d703c7a19a5e36e1037e47adfdb0487"


def picture(seed: int, size: tuple[int, int] = (40, 32)) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def test_inception_has_the_names_and_shapes_of_torch_fidelitys_weights() -> None:
    shapes = sorted((name, tuple(tensor.shape)) for name, tensor in Inception().state_dict().items())
    assert hashlib.sha256(repr(shapes).encode()).hexdigest() == NAMES_AND_SHAPES


def test_inception_scales_pictures_as_tensorflow_1_did() -> None:
    row = torch.tensor([[[[0.0, 10.0, 20.0, 30.0]]]]).expand(1, 3, 2, 4)
    scaled = inception.scaled(row)[0, 0, 0]
    places = np.arange(299) * 4 / 299
    assert scaled.numpy() == pytest.approx(np.interp(places, [0, 1, 2, 3], [0, 10, 20, 30]), abs=1e-3)


def test_inceptions_features_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    weights = encoders.find(str(judges.make_inception(tmp_path / "inception.safetensors")), "inception")
    pictures = [
        lambda seed=seed, size=size: picture(seed, size) for seed, size in enumerate([(40, 32), (40, 32), (8, 9)])
    ]
    together = InceptionEncoder(weights, CPU, 3).features_and_logits(pictures)
    alone = InceptionEncoder(weights, CPU, 1).features_and_logits(pictures)
    assert together[0].shape == (3, 2048) and together[1].shape == (3, 1008)
    assert np.allclose(together[0], alone[0], rtol=1e-3, atol=1e-4)
    assert not np.allclose(together[0][0], together[0][1], rtol=0.05)


def test_clips_similarities_are_those_of_the_model_as_a_whole(tmp_path: Path) -> None:
    folder = judges.make_clip(tmp_path / "clip")
    encoder = ClipEncoder(encoders.find(str(folder), "clip"), CPU, 2)
    texts, pictures = ["a red thing", "", "blue"], [picture(seed, (32, 32)) for seed in range(3)]
    mine, words = (
        encoder.pictures([functools.partial(picture, seed, (32, 32)) for seed in range(3)]),
        encoder.texts(texts),
    )
    cosines = mine @ words.T / np.outer(np.linalg.norm(mine, axis=1), np.linalg.norm(words, axis=1))

    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
    mean, std = (np.array(encoders.CLIP_PREPARATION[name], dtype=np.float32) for name in ("mean", "std"))
    pixels = np.stack([((np.asarray(each) / 255 - mean) / std).transpose(2, 0, 1) for each in pictures])
    read = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        whole = model(**read, pixel_values=torch.from_numpy(pixels.astype(np.float32)))
    expected = (whole.logits_per_image / model.logit_scale.exp()).detach().numpy()
    assert cosines == pytest.approx(expected, abs=1e-5)


def test_a_text_that_is_longer_than_clip_reads_is_cut_off(tmp_path: Path) -> None:
    encoder = ClipEncoder(encoders.find(str(judges.make_clip(tmp_path / "clip")), "clip"), CPU, 2)
    assert encoder.texts(["word " * 500]).shape == (1, 16)


def test_dino_tells_pictures_apart_and_not_by_their_batch(tmp_path: Path) -> None:
    weights = encoders.find(str(judges.make_dino(tmp_path / "dino")), "dino")
    pictures = [functools.partial(picture, seed) for seed in (0, 1, 0)]
    together, alone = DinoEncoder(weights, CPU, 3).pictures(pictures), DinoEncoder(weights, CPU, 1).pictures(pictures)
    assert np.allclose(together, alone, atol=1e-5)
    assert np.allclose(together[0], together[2]) and not np.allclose(together[0], together[1], atol=1e-3)


def test_pictures_are_prepared_as_the_file_beside_the_weights_says(tmp_path: Path) -> None:
    said = {"size": {"shortest_edge": 20}, "crop_size": {"height": 16, "width": 16}, "image_mean": [0.5] * 3}
    files.write_bytes(tmp_path / "preprocessor_config.json", files.json_bytes(said))
    preparation = Preparation.read(tmp_path, encoders.DINO_PREPARATION)
    assert (preparation.side, preparation.crop, preparation.mean) == (20, 16, (0.5, 0.5, 0.5))
    grey = preparation.apply(Image.new("RGB", (40, 30), (255, 255, 255)))
    assert grey.shape == (3, 16, 16) and grey[0] == pytest.approx(0.5 / 0.229)


def test_weights_are_checked_by_their_digest(tmp_path: Path) -> None:
    folder = judges.make_dino(tmp_path / "dino")
    digest = files.sha256_file(folder / "model.safetensors")
    assert encoders.find(f"{folder}@sha256:{digest}", "dino").digest == digest
    with pytest.raises(Missing, match="has the SHA-256"):
        encoders.find(f"{folder}@sha256:{'0' * 64}", "dino")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "no weights were named"),
        ("/nowhere/at/all", "there is no /nowhere"),
        ("{folder}", "has no model.safetensors"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(Missing, match=reason):
        encoders.find(name.format(folder=tmp_path), "clip")


def test_weights_of_another_network_are_refused_by_name(tmp_path: Path) -> None:
    dino = encoders.find(str(judges.make_dino(tmp_path / "dino")), "dino")
    with pytest.raises(Missing, match="InceptionV3"):
        InceptionEncoder(dino, CPU, 1)
    with pytest.raises(Missing, match="CLIP"):
        ClipEncoder(dino, CPU, 1)


def test_a_pickle_is_not_opened_and_how_to_convert_it_is_told(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"whatever")
    with pytest.raises(Missing, match=r"weights_only=True"):
        encoders.find(str(tmp_path / "weights.pth"), "inception")
