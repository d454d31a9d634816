"""The HTTP contract: every request and every answer of the service, typed and versioned.

How a request travels (the same on ``/v1/segment``, ``/v1/prompt``, ``/v1/everything`` and, with an image only, ``/v1/images``):

- ``multipart/form-data``: part ``image`` (the file), part ``request`` (JSON text of the request's model; may be left out where it has no required field);
- a raw image body (``image/jpeg``, ``image/png``, ``image/webp``): the request's fields as query parameters (``vocabulary=cat,dog``; other values as JSON
  or plain text), or the whole request as JSON in the header ``X-Uniovseg-Request`` (ASCII, other characters as ``\\uXXXX``);
- ``application/json``: the request's model; the image is ``image`` (base64) or ``image_id``.

An image is given once: as a part or body, as ``image``, or as ``image_id`` of an earlier ``POST /v1/images``.

Pixel i covers [i, i + 1); points are [x, y], boxes [x, y, width, height] (COCO) in pixels of the image as stored (EXIF orientation ignored); sizes are
[height, width]. Answers are ``application/json``; errors ``application/problem+json`` (`Problem`). With ``Accept: image/png`` the answer to a request for
masks is the id map itself. Every answer carries ``X-Request-ID``, the client's own where it sent a printable one of at most 128 characters.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

Task = Literal["semantic", "panoptic", "instance"]
MaskFormat = Literal["coco_rle", "png_idmap", "polygon", "none"]
TemplateSet = Literal["vild14", "imagenet80", "simple"]

REQUEST_HEADER = "X-Uniovseg-Request"
"""Carries a request's JSON beside a raw image body."""

REQUEST_ID_HEADER = "X-Request-ID"

