"""Table 3 and the curve of caption noise on the shapes world: captions refined and parsed by scripted models, matched, aligned, evaluated.

A *seed* is a world of its own: scenes, captions, order of training, labelled evaluation scenes. A *step* is one way from captions to an adapter. Steps
with the same captions and parser share their entities; all steps of a seed name the same proposals, beside the frozen CLIP at its best setting.
"""

import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field
from rich.console import Console

from uniovseg import checkpoint, training
from uniovseg.config import Config, load
from uniovseg.data.entities import read_entities
from uniovseg.data.shapes import UNSEEN, SceneConfig
from uniovseg.data.shapes_sets import ShapesConfig, write_shapes
from uniovseg.errors import ConfigError, UniOVSegError
from uniovseg.runtime.alignment import Namings, NamingsConfig, compare_namings
from uniovseg.runtime.endpoint import EndpointConfig
from uniovseg.runtime.match import MatchConfig, match
from uniovseg.runtime.pool import PoolConfig, over_items
from uniovseg.runtime.refine import RefineConfig, refine
from uniovseg.runtime.scripted_models import TrueNames, image_key, model_name, scripted_models, true_names
from uniovseg.runtime.session import ray_session
from uniovseg.storage import Location
from uniovseg.text import nltk_parser
from uniovseg.training import RAY_KEYS, TrainConfig


class NoiseConfig(Config):
    """Noise shares: of how many answers one thing is wrong or left out, in [0, 1]. A real parser's own mistakes come on top."""

    raw_captions: float = Field(0.5, ge=0, le=1, description="captions as they come with the images")
    refined_captions: float = Field(0.1, ge=0, le=1, description="captions from the captioner")
    nltk: float = Field(0.0, ge=0, le=1, description="lists of entities from NLTK")
    rules: float = Field(0.0, ge=0, le=1, description="lists of entities from rules; the curve of caption noise parses by them")
    llm: float = Field(0.05, ge=0, le=1, description="lists of entities from the language model")


class ShapesWorldConfig(Config):
    """Sizes of the runs on the shapes world."""

    stage1: str = Field("shapes", description="stage-1 checkpoint that proposes masks; 'shapes': the packaged model of the shapes world")
    image_text: int = Field(384, ge=1, description="scenes with captions, a seed")
    evaluation: int = Field(48, ge=1, description="labelled scenes, a seed")
    scene: SceneConfig = Field(SceneConfig(), description="what scenes look like")
    noise: NoiseConfig = Field(NoiseConfig(), description="what the scripted models get wrong")
    curve: tuple[float, ...] = Field((0.0, 0.15, 0.3, 0.5), min_length=1, description="shares of wrong captions of the curve of caption noise")
    sizes: tuple[int, ...] = Field((256, 384), min_length=1, description="canvas sides of the multi-scale step, pixels; the other steps see the last")
    templates: tuple[str, ...] = Field(("simple", "vild14"), min_length=1, description="template sets of the frozen CLIP that are tried")
    points_per_side: int = Field(12, ge=1, description="grid of point prompts of the evaluation, points a side")
    match: str = Field("jobs/configs/match_shapes.yaml", description="configuration of mask-text matching")
    align: str = Field("jobs/configs/stage2_shapes.yaml", description="configuration of stage 2")
    align_steps: int = Field(600, ge=1, description="optimizer steps of stage 2")
    pool: PoolConfig = Field(PoolConfig(), description="actors, each working on one step of one seed at a time")


@dataclass(frozen=True, slots=True)
class Step:
    """One way from captions to an adapter.

    Attributes:
        name: for people and folders.
        raw: noise share of the captions.
        captioner: model that refines them; empty: none does.
        parser: model that lists their entities.
        sizes: canvas sides at which regions are matched and named.
    """

    name: str
    raw: float
    captioner: str
    parser: str
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SeedResult:
    """What the steps of one seed came to: the figures, and the share of images whose entities are not what they show, by step."""

    namings: Namings
    wrong_images: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class _Chain:
    """Matching and alignment of one step of one seed."""

    match: MatchConfig
    align: TrainConfig


