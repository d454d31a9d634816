"""Our view of a CLIP against open_clip's own, on random weights."""

from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from safetensors.torch import load_file, save_file
from timm.layers import SimpleNorm2d
from torch.nn import functional as F

from uniovseg.errors import CheckpointError, ConfigError
from uniovseg.models.clip import ChannelNorm, Clip, ClipConfig, build_shapes_clip, load_clip

LONG = "a photo of a dotted blue ring on sand, beside a plain red star and a striped green circle that lies on water"
TEXTS = ["a plain red star", "water", "a photo of a dotted blue ring on sand", LONG]


def small_convnext() -> CLIP:
    """As convnext_large_d is built in open_clip (average pooling in the trunk's head, MLP projection), but small, with another trunk."""
    return CLIP(
        embed_dim=48,
        vision_cfg=CLIPVisionCfg(timm_model_name="convnext_atto", timm_pool="", timm_proj="mlp", image_size=64),
        text_cfg=CLIPTextCfg(context_length=16, width=32, heads=2, layers=1, vocab_size=49408),
    )


@pytest.fixture(scope="module", params=["shapes", "convnext"])
def clip(request: pytest.FixtureRequest) -> Clip:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_shapes_clip() if request.param == "shapes" else small_convnext()
        for parameter in model.visual.parameters():  # layer scale and biases start near zero; make everything count
            if parameter.ndim == 1:
                torch.nn.init.normal_(parameter, 0.3, 0.2)
    return Clip(model, open_clip.SimpleTokenizer(context_length=model.context_length)).freeze()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def normalised(images: torch.Tensor) -> torch.Tensor:
    """What open_clip's own preprocessing gives its models."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    return (images / 255 - mean) / std


def test_channel_norm_is_that_of_timm() -> None:
    generator = torch.Generator().manual_seed(2)
    theirs = SimpleNorm2d(24)
    torch.nn.init.normal_(theirs.weight, generator=generator)
    x = 5 * torch.randn(2, 24, 5, 7, generator=generator) + 30
    torch.testing.assert_close(ChannelNorm(theirs.weight, theirs.eps)(x), theirs(x), atol=1e-4, rtol=1e-5)
    assert not any(isinstance(module, SimpleNorm2d) for module in build_shapes_clip().visual.trunk.stages.modules())


def test_pooling_the_whole_image_is_the_image_embedding(clip: Clip, images: torch.Tensor) -> None:
    trunk, visual = clip.model.visual.trunk, clip.model.visual
    with torch.no_grad():
        res5 = clip.features(images).res5
        torch.testing.assert_close(res5, trunk.forward_features(normalised(images)), atol=1e-4, rtol=1e-4)
        pooled = res5.mean(dim=(2, 3))
        expected = visual.head(trunk.head(pooled[:, :, None, None]))
        torch.testing.assert_close(clip.encode_image(images), expected)
        own = clip.model.encode_image(normalised(images))
        if own.shape == expected.shape:
            torch.testing.assert_close(clip.encode_image(images), own, atol=1e-4, rtol=1e-4)


def test_text_is_open_clips(clip: Clip) -> None:
    with torch.no_grad():
        tokens = open_clip.SimpleTokenizer(context_length=clip.model.context_length)(TEXTS)
        own = clip.model.encode_text(tokens, normalize=True)
        found = clip.encode_text(TEXTS)
    assert found.shape == (len(TEXTS), clip.embed_dim)
    torch.testing.assert_close(F.normalize(found, dim=-1), own)
    assert not torch.allclose(found, own)  # ours are not normalised


def test_words_are_not_remembered_for_ever(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = clip.encode_text(TEXTS)
    monkeypatch.setattr("uniovseg.models.clip.WORDS_KEPT", 3)
    for text in (LONG, "water"):
        clip.encode_text([text])
    assert clip.tokenizer.cache.keys() == {"<start_of_text>", "<end_of_text>", "water"}
    torch.testing.assert_close(clip.encode_text(TEXTS), expected, rtol=0, atol=0)


def test_features_at_four_strides(clip: Clip, images: torch.Tensor) -> None:
    with torch.no_grad():
        maps = clip.features(images)
        own = clip.model.visual.trunk.forward_intermediates(normalised(images), intermediates_only=True, norm=False)
    assert [tuple(item.shape) for item in maps] == [
        (2, channels, 64 // stride, 96 // stride) for channels, stride in zip(clip.feature_channels, (4, 8, 16, 32), strict=True)
    ]
    for found, expected in zip(maps, own, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_project_takes_any_leading_shape(clip: Clip) -> None:
    pooled = torch.randn(2, 5, clip.feature_channels[3], generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        found = clip.project(pooled)
        assert found.shape == (2, 5, clip.embed_dim)
        torch.testing.assert_close(found[1, 3], clip.project(pooled[1, 3][None])[0], atol=1e-5, rtol=1e-5)


def test_regions_are_means_over_their_cells(clip: Clip, images: torch.Tensor) -> None:
    with torch.no_grad():
        dense = clip.features(images).res5[0]
        cells = torch.zeros(2, *dense.shape[1:], dtype=torch.bool)
        cells[0] = True
        cells[1, 1, 2] = True
        found = clip.embed_regions(dense, cells)
        whole = F.normalize(clip.encode_image(images)[0], dim=-1)
        assert clip.embed_regions(dense, cells[:0]).shape == (0, clip.embed_dim)
        single = F.normalize(clip.project(dense[:, 1, 2][None]), dim=-1)[0]
    torch.testing.assert_close(found, torch.stack([whole, single]), atol=1e-5, rtol=1e-5)


def test_frozen_and_scale(clip: Clip) -> None:
    assert not clip.training
    assert not any(parameter.requires_grad for parameter in clip.parameters())
    assert float(clip.logit_scale) == pytest.approx(1 / 0.07, rel=1e-4)
    with torch.no_grad():
        before = clip.model.logit_scale.clone()
        clip.model.logit_scale.fill_(9.0)
        assert float(clip.logit_scale) == 100
        clip.model.logit_scale.copy_(before)


def test_the_convnext_names_of_open_clip_have_the_stages_that_are_read() -> None:
    for name in ("convnext_base_w", "convnext_large_d_320"):
        assert name in open_clip.list_models()
        assert open_clip.get_model_config(name)["vision_cfg"]["timm_model_name"].startswith("convnext")
    assert ("convnext_large_d_320", "laion2b_s29b_b131k_ft_soup") in open_clip.list_pretrained()


def test_loading_weights_from_a_file(clip_weights: Path, images: torch.Tensor) -> None:
    clip = load_clip(ClipConfig(weights=str(clip_weights)))
    state = load_file(clip_weights)
    assert torch.equal(clip.model.text_projection, state["text_projection"].float())
    assert clip.feature_channels == (32, 64, 128, 256)
    again = load_clip(ClipConfig(weights=str(clip_weights)))
    with torch.no_grad():
        assert torch.equal(clip.encode_image(images), again.encode_image(images))


def test_the_packaged_weights_know_their_world() -> None:
    """Texts of one colour are nearer to each other than to another colour's: not so with random weights."""
    clip = load_clip(ClipConfig())
    with torch.no_grad():
        text = F.normalize(clip.encode_text(["a plain red star", "a plain red circle", "a plain green star", "a plain green circle"]), dim=-1)
    similarity = text @ text.T
    assert similarity[0, 1] > similarity[0, 3]
    assert float(similarity[0, 3]) < 0.9


def test_what_cannot_be_loaded_is_told(tmp_path: Path, clip_weights: Path) -> None:
    with pytest.raises(ConfigError, match="no such CLIP; seen: convnext_huge"):
        load_clip(ClipConfig(name="convnext_huge"))
    with pytest.raises(CheckpointError, match="weights cannot be read"):
        load_clip(ClipConfig(weights=str(tmp_path / "none.safetensors")))
    state = load_file(clip_weights)
    save_file({name: value for name, value in state.items() if name != "text_projection"}, tmp_path / "less.safetensors")
    with pytest.raises(CheckpointError, match=r"1 missing \['text_projection'\]"):
        load_clip(ClipConfig(weights=str(tmp_path / "less.safetensors")))
    save_file(state | {"text_projection": torch.zeros(3, 3)}, tmp_path / "shape.safetensors")
    (tmp_path / "noise.safetensors").write_bytes(b"no tensors here at all")
    with pytest.raises(CheckpointError, match="weights cannot be read"):
        load_clip(ClipConfig(weights=str(tmp_path / "noise.safetensors")))
    with pytest.raises(CheckpointError, match="text_projection has another shape"):
        load_clip(ClipConfig(weights=str(tmp_path / "shape.safetensors")))
