"""The HTTP routes: a FastAPI application around a `Service`. It knows no Ray."""

import base64
import hmac
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response

from serve.front import Front
from serve.measures import Measures
from serve.page_files import PageFiles
from serve.problems import KINDS, ServiceError, headers_of, problem_of
from serve.reading import RAW, read_request
from serve.samples import WORDS_HEADER
from serve.service import Service
from uniovseg.api import (
    REQUEST_HEADER,
    REQUEST_ID_HEADER,
    Answer,
    EverythingRequest,
    Health,
    ImageCreated,
    ImageRequest,
    MasksResponse,
    Message,
    ModelRef,
    ModelsResponse,
    NamingRequest,
    Problem,
    PromptRequest,
    SegmentationResponse,
    SegmentRequest,
    VocabulariesResponse,
)

NamingT = TypeVar("NamingT", bound=NamingRequest)

PROBLEM = "application/problem+json"

HTTP_CODES = {401: "unauthorized", 404: "not_found", 405: "method_not_allowed", 413: "too_large", 415: "unsupported_media_type"}
"""Code of the errors that the framework itself answers with; other 4xx are ``invalid_request``."""


def service_of(http: Request) -> Service:
    """The service of the application that a request came to: for `Depends`."""
    service: Service = http.app.state.service
    return service


def request_id_of(http: Request) -> str:
    """The request's id: for `Depends`."""
    found: str = http.scope["request_id"]
    return found


ServiceOf = Annotated[Service, Depends(service_of)]
RequestId = Annotated[str, Depends(request_id_of)]


def _body_of(kind: type[ImageRequest]) -> dict[str, Any]:
    """What OpenAPI says of a route's body, which is read by `read_request`."""
    reference = {"$ref": f"#/components/schemas/{kind.__name__}"}
    file = {"type": "string", "format": "binary"}
    form = {"type": "object", "properties": {"image": file, "request": reference}, "additionalProperties": False}
    content: dict[str, Any] = {
        "multipart/form-data": {"schema": form, "encoding": {"request": {"contentType": "application/json"}}},
        "application/json": {"schema": reference},
    }
    for media in RAW:
        content[media] = {"schema": file}
    header = {
        "name": REQUEST_HEADER,
        "in": "header",
        "required": False,
        "description": "the request as JSON beside a raw image body",
        "content": {"application/json": {"schema": reference}},
    }
    return {"requestBody": {"required": True, "content": content}, "parameters": [header]}


def _responses(*codes: int) -> dict[int | str, dict[str, Any]]:
    return {code: {"model": Problem, "description": "a problem", "content": {PROBLEM: {}}} for code in codes}


REFUSALS = _responses(400, 401, 404, 406, 408, 413, 415, 422, 500, 503)

v1 = APIRouter(prefix="/v1", responses=REFUSALS)
health = APIRouter()


@v1.post("/segment", response_model=SegmentationResponse, openapi_extra=_body_of(SegmentRequest))
async def segment(http: Request, service: ServiceOf, request_id: RequestId) -> Response:
    """Segment an image into the classes of a vocabulary."""
    request, image, as_png = await _read(http, SegmentRequest, service)
    return _answer(http, await service.segment(request, image, request_id), as_png)


@v1.post("/prompt", response_model=MasksResponse, openapi_extra=_body_of(PromptRequest))
async def prompt(http: Request, service: ServiceOf, request_id: RequestId) -> Response:
    """The masks of points and boxes."""
    request, image, as_png = await _read(http, PromptRequest, service)
    return _answer(http, await service.masks(request, image, request_id), as_png)


@v1.post("/everything", response_model=MasksResponse, openapi_extra=_body_of(EverythingRequest))
async def everything(http: Request, service: ServiceOf, request_id: RequestId) -> Response:
    """Every mask that a grid of points finds."""
    request, image, as_png = await _read(http, EverythingRequest, service)
    return _answer(http, await service.masks(request, image, request_id), as_png)


@v1.post("/images", response_model=ImageCreated, status_code=201, openapi_extra=_body_of(ImageRequest))
async def images(http: Request, service: ServiceOf, request_id: RequestId) -> Response:
    """Keep an image and its features for requests that name it by its id."""
    request, image = await read_request(http, ImageRequest, service.limits)
    return _json(await service.add_image(request, image, request_id), 201)


@v1.get("/models", response_model=ModelsResponse)
async def models(service: ServiceOf) -> Response:
    """The models that are served, and what a request may ask for."""
    return _json(await service.models())


@v1.get("/vocabularies", response_model=VocabulariesResponse)
async def vocabularies(service: ServiceOf) -> Response:
    """The vocabularies that a request can name by their id."""
    return _json(await service.vocabularies())


@health.get("/healthz", response_model=Health)
async def healthz() -> Response:
    """The process answers."""
    return _json(Health(status="ok"))


@health.get("/readyz", response_model=Health, responses=_responses(503))
async def readyz(service: ServiceOf) -> Response:
    """A model is loaded and has been run once."""
    model = (await service.description()).model
    return _json(Health(status="ready", model=ModelRef(name=model.name, version=model.version, checkpoint=model.checkpoint)))


@health.get("/metrics", response_class=Response)
async def metrics(http: Request) -> Response:
    """Figures in Prometheus' text form; those of the cluster are at Ray's own address."""
    measures: Measures = http.app.state.measures
    return Response(measures.text(), media_type=measures.media_type)


