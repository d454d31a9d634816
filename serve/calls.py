"""What passes between an ingress and a replica. Light to import: no model, no Ray, no HTTP."""

from dataclasses import dataclass, field
from typing import Protocol

from serve.problems import Refusal
from uniovseg.api import IdMap, ModelInfo, ModelRef, NamingRequest, Segment, Timings, VocabularyInfo, VocabularyRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What an ingress sends to a replica.

    Attributes:
        request: what to do; None: nothing but keeping the image's features.
        image: the file, its header checked; None where only the id is sent, in the hope that the replica has the features.
        image_id: under which the features are kept; None: they are not kept.
        seconds: time for the answer.
    """

    request: NamingRequest | None
    image: bytes | None
    image_id: str | None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A replica's answer.

    Attributes:
        model: what answered.
        size: (h, w) of the image.
        segments, vocabulary, id_map, warnings: as in `uniovseg.api.Answer`.
        timing_ms: `total` is the time in the replica.
    """

    model: ModelRef
    size: tuple[int, int]
    segments: tuple[Segment, ...] = ()
    vocabulary: VocabularyRef | None = None
    id_map: IdMap | None = None
    warnings: tuple[str, ...] = ()
    timing_ms: Timings = field(default_factory=Timings)


@dataclass(frozen=True, slots=True)
class NeedsImage:
    """The replica does not have the features of the image id: send the file."""


Reply = Outcome | Refusal | NeedsImage


@dataclass(frozen=True, slots=True)
class Description:
    """The model of a replica, and the vocabularies that can be named by their id."""

    model: ModelInfo
    vocabularies: tuple[VocabularyInfo, ...]


class Backend(Protocol):
    """What answers calls: replicas, or a `serve.host.Host` in this process."""

    async def call(self, call: Call) -> Reply:
        """Answer one call. Raises ServiceError where no replica can."""

    async def describe(self) -> Description | Refusal:
        """The model. Raises ServiceError where no replica can."""


class ImageStore(Protocol):
    """Where the files of POST /v1/images are kept, apart from the replicas, so that features can be computed again."""

    async def get(self, image_id: str) -> bytes | None:
        """The file, which counts as used now; None where there is none."""

    async def put(self, image_id: str, image: bytes) -> None:
        """Keep a file."""

    async def touch(self, image_id: str) -> None:
        """The file is in use."""
