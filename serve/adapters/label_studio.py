"""Label Studio's machine-learning backend: give it the address ``http://HOST/label-studio``.

Words are the labels of the labelling configuration. Pre-annotation segments a task's image; an interactive click or box (a smart keypoint or rectangle)
gives the mask that it shows, with the label that was chosen. Images are those inside the task (``data:`` URIs). A task whose image is an address is refused,
because the service fetches nothing, and so is a photograph that is stored turned, because browsers show it upright. Where the service asks for a key,
it is the password of Label Studio's basic authentication.

A mask is a brush: Label Studio's own run lengths (those of the JavaScript package @thi.ng/rle-pack) of the image's RGBA bytes, row by row.
"""

import asyncio
import json
import re
import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any
from xml.etree import ElementTree

import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serve.adapters.reading import SEGMENTS, Foreign, make_request, read_json, time_is_over, written
from serve.api import RequestId, ServiceOf
from serve.images import UPRIGHT, from_base64, orientation
from serve.problems import ServiceError
from serve.service import Service
from uniovseg.api import Answer, Limits, PromptRequest, SegmentRequest
from uniovseg.client import decode_mask
from uniovseg.deadline import in_time

TASKS = 8
"""Images of one request, at most."""

DATA_URI = re.compile(r"data:image/[a-z+.-]{1,20};base64,")

router = APIRouter(prefix="/label-studio", tags=["adapters"])


class Context(Foreign):
    """What the annotator has just drawn."""

    result: tuple[dict[str, Any], ...] = ()


class Parameters(Foreign):
    """``params`` of predict."""

    context: Context | None = None


class Task(Foreign):
    """A task: its data by the names of the configuration's variables."""

    data: dict[str, Any]


class Predict(Foreign):
    """The body of predict."""

    tasks: Annotated[list[Task], Field(fail_fast=True)]
    label_config: str
    params: Parameters | None = None


class Controls(Foreign):
    """What the labelling configuration says: the brush and its image.

    Attributes:
        from_name: name of the brush.
        to_name: name of the image.
        variable: the task's field with the image.
        labels: the brush's labels.
    """

    from_name: str
    to_name: str
    variable: str
    labels: tuple[str, ...]


@router.get("/health")
async def health(service: ServiceOf) -> Response:
    """A model is loaded."""
    info = (await service.description()).model
    return JSONResponse({"status": "UP", "model_class": info.name})


@router.post("/setup")
async def setup(service: ServiceOf) -> Response:
    """The version of the model."""
    return JSONResponse({"model_version": (await service.description()).model.version})


@router.post("/webhook")
async def webhook() -> Response:
    """Nothing is learned from annotations here."""
    return JSONResponse({})


@router.post("/predict")
async def predict(http: Request, service: ServiceOf, request_id: RequestId) -> Response:
    """The brushes of each task."""
    body = await read_json(http, Predict, service.limits, TASKS)
    until = time_is_over(service.limits)
    if len(body.tasks) > TASKS:
        raise ServiceError("limit_exceeded", "tasks: more than allowed", seen=len(body.tasks), allowed=TASKS)
    if len(body.label_config) > service.limits.request_bytes:
        raise ServiceError("too_large", "label_config is too large", seen=len(body.label_config), allowed=service.limits.request_bytes)
    controls = read_config(body.label_config)
    drawn = body.params.context.result if body.params and body.params.context else ()
    answers = [await _predict_task(service, controls, task, drawn, until, request_id) for task in body.tasks]
    version = (answers[-1] if answers else await service.description()).model.version
    return await written(lambda: json.dumps({"results": [write(answer, controls) for answer in answers], "model_version": version}), until)


async def _predict_task(service: Service, controls: Controls, task: Task, drawn: Sequence[dict[str, Any]], until: float, request_id: str) -> Answer:
    """What is found in a task's image, its segments labelled and scored as they are to be drawn."""
    image = await asyncio.to_thread(_image_of, task, controls.variable, service.limits)
    left = max(0.001, until - time.monotonic())
    if drawn:
        found = await service.masks(make_request(PromptRequest, timeout_s=left, **_prompts(drawn)), image, request_id)
        label = _chosen(drawn, controls)
        labelled = tuple(segment.model_copy(update={"label": label, "score": segment.predicted_iou}) for segment in found.segments)
        return found.model_copy(update={"segments": labelled})
    request = make_request(
        SegmentRequest, timeout_s=left, vocabulary=controls.labels, task="panoptic", max_segments=min(SEGMENTS, service.limits.segments)
    )
    return await service.segment(request, image, request_id)