def create_api(
    service: Service,
    *,
    measures: Measures,
    uploads: int,
    upload_bytes: int,
    keys: Sequence[str] = (),
    cors_origins: Sequence[str] = (),
    routers: Sequence[APIRouter] = (),
    page: Path | None = None,
    echo_request_id: bool = True,
) -> FastAPI:
    """The application.

    Args:
        service: what answers.
        measures: figures of this process.
        uploads, upload_bytes: requests under way and bytes of their bodies, at most; more are answered 503.
        keys: API keys, of which ``/v1`` and the other routers then ask one; none: everybody may call.
        cors_origins: origins whose pages may call.
        routers: adapters for clients of other services; they find the service with `service_of`.
        page: folder of static files that are served at ``/``.
        echo_request_id: name the request's id in the answer's head, where nothing before us does.
    """
    api = FastAPI(title="uniovseg", version="1", description="Open-vocabulary segmentation: masks by words, points, boxes, or of everything.")
    api.state.service, api.state.measures = service, measures
    for router in (v1, *routers):
        api.include_router(router, dependencies=[Depends(_key_check(tuple(keys)))] if keys else [])
    api.include_router(health)
    if page is not None:
        api.mount("/", PageFiles(directory=page, html=True), name="page")
    api.add_exception_handler(ServiceError, _refused)
    api.add_exception_handler(HTTPException, _refused_by_framework)
    api.add_exception_handler(RequestValidationError, _refused_by_framework)
    api.add_middleware(GZipMiddleware, minimum_size=1000, compresslevel=5)
    api.add_middleware(Front, measures=measures, most=uploads, most_bytes=upload_bytes, echo=echo_request_id)
    if cors_origins:  # around `Front` too, so that a page can read what it refuses
        exposed = [REQUEST_ID_HEADER, "Retry-After", WORDS_HEADER]
        api.add_middleware(
            CORSMiddleware, allow_origins=list(cors_origins), allow_methods=["GET", "POST"], allow_headers=["*"], expose_headers=exposed
        )
    describe = api.openapi
    api.openapi = lambda: _with_requests(describe())  # type: ignore[method-assign]
    return api


def _with_requests(document: dict[str, Any]) -> dict[str, Any]:
    """OpenAPI with the models of bodies that are read by hand."""
    kinds: list[type[Message]] = [ImageRequest, SegmentRequest, PromptRequest, EverythingRequest]
    _, found = models_json_schema([(kind, "validation") for kind in kinds], ref_template="#/components/schemas/{model}")
    document["components"]["schemas"] = found["$defs"] | document["components"]["schemas"]
    return document


def _key_check(keys: tuple[str, ...]) -> Callable[[Request], None]:
    known = [key.encode() for key in keys]

    def check(http: Request) -> None:
        given = _key_of(http)
        if not sum(hmac.compare_digest(given, key) for key in known):  # all are compared, so that the time tells nothing
            raise ServiceError(
                "unauthorized", "a valid key is needed", allowed="Authorization: Bearer <key>, X-API-Key: <key>, or the key as password of Basic"
            )

    return check


def _key_of(http: Request) -> bytes:
    """The key that a request brings, as the bytes that came; empty where it brings none."""
    authorization, other = (http.headers.get(name, "").encode("latin-1") for name in ("authorization", "x-api-key"))
    scheme, _, token = authorization.partition(b" ")
    if scheme.lower() == b"basic":
        try:
            return base64.b64decode(token).partition(b":")[2]
        except ValueError:
            return b""
    return token.strip() if scheme.lower() == b"bearer" else other


def _wants_png(http: Request) -> bool:
    """The answer is to be the id map itself. Raises ServiceError where it is to be neither that nor JSON."""
    kinds = [item.partition(";")[0].strip().lower() for item in http.headers.get("accept", "*/*").split(",")]
    for kind in kinds:
        if kind in ("image/png", "image/*"):
            return True
        if kind in ("", "*/*", "application/*", "application/json"):
            return False
    raise ServiceError("not_acceptable", "the answer does not come in this form", seen=", ".join(kinds), allowed=["application/json", "image/png"])


async def _read(http: Request, kind: type[NamingT], service: Service) -> tuple[NamingT, bytes | None, bool]:
    """A request for masks, the image file that came with it, and whether the answer is to be the id map itself."""
    as_png = _wants_png(http)
    request, image = await read_request(http, kind, service.limits)
    return request.model_copy(update={"mask_format": "png_idmap"}) if as_png else request, image, as_png


def _answer(http: Request, answer: Answer, as_png: bool) -> Response:
    http.app.state.measures.stages(answer.timing_ms)
    if as_png:
        assert answer.id_map is not None, "an id map was asked for"
        return Response(base64.b64decode(answer.id_map.data), media_type="image/png")
    return _json(answer)


def _json(answer: Message, status: int = 200) -> Response:
    return Response(answer.model_dump_json(), status, media_type="application/json")


async def _refused(http: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return problem_response(error, request_id_of(http))


async def _refused_by_framework(http: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 422
    code = HTTP_CODES.get(status, "invalid_request" if status < 500 else "internal")
    detail = KINDS[code][1] if isinstance(error, HTTPException) else "a field is missing or wrong"  # type: ignore[index]
    response = problem_response(ServiceError(code, detail), request_id_of(http))  # type: ignore[arg-type]
    if isinstance(error, HTTPException) and error.headers:
        response.headers.update(error.headers)
    return response


def problem_response(error: ServiceError, request_id: str) -> Response:
    """The answer to a request that is refused."""
    problem = problem_of(error.refusal, request_id)
    return Response(problem.model_dump_json(), problem.status, headers_of(problem), PROBLEM)
