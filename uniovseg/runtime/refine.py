"""Refine: image-text pairs to image-entities shards, by Ray Data.

Two steps a pair, each optional as the configuration says: a vision-language model looks at the image and mends the caption; a parser lists what the
caption names (a language model, NLTK, or rules). What comes out is cleaned the same way whoever found it. A reply that is not what was asked for is
shown to the model with the reason, once; what then still fails is a rejected sample with the reply's text, and the others go on.

Each endpoint is asked by one actor, so that its bounds hold for the whole job and equal questions are asked once; its answers are kept in the cache
(`uniovseg.runtime.endpoint`), so that nothing is asked twice by a job that is started again.
"""

import asyncio
import hashlib
import json
import time
import zlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Generic, Literal, Self, TypeVar

import ray
from pydantic import Field, model_validator

from uniovseg import storage
from uniovseg.config import Config
from uniovseg.data.captions import CocoCaption, Pair, coco_captions, list_sources, parquet_ranges, read_coco, read_parquet, read_tar
from uniovseg.data.entities import to_table
from uniovseg.data.shards import ModelUse
from uniovseg.errors import ConfigError, DataError, UniOVSegError
from uniovseg.records import ImageEntities, ImageText, Rejected
from uniovseg.runtime.endpoint import Answer, ChatRequest, Endpoint, EndpointConfig, Refusal
from uniovseg.runtime.parts import check_commits, run_parts
from uniovseg.runtime.session import ray_session
from uniovseg.runtime.shards import Commit, PartRange, read_commits, write_manifest, write_records
from uniovseg.runtime.tracked_job import tracked
from uniovseg.runtime.tracking import TrackingConfig
from uniovseg.storage import Location
from uniovseg.text import nltk_parser, rules
from uniovseg.text.cleaning import clean_entities
from uniovseg.text.prompts import Prompt, load_prompt
from uniovseg.text.replies import ReplyLimits, Schema, caption_schema, entities_schema, parse_caption, parse_entities

TAR_BYTES = 64 * 1024**2
"""Bytes of a tar that one task reads."""

AT_ONCE = 64
"""Pairs of a part that are worked on at a time; a cluster of n CPUs, a part each, has at most n times as many requests under way."""

SETTINGS = "part_samples, captions_per_image, refine, parser, model, prompt, parameters or limits"


class RefineConfig(Config):
    """From image-text pairs to an image-entities shard set."""

    source: str = Field(..., description="parquet, webdataset: a file or a folder of files; coco: the captions JSON; any URI that pyarrow opens")
    format: Literal["parquet", "webdataset", "coco"] = Field("parquet", description="parquet has columns key, image, caption")
    images: str | None = Field(None, description="coco: folder of the images; null: images/ beside the JSON")
    captions_per_image: int = Field(5, ge=1, description="coco: captions of an image that are joined")
    output: str = Field(..., description="folder of the shard set")
    refine: Literal["none", "lvlm"] = Field("none", description="none: captions as they are; lvlm: mended by the captioner, which sees the image")
    parser: Literal["rules", "nltk", "llm"] = Field(
        "rules", description="rules: word lists; nltk: its tagger (needs NLTK_DATA); llm: the language model"
    )
    captioner: EndpointConfig = Field(EndpointConfig(), description="the vision-language model")
    llm: EndpointConfig = Field(EndpointConfig(), description="the language model")
    caption_prompt: str = Field("caption", description="packaged prompt of the captioner, or the path of a .txt file")
    entities_prompt: str = Field("entities", description="packaged prompt of the language model, or the path of a .txt file")
    limits: ReplyLimits = Field(ReplyLimits(), description="how long replies may be")
    cache: str | None = Field(None, description="folder of the models' answers, which several outputs may share; null: cache/ in the output")
    part_samples: int = Field(512, ge=1, description="pairs that one task works on (parquet: whole row groups); webdataset: 64 MiB of a tar")
    rows_per_group: int = Field(64, ge=1, description="rows of a Parquet row group")
    cpus: int = Field(2, ge=1, description="CPUs of a local cluster")
    tracking: TrackingConfig = Field(TrackingConfig(), description="MLflow")

    @model_validator(mode="after")
    def _models(self) -> Self:
        for name in self.asked:
            if not getattr(self, name).model:
                raise ValueError(f"{name}.model must be given, as it is asked")
        return self

    @property
    def asked(self) -> tuple[Literal["captioner", "llm"], ...]:
        """The endpoints that this configuration asks."""
        asked: list[Literal["captioner", "llm"]] = []
        if self.refine == "lvlm":
            asked.append("captioner")
        if self.parser == "llm":
            asked.append("llm")
        return tuple(asked)


