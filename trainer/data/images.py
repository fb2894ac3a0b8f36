"""Images: the encoded pictures (PNG as a rule) of one column, laid end to end, decoded when asked for."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from trainer.data.cameras import channels_first, map_in_threads

WORTH_THREADS = 2**20  # bytes of pictures, 13 ms of one thread; for fewer, to wake others takes longer than they save


class EncodedImages:
    """F pictures as one stream of bytes, which may lie in memory or be mapped from a file.

    Pillow decodes, as in LeRobotDataset, so the pixels are the same; other decoders are at most a tenth faster.
    """

    def __init__(self, content: Tensor, lengths: Tensor, files: Sequence[Path], first_frames: Sequence[int]) -> None:
        self.content = content  # [bytes] uint8
        self.length_F = lengths  # [F] bytes of each picture
        self.end_F = lengths.cumsum(0)  # [F] where they end
        self.files = list(files)
        self.first_frames = np.array(first_frames)  # of each file

    def read(self, frames: Sequence[int]) -> Tensor:
        are_few = int(self.length_F[frames].sum()) < WORTH_THREADS
        pictures = [*map(self._decode, frames)] if are_few else map_in_threads(self._decode, frames)
        return torch.from_numpy(np.stack(pictures))  # [M, C, H, W]

    def file(self, frame: int) -> Path:
        return self.files[np.searchsorted(self.first_frames, frame, side="right") - 1]

    def _decode(self, frame: int) -> np.ndarray:
        """[C, H, W], in the colours of the file: nothing is converted."""
        end = int(self.end_F[frame])
        encoded = self.content[end - int(self.length_F[frame]) : end].numpy().tobytes()
        image = Image.open(io.BytesIO(encoded))
        ImageOps.exif_transpose(image, in_place=True)  # else it copies every picture, turned or not
        pixels = np.asarray(image)
        if pixels.dtype != np.uint8:
            raise ValueError(f"its pixels are {pixels.dtype}; pictures of 8 bits per channel are read here")
        return channels_first(pixels)
