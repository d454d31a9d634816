"""The Open Inference Protocol (KServe v2), as its REST clients speak it.

Inputs of ``infer``: ``image``, BYTES of one element (the file: base64 in JSON, raw in the binary extension), and ``request``, BYTES of one element (the
JSON of a `SegmentRequest`, `PromptRequest` or `EverythingRequest` of our contract, told apart by ``type``). Outputs, n masks in the order of the answer:
``answer`` BYTES [1] (our answer as JSON), ``labels`` BYTES [n] (empty: no class), ``scores`` FP32 [n] (-1: none), ``boxes`` FP32 [n, 4] (x, y, width,
height), ``areas`` INT64 [n], ``masks`` BYTES [n] (counts of COCO RLE; empty with another ``mask_format``).
"""

import json
import struct
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field, TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serve.adapters.reading import ErrorRoute, Foreign, parse_json
from serve.api import RequestId, ServiceOf
from serve.images import from_base64
from serve.problems import ServiceError
from serve.reading import json_bytes, read_body, refused
from serve.service import Service
from uniovseg.api import Answer, CocoRle, EverythingRequest, Limits, ModelInfo, ModelRef, PromptRequest, SegmentRequest

HEADER_LENGTH = "Inference-Header-Content-Length"

router = APIRouter(prefix="/v2", route_class=ErrorRoute, tags=["adapters"])

INPUTS = ({"name": "image", "datatype": "BYTES", "shape": [1]}, {"name": "request", "datatype": "BYTES", "shape": [1]})
OUTPUTS = {
    "answer": ("BYTES", []),
    "labels": ("BYTES", []),
    "scores": ("FP32", []),
    "boxes": ("FP32", [4]),
    "areas": ("INT64", []),
    "masks": ("BYTES", []),
}
"""Data type of each output, and its shape after the first dimension."""

REQUEST: TypeAdapter[SegmentRequest | PromptRequest | EverythingRequest] = TypeAdapter(
    Annotated[SegmentRequest | PromptRequest | EverythingRequest, Field(discriminator="type")]
)