Ask = Callable[[ChatRequest], Awaitable[Answer | Refusal | UniOVSegError]]
"""Asks an endpoint; an error is returned, not raised, as it comes from another process."""

ReplyT = TypeVar("ReplyT")


class _FailedError(Exception):
    """A model gave nothing that can be used; ``reason`` is one of `uniovseg.data.reasons`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class _Question(Generic[ReplyT]):
    """One prompt to one model, with the strict reading of its replies, and the count of what that took."""

    def __init__(self, ask: Ask, config: EndpointConfig, prompt: Prompt, schema: Schema, parse: Callable[[str], ReplyT]) -> None:
        self._ask, self._config, self._prompt, self._schema, self._parse = ask, config, prompt, schema, parse
        self.use = ModelUse(model=config.model, prompt=prompt.name, prompt_hash=prompt.hash)

    async def reply(self, caption: str, image: bytes | None = None) -> ReplyT:
        """The model's reply, after a second chance where the first is bad. Raises _FailedError, and EndpointError when the job cannot go on."""
        messages = self._prompt.messages(caption, image)
        for last in (False, True):
            outcome = await self._ask(ChatRequest(self._prompt.hash, messages, self._schema))
            if isinstance(outcome, UniOVSegError):
                raise outcome
            if isinstance(outcome, Refusal):
                raise _FailedError("refused", outcome.detail)
            try:
                reply = self._parse(outcome.text)
            except DataError as error:
                self._count(outcome, bad=1)
                if last:
                    raise _FailedError("bad_reply", f"{error}; reply: {outcome.text!r}") from None
                again = f"This reply cannot be used: {error}. Reply again, with the JSON object that was asked for and nothing else."
                messages = [*messages, {"role": "assistant", "content": outcome.text}, {"role": "user", "content": again}]
            else:
                self._count(outcome)
                return reply
        raise AssertionError

    def priced_use(self) -> ModelUse:
        """What was asked so far, with its cost."""
        use, config = self.use, self._config
        cost = (use.prompt_tokens * config.prompt_price + use.completion_tokens * config.completion_price) / 1e6
        return use.model_copy(update={"cost": cost})

    def _count(self, answer: Answer, bad: int = 0) -> None:
        use = self.use
        self.use = use.model_copy(
            update={
                "replies": use.replies + 1,
                "bad_replies": use.bad_replies + bad,
                "prompt_tokens": use.prompt_tokens + answer.prompt_tokens,
                "completion_tokens": use.completion_tokens + answer.completion_tokens,
            }
        )


class _Refiner:
    """What is done with a pair."""

    def __init__(self, config: RefineConfig, asks: dict[str, Ask]) -> None:
        limits = config.limits
        self._parse = {"rules": rules.parse_entities, "nltk": nltk_parser.parse_entities}.get(config.parser)
        self.questions: dict[str, _Question[Any]] = {}
        if "captioner" in asks:
            prompt, parse = load_prompt(config.caption_prompt), partial(parse_caption, limits=limits)
            self.questions["captioner"] = _Question(asks["captioner"], config.captioner, prompt, caption_schema(limits), parse)
        if "llm" in asks:
            prompt, phrases = load_prompt(config.entities_prompt), partial(parse_entities, limits=limits)
            self.questions["llm"] = _Question(asks["llm"], config.llm, prompt, entities_schema(limits), phrases)

    def uses(self) -> dict[str, ModelUse]:
        """What was asked so far."""
        return {name: question.priced_use() for name, question in self.questions.items()}

    async def refine(self, pair: ImageText) -> ImageEntities | tuple[str, str]:
        """The pair's entities; or the reason and the detail of its rejection."""
        try:
            caption = await self.questions["captioner"].reply(pair.caption, pair.image) if "captioner" in self.questions else pair.caption
            entities = self._parse(caption) if self._parse else clean_entities(await self.questions["llm"].reply(caption))
        except _FailedError as failure:
            return failure.reason, str(failure)
        if not entities:
            return "no_entities", caption
        return ImageEntities(key=pair.key, image=pair.image, caption=caption, entities=entities)


