from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from uniovseg.errors import CheckpointError
from uniovseg.models import release
from uniovseg.models.clip import ClipConfig
from uniovseg.models.release import (
    CLIP_PREFIX,
    from_release,
    read_release,
    release_clip_names,
    release_generator,
    release_names,
    split_release,
    to_release,
)


@pytest.fixture(scope="module")
def names() -> dict[str, list[int]]:
    return release_names()


@pytest.fixture
def state(names: dict[str, list[int]], monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """A released state dict whose tensors are views of one number, so that it costs no memory; its CLIP is the small one of the shapes world."""
    monkeypatch.setattr(release, "RELEASE_CLIP", ClipConfig())
    return {name: torch.zeros(()).expand(shape) for name, shape in (names | release_clip_names()).items()}


def test_the_released_network_has_its_tensors_and_parameters(names: dict[str, list[int]]) -> None:
    assert len(names) == 358
    with torch.device("meta"):
        generator = release_generator()
    pixel = sum(p.numel() for p in generator.pixel_decoder.parameters())
    predictor = sum(p.numel() for part in (generator.prompt_encoder, generator.mask_decoder) for p in part.parameters())
    assert (pixel, predictor) == (5_790_144, 16_188_421)


def test_some_released_names(names: dict[str, list[int]]) -> None:
    """Names and shapes as in method 1.3 to 1.6."""
    pixel, predictor = "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor."
    assert names[pixel + "input_proj.0.0.weight"] == [256, 1536, 1, 1]
    assert names[pixel + "transformer.encoder.layers.5.self_attn.sampling_offsets.bias"] == [192]
    assert names[pixel + "transformer.encoder.layers.0.linear1.weight"] == [1024, 256]
    assert names[pixel + "adapter_1.weight"] == [256, 192, 1, 1]
    assert names[pixel + "layer_1.norm.weight"] == [256]
    assert names[pixel + "pe_layer.positional_encoding_gaussian_matrix"] == [2, 128]
    assert names[predictor + "prompt_encoder.mask_emb"] == [1, 5, 256]
    assert names[predictor + "prompt_encoder.attr_emb.weight"] == [2, 256]
    assert names[predictor + "transformer_cross_attention_layers.8.multihead_attn.in_proj_weight"] == [768, 256]
    assert names[predictor + "transformer_ffn_layers.3.norm.bias"] == [256]
    assert names[predictor + "iou_embed.4.layers.2.weight"] == [1, 256]


def test_names_go_both_ways(names: dict[str, list[int]]) -> None:
    with torch.device("meta"):
        ours = set(release_generator().state_dict())
    assert {from_release(name) for name in names} == ours
    assert all(to_release(from_release(name)) == name for name in names)


@pytest.mark.parametrize("name", ["sem_seg_head.predictor.unknown.weight", "pixel_decoder.layers.0", "backbone.clip_model.logit_scale", ""])
def test_a_name_of_no_rule_is_an_error(name: str) -> None:
    with pytest.raises(KeyError):
        from_release(name)


def test_the_released_clip_has_its_tensors() -> None:
    names = release_clip_names()
    assert len(names) == 543
    assert names[CLIP_PREFIX + "visual.trunk.stem.0.weight"] == [192, 3, 4, 4]
    assert names[CLIP_PREFIX + "text_projection"] == [768, 768]


def test_every_tensor_is_accounted_for(state: dict[str, Tensor]) -> None:
    weights = split_release(state)
    assert set(weights.clip) == {name.removeprefix(CLIP_PREFIX) for name in release_clip_names()}
    assert split_release({name: value for name, value in state.items() if not name.startswith(CLIP_PREFIX)}).clip == {}
    with torch.device("meta"):
        own = release_generator().state_dict()
    assert {name: value.shape for name, value in weights.generator.items()} == {name: value.shape for name, value in own.items()}


def test_missing_and_left_over_tensors_are_named_and_counted(state: dict[str, Tensor]) -> None:
    for layer in (5, 6, 7, 8):
        del state[f"sem_seg_head.predictor.transformer_ffn_layers.{layer}.norm.bias"]
    state["sem_seg_head.predictor.extra"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as caught:
        split_release(state)
    assert "4 missing (sem_seg_head.predictor.transformer_ffn_layers.5.norm.bias, " in str(caught.value)
    assert "1 left over (sem_seg_head.predictor.extra)" in str(caught.value)


def test_a_wrong_shape_is_an_error(state: dict[str, Tensor]) -> None:
    state["sem_seg_head.predictor.level_embed.weight"] = torch.zeros(4, 256)
    with pytest.raises(CheckpointError, match=r"level_embed.weight has another shape than released; seen: \[4, 256\]; allowed: \[3, 256\]"):
        split_release(state)


def test_the_clip_is_whole_or_not_there(state: dict[str, Tensor]) -> None:
    del state[CLIP_PREFIX + "text_projection"]
    state[CLIP_PREFIX + "visual.proj"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=rf"1 missing \({CLIP_PREFIX}text_projection\); 1 left over \({CLIP_PREFIX}visual.proj\)"):
        split_release(state)
    del state[CLIP_PREFIX + "visual.proj"]
    state[CLIP_PREFIX + "text_projection"] = torch.zeros(768, 768)
    with pytest.raises(CheckpointError, match=r"text_projection has another shape than released; seen: \[768, 768\]; allowed: \[128, 128\]"):
        split_release(state)


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_file_is_read_back(state: dict[str, Tensor], tmp_path: Path, wrapped: bool) -> None:
    value = torch.randn(3, 256, generator=torch.Generator().manual_seed(0))
    state["sem_seg_head.predictor.level_embed.weight"] = value
    torch.save({"model": state, "iteration": 109_999, "optimizer": {"state": {}}} if wrapped else state, tmp_path / "stage1.pth")
    weights = read_release(tmp_path / "stage1.pth")
    assert torch.equal(weights.generator["mask_decoder.level_embed.weight"], value)


def test_numpy_arrays_in_the_file_are_read(state: dict[str, Tensor], tmp_path: Path) -> None:
    name = "sem_seg_head.predictor.level_embed.weight"
    value = np.arange(768, dtype=np.float32).reshape(3, 256)
    torch.save({"model": {**state, name: value}}, tmp_path / "stage1.pth")
    assert read_release(tmp_path / "stage1.pth").generator["mask_decoder.level_embed.weight"].tolist() == value.tolist()


class Harmful:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("this must not run",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": Harmful()}, "not a checkpoint of tensors alone"),
        ([1, 2], "holds no state dict; seen: list"),
        ({"model": {}}, "holds no state dict"),
        ({"model": {"a": "text"}}, "more than tensors; seen: a: str"),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path: Path, content: object, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(content, tmp_path / "stage1.pth")
    with pytest.raises(CheckpointError, match=message):
        read_release(tmp_path / "stage1.pth")
    assert capsys.readouterr().out == ""


def test_broken_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_release(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("no checkpoint")
    with pytest.raises(CheckpointError, match="not a checkpoint of tensors alone"):
        read_release(tmp_path / "text.pth")
