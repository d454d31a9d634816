"""From a request of the contract to its answer: limits, images and their ids, deadlines. It knows neither HTTP nor Ray."""

import asyncio
import hashlib
import time
from typing import Any

from serve.calls import Backend, Call, Description, ImageStore, NeedsImage, Outcome
from serve.images import check_image, from_base64
from serve.problems import Refusal, ServiceError
from uniovseg.api import (
    EverythingRequest,
    ImageCreated,
    ImageRef,
    ImageRequest,
    Limits,
    MasksResponse,
    ModelsResponse,
    NamingRequest,
    PromptRequest,
    SegmentationResponse,
    SegmentRequest,
    Timings,
    VocabulariesResponse,
    Word,
)

READY_SECONDS, BUSY_SECONDS = 5.0, 1.0
"""How long a question about the model waits for a replica: the first, and one that was answered before."""

DESCRIBED_SECONDS = 60.0
"""For how long that answer stands in for one of replicas that are too busy to give it."""


class Service:
    """The service behind its HTTP routes.

    Args:
        backend: the replicas.
        store: files of POST /v1/images.
        limits: what a request may ask for.
        images_seconds: an image that was not used for this long is forgotten.
    """

    def __init__(self, backend: Backend, store: ImageStore, limits: Limits, images_seconds: float) -> None:
        self.backend, self.store, self.limits, self.images_seconds = backend, store, limits, images_seconds
        self._described: tuple[Description, float] | None = None

    async def segment(self, request: SegmentRequest, image: bytes | None, request_id: str) -> SegmentationResponse:
        """Segment an image (the file, or what the request says of it) by words. Raises ServiceError."""
        fields = await self._ask(request, image, request_id)
        return SegmentationResponse(task=request.task, **fields)

    async def masks(self, request: PromptRequest | EverythingRequest, image: bytes | None, request_id: str) -> MasksResponse:
        """The masks of prompts or of everything, as `segment`. Raises ServiceError."""
        return MasksResponse(**await self._ask(request, image, request_id))

    async def add_image(self, request: ImageRequest, image: bytes | None, request_id: str) -> ImageCreated:
        """Keep an image and its features. Raises ServiceError."""
        begin = time.perf_counter()
        image = image_of(request, image, self.limits)
        if image is None:
            raise ServiceError("image_missing", "image_id: this request makes one", allowed="an image file")
        check_image(image, self.limits)
        image_id = hashlib.sha256(image).hexdigest()[:32]
        seconds = self._seconds(request)
        outcome = await self._within(self._kept(image_id, image, seconds), seconds)
        return ImageCreated(
            image_id=image_id,
            width=outcome.size[1],
            height=outcome.size[0],
            expires_in_s=self.images_seconds,
            model=outcome.model,
            timing_ms=_timings(outcome, begin),
            request_id=request_id,
        )

    async def models(self) -> ModelsResponse:
        """What is served. Raises ServiceError."""
        return ModelsResponse(models=((await self.description()).model,), limits=self.limits)

    async def vocabularies(self) -> VocabulariesResponse:
        """What a request can name by its id. Raises ServiceError."""
        return VocabulariesResponse(vocabularies=(await self.description()).vocabularies)

    async def description(self) -> Description:
        """The model and the vocabularies; where all replicas are busy, what they said a short while ago: they are there.

        Raises:
            ServiceError: ``not_ready`` or ``overloaded`` where none has answered lately; what the replica refused with.
        """
        last = self._described[0] if self._described and time.monotonic() - self._described[1] < DESCRIBED_SECONDS else None
        try:
            async with asyncio.timeout(BUSY_SECONDS if last else READY_SECONDS):
                found = await self.backend.describe()
        except TimeoutError:
            if last is not None:
                return last
            raise ServiceError("not_ready", "no replica answers") from None
        except ServiceError as error:
            if last is not None and error.refusal.code == "overloaded":
                return last
            raise
        if isinstance(found, Refusal):
            raise ServiceError.of(found)
        self._described = found, time.monotonic()
        return found

    async def _ask(self, request: NamingRequest, image: bytes | None, request_id: str) -> dict[str, Any]:
        """The fields that all answers with masks share."""
        begin, seconds = time.perf_counter(), self._seconds(request)
        check_request(request, self.limits)
        image = image_of(request, image, self.limits)
        if image is not None:
            check_image(image, self.limits)
        bare = request.model_copy(update={"image": None})
        outcome = await self._within(self._found(bare, image, begin + seconds), seconds)
        return {
            "model": outcome.model,
            "image": ImageRef(width=outcome.size[1], height=outcome.size[0], image_id=request.image_id),
            "vocabulary": outcome.vocabulary,
            "segments": outcome.segments,
            "id_map": outcome.id_map,
            "timing_ms": _timings(outcome, begin),
            "warnings": outcome.warnings,
            "request_id": request_id,
        }

    async def _found(self, request: NamingRequest, image: bytes | None, until: float) -> Outcome:
        """What the backend finds; for an image id first with the features that a replica may have, else with the file again."""
        image_id = request.image_id
        try:
            return await self._called(Call(request=request, image=image, image_id=image_id, seconds=until - time.perf_counter()))
        except _NoFeatures:
            assert image_id is not None, "a replica has what it was sent"
            image = await self.store.get(image_id)
        if image is None:
            raise ServiceError("image_not_found", "there is no image of this id, or it was forgotten: send it again", seen=image_id)
        return await self._called(Call(request=request, image=image, image_id=image_id, seconds=until - time.perf_counter()))

    async def _kept(self, image_id: str, image: bytes, seconds: float) -> Outcome:
        """The outcome of computing an image's features; the file is then in the store."""
        outcome = await self._called(Call(request=None, image=image, image_id=image_id, seconds=seconds))
        await self.store.put(image_id, image)
        return outcome

    async def _called(self, call: Call) -> Outcome:
        reply = await self.backend.call(call)
        if isinstance(reply, NeedsImage):
            raise _NoFeatures
        if isinstance(reply, Refusal):
            raise ServiceError.of(reply)
        if call.image is None and call.image_id is not None:
            await self.store.touch(call.image_id)
        if self._described and self._described[0].model.version == reply.model.version:
            self._described = self._described[0], time.monotonic()  # an answer says as well that the replicas are there
        return reply

    def _seconds(self, request: ImageRequest) -> float:
        return min(request.timeout_s or self.limits.seconds, self.limits.seconds)

    async def _within(self, work: Any, seconds: float) -> Any:
        try:
            async with asyncio.timeout(seconds):
                return await work
        except TimeoutError:
            raise ServiceError("timeout", "the answer was not ready in time", allowed=f"{seconds:.3g} s") from None