@dataclass(frozen=True, slots=True)
class RefinePart:
    """A share of a source; ``size`` is a tar's bytes, ``items`` a COCO set's images."""

    range: PartRange
    format: Literal["parquet", "webdataset", "coco"]
    size: int = 0
    items: tuple[CocoCaption, ...] = ()

    def pairs(self) -> Iterator[Pair]:
        """The pairs with their offsets."""
        part = self.range
        if self.format == "parquet":
            return read_parquet(part.source, part.begin, part.end)
        if self.format == "webdataset":
            return read_tar(part.source, self.size, part.begin, part.end)
        return read_coco(self.items, part.begin)


def plan_parts(config: RefineConfig) -> list[RefinePart]:
    """Cut the source into parts, whose names hold a hash of the settings that their rows depend on. Raises DataError when there is nothing to read."""
    recipe = _recipe(config)

    def part(location: Location, begin: int, end: int, size: int = 0, items: tuple[CocoCaption, ...] = ()) -> RefinePart:
        stem = location.name.rpartition(".")[0] or location.name
        name = f"{stem}-{zlib.crc32(location.uri.encode()):08x}-{recipe}-{begin:014d}"
        return RefinePart(PartRange(name=name, source=location.uri, begin=begin, end=end), config.format, size, items)

    if config.format == "coco":
        location = Location.of(config.source)
        items = coco_captions(location.uri, config.images or location.uri.rpartition("/")[0] + "/images", config.captions_per_image)
        chunks = [(begin, tuple(items[begin : begin + config.part_samples])) for begin in range(0, len(items), config.part_samples)]
        return [part(location, begin, begin + len(chunk), items=chunk) for begin, chunk in chunks]
    if config.format == "webdataset":
        sizes = [(tar, storage.size(tar)) for tar in list_sources(config.source, ".tar")]
        return [part(tar, begin, min(begin + TAR_BYTES, size), size) for tar, size in sizes for begin in range(0, size, TAR_BYTES)]
    files = list_sources(config.source, ".parquet")
    return [part(file, begin, end) for file in files for begin, end in parquet_ranges(file.uri, config.part_samples)]


@tracked("refine")
def refine(config: RefineConfig) -> dict[str, Any]:
    """Refine what is not yet committed, on Ray Data, then write the manifest; returns the counts.

    Raises:
        ConfigError: the output was begun with another source or other settings; a prompt or NLTK is not there.
        DataError: the source is not of pairs.
        EndpointError: an endpoint cannot be reached, or refuses everything. What it answered is kept, and the same call goes on from there.
        StorageError: something could not be read or written; the same call goes on from there.
    """

    def work(config: RefineConfig, left: Sequence[RefinePart]) -> dict[str, Commit]:
        with ray_session(config.cpus):
            actors: dict[str, Any] = {name: _start_actor(getattr(config, name), _cache_of(config)) for name in config.asked}
            uris = {key: uri for key in ("source", "output", "images", "cache") if (uri := getattr(config, key)) is not None}
            commits = run_parts(left, partial(_refine_part_by_actors, config, actors), "refining parts", len(left), uris)
            ray.get([actor.close.remote() for actor in actors.values()])
            return commits

    return _refine(config, work)


@tracked("refine")
def refine_here(config: RefineConfig) -> dict[str, Any]:
    """`refine` in this process, without Ray, for configurations that ask no model: thousands of captions a second with ``parser: rules``.

    Raises:
        ConfigError: the configuration asks a model; or as `refine`.
        DataError, StorageError: as `refine`.
    """
    if config.asked:
        raise ConfigError("models are asked on Ray", seen=", ".join(config.asked), allowed="refine none with parser rules or nltk")

    def work(config: RefineConfig, left: Sequence[RefinePart]) -> dict[str, Commit]:
        return {part.range.name: _refine_part(config, {}, part) for part in left}

    return _refine(config, work)


