"""Hugging Face's image-segmentation task: ``InferenceClient(model="http://HOST/hf?vocabulary=cat,grass").image_segmentation("photo.jpg")``.

The task has no field for words, so they stand in the address (or among ``parameters``, where a client lets one add to them).
"""

import base64
import json
from collections.abc import Sequence
from typing import Any, Literal

import cv2
import numpy as np
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from serve.adapters.reading import INSTANCE_SCORE, SEGMENTS, ErrorRoute, Foreign, make_request, read_json, time_is_over, written
from serve.api import RequestId, ServiceOf
from serve.problems import ServiceError
from serve.reading import read_body, words_of
from uniovseg.api import Segment, SegmentRequest
from uniovseg.client import decode_mask
from uniovseg.deadline import in_time

router = APIRouter(route_class=ErrorRoute, tags=["adapters"])


class Parameters(Foreign):
    """``parameters`` of the task, and our words."""

    threshold: float | None = None
    mask_threshold: float | None = None
    overlap_mask_area_threshold: float | None = None
    subtask: Literal["instance", "panoptic", "semantic"] | None = None
    vocabulary: list[str] | None = None
    vocabulary_id: str | None = None


class Body(Foreign):
    """The task's JSON body."""

    inputs: str
    parameters: Parameters = Parameters()


@router.post("/hf")
async def segment(
    http: Request, service: ServiceOf, request_id: RequestId, vocabulary: str | None = None, vocabulary_id: str | None = None
) -> Response:
    """Hugging Face's image-segmentation task: the image as body, or ``{"inputs": base64, "parameters": {..}}``."""
    image: bytes | None = None
    encoded, asked = None, Parameters()
    if http.headers.get("content-type", "").startswith("application/json"):
        body = await read_json(http, Body, service.limits)
        encoded, asked = {"data": body.inputs}, body.parameters
    else:
        image = await read_body(http, service.limits, service.limits.bytes) or None
    until = time_is_over(service.limits)
    if asked.mask_threshold not in (None, 0.5):
        raise ServiceError(
            "invalid_request", "mask_threshold: masks are cut where inside and outside are as likely", seen=asked.mask_threshold, allowed=0.5
        )
    words = asked.vocabulary or (None if vocabulary is None else words_of(vocabulary))
    if len(words or ()) > service.limits.words:
        raise ServiceError("limit_exceeded", "words: more than allowed", seen=len(words or ()), allowed=service.limits.words)
    request = make_request(
        SegmentRequest,
        image=encoded,
        vocabulary=words,
        vocabulary_id=asked.vocabulary_id or vocabulary_id,
        task=asked.subtask,
        threshold=INSTANCE_SCORE if asked.threshold is None and asked.subtask == "instance" else asked.threshold,
        max_segments=min(SEGMENTS, service.limits.segments),
        min_visible=asked.overlap_mask_area_threshold,
    )
    answer = await service.segment(request, image, request_id)
    return await written(lambda: json.dumps(write(answer.segments)), until)


def write(segments: Sequence[Segment]) -> list[dict[str, Any]]:
    """Segments as the task answers them: each mask is a PNG of the image's size, white inside."""
    return [{"label": segment.label or "", "score": segment.score, "mask": _png(segment)} for segment in in_time(segments)]


def _png(segment: Segment) -> str:
    done, data = cv2.imencode(".png", decode_mask(segment).astype(np.uint8) * 255)
    assert done, "a mask is a grey image"
    return base64.b64encode(data.tobytes()).decode()
