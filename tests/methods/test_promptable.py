"""What is done together is as what is done alone."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch

from uniovseg.data.shapes import SceneConfig, draw_scene, scene_rng
from uniovseg.deadline import deadline
from uniovseg.methods import promptable
from uniovseg.methods.mask_generation import MaskGeneration
from uniovseg.models.mask_decoder import MaskEmbeddings
from uniovseg.records import Category, Vocabulary


@pytest.mark.parametrize("count", [1, 3])
def test_images_embedded_together_are_as_alone(tiny_method: MaskGeneration, count: int) -> None:
    scene = draw_scene(SceneConfig(size=90), scene_rng(0, 0, 1), held_out=True).image
    images = [np.ascontiguousarray(part) for part in (scene[:50], scene[:, :30], scene)][:count]
    for image, embedded in zip(images, tiny_method.embed_many(images), strict=True):
        alone = tiny_method.embed(image)
        assert embedded.image is image
        assert embedded.view == alone.view
        tensors = [embedded.pixel.mask_features, *embedded.pixel.levels]
        for together, one in zip(tensors, (alone.pixel.mask_features, *alone.pixel.levels), strict=True):
            torch.testing.assert_close(together, one, rtol=1e-4, atol=1e-5)
        held = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        assert sum(held.values()) == sum(tensor.nelement() * tensor.element_size() for tensor in tensors)  # nothing of the others is kept


@pytest.mark.parametrize("windows", [(), (0.3, 0.5, 0.9, 1.5)])
def test_prompts_are_decoded_a_few_at_a_time(tiny_method: MaskGeneration, windows: tuple[float, ...]) -> None:
    method = copy.deepcopy(tiny_method)
    method.generator.point_windows, method.generator.box_windows = windows[: tiny_method.config.generator.num_masks], bool(windows)
    embedded = method.embed(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))
    points = torch.rand(7, 2, generator=torch.Generator().manual_seed(0)) * 60
    boxes = torch.cat([points, points + 5], dim=1)
    few = method.with_settings({"prompts_per_call": 3})
    labels = torch.tensor([1, 1, 0, 1, 1, 0, 1])
    asks: list[Callable[[MaskGeneration], MaskEmbeddings]] = [
        lambda model: model.embed_points(embedded, points),
        lambda model: model.embed_boxes(embedded, boxes),
        lambda model: model.best_at_points(embedded, points),
        lambda model: model.best_of_point_set(embedded, points, labels),
    ]
    for ask in asks:
        for together, apart in zip(ask(method), ask(few), strict=True):
            torch.testing.assert_close(apart, together, atol=1e-5, rtol=1e-4)
        with deadline(0.0), pytest.raises(TimeoutError):
            ask(few)


def test_text_embeddings_are_kept_within_their_bytes(tiny_method: MaskGeneration, monkeypatch: pytest.MonkeyPatch) -> None:
    method = tiny_method.with_settings({"regions": {"templates": "simple"}})
    one = 4 * method.clip.embed_dim
    monkeypatch.setattr(method, "_classifiers", type(method._classifiers)())
    monkeypatch.setattr(promptable, "TEXT_BYTES_KEPT", 3 * one)
    for words, kept in (("ab", [2]), ("c", [2, 1]), ("d", [1, 1]), ("abcde", [5]), ("a", [1])):
        method.classifier(Vocabulary("words", tuple(Category(index, word, (word,)) for index, word in enumerate(words))))
        assert [len(item) for item in method._classifiers.values()] == kept