def ablation_steps(config: ShapesWorldConfig) -> list[Step]:
    """Table 3 without its baseline."""
    noise, single = config.noise, config.sizes[-1:]
    refined, nltk, llm = model_name("captioner", noise.refined_captions), model_name("nltk", noise.nltk), model_name("llm", noise.llm)
    raw = noise.raw_captions
    return [
        Step("nltk", raw, "", nltk, single),
        Step("refine_nltk", raw, refined, nltk, single),
        Step("refine_llm", raw, refined, llm, single),
        Step("multi_scale", raw, refined, llm, config.sizes),
    ]


def noise_steps(config: ShapesWorldConfig) -> list[tuple[float, Step, Step]]:
    """For each share of wrong captions, the step without refinement and the one with it.

    The captioner leaves as large a part of the wrong captions as in table 3: ``refined_captions / raw_captions`` of them.
    """
    noise, single = config.noise, config.sizes[-1:]
    left = min(1.0, noise.refined_captions / noise.raw_captions) if noise.raw_captions else 0.0
    rules = model_name("rules", noise.rules)
    return [
        (
            share,
            Step(f"raw_{share:g}", share, "", rules, single),
            Step(f"refined_{share:g}", share, model_name("captioner", share * left), rules, single),
        )
        for share in config.curve
    ]


def missing_tools(steps: Iterable[Step]) -> dict[str, str]:
    """The steps that cannot run here, by name, and why."""
    try:
        nltk_parser.parse_entities("a red star")
    except UniOVSegError as error:
        return {step.name: str(error) for step in steps if step.parser.startswith("nltk@")}
    return {}


def run_steps(config: ShapesWorldConfig, steps: Sequence[Step], seeds: Sequence[int], folder: str) -> list[SeedResult]:
    """Run the steps on the world of each seed, anew.

    Args:
        config: sizes and noise.
        steps: what to run.
        seeds: the worlds.
        folder: a folder of this machine; ``seed0/`` and so on below it are emptied first.

    Raises:
        ConfigError: the folder is not of this machine, or a configuration file does not fit.
        UniOVSegError: as the jobs that it calls.
    """
    location = Location.of(folder)
    if not location.is_local:
        raise ConfigError("the shapes world is drawn on this machine", seen=folder, allowed="a local folder as output")
    config = config.model_copy(update={"stage1": checkpoint.located(config.stage1)})  # actors have another working directory
    console = Console()
    began = time.perf_counter()
    places = {seed: location / f"seed{seed}" for seed in seeds}
    known = {seed: _draw_world(config, steps, seed, place) for seed, place in places.items()}
    with ray_session(config.pool.workers + 2):
        with scripted_models({key: names for each in known.values() for key, names in each.items()}) as url:
            entities = {seed: _entities(steps, place, url) for seed, place in places.items()}
        console.print(f"{len(seeds)} worlds with their entities ({time.perf_counter() - began:.0f} s so far); matching and aligning")
        keys = [(seed, step) for seed in seeds for step in steps]
        chains = [_chain(config, step, seed, entities[seed][step.name], places[seed]) for seed, step in keys]
        adapters: dict[tuple[int, str], str] = {}
        for (seed, step), adapter in zip(keys, over_items(config.pool, _aligner, chains), strict=True):
            adapters[seed, step.name] = adapter
            console.print(f"seed {seed}, {step.name}: aligned ({time.perf_counter() - began:.0f} s so far)")
        aligned = [{step.name: adapters[seed, step.name] for step in steps} for seed in seeds]
        evaluations = list(zip((_evaluation(config, places[seed]) for seed in seeds), aligned, strict=True))
        namings = list(over_items(config.pool, _evaluator, evaluations))
    return [
        SeedResult(found, {step.name: wrong_images(entities[seed][step.name], known[seed]) for step in steps})
        for seed, found in zip(seeds, namings, strict=True)
    ]


