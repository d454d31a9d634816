"""Sample pictures for the page: scenes of the shapes world, drawn when they are asked for.

The world is imported with the first sample: it brings torch, 500 MB that an ingress needs for nothing else.
"""

import functools
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Path
from starlette.responses import Response

if TYPE_CHECKING:
    from uniovseg.data.shapes import Scene

WORDS_HEADER = "X-Uniovseg-Words"
"""What can be seen in a sample, comma separated."""

SIDE = 384
"""Pixels."""

router = APIRouter(tags=["samples"])


def sample_scene(seed: int) -> "Scene":
    """The scene of a sample, of the stream that no model was trained on."""
    from uniovseg.data.shapes import EVALUATION_STREAM, SceneConfig, draw_scene, scene_rng

    return draw_scene(SceneConfig(size=SIDE), scene_rng(0, EVALUATION_STREAM, seed), held_out=False)


@functools.lru_cache(maxsize=32)
def _drawn(seed: int) -> tuple[bytes, str]:
    from uniovseg.data.shapes import SceneConfig, encode_image, entities

    scene = sample_scene(seed)
    return encode_image(scene.image, SceneConfig().jpeg_quality), ", ".join(entities(scene))


@router.get("/v1/samples/{seed}.jpg", response_class=Response, responses={200: {"content": {"image/jpeg": {}}}})
def sample(seed: Annotated[int, Path(ge=0, lt=2**31)]) -> Response:
    """A picture to try the service on. The same seed gives the same picture; the header names what can be seen in it."""
    image, words = _drawn(seed)
    return Response(image, media_type="image/jpeg", headers={WORDS_HEADER: words, "Cache-Control": "private, max-age=3600"})
