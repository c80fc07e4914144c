"""transformers' processors of texts with pictures, without what they have for videos: that needs torchvision."""

from __future__ import annotations

from typing import Any

from transformers import AutoTokenizer, Qwen2VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil


class QwenPictures(Qwen2VLProcessor):
    """Qwen2VLProcessor of pictures, which Pillow scales, wherever it runs."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        """Nothing is wrong with an argument: there is no processor of videos."""
        return type(argument)

    @classmethod
    def from_pretrained(cls, folder: Any, **settings: Any) -> QwenPictures:
        """Read from a folder of diffusers' or transformers' layout. Raises OSError."""
        pictures = Qwen2VLImageProcessorPil.from_pretrained(folder, **settings)
        return cls(pictures, AutoTokenizer.from_pretrained(folder, **settings))


CLASSES = {"Qwen2VLProcessor": QwenPictures}