def _draw_world(config: ShapesWorldConfig, steps: Sequence[Step], seed: int, place: Location) -> dict[str, tuple[str, ...]]:
    """Write the captions of every noise share and the evaluation set; returns what the images show."""
    shutil.rmtree(place.uri, ignore_errors=True)
    world = ShapesConfig(
        output=place.uri,
        seed=seed,
        image_masks=0,
        image_text=0,
        evaluation=config.evaluation,
        scene=config.scene,
        processes=max(1, config.pool.workers),
    )
    write_shapes(world)
    for share in dict.fromkeys(step.raw for step in steps):
        captions = {"output": _captions(place, share).uri, "image_text": config.image_text, "evaluation": 0, "noise_share": share}
        write_shapes(world.model_copy(update=captions))
    return true_names(config.scene, seed, config.image_text)


def _captions(place: Location, share: float) -> Location:
    return place / f"captions_{share:g}"


def _entities(steps: Sequence[Step], place: Location, url: str) -> dict[str, str]:
    """The entity set of each step, by its name; steps with the same captions and parser share one."""
    sets: dict[str, str] = {}
    for step in steps:
        name = "_".join(filter(None, (f"{step.raw:g}", step.captioner, step.parser)))
        uri = (place / f"entities_{name}").uri
        if uri not in sets.values():
            refine(
                RefineConfig(
                    source=(_captions(place, step.raw) / "image_text").uri,
                    output=uri,
                    refine="lvlm" if step.captioner else "none",
                    parser="llm",
                    captioner=EndpointConfig(url=url, model=step.captioner),
                    llm=EndpointConfig(url=url, model=step.parser),
                    part_samples=256,
                )
            )
        sets[step.name] = uri
    return sets


def wrong_images(entities: str, known: TrueNames) -> float:
    """The share of an entity set's images whose entities are not exactly the names of what they show."""
    wrong = [set(record.entities) != set(known[image_key(record.image)]) for record in read_entities(entities)]
    return sum(wrong) / max(1, len(wrong))


def _chain(config: ShapesWorldConfig, step: Step, seed: int, entities: str, place: Location) -> _Chain:
    with checkpoint.opened(config.stage1) as folder:
        size = checkpoint.read_info(folder).method["size"]
    pairs, sizes = (place / f"{step.name}/pairs").uri, list(step.sizes)
    matching = [f"entities={entities}", f"output={pairs}", f"checkpoint={config.stage1}", f"regions.sizes={sizes}", "pool.workers=0"]
    aligning = [
        f"output={place.uri}/{step.name}/stage2", f"init={config.stage1}", f"data.train={pairs}", f"seed={seed}", f"steps={config.align_steps}",
        f"checkpoint_every={config.align_steps}", f"method.size={size}", f"method.regions.sizes={sizes}", f"data.view.size={step.sizes[-1]}",
    ]  # fmt: skip
    return _Chain(load(MatchConfig, config.match, matching), load(TrainConfig, config.align, aligning, ignore=RAY_KEYS))


def _aligner() -> Callable[[_Chain], str]:
    return _align


def _align(chain: _Chain) -> str:
    """Match, then align, in this process; returns the checkpoint."""
    match(chain.match)
    training.run(chain.align)
    return str(training.checkpoints(Path(chain.align.output))[-1])


def _evaluation(config: ShapesWorldConfig, place: Location) -> NamingsConfig:
    """The frozen settings: each size alone, and all of them."""
    sizes = dict.fromkeys([*((size,) for size in config.sizes), config.sizes])
    return NamingsConfig(
        baseline=config.stage1,
        annotations=(place / "evaluation/panoptic.json").uri,
        vocabulary="shapes",
        sizes=tuple(sizes),
        templates=config.templates,
        points_per_side=config.points_per_side,
    )


def _evaluator() -> Callable[[tuple[NamingsConfig, Mapping[str, str]]], Namings]:
    return _evaluate


def _evaluate(evaluation: tuple[NamingsConfig, Mapping[str, str]]) -> Namings:
    config, aligned = evaluation
    return compare_namings(config, aligned, UNSEEN)[config.baseline]
