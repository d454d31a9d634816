"""Stage 2: the loss by hand, what trains, what is kept, and pairing through one path."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from uniovseg import checkpoint
from uniovseg.checkpoint import CheckpointInfo
from uniovseg.config import validate
from uniovseg.data import pairs
from uniovseg.data.images import decode_image
from uniovseg.data.views import ViewConfig
from uniovseg.errors import ConfigError
from uniovseg.methods.base import OptimConfig
from uniovseg.methods.catalog import build_method
from uniovseg.methods.mask_generation import MaskGeneration
from uniovseg.methods.mask_text_alignment import MaskTextAlignment, MaskTextAlignmentConfig
from uniovseg.models.feature_adapter import FeatureAdapter, LowRank
from uniovseg.models.phrases import PhraseEmbeddings
from uniovseg.models.text_classifier import embed_phrases, template_set
from uniovseg.ops.run_length import RunLengthMasks
from uniovseg.pairing import PairingConfig, pair_image
from uniovseg.records import Category, ImageEntities, ImageMasks, ImagePairs, PairBatch, Vocabulary
from uniovseg.segmenter import Segmenter
from uniovseg.training import TrainConfig, initial_method

PHRASES = ("red circle", "sand", "striped blue star")
SETTINGS = {
    "name": "mask_text_alignment",
    "clip": {"name": "shapes"},
    "generator": "shapes",
    "size": 128,
    "adapter": {"rank": 4},
    "regions": {"sizes": [128], "templates": "simple"},
    "proposals": {"min_predicted_iou": 0.0},
}
FIXED = ViewConfig(size=128, hflip=0.0, scale=(1.0, 1.0), colour_jitter=False)


@pytest.fixture
def method() -> MaskTextAlignment:
    built = build_method(validate(MaskTextAlignmentConfig, SETTINGS), 0)
    assert isinstance(built, MaskTextAlignment)
    return built


def adapter_of(method: MaskTextAlignment) -> FeatureAdapter:
    assert method.adapter is not None
    return method.adapter


def scramble(method: MaskTextAlignment) -> None:
    """Give the adapter weights that change something."""
    for branch in adapter_of(method).branches:
        assert isinstance(branch, LowRank)
        torch.nn.init.normal_(branch.up.weight, std=0.05)


def record_of(scene: ImageMasks, count: int = 3) -> ImagePairs:
    """The scene's first masks, paired with phrases in turn."""
    return ImagePairs(
        key=scene.key, image=scene.image, height=scene.height, width=scene.width, counts=scene.counts[:count],
        quality=np.ones(count, np.float32), entities=PHRASES, sizes=(128,), costs=np.zeros((1, count, 3), np.float32),
        pairs=np.array([[i, i % 3] for i in range(count)]).reshape(-1, 2), pair_costs=np.zeros(count, np.float32),
    )  # fmt: skip


def batch_of(scenes: list[ImageMasks], counts: tuple[int, ...]) -> PairBatch:
    return pairs.collate([pairs.make_pair_sample(record_of(scene, n), FIXED, 0) for scene, n in zip(scenes, counts, strict=False)])


def test_kept_maps_change_neither_loss_nor_gradients(scenes: list[ImageMasks]) -> None:
    found = []
    for kept in (0, 64):
        built = build_method(validate(MaskTextAlignmentConfig, SETTINGS | {"feature_memory_mib": kept}), 0)
        assert isinstance(built, MaskTextAlignment)
        torch.manual_seed(0)
        scramble(built)
        for counts in ((3, 1), (2, 3)):
            built.zero_grad()
            loss = built.training_step(batch_of(scenes, counts)).loss
            loss.backward()
        assert (built._memory.count if built._memory else 0) == (len(scenes[:2]) if kept else 0)
        found.append([loss.detach(), *(parameter.grad for parameter in adapter_of(built).parameters())])
    for with_memory, without in zip(*found, strict=True):
        torch.testing.assert_close(with_memory, without, atol=1e-6, rtol=1e-4)


def test_maps_that_the_adapter_changes_cannot_be_kept() -> None:
    with pytest.raises(ConfigError, match="feature_memory_mib must be 0 for adapter.placement=inline"):
        validate(MaskTextAlignmentConfig, SETTINGS | {"feature_memory_mib": 1, "adapter": {"placement": "inline"}})


def test_the_loss_is_the_mean_over_all_pairs_of_one_minus_cosine(method: MaskTextAlignment, scenes: list[ImageMasks]) -> None:
    batch = batch_of(scenes, (3, 1))
    texts = embed_phrases(method.clip, PHRASES, template_set("simple"))
    losses = []
    for image, regions, phrases in zip(batch.images, batch.regions, batch.entities, strict=True):
        dense = method.clip.features(image[None]).res5[0]
        for cells, phrase in zip(regions, phrases, strict=True):
            pooled = torch.stack([dense[:, y, x] for y, x in torch.nonzero(cells).tolist()]).mean(0)
            region = method.clip.project(pooled[None])[0]
            losses.append(1 - float(F.cosine_similarity(region, texts[PHRASES.index(phrase)], dim=0)))
    output = method.training_step(batch)
    assert len(losses) == 4
    assert float(output.loss.detach()) == pytest.approx(sum(losses) / 4, abs=1e-5)
    assert float(output.metrics["cosine"]) == pytest.approx(1 - sum(losses) / 4, abs=1e-5)
    assert float(output.metrics["pairs"]) == 2


