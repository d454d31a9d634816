"""A model with everything around it that a replica needs: decoders, the model's thread, kept features. No Ray here."""

import asyncio
import functools
import gc
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from serve.calls import Call, Description, NeedsImage, Outcome, Reply
from serve.decoder import Decoder
from serve.engine import Answered, Engine, vocabularies
from serve.images import image_size
from serve.kept import Kept
from serve.masks import write_id_map, write_segments
from serve.model_thread import Group, ModelThread
from serve.problems import Refusal, ServiceError
from serve.settings import ModelSource, ReplicaConfig
from uniovseg.api import Limits, NamingRequest, Timings
from uniovseg.deadline import deadline
from uniovseg.methods.promptable import EmbeddedImage

P = ParamSpec("P")
R = TypeVar("R")

WRITERS = 4
"""Threads that write masks: more than one, so that a few masks need not wait for many."""

_Item = tuple[NDArray[np.uint8], str | None]
"""An image [h, w, 3], and the id under which its features are kept; None: they are not."""

_Features = tuple[EmbeddedImage, float, float]


@dataclass(slots=True)
class _Shared:
    """Features that are computed once for all who wait for them."""

    task: asyncio.Task[_Features]
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class _Model:
    """An engine and what belongs to its version; replaced as one."""

    engine: Engine
    group: Group[_Item, tuple[EmbeddedImage, float]]
    kept: Kept[EmbeddedImage]


class Host:
    """Answers calls with a model. Make it, then `load`.

    Args:
        config: sizes and times.
        limits: what requests may ask for.
        keep_seconds: features that were not used for this long are forgotten.
    """

    def __init__(self, config: ReplicaConfig, limits: Limits, keep_seconds: float) -> None:
        self.config, self.limits, self.keep_seconds = config, limits, keep_seconds
        self._thread = ModelThread()
        self._decoders = [Decoder(limits.pixels, config.decode_seconds) for _ in range(config.decoders)]
        self._free = asyncio.Queue[Decoder]()
        self._decoding = ThreadPoolExecutor(config.decoders, "decode")
        self._writing = ThreadPoolExecutor(WRITERS, "write")
        self._pending: dict[tuple[str, str], _Shared] = {}
        self._model: _Model | None = None
        for decoder in self._decoders:
            decoder.start()
            self._free.put_nowait(decoder)

    async def load(self, source: ModelSource) -> None:
        """Load a model and put it in place of the one before; calls under way end with the one they began with.

        Raises:
            UniOVSegError: it cannot be loaded; the one before stays.
        """
        engine = await asyncio.to_thread(Engine.load, source, self.config.device, self.limits, self.config.max_batch)
        kept: Kept[EmbeddedImage] = Kept(self.config.embeddings_bytes, self.keep_seconds)
        self._model = _Model(engine, Group(functools.partial(_embed, engine, kept), self.config.max_batch), kept)
        await asyncio.to_thread(gc.collect)  # the old model's rings; what it held is taken by what the new one needs

    def check(self) -> None:
        """Raise RuntimeError where the host cannot answer any more."""
        if not self._thread.alive:
            raise RuntimeError("the model's thread has ended")

    async def describe(self) -> Description | Refusal:
        """The model and the vocabularies; a refusal where none is loaded."""
        try:
            return Description(self._loaded().engine.info, vocabularies())
        except ServiceError as error:
            return error.refusal

    async def call(self, call: Call) -> Reply:
        """Answer a call. What a client can cause is a `Refusal`; an exception is a fault of ours."""
        try:
            async with asyncio.timeout(call.seconds):
                return await self._answer(call, time.monotonic() + call.seconds)
        except ServiceError as error:
            return error.refusal
        except TimeoutError:
            return Refusal(code="timeout", detail="the answer was not ready in time", allowed=f"{call.seconds:.3g} s")

    def close(self) -> None:
        """End the thread and the decoders."""
        self._thread.close()
        for pool in (self._decoding, self._writing):
            pool.shutdown(wait=False, cancel_futures=True)
        for decoder in self._decoders:
            decoder.close()

    def _loaded(self) -> _Model:
        if self._model is None:
            raise ServiceError("not_ready", "no model is loaded yet")
        return self._model

    async def _answer(self, call: Call, until: float) -> Reply:
        begin, model, request = time.perf_counter(), self._loaded(), call.request
        spent = {"preprocess": 0.0, "embed": 0.0, "model": 0.0, "postprocess": 0.0}
        embedded = model.kept.get(call.image_id) if call.image_id else None
        if embedded is None:
            if call.image is None:
                return NeedsImage()
            embedded, spent["preprocess"], spent["embed"] = await self._features(model, call.image, call.image_id, until)
        outcome = Outcome(model=model.engine.reference, size=embedded.size)
        if request is not None:
            try:
                answered, spent["model"] = await self._thread.call(functools.partial(_timed, model.engine.answer, embedded, request, until), until)
            finally:
                if call.image_id:  # naming makes the features larger, even where it does not end in time
                    model.kept.put(call.image_id, embedded, memory(embedded))
            outcome, spent["postprocess"] = await _in(self._writing, _timed, _written, outcome, answered, request, until)
        total = _ms(begin)
        return replace(outcome, timing_ms=Timings(queue=max(0.0, round(total - sum(spent.values()), 3)), total=total, **spent))

    async def _features(self, model: _Model, image: bytes, image_id: str | None, until: float) -> _Features:
        """The image's features, and the milliseconds of decoding and of computing them.

        Those who ask for one id at once share the work. Where all of them have given up before the model has begun with it, it is dropped; a step that
        has begun ends, and what it gives is kept for the next.
        """
        if image_id is None:
            return await self._compute(model, image, None, until)
        key = (model.engine.reference.version, image_id)
        if key not in self._pending:
            self._pending[key] = _Shared(asyncio.create_task(self._compute(model, image, image_id, math.inf)))
            self._pending[key].task.add_done_callback(_seen)
        shared = self._pending[key]
        shared.waiting += 1
        try:
            return await asyncio.shield(shared.task)
        finally:
            shared.waiting -= 1
            if not shared.waiting:
                self._pending.pop(key).task.cancel()
            del shared  # a failure remembers this frame: no ring from it to the task and back, which would keep the image

    async def _compute(self, model: _Model, image: bytes, image_id: str | None, until: float) -> _Features:
        size = image_size(image)
        decoder = await self._free.get()
        work = asyncio.ensure_future(_in(self._decoding, _timed, decoder.decode, image, size))
        work.add_done_callback(_seen)
        work.add_done_callback(lambda _: self._free.put_nowait(decoder))
        try:
            pixels, decoding = await asyncio.shield(work)  # a decoder is free again when it is done, whoever waits
        finally:
            del work  # as in `_features`
        embedded, embedding = await self._thread.grouped(model.group, (pixels, image_id), until)
        return embedded, decoding, embedding


