"""What a LoRA file's tensors are called, and that nothing is lost where layers are joined."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainer.models import keys, latents
from trainer.models.keys import Naming

DRAW = np.random.default_rng(4)


def layer(ours: str, inner: int, outer: int, rank: int = 2) -> dict[str, np.ndarray]:
    return {
        f"{ours}.lora_A.weight": DRAW.standard_normal((rank, inner)).astype(np.float32),
        f"{ours}.lora_B.weight": DRAW.standard_normal((outer, rank)).astype(np.float32),
    }


def delta(weights: dict[str, np.ndarray], ours: str, alpha: float, rank: int = 2) -> np.ndarray:
    return weights[f"{ours}.lora_B.weight"] @ weights[f"{ours}.lora_A.weight"] * np.float32(alpha / rank)


@pytest.mark.parametrize(
    ("path", "original"),
    [
        ("down_blocks.1.attentions.0.proj_in", "input_blocks.4.1.proj_in"),
        (
            "down_blocks.2.attentions.1.transformer_blocks.9.attn1.to_q",
            "input_blocks.8.1.transformer_blocks.9.attn1.to_q",
        ),
        ("mid_block.attentions.0.proj_out", "middle_block.1.proj_out"),
        ("mid_block.resnets.1.conv2", "middle_block.2.out_layers.3"),
        ("up_blocks.0.attentions.2.proj_in", "output_blocks.2.1.proj_in"),
        ("up_blocks.2.resnets.2.conv_shortcut", "output_blocks.8.0.skip_connection"),
        ("up_blocks.0.upsamplers.0.conv", "output_blocks.2.2.conv"),
        ("down_blocks.0.downsamplers.0.conv", "input_blocks.3.0.op"),
        ("down_blocks.0.resnets.1.time_emb_proj", "input_blocks.2.0.emb_layers.1"),
    ],
)
def test_paths_of_sdxl_have_their_original_names(path: str, original: str) -> None:
    assert keys.original_unet_path(path) == original


def test_layers_of_other_networks_have_no_original_name() -> None:
    with pytest.raises(ValueError, match="has no name in SDXL's original file"):
        keys.original_unet_path("add_embedding.linear_1")
    with pytest.raises(ValueError, match=r"has no name in FLUX\.1's original file"):
        keys.flux_place("transformer_blocks.0.norm_out.linear")


def test_queries_keys_and_values_of_flux_become_one_layer_and_lose_nothing() -> None:
    block = "transformer.transformer_blocks.3.attn"
    weights: dict[str, np.ndarray] = {}
    for name in ("to_q", "to_k", "to_v"):
        weights |= layer(f"{block}.{name}", 4, 5)
    naming = Naming("fused", {"transformer": ("lora_unet", "")})
    file = keys.lora_file(weights, naming, lambda down: 3.0)
    name = "lora_unet_double_blocks_3_img_attn_qkv"
    assert set(file) == {f"{name}.{end}" for end in ("lora_down.weight", "lora_up.weight", "alpha")}
    down, up, alpha = (file[f"{name}.{end}"] for end in ("lora_down.weight", "lora_up.weight", "alpha"))
    assert (down.shape, up.shape, float(alpha)) == ((6, 4), (15, 6), 9.0)
    expected = np.concatenate([delta(weights, f"{block}.{name}", 3.0) for name in ("to_q", "to_k", "to_v")])
    np.testing.assert_allclose(up @ down * (float(alpha) / 6), expected, rtol=1e-5)


def test_a_folded_file_has_no_alpha_and_the_same_effect() -> None:
    weights = layer("transformer.layers.0.attention.to_q", 4, 5)
    file = keys.lora_file(weights, Naming("folded", {"transformer": ("", "")}), lambda down: 6.0)
    assert set(file) == set(weights)
    product = (
        file["transformer.layers.0.attention.to_q.lora_B.weight"]
        @ file["transformer.layers.0.attention.to_q.lora_A.weight"]
    )
    np.testing.assert_allclose(product, delta(weights, "transformer.layers.0.attention.to_q", 6.0), rtol=1e-6)


def test_what_a_checkpoint_records_of_its_names_is_read_back() -> None:
    naming = Naming("sai", {"unet": ("lora_unet", ""), "text_encoder": ("lora_te1", "text_model.")})
    assert Naming.from_record(naming.record()) == naming
    assert Naming.from_record({"targets": {"unet": ["lora_unet", ""]}}).scheme == "kohya"  # before there were others


def test_latents_are_folded_and_counted_off_and_come_back() -> None:
    value = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6).float()
    folded = latents.fold(value)
    assert folded.shape == (2, 12, 2, 3)
    assert folded[0, :4, 0, 0].tolist() == [0, 1, 6, 7]  # the square at the top left of the first channel
    assert torch.equal(latents.unfold(folded), value)
    assert torch.equal(latents.picture(latents.tokens(folded), 2, 3), folded)
