"""CVAT's serverless detectors: what a nuclio function of CVAT is asked and answers, at ``/cvat?vocabulary=car,person``.

The words are the labels that the function's description names. A nuclio function that passes its body on to this address needs no model of its own.
"""

import json
from collections.abc import Sequence

import cv2
import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from serve.adapters.reading import INSTANCE_SCORE, SEGMENTS, Foreign, make_request, read_json, time_is_over, written
from serve.api import RequestId, ServiceOf
from serve.reading import words_of
from uniovseg.api import Segment, SegmentRequest
from uniovseg.client import decode_mask
from uniovseg.deadline import in_time

MASK_PIXELS = 50_000_000
"""Pixels of all masks of an answer, at most: CVAT has two characters written for each pixel of a mask's box."""

router = APIRouter(tags=["adapters"])


class Body(Foreign):
    """What CVAT sends."""

    image: str
    threshold: float | None = None


@router.post("/cvat")
async def detect(
    http: Request, service: ServiceOf, request_id: RequestId, vocabulary: str | None = None, vocabulary_id: str | None = None
) -> Response:
    """CVAT's detector: ``{"image": base64, "threshold": 0.5}`` to instances, each a mask within its box and its outline."""
    body = await read_json(http, Body, service.limits)
    until = time_is_over(service.limits)
    request = make_request(
        SegmentRequest,
        image={"data": body.image},
        vocabulary=None if vocabulary is None else words_of(vocabulary),
        vocabulary_id=vocabulary_id,
        task="instance",
        threshold=INSTANCE_SCORE if body.threshold is None else body.threshold,
        max_segments=min(SEGMENTS, service.limits.segments),
    )
    answer = await service.segment(request, None, request_id)
    return await written(lambda: write(answer.segments), until)


def write(segments: Sequence[Segment]) -> str:
    """Segments as CVAT's JSON: ``mask`` holds the pixels of the box row by row as 0 and 1, then its left, top, right and bottom pixel, inclusive;
    ``points`` the pixels along the largest part's outline, x and y in turn; where that encloses nothing, being a line or a single pixel, the corners of
    its box. An empty mask is left out, and so is what follows `MASK_PIXELS`.
    """
    found, room = [], MASK_PIXELS
    for segment in in_time(segments):
        x, y, width, height = (int(value) for value in segment.bbox)
        if not segment.area:
            continue
        room -= width * height
        if room < 0:
            break
        inside = decode_mask(segment)[y : y + height, x : x + width]
        outlines, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=(x, y))
        outline = max(outlines, key=lambda part: (cv2.contourArea(part), len(part)))
        if not cv2.contourArea(outline):
            left, top, across, down = cv2.boundingRect(outline)
            outline = np.array([(left, top), (left + across, top), (left + across, top + down), (left, top + down)])
        fields = json.dumps({"type": "mask", "label": segment.label, "confidence": str(segment.score), "points": outline.ravel().tolist()})
        found.append(f'{fields[:-1]}, "mask": [{_digits(inside)}{x},{y},{x + width - 1},{y + height - 1}]}}')
    return f"[{', '.join(found)}]"


def _digits(mask: NDArray[np.bool_]) -> str:
    """0 or 1 and a comma for each pixel; as numbers they would take twenty times the memory."""
    text = np.full((mask.size, 2), ord(","), np.uint8)
    text[:, 0] = mask.ravel() + np.uint8(ord("0"))
    return text.tobytes().decode()
