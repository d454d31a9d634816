"""Work on the model that has begun ends at its deadline, between its pieces."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from serve.calls import Call
from serve.host import Host
from serve.problems import Refusal
from uniovseg import postprocess
from uniovseg.api import EverythingRequest, NamingRequest, PromptRequest
from uniovseg.data.images import decode_image
from uniovseg.methods import promptable
from uniovseg.methods.promptable import PromptableSegmenter
from uniovseg.models.clip import Clip
from uniovseg.models.mask_generator import MaskGenerator

WORDS = tuple(f"word {index}" for index in range(20))
PIECES = {
    "chunks of sentences": (Clip, "encode_text", PromptRequest(points=((9, 9),), vocabulary=WORDS, templates="vild14"), 3),
    "scales": (PromptableSegmenter, "dense_features", PromptRequest(points=((9, 9),), vocabulary=("a",), scales=(32, 96, 128)), 3),
    "masks at the image's size": (postprocess, "resize_logits", PromptRequest(points=((9, 9),) * 10), 3),
    "batches of a grid": (MaskGenerator, "embed_points", EverythingRequest(points_per_side=20), 4),
    "batches of points": (MaskGenerator, "embed_points", PromptRequest(points=((9, 9),) * 201), 3),
    "batches of one mask's points": (MaskGenerator, "embed_points", PromptRequest(points=((9, 9),) * 201, labels=(1,) * 201), 3),
    "masks of one mask's points": (promptable, "mask_logits", PromptRequest(points=((9, 9),) * 81, labels=(1,) * 81), 5),
    "batches of boxes": (MaskGenerator, "embed_boxes", PromptRequest(boxes=((9, 9, 9, 9),) * 201), 3),
}


@pytest.mark.parametrize(("owner", "name", "request_", "count"), PIECES.values(), ids=PIECES)
def test_late_work_stops(host: Host, png: bytes, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, request_: NamingRequest, count: int) -> None:
    """The clock counts the pieces that were begun."""
    engine, image = host._loaded().engine, decode_image(png)
    begun = 0
    piece = getattr(owner, name)

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal begun
        begun += 1
        return piece(*arguments, **named)

    monkeypatch.setattr(owner, name, counted)
    monkeypatch.setattr(postprocess, "PIXELS_AT_ONCE", 4 * max(image.shape) ** 2)
    monkeypatch.setattr("uniovseg.deadline.time", SimpleNamespace(monotonic=lambda: begun))
    with pytest.raises(TimeoutError):
        engine.answer(engine.embed([image])[0], request_, until=2)
    assert begun == 2
    assert torch.is_grad_enabled()
    begun = 0
    engine.answer(engine.embed([image])[0], request_)
    assert begun == count
    monkeypatch.setattr("uniovseg.deadline.time", SimpleNamespace(monotonic=lambda: 1e18))
    reply = asyncio.run(host.call(Call(request=request_, image=png, image_id=None, seconds=60.0)))
    assert isinstance(reply, Refusal) and reply.code == "timeout"
