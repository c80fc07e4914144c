"""The tools for model files: what they write, judged by the models that read it and by whole matrices."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor, nn

from tests.models.test_network_kinds import of, randomise, write
from tests.support import single_file, tiny_families
from trainer.__main__ import main
from trainer.models import keys
from trainer.models.families import TABLE
from trainer.models.layer_names import Namer
from trainer.models.network_layers import change
from trainer.tools import network

KOHYA = {
    "sd": "lora_unet_down_blocks_0_",
    "sdxl": "lora_unet_input_blocks_4_1_",
    "flux": "lora_unet_double_blocks_0_img_",
}


@pytest.fixture(scope="module", params=["sd", "sdxl", "flux", "anima", "z_image"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_families.FAMILIES[family].make(tmp_path_factory.mktemp(family))


@pytest.fixture(scope="module")
def lora(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_lora(model, tmp_path_factory.mktemp("lora") / "a.safetensors")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of Stable Diffusion."""
    home = tmp_path_factory.mktemp("plain")
    return make_lora(tiny_families.FAMILIES["sd"].make(home / "model"), home / "a.safetensors")


def make_lora(model: Path, path: Path, **options: Any) -> Path:
    """A network of random weights in the trainer's own file; its scale is 1/2."""
    trained = of(model, **{"network_dim": 4, "network_alpha": 2.0, **options})
    randomise(trained)
    return write(trained, path)


def use(command: str, *words: object) -> dict[str, Any]:
    """Run a tool as a program would; what it printed."""
    code, printed = attempt(command, *words)
    assert code == 0, printed
    return printed


def attempt(command: str, *words: object) -> tuple[int, dict[str, Any]]:
    import contextlib
    import io

    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        code = main([command, *map(str, words), "--json"])
    return code, json.loads(out.getvalue())


def changes(path: Path, family: str) -> dict[str, Tensor]:
    """What each layer of a network adds, by kohya's name."""
    named = network.named(network.read(path), family)
    return {name: change(named.entries(name)) for name in named.members}


def norm(values: dict[str, Tensor]) -> float:
    return float(torch.cat([value.flatten() for value in values.values()]).norm())


def assert_equal_files(left: Path, right: Path) -> None:
    ours, theirs = safetensors.torch.load_file(left), safetensors.torch.load_file(right)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


