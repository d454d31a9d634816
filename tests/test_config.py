"""Configuration: presets, overrides, one-line errors, round trips, and every file in jobs/configs."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import open_clip
import pytest
import torch
import yaml
from pydantic import Field, ValidationError, model_validator

from uniovseg.config import Config, fields, flatten, load, merge, parse_overrides, to_yaml, validate
from uniovseg.data.makers import MaskSampleMaker
from uniovseg.data.samples import collate
from uniovseg.data.shapes_sets import ShapesConfig
from uniovseg.data.shards import to_table
from uniovseg.errors import ConfigError
from uniovseg.methods import mask_generation
from uniovseg.methods.catalog import build_method
from uniovseg.methods.mask_generation import MaskGeneration
from uniovseg.models.clip import Clip
from uniovseg.models.mask_generator import MaskGeneratorConfig
from uniovseg.pictures import Picture
from uniovseg.pretraining import PretrainConfig
from uniovseg.records import ImageMasks
from uniovseg.runtime.alignment import AlignmentConfig
from uniovseg.runtime.evaluate import PromptableJobConfig
from uniovseg.runtime.evaluate_words import MaskClassificationJobConfig, WordsJobConfig
from uniovseg.runtime.ingest import IngestConfig
from uniovseg.runtime.match import MatchConfig
from uniovseg.runtime.predict import PredictConfig
from uniovseg.runtime.quickstart import QuickstartConfig
from uniovseg.runtime.real import RealConfig
from uniovseg.runtime.refine import RefineConfig
from uniovseg.runtime.reproduce.job import ReproduceConfig
from uniovseg.runtime.sweep.config import SweepConfig
from uniovseg.runtime.train import TrainJobConfig
from uniovseg.training import RAY_KEYS, TrainConfig, train

CONFIGS = Path(__file__).parents[1] / "jobs" / "configs"
TYPES: dict[str, type[Config]] = {
    "shapes_clip": PretrainConfig,
    "shapes_full": QuickstartConfig,
    "stage": TrainJobConfig,
    "refine": RefineConfig,
    "match": MatchConfig,
    "predict": PredictConfig,
    "reproduce": ReproduceConfig,
    "sweep": SweepConfig,
}


class Wheel(Config):
    """A part."""

    spokes: int = Field(28, ge=1, description="number of spokes")
    rim: str = Field("alloy", description="material")

    presets: ClassVar[dict[str, dict[str, Any]]] = {"road": {"spokes": 20, "rim": "carbon"}, "track": {"spokes": 16}}


class Bike(Config):
    """A whole."""

    wheel: Wheel = Field(Wheel(), description="the wheel")
    gears: tuple[int, ...] = Field((11, 28), description="teeth")
    weight: float = Field(8.5, gt=0, description="kg")
    name: str | None = Field(None, description="what it is called")


class Fleet(Config):
    """A whole of wholes."""

    bike: Bike = Field(..., description="the bike")
    spares: tuple[Wheel, ...] = Field((), description="wheels to change")
    size: Annotated[int, Field(ge=1)] = Field(..., description="how many bikes")
    kept: Literal["indoors", "outdoors"] = Field("indoors", description="where they stand")
    labels: tuple[Annotated[str, Field(min_length=1)], ...] = Field((), description="what is on them")

    @model_validator(mode="after")
    def _room(self) -> Self:
        if self.size > 100:
            raise ValueError(f"size is {self.size}: more than there is room for")
        return self


def test_presets_and_what_lies_over_them() -> None:
    assert Wheel.preset("track") == Wheel(spokes=16, rim="alloy")
    assert Wheel.preset("road", spokes=24) == Wheel(spokes=24, rim="carbon")
    assert load(Bike, overrides=["wheel=road"]).wheel == Wheel(spokes=20, rim="carbon")
    assert load(Bike, overrides=["wheel=road", "wheel.spokes=3"]).wheel == Wheel(spokes=3, rim="carbon")
    assert load(Bike, overrides=["wheel={preset: road, spokes: 4}"]).wheel == Wheel(spokes=4, rim="carbon")
    with pytest.raises(ValidationError, match="no preset of this name; allowed: road, track"):
        Wheel.preset("raod")


def test_overrides_lie_over_the_file_in_order(tmp_path: Path) -> None:
    path = tmp_path / "bike.yaml"
    path.write_text("wheel: road\nweight: 7e0\n")
    assert load(Bike, path) == Bike(wheel=Wheel(spokes=20, rim="carbon"), weight=7.0)
    changed = load(Bike, path, ["wheel.rim=steel", "weight=9", "weight=6.5", "gears=[10, 33, 50]", "name=null"])
    assert changed == Bike(wheel=Wheel(spokes=20, rim="steel"), weight=6.5, gears=(10, 33, 50))
    assert load(Bike, path, ["wheel=track"]).wheel.spokes == 16


def test_values_of_overrides() -> None:
    assert parse_overrides(["a.b=3e-4", "a.c=true", "d=[1, x]", "e=", "f=a=b", "g=1e3"]) == {
        "a": {"b": 3e-4, "c": True},
        "d": [1, "x"],
        "e": None,
        "f": "a=b",
        "g": 1000.0,
    }


def test_merge_does_not_change_its_arguments() -> None:
    base = {"a": {"b": 1, "c": 2}, "w": "road"}
    assert merge(base, {"a": {"b": 5}, "w": {"spokes": 3}}) == {"a": {"b": 5, "c": 2}, "w": {"preset": "road", "spokes": 3}}
    assert base == {"a": {"b": 1, "c": 2}, "w": "road"}


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["weigth=3"], ["unknown key 'weigth'", "seen: 3", "allowed here: gears, name, weight, wheel", "did you mean 'weight'?"]),
        (["wheel.spoke=3"], ["unknown key 'wheel.spoke'", "allowed here: rim, spokes", "did you mean 'spokes'?"]),
        (["spokes=3"], ["unknown key 'spokes'", "did you mean 'wheel.spokes'?"]),
        (["wheel=raod"], ["wheel: no preset of this name", "allowed: road, track", "did you mean 'road'?", "seen: 'raod'"]),
        (["weight=-1"], ["weight: Input should be greater than 0", "seen: -1"]),
        (["weight=much", "wheel.spokes=0"], ["weight: Input should be a valid number", "'much'", " | ", "wheel.spokes: ", "seen: 0"]),
        (["weight"], ["not of the form key.key=value", "seen: weight"]),
        (["wheel..rim=x"], ["not of the form key.key=value"]),
        (["gears=[1"], ["not YAML", "seen: gears=[1"]),
    ],
)
def test_errors_are_one_readable_line(overrides: list[str], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        load(Bike, overrides=overrides)
    message = str(raised.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


FLEET = {"bike": {}, "size": 2}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 2}, "bike is missing; it has no default; allowed: {wheel, gears, weight, name} (the bike)"),
        ({"bike": {}}, "size is missing; it has no default; allowed: int (how many bikes)"),
        (FLEET | {"kept": "outdors"}, "kept: Input should be 'indoors' or 'outdoors' (did you mean 'outdoors'?); seen: 'outdors'"),
        (FLEET | {"spares": [{}, {"spoke": 3}]}, "unknown key 'spares.1.spoke'; seen: 3; allowed here: rim, spokes (did you mean 'spokes'?)"),
        (FLEET | {"size": 101}, "configuration: size is 101: more than there is room for; seen: {'bike': {}, 'size': 101}"),
        (FLEET | {"size": 101, "labels": ["x" * 99]}, "configuration: size is 101: more than there is room for"),
    ],
)
def test_what_is_missing_or_no_such_value_is_said_with_what_is_allowed(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        validate(Fleet, values)
    assert str(raised.value) == message


@pytest.mark.parametrize(("text", "what"), [("- 1\n", "not a mapping"), ("a: [1\n", "not YAML"), (None, "cannot be read")])
def test_files_that_are_no_configuration(tmp_path: Path, text: str | None, what: str) -> None:
    path = tmp_path / "bike.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=what) as raised:
        load(Bike, path)
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value)


def test_keys_of_another_reader_are_left_aside(tmp_path: Path) -> None:
    path = tmp_path / "bike.yaml"
    path.write_text("weight: 7\nrider: me\n")
    assert load(Bike, path, ignore=frozenset({"rider"})).weight == 7
    with pytest.raises(ConfigError, match="unknown key 'rider'"):
        load(Bike, path)


def test_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Wheel().spokes = 3  # type: ignore[misc]


def test_fields_list_every_leaf_once() -> None:
    listed = list(fields(Fleet))
    of_the_bike = ["bike.wheel.spokes", "bike.wheel.rim", "bike.gears", "bike.weight", "bike.name"]
    assert [field.key for field in listed] == [*of_the_bike, "spares", "size", "kept", "labels"]
    by_key = {field.key: field for field in listed}
    assert [by_key[key].type for key in ("size", "kept", "labels")] == ["int", "Literal['indoors', 'outdoors']", "tuple[str, ...]"]
    assert by_key["bike.weight"].default == "8.5"
    assert by_key["bike.weight"].description == "kg"
    assert json.loads(by_key["bike.gears"].default) == [11, 28]
    assert [field.default for field in fields(WordsJobConfig) if field.key == "output"] == ["required"]


def test_flatten() -> None:
    assert flatten(Bike()) == {"wheel.spokes": 28, "wheel.rim": "alloy", "gears": [11, 28], "weight": 8.5, "name": None}


ALL_TYPES = [
    RefineConfig,
    MatchConfig,
    AlignmentConfig,
    WordsJobConfig,
    MaskClassificationJobConfig,
    TrainJobConfig,
    PretrainConfig,
    PromptableJobConfig,
    IngestConfig,
    ShapesConfig,
    QuickstartConfig,
    RealConfig,
    MaskGeneratorConfig,
]


def test_a_key_of_another_method_is_not_offered() -> None:
    values = {"output": "x", "data": {"train": "x"}, "method": {"name": "mask_text_alignment", "max_boxs": 3}}
    with pytest.raises(
        ConfigError, match=r"unknown key 'method\.max_boxs'; seen: 3; allowed here: adapter, clip, feature_memory_mib, generator,"
    ) as caught:
        validate(TrainJobConfig, values)
    assert "max_boxes" not in str(caught.value).partition("did you mean")[0]
    for method, said in (({"name": "mask_generatoin"}, "method.name: no such name; seen: 'mask_generatoin'"), ({}, "method.name is missing")):
        with pytest.raises(ConfigError) as caught:
            validate(TrainJobConfig, values | {"method": method})
        assert str(caught.value).startswith(f"{said}; ") and "; allowed: mask_generation, mask_text_alignment" in str(caught.value)
        assert ("did you mean 'mask_generation'?" in str(caught.value)) == ("name" in method)
    values["method"] = {"name": "mask_text_alignment", "adapter": {"rank": 0}}
    with pytest.raises(ConfigError, match=r"^method\.adapter\.rank: .*; seen: 0$"):
        validate(TrainJobConfig, values)


def test_help_lists_the_keys_of_every_method() -> None:
    listed = {field.key: field for field in fields(TrainJobConfig)}
    assert {"method.max_boxes", "method.adapter.rank"} <= listed.keys()
    assert "mask_generation" in listed["method.name"].type and "mask_text_alignment" in listed["method.name"].type


@pytest.mark.parametrize("config_type", ALL_TYPES)
def test_every_field_is_described(config_type: type[Config]) -> None:
    assert [field.key for field in fields(config_type) if not field.description] == []


@pytest.mark.parametrize("preset", MaskGeneratorConfig.presets)
def test_presets_of_the_mask_generator_round_trip(preset: str) -> None:
    built = MaskGeneratorConfig.preset(preset)
    assert MaskGeneratorConfig.model_validate_json(built.model_dump_json()) == built


def type_of(path: Path) -> type[Config]:
    found = [config_type for start, config_type in TYPES.items() if path.stem.startswith(start)]
    assert found, f"no class is named for {path.name}"
    return found[0]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_file_loads_and_round_trips(path: Path, tmp_path: Path) -> None:
    config_type = type_of(path)
    loaded = load(config_type, path)
    assert config_type.model_validate_json(loaded.model_dump_json()) == loaded
    written = tmp_path / "again.yaml"
    written.write_text(to_yaml(loaded))
    assert load(config_type, written) == loaded
    dumped = flatten(loaded)
    for key, value in leaves(yaml.safe_load(path.read_text())).items():  # what the file says is what is loaded
        if key in dumped and not isinstance(value, list):
            assert str(dumped[key]) == str(value) or float(dumped[key]) == float(value), key


def leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {key: leaf for name, item in value.items() for key, leaf in leaves(item, f"{prefix}.{name}".strip(".")).items()}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.view.scale=[1.2,0.8]", "data.view: scale must be two numbers above 0, the smaller one first, not [1.2, 0.8]"),
        ("data.view.scale=[-1,0]", "data.view: scale must be two numbers above 0, the smaller one first, not [-1.0, 0.0]"),
        ("data.sample={min_area_ratio: 0.5, max_area_ratio: 0.1}", "data.sample: min_area_ratio (0.5) must not exceed max_area_ratio (0.1)"),
        ("method.generator.num_masks=7", "method.generator.num_masks: Input should be less than or equal to 6; seen: 7"),
        ("optim.milestones=[2,-1]", "optim: milestones must be fractions of the run, from 0 to 1, not [2.0, -1.0]"),
    ],
)
def test_ranges_are_checked_before_anything_runs(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(TrainJobConfig, CONFIGS / "stage1_sa1b.yaml", [override])
    assert str(raised.value).startswith(message)


@pytest.fixture(scope="module")
def large_clip() -> Clip:
    """The visual half of convnext_large_d_320 in its real size, with weights that are quick to make; it has no text tower."""
    with torch.device("meta"):
        model = open_clip.create_model("convnext_large_d_320", pretrained=None, device="meta")
    del model.transformer, model.token_embedding
    model.to_empty(device="cpu")
    noise = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)) * 0.02
    with torch.no_grad():
        for parameter in model.parameters():
            flat = parameter.view(-1)
            for part in flat.split(len(noise)):
                part.copy_(noise[: len(part)])
    return Clip(model, open_clip.SimpleTokenizer()).freeze()


class Kept:
    """A recorder that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.lines.append({"step": step} | metrics)

    def pictures(self, step: int, pictures: dict[str, Picture]) -> None:
        raise AssertionError("no validation was asked for")

    def checkpoint(self, step: int, write: Callable[[Path], None] | None, metrics: dict[str, float]) -> None:
        assert write is not None

    def keep(self, name: str, data: bytes) -> str:
        raise AssertionError("every step is finite")