class _NoFeatures(Exception):  # noqa: N818 - no error: the replica asks for the file
    """A replica does not have the features of an image id."""


def image_of(request: ImageRequest, image: bytes | None, limits: Limits) -> bytes | None:
    """The one image file of a request; None where it names an image id instead.

    Raises:
        ServiceError: there is none, or more than one, or its base64 is wrong or longer than the limit.
    """
    given = [name for name, value in (("file", image), ("image", request.image), ("image_id", request.image_id)) if value is not None]
    if len(given) != 1:
        code, detail = ("image_missing", "the request has no image") if not given else ("image_twice", "the image is given more than once")
        raise ServiceError(code, detail, seen=", ".join(given) or None, allowed="one of: a file (part or body), image, image_id")  # type: ignore[arg-type]
    if request.image is None:
        return image
    return from_base64(request.image.data, limits)


def check_request(request: NamingRequest, limits: Limits) -> None:
    """Refuse what asks for more than is allowed, before any work. Raises ServiceError."""
    words = request.vocabulary or ()
    counts = {
        "words": len(words),
        "phrases": sum(1 + len(word.synonyms) if isinstance(word, Word) else 1 for word in words),
        "scales": len(request.scales or ()),
        "scale": max(request.scales or (0,)),
        "segments": request.max_segments or 0,
        "points": len(request.points) if isinstance(request, PromptRequest) else 0,
        "boxes": len(request.boxes) if isinstance(request, PromptRequest) else 0,
        "points_per_side": (request.points_per_side or 0) if isinstance(request, EverythingRequest) else 0,
    }
    for name, count in counts.items():
        allowed = getattr(limits, name)
        if count > allowed:
            raise ServiceError("limit_exceeded", f"{name}: more than allowed", seen=count, allowed=allowed)


def _timings(outcome: Outcome, begin: float) -> Timings:
    """Where the time went since `begin`; what the replica does not account for was waiting and travel."""
    total = round((time.perf_counter() - begin) * 1000, 3)
    inner = outcome.timing_ms
    known = inner.preprocess + inner.embed + inner.model + inner.postprocess
    return inner.model_copy(update={"total": total, "queue": round(max(0.0, total - known), 3)})