# --- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", tiny_families.FAMILIES)
def test_the_name_of_every_layer_can_be_read_back(variant: str) -> None:
    namer = Namer(variant.split()[0])
    part = namer.facts.denoiser
    with torch.device("meta"):
        network_of = tiny_families.FAMILIES[variant].denoiser()
    paths = [path for path, layer in network_of.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    trained = [path for path in paths if part.trains(path, convolutions=True)]
    assert len(trained) > 50
    for path in trained:
        original = keys.flux_place(path)[0] if namer.facts.keys == "fused" else path
        assert namer.layer(namer.kohya(part.component, path)) == (part.component, original)
        flat = f"lycoris_{path.replace('.', '_')}"
        assert namer.layer(flat) == namer.layer(f"{part.component}.{path}") == (part.component, path)


def test_a_network_in_each_form_has_the_same_effect_and_comes_back(family: str, lora: Path, tmp_path: Path) -> None:
    before = changes(lora, family)
    kohya, back = tmp_path / "kohya.safetensors", tmp_path / "back.safetensors"
    use("convert", lora, "--to", "kohya", "--output", kohya, "--family", family)
    for form in ("diffusers", "lycoris"):
        other, again = tmp_path / f"{form}.safetensors", tmp_path / f"{form}-again.safetensors"
        use("convert", kohya, "--to", form, "--output", other, "--family", family)
        use("convert", other, "--to", "kohya", "--output", back, "--family", family)
        use("convert", back, "--to", form, "--output", again, "--family", family)
        assert_equal_files(other, again)
        if form == "lycoris" and TABLE[family].keys != "fused":
            assert_equal_files(kohya, back)
        after = changes(back, family)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
        back.unlink()
    names = set(safetensors.torch.load_file(kohya))
    assert any(name.startswith(KOHYA.get(family, "lora_unet_")) for name in names)


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_diffusers_reads_what_was_converted(family: str, tmp_path: Path) -> None:
    folder = tiny_families.FAMILIES[family].make(tmp_path / "model")
    lora = make_lora(folder, tmp_path / "a.safetensors")
    use("convert", lora, "--to", "diffusers", "--output", tmp_path / "b.safetensors", "--family", family)
    namer = Namer(family)
    component = namer.facts.denoiser.component
    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    own = {name: value.clone() for name, value in getattr(pipeline, component).state_dict().items()}
    pipeline.load_lora_weights(tmp_path / "b.safetensors")
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    wanted = changes(tmp_path / "b.safetensors", family)
    seen = 0
    for name, weight in getattr(pipeline, component).state_dict().items():
        added = weight - own[name]
        if not bool(added.any()):
            continue
        layer = namer.kohya(component, name.removesuffix(".weight"))
        seen += 1
        if family != "flux":
            torch.testing.assert_close(added, wanted[layer].reshape(added.shape), rtol=1e-3, atol=1e-5)
    assert seen >= len([name for name in wanted if not name.startswith("lora_te")])


# --- merging and extracting ----------------------------------------------------------------------------------------


def test_a_lora_that_is_merged_can_be_extracted_again(family: str, model: Path, lora: Path, tmp_path: Path) -> None:
    merged, extracted = tmp_path / "merged", tmp_path / "extracted.safetensors"
    done = use("merge", lora, "--model", model, "--ratios", "0.5", "--output", merged)
    assert (merged / "model_index.json").is_file() or (merged / "modular_model_index.json").is_file()
    before = changes(lora, family)
    assert done["layers"] == len(before)
    rank = 16 if TABLE[family].keys == "fused" else 4  # layers that are one in such a file have the ranks of all
    found = use("extract", model, merged, "--rank", rank, "--output", extracted, "--save_precision", "float")
    after = changes(extracted, family)
    assert before.keys() == after.keys()
    assert all(torch.allclose(after[name], before[name].reshape(after[name].shape) / 2, atol=2e-6) for name in before)
    assert found["retained"] > 0.99999
    cut = use(
        "extract", model, merged, "--rank", 2, "--output", tmp_path / "cut.safetensors", "--save_precision", "float"
    )
    kept = changes(tmp_path / "cut.safetensors", family)
    assert cut["retained"] < 0.99
    assert norm(kept) / norm(after) == pytest.approx(cut["retained"], rel=1e-4)
    error = norm({name: after[name] - kept[name] for name in after}) / norm(after)
    assert error**2 + cut["retained"] ** 2 == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(("family", "kind"), [("sd", StableDiffusionPipeline), ("sdxl", StableDiffusionXLPipeline)])
def test_a_single_file_is_changed_as_the_folder_is(family: str, kind: Any, tmp_path: Path) -> None:
    folder = tiny_families.FAMILIES[family].make(tmp_path / "model")
    first = make_lora(folder, tmp_path / "a.safetensors", conv_dim=2)
    second = make_lora(folder, tmp_path / "b.safetensors", network_kind="dora", network_dim=2)
    base = single_file.write(kind.from_pretrained(folder), tmp_path / "base.safetensors", marks=["kept"])
    words = (first, second, "--ratios", "1,-0.25", "--model")
    use("merge", *words, base, "--output", tmp_path / "one.safetensors", "--family", family)
    use("merge", *words, folder, "--output", tmp_path / "merged")
    expected = single_file.write(
        kind.from_pretrained(tmp_path / "merged"), tmp_path / "two.safetensors", marks=["kept"]
    )
    assert_equal_files(tmp_path / "one.safetensors", expected)
    ours, before = safetensors.torch.load_file(expected), safetensors.torch.load_file(base)
    changed = {name.split(".")[0] for name in ours if not torch.equal(ours[name], before[name])}
    assert changed == {"model", "cond_stage_model"} if family == "sd" else {"model", "conditioner"}


@pytest.mark.parametrize(("family", "kind"), [("sd", StableDiffusionPipeline), ("sdxl", StableDiffusionXLPipeline)])
def test_a_model_goes_to_a_single_file_and_back(family: str, kind: Any, tmp_path: Path) -> None:
    folder = tiny_families.FAMILIES[family].make(tmp_path / "model")
    one, back = tmp_path / "one.safetensors", tmp_path / "back"
    use("convert", folder, "--to", "single", "--output", one)
    assert_equal_files(one, single_file.write(kind.from_pretrained(folder), tmp_path / "two.safetensors"))
    use("convert", one, "--to", "folder", "--output", back, "--config", folder)
    for component in ("unet", "vae", "text_encoder"):
        [ours], [theirs] = ((root / component).glob("*.safetensors") for root in (back, folder))
        assert_equal_files(ours, theirs)
    assert not list(tmp_path.glob(".tmp*"))


def test_loras_are_joined_exactly_or_cut_to_a_rank(family: str, model: Path, lora: Path, tmp_path: Path) -> None:
    other = make_lora(model, tmp_path / "b.safetensors", network_dim=2, network_alpha=1.0, seed=3)
    tensors = {
        name: value * 3 if "lora_up" in name or "lora_B" in name else value
        for name, value in safetensors.torch.load_file(other).items()
    }
    safetensors.torch.save_file(tensors, other)
    use("convert", other, "--to", "lycoris", "--output", tmp_path / "c.safetensors", "--family", family)
    one, two = changes(lora, family), changes(other, family)
    wanted = {name: 0.75 * one[name] - 2 * two[name] for name in one}
    for number, mate in enumerate((other, tmp_path / "c.safetensors")):
        target = tmp_path / f"joined{number}.safetensors"
        done = use("merge", lora, mate, "--ratios=0.75,-2", "--output", target, "--family", family)
        joined = changes(target, family)
        assert all(torch.allclose(joined[name], wanted[name], atol=1e-5) for name in wanted)
        assert done["rank"] in (6, 18, 24)
    done = use("merge", lora, other, "--ratios=0.75,-2", "--rank", 3, "--output", tmp_path / "cut.safetensors")
    cut = changes(tmp_path / "cut.safetensors", family)
    for name, whole in wanted.items():
        values = torch.linalg.svdvals(whole.flatten(1).double())
        error = float((cut[name] - whole).norm())
        assert error == pytest.approx(float(values[3:].square().sum().sqrt()), rel=1e-3, abs=1e-5)  # the least there is
    assert norm(cut) / norm(wanted) == pytest.approx(done["retained"], rel=1e-4)


# --- resizing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ("--rank", 2),
        ("--dynamic_method", "sv_fro", "--dynamic_param", 0.9),
        ("--dynamic_method", "sv_cumulative", "--dynamic_param", 0.6),
        ("--dynamic_method", "sv_ratio", "--dynamic_param", 1.3),
        ("--dynamic_method", "sv_fro", "--dynamic_param", 0.99, "--rank", 3),
    ],
)
def test_a_resized_lora_keeps_the_energy_that_is_announced(words: tuple[Any, ...], plain: Path, tmp_path: Path) -> None:
    target = tmp_path / "small.safetensors"
    done = use("resize", plain, *words, "--output", target)
    before, after = changes(plain, "sd"), changes(target, "sd")
    assert norm(after) / norm(before) == pytest.approx(done["retained"], rel=1e-4)
    error = norm({name: before[name] - after[name] for name in before}) / norm(before)
    assert error**2 + done["retained"] ** 2 == pytest.approx(1, abs=1e-4)
    shares = {name: float(after[name].norm() / before[name].norm()) for name in before}
    assert min(shares.values()) == pytest.approx(done["least_retained"]["share"], rel=1e-3)
    given = dict(zip(words[::2], words[1::2], strict=True))
    if given.get("--dynamic_method") == "sv_fro" and "--rank" not in given:
        assert min(shares.values()) >= 0.9
    if "--rank" in given:
        assert done["rank"]["most"] <= given["--rank"] < 4