def memory(embedded: EmbeddedImage) -> int:
    """Bytes of an image and its features."""
    dense = [tensor for tensor, _ in list(embedded.dense.values())]  # at once: the model's thread may add to them
    tensors = [embedded.pixel.mask_features, *embedded.pixel.levels, *dense]
    return embedded.image.nbytes + sum(tensor.element_size() * tensor.nelement() for tensor in tensors)


def _embed(engine: Engine, kept: Kept[EmbeddedImage], items: Sequence[_Item]) -> list[tuple[EmbeddedImage, float]]:
    """Features of images, each with the milliseconds that all took; those that have an id are kept."""
    embedded, spent = _timed(engine.embed, [image for image, _ in items])
    for features, (_, image_id) in zip(embedded, items, strict=True):
        if image_id is not None:
            kept.put(image_id, features, memory(features))
    return [(features, spent) for features in embedded]


def _written(outcome: Outcome, answered: Answered, request: NamingRequest, until: float) -> Outcome:
    with deadline(until):
        segments = write_segments(answered.found, request.mask_format)
        id_map = write_id_map(answered.found, outcome.size) if request.mask_format == "png_idmap" else None
    return replace(outcome, segments=segments, id_map=id_map, vocabulary=answered.vocabulary, warnings=answered.warnings)


def _timed(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> tuple[R, float]:
    begin = time.perf_counter()
    return work(*args, **kwargs), _ms(begin)


def _ms(begin: float) -> float:
    return round((time.perf_counter() - begin) * 1000, 3)


async def _in(pool: ThreadPoolExecutor, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    return await asyncio.get_running_loop().run_in_executor(pool, functools.partial(work, *args, **kwargs))


def _seen(done: asyncio.Future[Any]) -> None:
    """Take note of a failure that may have nobody left to tell."""
    if not done.cancelled():
        done.exception()