def read_config(text: str) -> Controls:
    """The first brush of a labelling configuration and the image that it is for. Raises ServiceError."""
    if re.search(r"<!\s*(DOCTYPE|ENTITY)", text, re.IGNORECASE):
        raise ServiceError("invalid_request", "label_config: declarations are not read", allowed="elements only")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        raise ServiceError("invalid_request", "label_config is not XML", seen=text[:40]) from error
    brush = root.find(".//BrushLabels")
    image = None if brush is None else next((item for item in root.iter("Image") if item.get("name") == brush.get("toName")), None)
    if brush is None or image is None:
        raise ServiceError(
            "invalid_request", "label_config has no brush of an image", allowed="<BrushLabels> with <Label>s, and the <Image> of its toName"
        )
    labels = tuple(dict.fromkeys(str(label.get("value", "")) for label in brush.iter("Label")))
    return Controls(
        from_name=brush.get("name", ""), to_name=brush.get("toName", ""), variable=image.get("value", "").removeprefix("$"), labels=labels
    )


def _image_of(task: Task, variable: str, limits: Limits) -> bytes:
    """The task's image file. Raises ServiceError."""
    value = task.data.get(variable)
    if not isinstance(value, str) or not (start := DATA_URI.match(value)):
        raise ServiceError(
            "image_missing", "the task's image is not inside the task: addresses are not fetched", seen=variable, allowed="data:image/...;base64,..."
        )
    file = from_base64(value[start.end() :], limits)
    turned = orientation(file)
    if turned != UPRIGHT:
        raise ServiceError(
            "invalid_image",
            "the photograph is stored turned, and shown upright: masks would lie elsewhere",
            seen=f"EXIF orientation {turned}",
            allowed="a photograph that is stored upright, such as PIL.ImageOps.exif_transpose gives",
        )
    return file


def _prompts(drawn: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Points and boxes in pixels, from what was drawn in percent of the image. Raises ServiceError."""
    points, labels, boxes = [], [], []
    try:
        for item in drawn:
            value, scale = item["value"], (float(item["original_width"]) / 100, float(item["original_height"]) / 100)
            x, y = float(value["x"]) * scale[0], float(value["y"]) * scale[1]
            if "keypoint" in item["type"]:
                points.append((x, y))
                labels.append(int(item.get("is_positive", 1) in (1, True)))
            else:
                boxes.append((x, y, float(value["width"]) * scale[0], float(value["height"]) * scale[1]))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ServiceError("invalid_request", "params.context: neither keypoint nor rectangle", allowed="x, y, (width, height) in percent") from error
    return {"points": points, "labels": labels if points else None, "boxes": boxes}


def _chosen(drawn: Sequence[dict[str, Any]], controls: Controls) -> str | None:
    """The label that the annotator chose; the first of the brush where what was drawn has none."""
    for item in drawn:
        for name, value in item["value"].items():
            if name.endswith("labels") and isinstance(value, list) and value and isinstance(value[0], str):
                return value[0]
    return next(iter(controls.labels), None)


def write(answer: Answer, controls: Controls) -> dict[str, Any]:
    """An answer as one prediction; its score is the mean of its segments'. Segments without a label or a pixel are left out."""
    shown = [segment for segment in answer.segments if segment.label is not None and segment.area]
    scores = [segment.score for segment in shown if segment.score is not None]
    result = [
        {
            "id": uuid.uuid4().hex[:10],  # of all regions of a project, not of this answer
            "from_name": controls.from_name,
            "to_name": controls.to_name,
            "type": "brushlabels",
            "original_width": answer.image.width,
            "original_height": answer.image.height,
            "image_rotation": 0,
            "value": {"format": "rle", "rle": encode_rle(decode_mask(segment)), "brushlabels": [segment.label]},
            "score": segment.score,
        }
        for segment in in_time(shown)
    ]
    return {"result": result, "score": sum(scores) / len(scores) if scores else 0.0, "model_version": answer.model.version}


LENGTH_SIZES = (3, 4, 8, 16)
"""Bits of the four kinds of lengths of a run, less one, that the format lets a writer choose."""


def encode_rle(mask: NDArray[np.bool_]) -> list[int]:
    """Label Studio's run lengths of a mask [h, w], as bytes: the RGBA bytes of the image, all four 255 inside and 0 outside.

    A stream of bits, the first of a byte its highest: the number of values (32), the bits of a value less one (5), the bits of the four kinds of lengths
    less one (4 each), then runs. A run is a 1 (0 would say: values one by one), the kind of its length (2), its length less one, its value (8). Written
    here with the longest kind alone, so that all runs have 27 bits and are laid out at once.
    """
    flat = mask.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=~flat[:1]))
    lengths = 4 * np.diff(starts, append=flat.size)
    values = np.where(flat[starts], 255, 0)
    longest = 2 ** LENGTH_SIZES[3]
    pieces = -(-lengths // longest)
    runs = np.full(int(pieces.sum()), longest, np.int64)
    runs[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * longest
    words = (1 << 26) | (3 << 24) | (runs - 1) << 8 | np.repeat(values, pieces)
    head = [(4 * flat.size, 32), (7, 5), *((size - 1, 4) for size in LENGTH_SIZES)]
    bits = "".join(f"{value:0{width}b}" for value, width in head)
    body = (words[:, None] >> np.arange(26, -1, -1) & 1).astype(np.uint8)
    packed: list[int] = np.packbits(np.concatenate([np.frombuffer(bits.encode(), np.uint8) - ord("0"), body.ravel()])).tolist()
    return packed