def test_the_rank_of_each_method_is_that_of_its_rule() -> None:
    from trainer.tools.ranks import Cutting

    values = torch.tensor([4.0, 2.0, 1.0, 1.0])  # the sum is 8, the sum of the squares 22
    for method, parameter, rank in (
        ("sv_ratio", 3.0, 2), ("sv_ratio", 5.0, 4), ("sv_cumulative", 0.7, 2), ("sv_cumulative", 0.8, 3),
        ("sv_fro", (16 / 22) ** 0.5 - 1e-6, 1), ("sv_fro", 0.95, 2), ("fixed", 0.0, 4),
    ):  # fmt: skip
        assert Cutting(method, parameter, None, None).chosen(values, larger=False) == rank, method
    assert Cutting("fixed", 0.0, 3, 2).chosen(values, larger=True) == 2
    assert Cutting("sv_fro", 0.9, None, None).chosen(torch.zeros(4), larger=False) == 1


# --- headers, checks, refusals -------------------------------------------------------------------------------------


def test_metadata_is_edited_and_the_tensors_stay(plain: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    tensors = {name: value.half() for name, value in safetensors.torch.load_file(plain).items()}
    safetensors.torch.save_file(tensors, file, {"ss_seed": "1", "kept": "ä", "gone": "x", "sshs_model_hash": "?"})
    use("metadata", file, "--set", "ss_seed=2", "--set", "title=a=b", "--remove", "gone", "--in_place")
    shown = use("metadata", file)["metadata"]
    hashes = {"sshs_model_hash": shown["sshs_model_hash"], "sshs_legacy_hash": shown["sshs_legacy_hash"]}
    assert shown == {"ss_seed": "2", "kept": "ä", "title": "a=b", **hashes}
    held = {name: keys.stored(value.float().numpy(), "fp16") for name, value in tensors.items()}
    assert keys.hashes(held, shown) == hashes  # as they would be of a file that is saved anew
    assert_equal_files(file, file)
    after = safetensors.torch.load_file(file)
    assert all(torch.equal(after[name], tensors[name]) for name in tensors)
    code, told = attempt("metadata", file, "--set", "nothing", "--remove", "absent")
    assert code == 3
    assert len(told["refusals"]) == 3


def test_verifying_names_everything_that_is_wrong(plain: Path, tmp_path: Path) -> None:
    assert use("verify", plain, "--family", "sd")["problems"] == []
    tensors = safetensors.torch.load_file(plain)
    first, second, third, *_ = [name for name in sorted(tensors) if "lora_down" in name or "lora_A" in name]
    tensors[first] = tensors[first].clone().index_fill_(0, torch.tensor([0]), float("nan"))
    tensors[second] = torch.zeros(3, *tensors[second].shape[1:])
    del tensors[third]
    tensors["strange.lora_up.weight"] = torch.zeros(2, 2)
    tensors["other"] = torch.zeros(1)
    bad = tmp_path / "bad.safetensors"
    safetensors.torch.save_file(tensors, bad, {"sshs_model_hash": "0" * 64})
    code, told = attempt("verify", bad, "--family", "sd")
    assert code == 1
    problems = "\n".join(told["problems"])
    for words in (
        f"{first}: has NaN",
        "have different ranks",
        "without",
        "strange",
        "other: is not known",
        "another hash",
    ):
        assert words in problems
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(plain.read_bytes()[:-5])
    assert attempt("verify", cut)[0] == 3


def test_nothing_is_written_over_and_all_problems_are_told(plain: Path, tmp_path: Path) -> None:
    there = tmp_path / "there.safetensors"
    there.write_bytes(b"mine")
    code, told = attempt("merge", plain, tmp_path / "absent.safetensors", "--ratios", "1,2,3", "--output", there)
    assert code == 3
    assert len(told["refusals"]) == 3
    assert attempt("resize", plain, "--output", there, "--rank", 1)[0] == 3
    assert attempt("convert", plain, "--to", "kohya", "--output", there)[0] == 3
    assert there.read_bytes() == b"mine"
    code, told = attempt(
        "resize", plain, "--output", tmp_path / "new.safetensors", "--dynamic_method", "sv_fro", "--dynamic_param", 2
    )
    assert code == 3
    assert "no share" in told["refusals"][0]
    assert [path.name for path in tmp_path.iterdir()] == ["there.safetensors"]


def test_a_network_of_another_model_is_refused_with_its_layers(tmp_path: Path) -> None:
    folder = tiny_families.FAMILIES["sd"].make(tmp_path / "model")
    other = {"lora_unet_down_blocks_7_attentions_0_proj_in": (8, 8)}
    tensors: dict[str, Tensor] = {}
    for name, (outputs, inputs) in other.items():
        tensors |= {f"{name}.lora_down.weight": torch.ones(2, inputs), f"{name}.lora_up.weight": torch.ones(outputs, 2)}
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors")
    code, told = attempt("merge", tmp_path / "a.safetensors", "--model", folder, "--output", tmp_path / "new")
    assert code == 3
    assert "down_blocks_7" in told["refusals"][0]
    assert not (tmp_path / "new").exists()


LARGE = """
import resource, sys
from pathlib import Path
import torch
from trainer.tools import TOOLS
model, lora, target = map(Path, sys.argv[1:])
arguments = {field.name: field.default for field in TOOLS["merge"].fields}
arguments |= {"files": [str(lora)], "model": str(model), "output": str(target), "family": "sdxl"}
from trainer.tools import merging
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
TOOLS["merge"].run(arguments, lambda done, total: None)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units elsewhere")
def test_a_model_is_merged_without_being_in_memory(tmp_path: Path) -> None:
    from tests.long import tools

    model, lora = tools.make(tmp_path, megabytes=120)
    words = [sys.executable, "-c", LARGE, str(model), str(lora), str(tmp_path / "new.safetensors")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 60e6
    tools.check(model, lora, tmp_path / "new.safetensors")
