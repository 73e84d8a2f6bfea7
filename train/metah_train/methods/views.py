"""Recurring distorted views: each image has a fixed number of them."""

import hashlib
from collections.abc import Callable

import torch


def recurring(
    pixels: torch.Tensor, count: int, distort: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Return one of each image's ``count`` views, drawn by the global generator.

    pixels: (n, C, H, W) -> alike. View k of an image is ``distort`` (1, C, H, W) with the global
    generator seeded from the pixels and k: the same in every batch, run and process, so that a
    frozen network's features of it can be kept. The generator then goes on as if unused.
    """
    chosen = torch.randint(count, (len(pixels),)).tolist()
    views = torch.empty_like(pixels)
    with torch.random.fork_rng(devices=[]):
        for row, (image, number) in enumerate(zip(pixels.cpu()[:, None], chosen, strict=True)):
            digest = hashlib.blake2b(image.numpy().tobytes(), digest_size=8, salt=b"view")
            torch.default_generator.manual_seed((int.from_bytes(digest.digest()) + number) % 2**63)
            views[row] = distort(image)[0]
    return views
