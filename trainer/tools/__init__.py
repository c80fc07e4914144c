"""The tools for model files: what each takes, declared once for the command line and the page. No torch here.

A tool is a function of its arguments, by name, and of something to tell its progress; it returns what it did, as JSON.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from trainer.models import families

Progress = Callable[[int, int], None]  # told how much of how much is done
Arguments = Mapping[str, Any]
Result = dict[str, Any]
Work = Callable[[Arguments, Progress], Result]
FieldKind = Literal["file", "files", "target", "text", "texts", "numbers", "number", "whole", "choice", "flag"]


@dataclass(frozen=True)
class Field:
    """An argument of a tool. `required` ones without a dash on the command line; None: not given."""

    name: str
    kind: FieldKind
    help: str
    default: Any = None
    required: bool = False
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Tool:
    """`work`: the module and function that do it. `on_page`: whether it stands in the Tools tab."""

    title: str
    help: str
    fields: tuple[Field, ...]
    work: str
    on_page: bool = True

    def run(self, arguments: Arguments, progress: Progress) -> Result:
        """Raises Refused or OSError."""
        module, _, function = self.work.partition(":")
        work: Work = getattr(importlib.import_module(module), function)
        return work(arguments, progress)

    def field(self, name: str) -> Field:
        return next(field for field in self.fields if field.name == name)


METHODS = ("fixed", "sv_ratio", "sv_fro", "sv_cumulative")  # sd-scripts' names
FORMS = ("kohya", "diffusers", "lycoris")
_PRECISIONS = ("", "float", "fp16", "bf16")
_PRECISION = Field("save_precision", "choice", "of the new file (as the first one has it)", "", choices=_PRECISIONS)
_FAMILY = Field(
    "family", "choice", "what the model is, where the file does not tell", families.AUTO, choices=families.choices()
)
_MODELS = "a single file or a diffusers folder"
_DEVICE = Field("device", "text", "where to compute: cpu, cuda, mps", "cpu")
_OUTPUT = Field("output", "target", "the file or folder to write", required=True)
_RANKS = (
    Field("rank", "whole", "of the new layers; with a dynamic method, the most that one may have", low=1, high=4096),
    Field("conv_rank", "whole", "of layers with larger kernels (as --rank)", low=1, high=4096),
    Field("dynamic_method", "choice", "fixed: every layer has the rank; sv_ratio: singular values down to the largest "
          "divided by --dynamic_param; sv_fro: that share of the change's Frobenius norm; sv_cumulative: of the sum of "
          "its singular values", "fixed", choices=METHODS),
    Field("dynamic_param", "number", "of the dynamic method", low=0.0),
)  # fmt: skip

TOOLS: dict[str, Tool] = {
    "merge": Tool(
        "Merge",
        "join LoRAs into one, or add networks to a model",
        (
            Field("files", "files", "the networks", required=True),
            _OUTPUT,
            Field("ratios", "numbers", "how much of each (1 of all)"),
            Field("model", "file", f"a model to add them to, {_MODELS}; without it they are joined"),
            Field("rank", "whole", "of the joined LoRA; without it the ranks add up, which is exact", low=1, high=4096),
            Field("conv_rank", "whole", "of layers with larger kernels (as --rank)", low=1, high=4096),
            _FAMILY,
            _PRECISION,
            _DEVICE,
        ),
        "trainer.tools.merging:merge",
    ),
    "extract": Tool(
        "Extract",
        "write what a model has learnt over another one as a LoRA",
        (
            Field("original", "file", f"the model it was trained from: {_MODELS}", required=True),
            Field("tuned", "file", "the trained model", required=True),
            _OUTPUT,
            *_RANKS,
            _FAMILY,
            _PRECISION,
            _DEVICE,
        ),
        "trainer.tools.extracting:extract",
    ),
    "resize": Tool(
        "Resize",
        "give a LoRA a smaller rank, losing as little as possible",
        (Field("file", "file", "the LoRA", required=True), _OUTPUT, *_RANKS, _PRECISION, _DEVICE),
        "trainer.tools.resizing:resize",
    ),
    "convert": Tool(
        "Convert",
        "put a network into the names of another program, or a model into another form",
        (
            Field("file", "file", f"a network, or a model: {_MODELS}", required=True),
            _OUTPUT,
            Field("to", "choice", "of a network: kohya, diffusers (and peft), lycoris; of a model: folder, single",
                  required=True, choices=(*FORMS, "folder", "single")),
            Field("config", "file", "a diffusers folder that describes a single file (without it, from Hugging Face)"),
            _FAMILY,
            _PRECISION,
        ),
        "trainer.tools.converting:convert",
    ),
    "metadata": Tool(
        "Metadata",
        "show or edit what a file's header says",
        (
            Field("file", "file", "a safetensors file", required=True),
            Field("set", "texts", "KEY=VALUE to write; may be given again"),
            Field("remove", "texts", "a KEY to take out; may be given again"),
            Field("output", "target", "the file to write; without it, and with --in_place, the file itself"),
            Field("in_place", "flag", "replace the file, at once and only when the new one is whole", False),
        ),
        "trainer.tools.metadata:metadata",
    ),
    "caption": Tool(
        "Caption",
        "write captions beside pictures by a model",
        (
            Field("folder", "file", "the pictures, those in the folders below as well", required=True),
            Field("model", "text", "a folder or Hugging Face id: a WD tagger (model.onnx, selected_tags.csv), or BLIP, "
                  "BLIP-2, GIT, Florence-2, Qwen-VL or another of transformers' image-text-to-text models", ""),
            Field("prompt", "text", "what such a model is asked, or how its captions begin; of Florence-2 a task: "
                  "<DETAILED_CAPTION>", ""),
            Field("threshold", "number", "the probability from which a tag counts", 0.35, low=0.0, high=1.0),
            Field("character_threshold", "number", "the same for characters (as --threshold)", low=0.0, high=1.0),
            Field("leave_out", "text", "tags that are never written, separated by commas", ""),
            Field("prefix", "text", "put before every caption, as it is", ""),
            Field("existing", "choice", "pictures that have a caption: skip them, append what is new, or replace it",
                  "skip", choices=("skip", "append", "replace")),
            Field("caption_extension", "text", "of caption files", ".txt"),
            Field("caption_separator", "text", "between tags", ","),
            Field("max_new_tokens", "whole", "the most that a model of transformers writes", 100, low=1, high=4096),
            Field("batch_size", "whole", "pictures at once", 1, low=1, high=256),
            _DEVICE,
            Field("preview", "flag", "write nothing, show what would be written beside the first pictures", False),
            Field("undo", "flag", "put back what the latest captioning of this folder replaced", False),
        ),
        "trainer.tools.captioning:caption",
    ),
    "verify": Tool(
        "Verify",
        "check a model file: its hashes, numbers that are none, shapes, names",
        (Field("file", "file", "a network or model, as a safetensors file", required=True), _FAMILY),
        "trainer.tools.verifying:verify",
    ),
}  # fmt: skip
