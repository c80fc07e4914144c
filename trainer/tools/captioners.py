"""What writes captions: taggers as ONNX files, and transformers' models that turn a picture and a text into a text."""

from __future__ import annotations

import csv
import importlib.util
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from trainer.models import base_model
from trainer.refusal import Refused
from trainer.tools import Arguments

TAGGER, TAGS = "model.onnx", "selected_tags.csv"  # the files of a WD tagger
GENERAL, CHARACTER = "0", "4"  # its categories; those of ratings are left out
NEEDED = ("*.json", "*.txt", "*.model", "*.safetensors", "*.jinja", TAGGER, TAGS)
WHITE = (255, 255, 255)


class Captioner(Protocol):
    def captions(self, pictures: Sequence[Image.Image]) -> list[str]:
        """One caption for each picture, which is in RGB."""
        ...


def load(arguments: Arguments) -> Captioner:
    """The model that `model` names: a local folder, or a Hugging Face id. Raises Refused."""
    folder = _folder(str(arguments["model"]))
    if (folder / TAGGER).is_file():
        return Tagger(folder, arguments)
    if not (folder / "config.json").is_file():
        raise Refused(f"model: {folder} has neither {TAGGER} with {TAGS}, nor a config.json of transformers")
    return Describer(folder, arguments)


def _folder(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if not base_model.HUB_ID.fullmatch(name):
        raise Refused(f"model: there is no folder {path}, and it is no Hugging Face id like owner/name")
    from huggingface_hub import snapshot_download  # imports slowly, and only a hub model needs it
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(NEEDED)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Refused(f"model: {name} could not be had from Hugging Face: {first}") from error


# --- taggers -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tag:
    name: str
    category: str


class Tagger:
    """A WD tagger: the probability of each tag of a list, for a picture laid on a white square."""

    def __init__(self, folder: Path, arguments: Arguments) -> None:
        """Raises Refused."""
        if importlib.util.find_spec("onnxruntime") is None:
            raise Refused("model: ONNX taggers need a package that is not installed: pip install 'rekindle[captions]'")
        import onnxruntime

        self._thresholds = {GENERAL: float(arguments["threshold"])}
        asked = arguments["character_threshold"]
        self._thresholds[CHARACTER] = self._thresholds[GENERAL] if asked is None else float(asked)
        self._separator = f"{arguments['caption_separator']} "
        self._left_out = {tag.strip() for tag in str(arguments["leave_out"]).split(",") if tag.strip()}
        try:
            with (folder / TAGS).open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
            self._tags = [Tag(_spoken(row["name"]), row["category"]) for row in rows]
            wanted = ["CUDAExecutionProvider"] if str(arguments["device"]).startswith("cuda") else []
            providers = [*wanted, "CPUExecutionProvider"]
            self._session = onnxruntime.InferenceSession(folder / TAGGER, providers=providers)
        except (OSError, KeyError, ValueError, RuntimeError, onnxruntime.capi.onnxruntime_pybind11_state.Fail) as error:
            raise Refused(f"model: the tagger in {folder} cannot be read: {error}") from error
        if wanted and wanted[0] not in self._session.get_providers():
            raise Refused("device: this onnxruntime cannot use the GPU; install onnxruntime-gpu, or choose cpu")
        given = self._session.get_inputs()[0]
        self._input, shape = given.name, given.shape
        if len(shape) != 4 or shape[3] != 3 or not isinstance(shape[1], int):
            raise Refused(f"model: the tagger in {folder} takes {shape}, not squares in rows of BGR as WD taggers do")
        self._side = int(shape[1])

    def captions(self, pictures: Sequence[Image.Image]) -> list[str]:
        batch = np.stack([self._square(picture) for picture in pictures])
        probabilities = self._session.run(None, {self._input: batch})[0]
        return [self._caption(row) for row in probabilities]

    def _square(self, picture: Image.Image) -> NDArray[np.float32]:
        """(side, side, 3), blue first, from 0 to 255."""
        side = max(picture.size)
        square = Image.new("RGB", (side, side), WHITE)
        square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        if side != self._side:
            square = square.resize((self._side, self._side), Image.Resampling.BICUBIC)
        return np.ascontiguousarray(np.asarray(square, np.float32)[:, :, ::-1])

    def _caption(self, probabilities: NDArray[np.float32]) -> str:
        chosen = [
            tag.name
            for tag, probability in zip(self._tags, probabilities, strict=True)
            if tag.category in self._thresholds and probability >= self._thresholds[tag.category]
        ]
        return self._separator.join(tag for tag in chosen if tag not in self._left_out)


def _spoken(tag: str) -> str:
    """A tag with spaces; of faces made of signs, which have at most three, the underscore stays."""
    return tag if len(tag) <= 3 else tag.replace("_", " ")


# --- descriptions --------------------------------------------------------------------------------------------------


class Describer:
    """A model of transformers that writes about a picture: BLIP, BLIP-2, GIT, Florence-2, Qwen-VL and their like."""

    def __init__(self, folder: Path, arguments: Arguments) -> None:
        """Raises Refused."""
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self._prompt, self._device = str(arguments["prompt"]).strip(), str(arguments["device"])
        self._most = int(arguments["max_new_tokens"])
        try:
            self._processor: Any = AutoProcessor.from_pretrained(folder, local_files_only=True)
            model: Any = AutoModelForImageTextToText.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype="auto"
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise Refused(f"model: {folder} cannot be used: {first}") from error
        self._model = model.to(self._device).eval()
        self._takes = inspect.signature(model.forward).parameters

    @torch.inference_mode()
    def captions(self, pictures: Sequence[Image.Image]) -> list[str]:
        given = self._given(pictures).to(self._device)
        if "token_type_ids" in given and "token_type_ids" not in self._takes:
            del given["token_type_ids"]  # of the tokenizer, and not of every model that has it
        for name, values in given.items():
            if values.is_floating_point():
                given[name] = values.to(self._model.dtype)
        made = self._model.generate(**given, max_new_tokens=self._most, do_sample=False)
        begins = given.get("input_ids")
        if begins is not None and torch.equal(made[:, : begins.shape[1]], begins):
            made = made[:, begins.shape[1] :]
        if self._is_task:
            texts = self._processor.batch_decode(made, skip_special_tokens=False)
            return [self._parsed(text, picture) for text, picture in zip(texts, pictures, strict=True)]
        texts = self._processor.batch_decode(made, skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]

    @property
    def _is_task(self) -> bool:
        """Whether the prompt is a task of Florence-2's ("<DETAILED_CAPTION>"), which takes its answers apart itself."""
        return self._prompt.startswith("<") and hasattr(self._processor, "post_process_generation")

    def _given(self, pictures: Sequence[Image.Image]) -> Any:
        """What the model takes: in a conversation where it was taught to have one."""
        if getattr(self._processor, "chat_template", None):
            asked = [[_message(picture, self._prompt)] for picture in pictures]
            return self._processor.apply_chat_template(
                asked, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", padding=True,
                processor_kwargs={"padding_side": "left"} if len(pictures) > 1 else {},
            )  # fmt: skip
        text = {"text": [self._prompt] * len(pictures), "padding": True} if self._prompt else {}
        return self._processor(images=list(pictures), return_tensors="pt", **text)

    def _parsed(self, text: str, picture: Image.Image) -> str:
        answer = self._processor.post_process_generation(text, task=self._prompt, image_size=picture.size)
        return " ".join(str(answer.get(self._prompt, text)).split())


def _message(picture: Image.Image, text: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": text}]}
