import torch
from torch.nn import functional as F

from uniovseg.models.mask_decoder import CUT_LOGIT, MaskDecoder, MaskEmbeddings, in_windows, mask_logits
from uniovseg.models.mask_generator import MaskGenerator
from uniovseg.models.pixel_decoder import PixelFeatures


def uncut(embeddings: torch.Tensor) -> MaskEmbeddings:
    return MaskEmbeddings(embeddings, embeddings[..., 0])


def test_mask_logits_are_inner_products() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings, features = torch.randn(2, 3, 4, 5, generator=generator), torch.randn(2, 5, 6, 7, generator=generator)
    logits = mask_logits(uncut(embeddings), features)
    assert logits.shape == (2, 3, 4, 6, 7)
    torch.testing.assert_close(logits[1, 2, 3, 4, 5], embeddings[1, 2, 3] @ features[1, :, 4, 5])


def test_visible_is_the_union_of_the_resized_masks(generator: MaskGenerator, pixel: PixelFeatures) -> None:
    """Oracle: full-size logits, resized, sigmoid at least 0.5, any of the prompt's masks (method 1.6)."""
    with torch.no_grad():
        features = generator.mask_decoder.features(pixel)
        embeddings = torch.randn(2, 6, 3, 32, generator=torch.Generator().manual_seed(0))
        small = F.interpolate(features, size=(4, 6), mode="bilinear", align_corners=False)
        found = MaskDecoder._visible(uncut(embeddings), small)
        full = mask_logits(uncut(embeddings), features).flatten(0, 1)
        expected = (F.interpolate(full, size=(4, 6), mode="bilinear", align_corners=False).sigmoid() >= 0.5).any(1).view(2, 6, 24)
    assert expected.any(-1).all()
    assert not expected.all()
    assert torch.equal(found, expected)


def test_a_prompt_that_sees_nothing_sees_everything() -> None:
    embeddings = torch.tensor([[[[1.0]], [[-1.0]]]])  # [1, 2, 1, 1]
    features = torch.tensor([[[[-1.0, -2.0, 3.0]]]])
    predicted = uncut(embeddings)
    assert MaskDecoder._visible(predicted, features).tolist() == [[[False, False, True], [True, True, False]]]
    assert MaskDecoder._visible(predicted, -features.abs() - 0.0).tolist() == [[[True, True, True], [True, True, True]]]


def test_a_prompt_with_windows_sees_nothing_else() -> None:
    features = torch.tensor([[[[1.0, -2.0, 3.0]]]])
    embeddings = torch.tensor([[[[1.0], [1.0]], [[-1.0], [-1.0]], [[1.0], [-1.0]]]])  # [1, 3, 2, 1]
    middle, right = [0.4, 0.0, 0.6, 1.0], [0.7, 0.0, 0.9, 1.0]
    windows = torch.tensor([[[middle, middle], [middle, right], [right, middle]]])
    seen = MaskDecoder._visible(MaskEmbeddings(embeddings, embeddings[..., 0], windows), features)
    assert seen.tolist() == [[[False, True, False], [False, True, False], [False, True, True]]]
    assert seen[0, 0].tolist() != MaskDecoder._visible(uncut(embeddings), features)[0, 0].tolist()


def test_in_windows_are_the_cells_that_a_window_touches() -> None:
    """Oracle: the closed cell and the closed window share a point, cell by cell."""
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(3, 5, 2, generator=generator)
    windows = torch.cat([first, first + torch.rand(3, 5, 2, generator=generator) * (1 - first)], dim=-1)
    windows[0, 0] = torch.tensor([0.5, 0.5, 0.5, 0.5])
    found = in_windows(windows, (4, 6))
    assert found.shape == (3, 5, 4, 6)
    for place in torch.cartesian_prod(*(torch.arange(n) for n in found.shape)).tolist():
        image, prompt, row, column = place
        left, top, right, bottom = windows[image, prompt].tolist()
        touched = left <= (column + 1) / 6 and right >= column / 6 and top <= (row + 1) / 4 and bottom >= row / 4
        assert found[image, prompt, row, column] == touched


def test_masks_are_cut_to_their_windows() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings, features = torch.randn(2, 3, 4, 5, generator=generator), torch.randn(2, 5, 8, 8, generator=generator)
    windows = torch.tensor([0.25, 0.25, 0.5, 0.75]).expand(2, 3, 4, 4)
    whole, cut = mask_logits(uncut(embeddings), features), mask_logits(MaskEmbeddings(embeddings, embeddings[..., 0], windows), features)
    inside = in_windows(windows, (8, 8))
    assert torch.equal(cut[inside], whole[inside]) and bool((cut[~inside] == CUT_LOGIT).all()) and 0 < inside.float().mean() < 1


def test_levels_are_visited_from_coarse_to_fine_in_turn(generator: MaskGenerator, pixel: PixelFeatures, points: torch.Tensor) -> None:
    """The output after layer i depends on level i mod 3 of the pixel features, and on no level not yet visited."""
    with torch.no_grad():
        before = generator.embed_points(pixel, points)
        for level in range(3):
            levels = tuple(x + (number == level) for number, x in enumerate(pixel.levels))
            after = generator.embed_points(PixelFeatures(pixel.mask_features, (levels[0], levels[1], levels[2])), points)
            same = [torch.equal(a.embeddings, b.embeddings) for a, b in zip(after, before, strict=True)]
            assert same == [True] * (level + 1) + [False] * (4 - level)


def test_the_union_is_not_differentiated(generator: MaskGenerator, pixel: PixelFeatures, points: torch.Tensor) -> None:
    embeddings = torch.randn(1, 2, 3, 32, requires_grad=True)
    assert not MaskDecoder._visible(uncut(embeddings), torch.randn(1, 32, 4, 6)).requires_grad
