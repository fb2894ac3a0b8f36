"""Time of the batched image transforms against torchvision's, one sample after the other, in the same run.

    python tests/benchmarks/augmentation.py [--batch 64] [--size 224] [--rounds 5] [--device cpu]

Both start from the same batch of float32 images in [0, 1] on the device and change every sample by a draw of its own.
The rounds are interleaved; the medians are shown. torchvision draws one set of parameters per call, so that samples
are changed alike unless they are taken one by one.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import InterpolationMode

from trainer.data.image_transforms import TRANSFORMS, Draws

BILINEAR = InterpolationMode.BILINEAR

PEERS: dict[str, Callable[[int], Callable[[Tensor], Tensor]]] = {
    "random_shift": lambda size: v2.RandomCrop(size, padding=4, padding_mode="edge"),
    "random_crop": lambda size: v2.RandomResizedCrop(size, scale=(0.64, 1.0), ratio=(1.0, 1.0), antialias=False),
    "random_affine": lambda size: v2.RandomAffine(5, (0.05, 0.05), (0.95, 1.05), interpolation=BILINEAR),
    "color_jitter": lambda size: v2.ColorJitter(0.2, 0.2, 0.2, 0.02),
    "gaussian_blur": lambda size: v2.GaussianBlur(11, (0.1, 1.5)),
    "gaussian_noise": lambda size: v2.GaussianNoise(sigma=0.02),
    "random_erasing": lambda size: v2.RandomErasing(p=1.0, scale=(0.02, 0.2)),
}


def seconds(change: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    change()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("batch", 64), ("size", 224), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", type=torch.device, default="cpu")
    given = parser.parse_args(arguments)
    images = torch.rand(given.batch, 3, given.size, given.size, device=given.device)  # [B, C, H, W]
    print(f"| {given.batch} x 3 x {given.size} x {given.size}, {given.device} | torchvision ms | batched ms | ratio |")
    print("|---|---|---|---|")
    for name, kind in TRANSFORMS.items():
        peer, transform = PEERS[name](given.size), kind()

        def one_by_one(peer: Callable[[Tensor], Tensor] = peer) -> Tensor:
            return torch.stack([peer(image) for image in images])

        def batched(transform: Callable[[Tensor, Draws], Tensor] = transform) -> Tensor:
            return transform(images.unsqueeze(1), Draws((0, 1), images.device))

        contenders = (one_by_one, batched)
        rounds = [[seconds(change, given.device) for change in contenders] for _ in range(given.rounds + 1)][1:]
        theirs, ours = (1e3 * statistics.median(column) for column in zip(*rounds, strict=True))
        print(f"| {name} | {theirs:.1f} | {ours:.1f} | {theirs / ours:.2f} |")


if __name__ == "__main__":
    main()