def _refine(config: RefineConfig, work: Callable[[RefineConfig, Sequence[RefinePart]], dict[str, Commit]]) -> dict[str, Any]:
    started = time.perf_counter()
    config = config.model_copy(update={"output": Location.of(config.output).uri})  # workers have another working directory
    output = Location(config.output)
    parts = plan_parts(config)
    commits = read_commits(output)
    check_commits(commits, parts, SETTINGS)
    left = [part for part in parts if part.range.name not in commits]
    if left:
        commits |= work(config, left)
    manifest = write_manifest(output, [commits[part.range.name] for part in parts], {"refine": config.refine, "parser": config.parser})
    return {
        "samples": manifest.samples, "entities": manifest.entities, "rejected": sum(manifest.rejects.values()), "rejects": manifest.rejects,
        "models": {name: use.model_dump() for name, use in manifest.models.items()},
        "shards": len(manifest.shards), "parts": len(parts), "parts_already_done": len(parts) - len(left),
        "seconds": round(time.perf_counter() - started, 2),
    }  # fmt: skip


def _recipe(config: RefineConfig) -> str:
    """8 hexadecimal digits that change with whatever the rows depend on beside the source."""
    prompts = {"captioner": config.caption_prompt, "llm": config.entities_prompt}
    asked = [[name, getattr(config, name).model, getattr(config, name).parameters, load_prompt(prompts[name]).hash] for name in config.asked]
    images = Location.of(config.images).uri if config.images else None
    settings = [config.refine, config.parser, config.limits.model_dump() if asked else None, asked, config.captions_per_image, images]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def _cache_of(config: RefineConfig) -> Location:
    return Location.of(config.cache) if config.cache else Location(config.output) / "cache"


def _refine_part(config: RefineConfig, asks: dict[str, Ask], part: RefinePart) -> Commit:
    refiner = _Refiner(config, asks)
    return write_records(part.range, _refined(part, refiner), Location(config.output), config.rows_per_group, to_table, refiner.uses)


def _refined(part: RefinePart, refiner: _Refiner) -> Iterator[tuple[int, ImageEntities | Rejected]]:
    """Each pair's entities or rejection, in order; some pairs at a time."""

    async def outcome(offset: int, pair: ImageText | Rejected) -> tuple[int, ImageEntities | Rejected]:
        if isinstance(pair, Rejected):
            return offset, pair
        found = await refiner.refine(pair)
        if isinstance(found, ImageEntities):
            return offset, found
        return offset, Rejected(key=pair.key, source=part.range.source, offset=offset, reason=found[0], detail=found[1])

    async def outcomes(chunk: Sequence[Pair]) -> list[tuple[int, ImageEntities | Rejected]]:
        return await asyncio.gather(*(outcome(*item) for item in chunk))

    pairs = part.pairs()
    with asyncio.Runner() as runner:
        while chunk := list(islice(pairs, AT_ONCE)):
            yield from runner.run(outcomes(chunk))


class _EndpointActor:
    """An `Endpoint` for all tasks of a job."""

    def __init__(self, config: EndpointConfig, cache: Location) -> None:
        self._endpoint = Endpoint(config, cache)

    async def ask(self, request: ChatRequest) -> Answer | Refusal | UniOVSegError:
        """As `Endpoint.ask`; its errors are returned."""
        try:
            return await self._endpoint.ask(request)
        except UniOVSegError as error:
            return error

    async def close(self) -> None:
        """Close the connections."""
        await self._endpoint.close()


def _start_actor(config: EndpointConfig, cache: Location) -> Any:
    return ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_EndpointActor).remote(config, cache)


def _refine_part_by_actors(config: RefineConfig, actors: dict[str, Any], part: RefinePart) -> Commit:
    def asks(actor: Any) -> Ask:
        async def ask(request: ChatRequest) -> Any:
            return await actor.ask.remote(request)

        return ask

    return _refine_part(config, {name: asks(actor) for name, actor in actors.items()}, part)
