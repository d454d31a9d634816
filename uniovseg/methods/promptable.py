"""What every Uni-OVSeg checkpoint can do, whichever stage trained it: masks for points, boxes or everything, and a name for each mask.

The methods of stage 1 and stage 2 differ in what they train and are one model at test time: a frozen CLIP, a mask generator, and in stage 2 a feature
adapter. A mask's name comes from the CLIP's last feature map, frozen or adapted, pooled under the mask (method: section 4).
"""

import copy
import dataclasses
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from uniovseg.config import Config, merge, validate
from uniovseg.data.regions import region_cells
from uniovseg.data.views import CanvasSide, fit_view, render
from uniovseg.deadline import in_time
from uniovseg.methods.base import Method
from uniovseg.models.clip import CHECKPOINT, Clip, ClipConfig
from uniovseg.models.feature_adapter import FeatureAdapter
from uniovseg.models.mask_decoder import MaskEmbeddings, mask_logits
from uniovseg.models.mask_generator import MaskGenerator, MaskGeneratorConfig
from uniovseg.models.pixel_decoder import PixelFeatures
from uniovseg.models.text_classifier import TEMPLATE_SETS, TextClassifier, build_text_classifier, template_set
from uniovseg.ops.points import grid_points
from uniovseg.ops.run_length import RunLengthMasks
from uniovseg.parallel import Parallel
from uniovseg.postprocess import ProposalConfig, filter_proposals, masks_from_logits
from uniovseg.records import Prediction, View, Vocabulary

VOCABULARIES_KEPT, TEXT_BYTES_KEPT = 32, 64 * 1024**2
"""Vocabularies whose text embeddings a method remembers, and bytes of those embeddings; the last one stays, whatever its size."""


class RegionConfig(Config):
    """How masks are named."""

    sizes: tuple[CanvasSide, ...] = Field(
        (1024,), min_length=1, description="canvas sides at which the CLIP sees the image, pixels; scores are averaged"
    )
    templates: str = Field("vild14", pattern=f"^({'|'.join(TEMPLATE_SETS)})$", description=f"prompt templates of a word: {', '.join(TEMPLATE_SETS)}")


class PromptableConfig(Config):
    """The model that stage 1 and stage 2 share."""

    parallels: ClassVar[tuple[Parallel, ...]] = ("ddp", "fsdp")
    """How several workers can train it."""

    clip: ClipConfig = Field(ClipConfig(), description="the frozen CLIP")
    generator: MaskGeneratorConfig = Field(MaskGeneratorConfig(), description="pixel decoder, prompt encoder, mask decoder")
    proposals: ProposalConfig = Field(ProposalConfig(), description="filtering of the grid's masks at test time")
    regions: RegionConfig = Field(RegionConfig(), description="naming of masks")
    size: int = Field(1024, ge=64, multiple_of=32, description="side of the square canvas at test time, pixels")
    test_points_per_side: int = Field(20, ge=1, description="grid of point prompts of `everything`, points a side")
    prompts_per_call: int = Field(100, ge=1, description="prompts decoded together at test time")


