"""Maps of a frozen CLIP, kept: stage 2 trains some thousand numbers over the same images again and again, and nearly all of its time would be the trunk's."""

import hashlib

import torch
from torch import Tensor

from uniovseg.models.clip import Clip, ClipFeatures


class FeatureMemory:
    """Computes a frozen CLIP's maps of each image once.

    Images are known by their pixels, so it only helps where an image comes again in the same view: without flips, crops and jitter. What does not fit
    is computed each time; letting the oldest go would, in the order of epochs, let each go just before it is asked for.

    Args:
        clip: the frozen CLIP.
        most_bytes: of maps that are kept, on the images' device.
    """

    def __init__(self, clip: Clip, most_bytes: int) -> None:
        self.clip, self.most_bytes = clip, most_bytes
        self._kept: dict[bytes, tuple[Tensor, ...]] = {}
        self._bytes = 0

    @property
    def count(self) -> int:
        """Images whose maps are kept."""
        return len(self._kept)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> ClipFeatures:
        """The CLIP's maps of [B, 3, H, W] uint8 images, as `Clip.features` gives them."""
        keys = [hashlib.sha256(image.numpy()).digest() for image in images.cpu()]
        new = {key: index for index, key in enumerate(keys) if key not in self._kept}
        found = {key: self._kept[key] for key in keys if key not in new}
        if new:
            computed = self.clip.features(images[list(new.values())])
            for row, key in enumerate(new):
                found[key] = tuple(level[row].clone() for level in computed)
                self._keep(key, found[key])
        return ClipFeatures(*(torch.stack(level) for level in zip(*(found[key] for key in keys), strict=True)))

    def _keep(self, key: bytes, maps: tuple[Tensor, ...]) -> None:
        size = sum(level.nbytes for level in maps)
        if self._bytes + size <= self.most_bytes:
            self._kept[key] = maps
            self._bytes += size