Number = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Message(BaseModel):
    """Base of all requests and answers: frozen, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


# -- requests ---------------------------------------------------------------------------------------------------------------------------------------


def _printable(text: str) -> str:
    """Text without control characters, its spaces single. Raises ValueError."""
    plain = " ".join(text.split())
    if not plain:
        raise ValueError("is empty")
    if not plain.isprintable():
        raise ValueError("holds characters that cannot be printed")
    return plain


def _template(text: str) -> str:
    """A sentence with one place ``{}`` and no other brace. Raises ValueError."""
    if text.count("{}") != 1 or text.count("{") != 1 or text.count("}") != 1:
        raise ValueError("needs one place {} for the word, and no other brace")
    return _printable(text)


Phrase = Annotated[str, StringConstraints(max_length=200), AfterValidator(_printable)]
Template = Annotated[str, StringConstraints(max_length=200), AfterValidator(_template)]
Templates = Annotated[tuple[Template, ...], Field(min_length=1, fail_fast=True)]


class Word(Message):
    """A class of a vocabulary with more than its name."""

    name: Phrase = Field(description="what people call it")
    synonyms: Annotated[tuple[Phrase, ...], Field(fail_fast=True)] = Field(
        (), description="further words that mean it; its score is that of the best"
    )
    templates: tuple[Template, ...] | None = Field(
        None, min_length=1, description="sentences with a place {} for the word; null: those of the request"
    )
    thing: bool = Field(True, description="countable; false for stuff such as grass, which is one segment an image and no instance")


class Base64Image(Message):
    """An image inside JSON."""

    type: Literal["base64"] = "base64"
    data: str = Field(description="the JPEG, PNG or WebP file in standard base64")


class ImageRequest(Message):
    """What every request that needs an image may say of it."""

    image: Base64Image | None = Field(None, description="the image, where it is neither a part nor the body")
    image_id: str | None = Field(None, pattern=r"^[0-9A-Za-z_-]{1,64}$", description="an image of an earlier POST /v1/images")
    timeout_s: Number | None = Field(
        None, gt=0, description="answer or give up (408) within this time, seconds; null or more than allowed: `Limits.seconds`"
    )

    @model_validator(mode="after")
    def _one_image(self) -> Self:
        if self.image is not None and self.image_id is not None:
            raise ValueError("image and image_id: one of them, not both")
        return self


class NamingRequest(ImageRequest):
    """How masks are named and written."""

    vocabulary: Annotated[tuple[Phrase | Word, ...], Field(min_length=1, fail_fast=True)] | None = Field(
        None, description="the classes: words, or words with synonyms and templates"
    )
    vocabulary_id: str | None = Field(None, max_length=64, description="a vocabulary of GET /v1/vocabularies")
    templates: TemplateSet | Templates | None = Field(
        None, description="sentences that words are put into: a set by name, or sentences with a place {}; null: the model's own"
    )
    scales: Annotated[tuple[Annotated[int, Field(ge=32, multiple_of=32)], ...], Field(min_length=1, fail_fast=True)] | None = Field(
        None, description="canvas sides at which masks are named, pixels, multiples of 32; scores are averaged; null: the model's own"
    )
    unknown_below: Share = Field(0.0, description="a mask whose best class probability is lower has no class")
    max_segments: int | None = Field(None, ge=1, description="most segments of an answer, best first; null: `Limits.segments`")
    mask_format: MaskFormat = Field("coco_rle", description="how masks are written: in each segment, all in one `id_map`, or not at all")

    @model_validator(mode="after")
    def _one_vocabulary(self) -> Self:
        if self.vocabulary is not None and self.vocabulary_id is not None:
            raise ValueError("vocabulary and vocabulary_id: one of them, not both")
        if self.vocabulary is not None:
            names = [word.casefold() if isinstance(word, str) else word.name.casefold() for word in self.vocabulary]
            if len(set(names)) < len(names):
                raise ValueError("words of the vocabulary are repeated")
        return self

    @property
    def named(self) -> bool:
        """A vocabulary is given."""
        return self.vocabulary is not None or self.vocabulary_id is not None


class SegmentRequest(NamingRequest):
    """``POST /v1/segment``: an image into the classes of a vocabulary (required). Answer: `SegmentationResponse`."""

    type: Literal["uniovseg.segment.v1"] = "uniovseg.segment.v1"
    task: Task = Field("panoptic", description="a class for every pixel; things apart and stuff together; things, which may overlap")
    threshold: Share = Field(0.0, description="panoptic, instance: segments of a lower score are left out")
    min_visible: Share = Field(0.4, description="panoptic: a segment of which better ones leave a smaller share is left out")
    include_unknown: bool = Field(False, description="semantic, panoptic: the pixels of no class as a last segment without label")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if not self.named:
            raise ValueError("vocabulary or vocabulary_id is required")
        if self.include_unknown and self.task == "instance":
            raise ValueError("include_unknown: instances have no pixels of no class; allowed with semantic, panoptic")
        return self


class PromptRequest(NamingRequest):
    """``POST /v1/prompt``: the masks of points and boxes, named where a vocabulary is given. Answer: `MasksResponse`, in the order of the prompts.

    Points with labels are one prompt together and give one mask; without labels each point gives its best mask. Each box gives one mask; those of the
    points come first.
    """

    type: Literal["uniovseg.prompt.v1"] = "uniovseg.prompt.v1"
    points: Annotated[tuple[tuple[Number, Number], ...], Field(fail_fast=True)] = Field((), description="[x, y] in pixels")
    labels: Annotated[tuple[Literal[0, 1], ...], Field(fail_fast=True)] | None = Field(
        None, description="of each point: 1 inside, 0 outside; null: each point is a prompt of its own"
    )
    boxes: Annotated[tuple[tuple[Number, Number, Number, Number], ...], Field(fail_fast=True)] = Field(
        (), description="[x, y, width, height] in pixels"
    )

    @model_validator(mode="after")
    def _prompts(self) -> Self:
        if not self.points and not self.boxes:
            raise ValueError("points or boxes are required")
        if self.labels is not None and len(self.labels) != len(self.points):
            raise ValueError(f"labels: one for each point; seen {len(self.labels)}, allowed {len(self.points)}")
        if self.labels is not None and self.points and 1 not in self.labels:
            raise ValueError("labels: no point is inside; seen only 0, allowed at least one 1")
        if any(width <= 0 or height <= 0 for _, _, width, height in self.boxes):
            raise ValueError("boxes: width and height above 0")
        return self


class EverythingRequest(NamingRequest):
    """``POST /v1/everything``: every mask that a grid of points finds, best first, named where a vocabulary is given. Answer: `MasksResponse`."""

    type: Literal["uniovseg.everything.v1"] = "uniovseg.everything.v1"
    points_per_side: int | None = Field(None, ge=1, description="grid of points, points a side; null: the model's own")
    threshold: Share = Field(0.0, description="masks of a lower predicted IoU are left out, beside those that the model drops by itself")


# -- answers ----------------------------------------------------------------------------------------------------------------------------------------


class CocoRle(Message):
    """COCO's compressed run lengths, column by column; pycocotools reads it once ``counts`` is encoded to bytes."""

    type: Literal["coco_rle"] = "coco_rle"
    size: tuple[int, int] = Field(description="[height, width]")
    counts: str