SMALL_STEP = [
    "steps=1", "batch_size=1", "workers=1", "data.view.size=128", "method.size=128", "method.loss.num_points=64", "method.matching.grid=32",
    "method.train_points_per_side=2", "method.max_boxes=2", "validation.shards=null", "output=unused", "data.train=unused", "device=cpu", "keep_metric=null",
]  # fmt: skip


@pytest.mark.parametrize(("name", "layers", "size"), [("stage1_sa1b", 9, 1024), ("stage1_paper_v1", 6, 896)])
def test_full_size_files_build_and_take_a_step(
    name: str, layers: int, size: int, large_clip: Clip, scenes: list[ImageMasks], monkeypatch: pytest.MonkeyPatch
) -> None:
    full = load(TrainJobConfig, CONFIGS / f"{name}.yaml")
    assert (full.method.size, full.data.view.size, full.method.generator.decoder_layers) == (size, size, layers)
    assert (full.method.clip.name, full.method.clip.weights) == ("convnext_large_d_320", "laion2b_s29b_b131k_ft_soup")
    assert full.batch_size % (full.workers * full.accumulate) == 0

    monkeypatch.setattr(mask_generation, "load_clip", lambda config: large_clip)
    config = load(TrainJobConfig, CONFIGS / f"{name}.yaml", SMALL_STEP)
    method = build_method(config.method, config.seed)
    before = {name: value.clone() for name, value in method.state().items()}
    sample = MaskSampleMaker(config.data.view, config.data.sample, config.seed).make(to_table(scenes[:1], ["x"], [0]), 0, 0)
    assert len(sample.masks) > 0
    recorder = Kept()
    train(config, method, lambda start: iter([collate([sample])]), recorder)

    (line,) = recorder.lines
    assert line["step"] == 1
    assert all(math.isfinite(value) for value in line.values())
    assert line["pairs"] > 0
    assert isinstance(method, MaskGeneration)
    moved = {name for name, value in method.state().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[1] for name in moved} == {"pixel_decoder", "prompt_encoder", "mask_decoder"}
    assert len({name.split(".")[3] for name in moved if name.startswith("generator.mask_decoder.layers.")}) == layers


def test_the_keys_that_only_ray_reads_are_named_once_more_in_full() -> None:
    """`uniovseg.training` knows no Ray; a key that it does not name would make it refuse a job's file."""
    assert TrainJobConfig.model_fields.keys() - TrainConfig.model_fields.keys() == RAY_KEYS