class Tensor(Foreign):
    """An input. `data` is missing where it is binary, behind the JSON."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] = Field(default_factory=dict)
    data: list[Any] | None = None


class Wanted(Foreign):
    """An output that is asked for."""

    name: str


class Inference(Foreign):
    """The body of ``infer``."""

    id: str | None = None
    inputs: Annotated[list[Tensor], Field(fail_fast=True)]
    outputs: list[Wanted] | None = None


@router.get("/health/live")
async def live() -> Response:
    """The process answers."""
    return JSONResponse({"live": True})


@router.get("/health/ready")
async def ready(service: ServiceOf) -> Response:
    """A model is loaded."""
    await service.description()
    return JSONResponse({"ready": True})


@router.get("")
async def server() -> Response:
    """What this server is."""
    return JSONResponse({"name": "uniovseg", "version": "1", "extensions": ["binary_tensor_data"]})


@router.get("/models/{model}")
@router.get("/models/{model}/versions/{version}")
async def metadata(service: ServiceOf, model: str, version: str | None = None) -> Response:
    """Inputs and outputs of the model."""
    info = await _model(service, model, version)
    outputs = [{"name": name, "datatype": kind, "shape": [-1, *shape]} for name, (kind, shape) in OUTPUTS.items()]
    return JSONResponse({"name": info.name, "versions": [info.version], "platform": "uniovseg", "inputs": list(INPUTS), "outputs": outputs})


@router.get("/models/{model}/ready")
@router.get("/models/{model}/versions/{version}/ready")
async def model_ready(service: ServiceOf, model: str, version: str | None = None) -> Response:
    """The model is loaded."""
    info = await _model(service, model, version)
    return JSONResponse({"name": info.name, "ready": True})


@router.post("/models/{model}/infer")
@router.post("/models/{model}/versions/{version}/infer")
async def infer(http: Request, service: ServiceOf, request_id: RequestId, model: str, version: str | None = None) -> Response:
    """Masks of an image."""
    await _model(service, model, version)
    inference, binary = await _read(http, service.limits)
    tensors = {tensor.name: _element(tensor, binary, service.limits) for tensor in inference.inputs}
    if unknown := tensors.keys() - {"image", "request"} or len(tensors) < len(inference.inputs):
        raise ServiceError("invalid_request", "an input is unknown or there twice", seen=str(unknown), allowed=["image", "request"])
    if "request" not in tensors:
        raise ServiceError("invalid_request", "the input request is missing", allowed=["image", "request"])
    if len(tensors["request"]) > service.limits.request_bytes:
        raise ServiceError("too_large", "request: too large, in bytes", seen=len(tensors["request"]), allowed=service.limits.request_bytes)
    names = [item.name for item in inference.outputs] if inference.outputs is not None else list(OUTPUTS)
    if not set(names) <= OUTPUTS.keys():
        raise ServiceError("invalid_request", "there is no such output", seen=", ".join(names), allowed=list(OUTPUTS))
    try:
        request = REQUEST.validate_json(tensors["request"])
    except ValidationError as error:
        raise refused(error) from None
    image = tensors.get("image")
    answer: Answer
    if isinstance(request, SegmentRequest):
        answer = await service.segment(request, image, request_id)
    else:
        answer = await service.masks(request, image, request_id)
    outputs = [_output(name, answer) for name in names]
    used = answer.model
    _check_model(used, model, version)  # again, as the model may have been replaced meanwhile
    return JSONResponse({"model_name": used.name, "model_version": used.version, "id": inference.id or request_id, "outputs": outputs})


async def _model(service: Service, name: str, version: str | None) -> ModelInfo:
    info = (await service.description()).model
    _check_model(info, name, version)
    return info


def _check_model(found: ModelRef, name: str, version: str | None) -> None:
    if name != found.name or version not in (None, found.version):
        raise ServiceError(
            "not_found", "there is no such model", seen=name if version is None else f"{name} {version}", allowed=f"{found.name} {found.version}"
        )


async def _read(http: Request, limits: Limits) -> tuple[Inference, dict[str, bytes]]:
    """The JSON part, and by name the binary data of inputs that have it."""
    body = await read_body(http, limits, json_bytes(limits))
    length = http.headers.get(HEADER_LENGTH)
    if length is None:
        return parse_json(body, Inference, limits), {}
    if not (length.isascii() and length.isdecimal() and len(length) < 12 and int(length) <= len(body)):
        raise ServiceError("invalid_request", f"{HEADER_LENGTH} does not fit the body", seen=length, allowed=f"0 to {len(body)}")
    inference, at, binary = parse_json(body[: int(length)], Inference, limits), int(length), {}
    for tensor in inference.inputs:
        size = tensor.parameters.get("binary_data_size")
        if isinstance(size, int) and tensor.data is None:
            if not 0 <= size <= len(body) - at:
                raise ServiceError("invalid_request", f"{tensor.name}: binary_data_size does not fit the body", seen=size)
            binary[tensor.name], at = body[at : at + size], at + size
    return inference, binary


def _element(tensor: Tensor, binary: dict[str, bytes], limits: Limits) -> bytes:
    """The one element of a BYTES tensor: raw behind its length, or a JSON string, which for an image is base64. Raises ServiceError."""
    if tensor.datatype != "BYTES" or tensor.shape not in ([1], [1, 1]):
        raise ServiceError("invalid_request", f"{tensor.name}: not one element", seen=f"{tensor.datatype} {tensor.shape}"[:100], allowed="BYTES [1]")
    raw = binary.get(tensor.name)
    if raw is not None:
        if len(raw) < 4 or struct.unpack("<I", raw[:4])[0] != len(raw) - 4:
            raise ServiceError(
                "invalid_request", f"{tensor.name}: the element's length does not fit its data", allowed="4 bytes little-endian, then the element"
            )
        return raw[4:]
    if tensor.data is None or len(tensor.data) != 1 or not isinstance(tensor.data[0], str):
        raise ServiceError("invalid_request", f"{tensor.name}: data is not one string", allowed="data: [text]")
    text = tensor.data[0]
    if tensor.name != "image":
        return text.encode("utf-8", "surrogatepass")
    return from_base64(text, limits)


def _output(name: str, answer: Answer) -> dict[str, Any]:
    segments = answer.segments
    data: list[Any]
    if name == "answer":
        data = [json.dumps(answer.model_dump(mode="json"), ensure_ascii=False)]
    elif name == "labels":
        data = [segment.label or "" for segment in segments]
    elif name == "scores":
        data = [-1.0 if segment.score is None else segment.score for segment in segments]
    elif name == "boxes":
        data = [value for segment in segments for value in segment.bbox]
    elif name == "areas":
        data = [segment.area for segment in segments]
    else:
        data = [segment.mask.counts if isinstance(segment.mask, CocoRle) else "" for segment in segments]
    kind, shape = OUTPUTS[name]
    return {"name": name, "datatype": kind, "shape": [1 if name == "answer" else len(segments), *shape], "data": data}