class Polygons(Message):
    """The outlines of a mask. Filled by the even-odd rule, all together: a hole is an outline inside another."""

    type: Literal["polygon"] = "polygon"
    size: tuple[int, int] = Field(description="[height, width]")
    polygons: tuple[tuple[float, ...], ...] = Field(description="each [x0, y0, x1, y1, ..] in pixels, along the pixels' edges")


class Segment(Message):
    """One segment or mask."""

    id: int = Field(ge=1, description="its value in the id map: its place in the answer, from 1")
    label: str | None = Field(None, description="the word of its class; null without a vocabulary and where no class fits")
    label_index: int | None = Field(None, description="position of the word in the vocabulary")
    thing: bool | None = Field(None, description="its class is countable")
    score: float | None = Field(
        None, description="of a segmentation: class probability times predicted IoU, null in a semantic one; of a mask: class probability"
    )
    predicted_iou: float | None = Field(None, description="of a mask: the model's own estimate of its IoU, 0 to 1")
    bbox: tuple[float, float, float, float] = Field(description="tight [x, y, width, height] in pixels; zeros for an empty mask")
    area: int = Field(description="pixels")
    mask: Annotated[CocoRle | Polygons, Field(discriminator="type")] | None = Field(None, description="null with mask_format png_idmap and none")


class IdMap(Message):
    """All masks in one grey PNG of 8 or 16 bits: 0 is void, else `Segment.id`; where masks overlap, the first of the answer is on top."""

    type: Literal["png8", "png16"]
    data: str = Field(description="the PNG in standard base64")


class ModelRef(Message):
    """Which model answered."""

    name: str = Field(description="as the service is configured")
    version: str = Field(description="fingerprint of configuration and weights: equal versions give equal answers")
    checkpoint: str = Field(description="name of the checkpoint, without its place")


class ImageRef(Message):
    """The image as it was read."""

    width: int
    height: int
    image_id: str | None = None


class VocabularyRef(Message):
    """The vocabulary that named the masks."""

    id: str | None = Field(None, description="of a packaged vocabulary")
    fingerprint: str = Field(description="of its classes, synonyms and templates: the key of its cached text embeddings")
    classes: int


class Timings(Message):
    """Where the time went, milliseconds. A stage that was not needed is 0; `embed` is 0 for a cached image."""

    queue: float = Field(0.0, description="waiting for a replica and in it")
    preprocess: float = Field(0.0, description="decoding the image")
    embed: float = Field(0.0, description="the image's features")
    model: float = Field(0.0, description="masks and names")
    postprocess: float = Field(0.0, description="writing masks")
    total: float = Field(0.0, description="in the service, from the last byte of the request")


class Answer(Message):
    """What answers with masks share."""

    model: ModelRef
    image: ImageRef
    vocabulary: VocabularyRef | None = None
    segments: tuple[Segment, ...]
    id_map: IdMap | None = Field(None, description="with mask_format png_idmap")
    timing_ms: Timings
    warnings: tuple[str, ...] = ()
    request_id: str


class SegmentationResponse(Answer):
    """Answer of ``/v1/segment``. Semantic: by class; else best score first."""

    type: Literal["uniovseg.segmentation.v1"] = "uniovseg.segmentation.v1"
    task: Task


class MasksResponse(Answer):
    """Answer of ``/v1/prompt`` (in the order of the prompts) and ``/v1/everything`` (best predicted IoU first)."""

    type: Literal["uniovseg.masks.v1"] = "uniovseg.masks.v1"


class ImageCreated(Message):
    """Answer of ``POST /v1/images`` (201). The same bytes give the same id; each use and each new POST renews it."""

    type: Literal["uniovseg.image.v1"] = "uniovseg.image.v1"
    image_id: str
    width: int
    height: int
    expires_in_s: float = Field(
        description="forgotten when not used for this long, or sooner where memory is short; then 404 image_not_found: send it again"
    )
    model: ModelRef
    timing_ms: Timings
    request_id: str