@dataclass(frozen=True, slots=True)
class EmbeddedImage:
    """An image ready for prompts.

    Attributes:
        image: [H, W, 3] uint8 RGB, as given.
        pixel: pixel features of the canvas (batch of 1).
        view: the canvas on the image.
        dense: last CLIP maps [C, s/32, s/32] with their views, by canvas side s and whether the adapter took part; filled when a mask is first named.
    """

    image: NDArray[np.uint8]
    pixel: PixelFeatures
    view: View
    dense: dict[tuple[int, bool], tuple[Tensor, View]] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of the image in pixels."""
        return self.image.shape[0], self.image.shape[1]


class PromptableSegmenter(Method):
    """A frozen CLIP and a mask generator, with a feature adapter or without.

    Args:
        config: sizes and thresholds at test time.
        clip: the frozen CLIP.
        generator: pixel decoder, prompt encoder and mask decoder.
        adapter: corrects the CLIP's last map where masks are named; None: the CLIP as it is.
    """

    frozen: ClassVar[tuple[str, ...]] = ("clip",)

    def __init__(self, config: PromptableConfig, clip: Clip, generator: MaskGenerator, adapter: FeatureAdapter | None = None) -> None:
        super().__init__()
        self.config = config
        self.clip = clip
        self.generator = generator
        self.adapter = adapter
        self._classifiers: OrderedDict[tuple[str, str], TextClassifier] = OrderedDict()

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds: everything outside `frozen`, and the CLIP too where its weights come with the checkpoint and from nowhere else."""
        if self.config.clip.weights != CHECKPOINT:
            return super().state()
        return super().state() | {f"clip.{name}": value for name, value in self.clip.state_dict().items()}

    def with_settings(self, changes: Mapping[str, Any]) -> Self:
        """The same model, its weights and remembered vocabularies shared, with other settings of how it is used, such as ``{"regions": {"sizes": [896]}}``.

        Raises:
            ConfigError: a setting that there is not, or of a wrong value.
        """
        other = copy.copy(self)
        other.config = validate(type(self.config), merge(self.config.model_dump(), dict(changes)))
        return other

    def pixel_features(self, images: Tensor) -> PixelFeatures:
        """The pixel decoder's output for [B, 3, H, W] RGB images in 0..255; no gradient reaches the CLIP."""
        with torch.no_grad():
            features = self.clip.features(images)
        pixel: PixelFeatures = self.generator.pixel_decoder(features)
        return pixel

    def dense_features(self, images: Tensor, adapted: bool = True) -> Tensor:
        """The last CLIP map that regions are pooled from, adapted where there is an adapter and it is asked: [B, C, H/32, W/32]."""
        if self.adapter is None or not adapted:
            with torch.no_grad():
                return self.clip.features(images).res5
        dense: Tensor = self.adapter(self.clip, images, self.generator.pixel_decoder)
        return dense

    def embed(self, image: NDArray[np.uint8]) -> EmbeddedImage:
        """Pixel features of an RGB image [H, W, 3]: its longer side scaled to the canvas, padded right and below with 128."""
        return self.embed_many([image])[0]

    @torch.no_grad()
    def embed_many(self, images: Sequence[NDArray[np.uint8]]) -> list[EmbeddedImage]:
        """Pixel features of RGB images [H, W, 3] of any sizes in one call, as `embed` gives them one by one; at least one image."""
        canvases, views = zip(*(self._canvas(image, self.config.size) for image in images), strict=True)
        pixel = self.pixel_features(torch.cat(canvases))
        return [EmbeddedImage(image, pixel.take(index), view) for index, (image, view) in enumerate(zip(images, views, strict=True))]

    @torch.no_grad()
    def embed_points(self, embedded: EmbeddedImage, points_xy: Tensor) -> MaskEmbeddings:
        """What single points [Q, 2] in source pixels decode to, before any mask is made: embeddings [Q, M, C], predicted IoU [Q, M] in [0, 1].

        Raises:
            TimeoutError: as `in_time`, before each ``prompts_per_call`` of them; so does all that decodes points.
        """
        chunks = in_time(embedded.view.to_view(points_xy).split(self.config.prompts_per_call))
        return MaskEmbeddings.cat([self.generator.embed_points(embedded.pixel, chunk[None])[-1].take(0) for chunk in chunks])

    @torch.no_grad()
    def best_at_points(self, embedded: EmbeddedImage, points_xy: Tensor) -> MaskEmbeddings:
        """The mask of each single point [Q, 2] in source pixels, in one row: embeddings [Q, C], predicted IoU [Q].

        Of a point's masks only those count that contain the point (where none does, all do): a large mask beside the point, such as the ground around
        a thing, often has a high predicted IoU, as it is easy, and nobody who clicks on the thing means it. Among them the highest predicted IoU wins;
        where a point's masks have windows, which grow from the first mask to the last, the first that is good enough to be a proposal.
        """
        decoded = self.embed_points(embedded, points_xy)
        features = self.generator.mask_decoder.features(embedded.pixel)[0]
        rows, columns = _cells(embedded.view, points_xy, features)
        contains = (decoded.embeddings @ features[:, rows, columns].T[..., None])[..., 0] > 0
        best = (self._rank(decoded) + 2 * contains).argmax(1)  # a rank is at most 1
        return decoded.take((torch.arange(len(best), device=best.device), best))

    @torch.no_grad()
    def best_of_point_set(self, embedded: EmbeddedImage, points_xy: Tensor, labels: Tensor) -> MaskEmbeddings:
        """The one mask that a set of points [P, 2] in source pixels with labels [P] (1 inside, 0 outside) means: embeddings [1, C], IoU [1].

        Every point inside is a prompt of its own; of all their masks the one with most points on the right side wins, and among those the one that
        `best_at_points` would take. At least one point is inside.

        Differs: the release has a prompt of several points (`MaskGenerator.embed_point_sets`), for which neither it nor the paper describes a
        training; untrained it means nothing.
        """
        decoded = self.embed_points(embedded, points_xy[labels == 1])
        candidates = decoded.flat()
        features = self.generator.mask_decoder.features(embedded.pixel)
        rows, columns = _cells(embedded.view, points_xy, features)
        right = []
        for chunk in in_time(torch.arange(len(candidates.iou_probs), device=self.device).split(self.config.prompts_per_call)):
            logits = mask_logits(candidates.take(chunk).take(None), features)[0]
            right.append(((logits[:, rows, columns] > 0) == (labels == 1)).sum(1))
        return candidates.take((self._rank(decoded).flatten() + 2 * torch.cat(right)).argmax()[None])

    def _rank(self, decoded: MaskEmbeddings) -> Tensor:
        """In which order a point's masks are taken, [Q, M] in [0, 1], largest first: see `best_at_points`."""
        rank = decoded.iou_probs
        if decoded.windows is None:
            return rank
        count = rank.shape[1]
        good = rank >= self.config.proposals.min_predicted_iou
        return good * (1 - torch.arange(count, device=rank.device) / count)

    @torch.no_grad()
    def embed_boxes(self, embedded: EmbeddedImage, boxes_xyxy: Tensor) -> MaskEmbeddings:
        """The one mask of each box [Q, 4] in source pixels: embeddings [Q, 1, C], IoU [Q, 1]. Raises TimeoutError as `embed_points`."""
        boxes = embedded.view.to_view(boxes_xyxy.reshape(-1, 2, 2)).reshape(-1, 4)
        chunks = in_time(boxes.split(self.config.prompts_per_call))
        return MaskEmbeddings.cat([self.generator.embed_boxes(embedded.pixel, chunk[None])[-1].take(0) for chunk in chunks])

    @torch.no_grad()
    def mask_logits(self, embedded: EmbeddedImage, masks: MaskEmbeddings) -> Tensor:
        """Logits [k, h, w] at stride 4 of the canvas, of k masks in one row."""
        return mask_logits(masks.take(None), self.generator.mask_decoder.features(embedded.pixel))[0]

    @torch.no_grad()
    def uncut_logits(self, embedded: EmbeddedImage, masks: MaskEmbeddings) -> tuple[Tensor, Tensor | None]:
        """Logits [k, h, w] of k masks in one row as if they had no windows, and the windows as boxes [k, 4] in source pixels, None where there are none.

        Together they are what masks at source resolution are made of (`uniovseg.postprocess.dense_masks`).
        """
        limits = None
        if masks.windows is not None:
            height, width = embedded.view.size
            corners = masks.windows.reshape(-1, 2, 2) * masks.windows.new_tensor([width, height])
            limits = embedded.view.to_source(corners).reshape(-1, 4)
        return self.mask_logits(embedded, masks._replace(windows=None)), limits

    def masks(self, embedded: EmbeddedImage, masks: MaskEmbeddings) -> RunLengthMasks:
        """k masks in one row at source resolution, on the CPU."""
        logits, limits = self.uncut_logits(embedded, masks)
        return masks_from_logits(logits, embedded.view, embedded.size, limits)

    @torch.no_grad()
    def propose(self, embedded: EmbeddedImage, points_per_side: int | None = None, proposals: ProposalConfig | None = None) -> Prediction:
        """Masks of everything: a grid of points, cut by predicted IoU before any mask is made, then inner-NMS, then source resolution.

        Args:
            embedded: the image.
            points_per_side, proposals: grid and filter; None: those of the configuration.
        """
        height, width = embedded.size
        wanted = proposals or self.config.proposals
        points = grid_points(points_per_side or self.config.test_points_per_side, torch.tensor([0, 0, width, height])).to(self.device)
        decoded = self.embed_points(embedded, points)
        kept = decoded.take(decoded.iou_probs >= wanted.min_predicted_iou)
        logits, limits = self.uncut_logits(embedded, kept)
        masks, quality = filter_proposals(wanted, logits, kept.iou_probs, embedded.view, embedded.size, limits)
        return Prediction(masks=masks, quality=quality, class_scores=torch.zeros(len(masks), 0))

    @torch.no_grad()
    def classify(self, embedded: EmbeddedImage, masks: RunLengthMasks, vocabulary: Vocabulary) -> Tensor:
        """Class probabilities [n, C] of masks at source resolution: the softmax over classes, averaged over ``regions.sizes`` (method: Eq. 7)."""
        classifier = self.classifier(vocabulary)
        scores = [classifier.scores(region) for region in self.region_embeddings(embedded, masks)]
        return torch.stack(scores).mean(0).cpu()

    @torch.no_grad()
    def region_embeddings(self, embedded: EmbeddedImage, masks: RunLengthMasks, adapted: float = 1.0) -> list[Tensor]:
        """Unit embeddings [n, D] of masks at source resolution, for each of ``regions.sizes``.

        Args:
            embedded: the image.
            masks: n masks.
            adapted: the adapter's share s in [0, 1]: normalise((1 - s) frozen + s adapted) (method: 3.1). Without an adapter nothing changes.
        """
        share = 0.0 if self.adapter is None else adapted
        embeddings = []
        for size in in_time(self.config.regions.sizes):
            mixed = torch.zeros(len(masks), self.clip.embed_dim, device=self.device)
            for use_adapter, weight in ((False, 1 - share), (True, share)):
                if weight > 0:
                    mixed += weight * self._regions(embedded, masks, size, use_adapter)
            embeddings.append(F.normalize(mixed, dim=-1))
        return embeddings

    def _regions(self, embedded: EmbeddedImage, masks: RunLengthMasks, size: int, adapted: bool) -> Tensor:
        if (size, adapted) not in embedded.dense:
            canvas, view = self._canvas(embedded.image, size)
            embedded.dense[size, adapted] = self.dense_features(canvas, adapted)[0], view
        dense, view = embedded.dense[size, adapted]
        return self.clip.embed_regions(dense, region_cells(masks, view, (dense.shape[1], dense.shape[2])).to(dense.device))

    def classifier(self, vocabulary: Vocabulary) -> TextClassifier:
        """The vocabulary's text embeddings, remembered by its fingerprint and the templates."""
        templates = self.config.regions.templates
        key = vocabulary.fingerprint, templates
        if key not in self._classifiers:
            self._classifiers[key] = build_text_classifier(self.clip, vocabulary, template_set(templates))
            while len(self._classifiers) > 1 and (
                len(self._classifiers) > VOCABULARIES_KEPT or sum(kept.embeddings.nbytes for kept in self._classifiers.values()) > TEXT_BYTES_KEPT
            ):
                self._classifiers.popitem(last=False)
        self._classifiers.move_to_end(key)
        return self._classifiers[key]

    def predict(self, images: Sequence[NDArray[np.uint8]], vocabulary: Vocabulary | None = None) -> list[Prediction]:
        """Masks of everything in each RGB image [H, W, 3], named where a vocabulary is given."""
        return [self._predict(self.embed(image), vocabulary) for image in images]

    def _predict(self, embedded: EmbeddedImage, vocabulary: Vocabulary | None) -> Prediction:
        proposals = self.propose(embedded)
        if vocabulary is None:
            return proposals
        return dataclasses.replace(proposals, class_scores=self.classify(embedded, proposals.masks, vocabulary))

    def _canvas(self, image: NDArray[np.uint8], size: int) -> tuple[Tensor, View]:
        """The image on a square canvas [1, 3, size, size]: its longer side scaled to it, padded right and below with 128."""
        view = fit_view(size, image.shape[0], image.shape[1])
        return torch.from_numpy(render(image, view)).to(self.device)[None], view


def _cells(view: View, points_xy: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [P] and columns [P] of the cells of stride-4 maps [..., h, w] under points [P, 2] in source pixels."""
    cells = (view.to_view(points_xy) / 4).long()
    return cells[:, 1].clamp(0, maps.shape[-2] - 1), cells[:, 0].clamp(0, maps.shape[-1] - 1)
