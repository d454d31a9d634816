"""CVAT's serverless detectors: what a nuclio function of CVAT is asked and answers, at ``/cvat?vocabulary=car,person``.

The words are the labels that the function's description names. A nuclio function that passes its body on to this address needs no model of its own.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serve.adapters.reading import Foreign, make_request, read_json
from serve.api import RequestId, ServiceOf
from serve.reading import words_of
from uniovseg.api import Segment, SegmentRequest
from uniovseg.client import decode_mask

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
    request = make_request(
        SegmentRequest,
        image={"data": body.image},
        vocabulary=None if vocabulary is None else words_of(vocabulary),
        vocabulary_id=vocabulary_id,
        task="instance",
        threshold=body.threshold,
    )
    answer = await service.segment(request, None, request_id)
    return JSONResponse(await asyncio.to_thread(write, answer.segments))


def write(segments: Sequence[Segment]) -> list[dict[str, Any]]:
    """Segments as CVAT reads them: ``mask`` holds the pixels of the box row by row as 0 and 1, then its left, top, right and bottom pixel, inclusive;
    ``points`` the pixels along the largest part's outline, x and y in turn. An empty mask is left out.
    """
    found = []
    for segment in segments:
        x, y, width, height = (int(value) for value in segment.bbox)
        if not segment.area:
            continue
        inside = decode_mask(segment)[y : y + height, x : x + width]
        outlines, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=(x, y))
        found.append(
            {
                "type": "mask",
                "label": segment.label,
                "confidence": str(segment.score),
                "points": max(outlines, key=cv2.contourArea).ravel().tolist(),
                "mask": [*inside.astype(int).ravel().tolist(), x, y, x + width - 1, y + height - 1],
            }
        )
    return found