class Limits(Message):
    """What a request may ask for, at most. `GET /v1/models` shows them."""

    bytes: int = Field(20 * 1024**2, ge=1, description="of an image file")
    request_bytes: int = Field(1024**2, ge=1, description="of a request's JSON without the image")
    pixels: int = Field(25_000_000, ge=1, description="of an image")
    side: int = Field(6000, ge=1, description="longer side of an image, pixels")
    words: int = Field(1000, ge=1, description="classes of a vocabulary in a request")
    phrases: int = Field(4000, ge=1, description="words and synonyms of a vocabulary in a request")
    sentences: int = Field(60_000, ge=1, description="phrases times templates of a vocabulary in a request")
    points: int = Field(1000, ge=1, description="points of a prompt")
    boxes: int = Field(1000, ge=1, description="boxes of a prompt")
    points_per_side: int = Field(64, ge=1, description="grid of `everything`")
    scales: int = Field(4, ge=1, description="canvas sides at which masks are named")
    scale: int = Field(1792, ge=32, description="largest such side, pixels")
    segments: int = Field(1000, ge=1, description="segments of an answer")
    seconds: float = Field(60.0, gt=0, description="from the last byte of a request to its answer")
    upload_seconds: float = Field(30.0, gt=0, description="from the first byte of a request to its last")


class ModelInfo(ModelRef):
    """A model that is served."""

    method: str = Field(description="name of the method")
    size: int = Field(description="side of the canvas on which masks are found, pixels")
    scales: tuple[int, ...] = Field(description="canvas sides at which masks are named, pixels")
    templates: str = Field(description="the set of sentences that words are put into")
    outdated: bool = Field(False, description="the configuration names another model by now, which could not be loaded: the service's log says why")
    tasks: tuple[Task, ...] = ("semantic", "panoptic", "instance")
    mask_formats: tuple[MaskFormat, ...] = ("coco_rle", "png_idmap", "polygon", "none")


class ModelsResponse(Message):
    """Answer of ``GET /v1/models``."""

    type: Literal["uniovseg.models.v1"] = "uniovseg.models.v1"
    models: tuple[ModelInfo, ...]
    limits: Limits


class VocabularyInfo(Message):
    """A vocabulary that can be named by its id."""

    id: str
    classes: int
    things: int = Field(description="of the classes: countable")
    fingerprint: str


class VocabulariesResponse(Message):
    """Answer of ``GET /v1/vocabularies``."""

    type: Literal["uniovseg.vocabularies.v1"] = "uniovseg.vocabularies.v1"
    vocabularies: tuple[VocabularyInfo, ...]


class Health(Message):
    """Answer of ``/healthz`` (the process answers) and ``/readyz`` (a model is loaded and has been run once; 503 problem ``not_ready`` before)."""

    status: Literal["ok", "ready"]
    model: ModelRef | None = None


ProblemCode = Literal[
    "invalid_json",  # 400 the request is not JSON
    "invalid_image",  # 400 not an image that can be read
    "image_missing",  # 400 no image in the request
    "image_twice",  # 400 more than one image in the request
    "invalid_body",  # 400 the body cannot be taken apart (multipart), or ends too early
    "unauthorized",  # 401 no key, or a wrong one
    "not_found",  # 404 no such address
    "image_not_found",  # 404 no such image id, or expired: send the image again
    "method_not_allowed",  # 405
    "not_acceptable",  # 406 image/png asked for where there is none
    "timeout",  # 408 the body came too slowly, or the answer was not ready in time
    "too_large",  # 413 bytes, pixels or side of an image, bytes of a request
    "unsupported_media_type",  # 415
    "invalid_request",  # 422 a field is missing, unknown or wrong
    "invalid_vocabulary",  # 422 a word or vocabulary that cannot be used
    "limit_exceeded",  # 422 words, points, boxes, ...
    "overloaded",  # 503 queues are full; Retry-After
    "not_ready",  # 503 no model yet; Retry-After
    "replica_lost",  # 503 a replica died under the request, more than twice; Retry-After
    "internal",  # 500 a fault of the service
]


class Problem(Message):
    """An error, as ``application/problem+json`` (RFC 9457)."""

    type: str = Field(description="urn:uniovseg:problem:<code>")
    title: str = Field(description="what failed, the same for every problem of the code")
    status: int = Field(ge=400, le=599)
    code: ProblemCode
    detail: str = Field(description="what failed here")
    seen: Any = Field(None, description="the value that was found, shortened")
    allowed: Any = Field(None, description="what would have been accepted")
    request_id: str