def test_only_the_adapter_trains(method: MaskTextAlignment, scenes: list[ImageMasks]) -> None:
    trained = {id(parameter) for group in method.param_groups(OptimConfig()) for parameter in group["params"]}
    assert trained == {id(parameter) for parameter in adapter_of(method).parameters()}
    method.training_step(batch_of(scenes, (3, 3))).loss.backward()
    assert {name.split(".")[0] for name, parameter in method.named_parameters() if parameter.grad is not None} == {"adapter"}


def test_a_batch_without_pairs_has_a_loss_of_zero_that_reaches_the_adapter(method: MaskTextAlignment, scenes: list[ImageMasks]) -> None:
    output = method.training_step(batch_of(scenes, (0, 0)))
    output.loss.backward()
    assert float(output.loss.detach()) == 0
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in adapter_of(method).parameters())


def test_steps_bring_regions_to_their_phrases(method: MaskTextAlignment, scenes: list[ImageMasks]) -> None:
    batch = batch_of(scenes, (3, 3))
    optimizer = torch.optim.AdamW([dict(group) for group in method.param_groups(OptimConfig(lr=1e-2))], lr=1e-2)
    cosines = []
    for _ in range(15):
        output = method.training_step(batch)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        cosines.append(float(output.metrics["cosine"]))
    assert cosines[-1] > cosines[0] + 0.05


def test_a_run_starts_from_stage_1_with_a_fresh_adapter(tiny_method: MaskGeneration, tmp_path: Path) -> None:
    stage1 = {"name": "mask_generation", "clip": {"name": "shapes"}, "generator": tiny_method.config.generator.model_dump(), "size": 64}
    checkpoint.save(tmp_path, CheckpointInfo(step=1, method=stage1), tiny_method.state())
    settings = SETTINGS | {"generator": stage1["generator"]}
    config = validate(TrainConfig, {"output": "x", "init": str(tmp_path), "method": settings, "data": {"train": "x"}})
    method = initial_method(config)
    for name, value in tiny_method.state().items():
        assert torch.equal(method.state()[name], value), name
    assert not any(value.any() for name, value in method.state().items() if name.startswith("adapter") and ".up." in name)


def test_a_checkpoint_of_stage_2_is_whole_and_names_masks(method: MaskTextAlignment, scenes: list[ImageMasks], tmp_path: Path) -> None:
    scramble(method)
    checkpoint.save(tmp_path, CheckpointInfo(step=1, method=method.config.model_dump(mode="json")), method.state())
    loaded = Segmenter.load(tmp_path).method
    vocabulary = Vocabulary("test", tuple(Category(i, name, (name,)) for i, name in enumerate(PHRASES)))
    image = decode_image(scenes[0].image)
    (a,), (b,) = (each.predict([image], vocabulary) for each in (loaded, method.eval()))
    assert len(a.masks) > 0 and a.masks == b.masks
    assert torch.equal(a.class_scores, b.class_scores)
    torch.testing.assert_close(a.class_scores.sum(1), torch.ones(len(a.masks)))
    method.adapter = None
    (frozen,) = method.predict([image], vocabulary)
    assert not torch.allclose(frozen.class_scores, a.class_scores, atol=1e-4)


def test_regions_between_frozen_and_adapted(method: MaskTextAlignment, scenes: list[ImageMasks]) -> None:
    scramble(method)
    embedded = method.embed(decode_image(scenes[0].image))
    masks = RunLengthMasks.from_counts(scenes[0].counts[:3], (scenes[0].height, scenes[0].width))
    frozen, half, adapted = (method.region_embeddings(embedded, masks, share)[0] for share in (0.0, 0.5, 1.0))
    torch.testing.assert_close(half, F.normalize(frozen + adapted, dim=-1))
    assert not torch.allclose(frozen, adapted, atol=1e-3)


def test_an_image_is_paired_by_the_definitions(method: MaskTextAlignment, scenes: list[ImageMasks]) -> None:
    scene = scenes[0]
    record = ImageEntities(key=scene.key, image=scene.image, caption="", entities=PHRASES)
    image = decode_image(scene.image)
    phrases = PhraseEmbeddings(method.clip, template_set("simple"))
    found = pair_image(PairingConfig(points_per_side=4, max_masks=6), method.eval(), phrases, record, image)
    embedded = method.embed(image)
    proposals = method.propose(embedded, 4)
    kept = proposals.masks.select(torch.arange(min(6, len(proposals.masks))))
    assert 0 < len(found.counts) <= 6
    assert list(found.counts) == kept.to_counts()
    texts = embed_phrases(method.clip, PHRASES, template_set("simple"))
    expected = 1 - (method.clip.logit_scale * method.region_embeddings(embedded, kept, 0.0)[0] @ texts.T).softmax(1)
    np.testing.assert_allclose(found.costs, expected[None].detach().numpy(), atol=1e-5)
    assert len(found.pairs) == min(len(found.counts), 3)
    assert math.isclose(found.pair_costs[0], found.costs[0][tuple(found.pairs[0])], rel_tol=1e-5)


def test_phrases_are_encoded_once(method: MaskTextAlignment, monkeypatch: pytest.MonkeyPatch) -> None:
    phrases = PhraseEmbeddings(method.clip, template_set("simple"))
    first = phrases(["sand", "red circle", "sand"])
    monkeypatch.setattr(type(method.clip), "encode_text", lambda *_: pytest.fail("asked again"))
    assert torch.equal(phrases(["red circle", "sand"]), first[[1, 0]])
    assert phrases([]).shape == (0, method.clip.embed_dim)
    kept = list(phrases._known.values())
    assert all(row.untyped_storage().nbytes() == row.nbytes for row in kept)  # nothing else is kept alive
