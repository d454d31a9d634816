"""The contract over HTTP, with a tiny model in the same process."""

import base64
import json
from typing import Any

import numpy as np
import pytest
from fastapi import APIRouter
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from starlette.testclient import TestClient

from serve.host import Host
from serve.problems import KINDS
from tests.serve.conftest import LIMITS, client_of, decoded_map, encoded
from uniovseg.api import REQUEST_HEADER, MasksResponse, ModelsResponse, Problem, SegmentationResponse, VocabulariesResponse
from uniovseg.data.vocabulary import PACKAGED, load_vocabulary
from uniovseg.models.text_classifier import template_set
from uniovseg.segmenter import Segmenter

WORDS = ["red star", "blue ring", "water"]
SEGMENT = {"vocabulary": WORDS}


def post(client: TestClient, path: str, request: Any, png: bytes | None = None, **headers: str) -> Any:
    """A multipart request where there is an image, else JSON."""
    if png is None:
        return client.post(path, json=request, headers=headers)
    return client.post(path, files={"image": ("i.png", png, "image/png")}, data={"request": json.dumps(request)}, headers=headers)


def problem(answer: Any, code: str) -> Problem:
    """The problem of an answer, which is one of this code and gives nothing of the server away."""
    assert answer.headers["content-type"] == "application/problem+json"
    found = Problem.model_validate_json(answer.content)
    assert (found.code, answer.status_code) == (code, KINDS[found.code][0]), found
    assert found.status == answer.status_code
    for leak in ("/work", "site-packages", "Traceback", ".py", "serve."):
        assert leak not in answer.text
    return found


@pytest.mark.parametrize("task", ["semantic", "panoptic", "instance"])
def test_segmenting_is_the_librarys(client: TestClient, host: Host, png: bytes, picture: NDArray[np.uint8], task: Any) -> None:
    answer = SegmentationResponse.model_validate_json(post(client, "/v1/segment", {**SEGMENT, "task": task}, png).content)
    library: Segmenter = host._loaded().engine.segmenter
    regions = library.segment(picture, WORDS, task).regions
    assert answer.task == task
    assert answer.segments and len(answer.segments) == len(regions)
    for segment, region in zip(answer.segments, regions, strict=True):
        assert (segment.label, segment.label_index, segment.thing, segment.area) == (region.word, region.class_index, True, region.area)
        assert segment.score == pytest.approx(region.score)
        x0, y0, x1, y1 = region.box_xyxy
        assert segment.bbox == (x0, y0, x1 - x0, y1 - y0)
        assert segment.mask is not None and segment.mask.type == "coco_rle"
        assert np.array_equal(coco_mask.decode({"size": list(segment.mask.size), "counts": segment.mask.counts}).astype(bool), region.mask())
    assert (answer.image.width, answer.image.height) == (90, 60)
    assert answer.vocabulary is not None and answer.vocabulary.fingerprint == load_vocabulary(WORDS).fingerprint
    assert answer.model.name == "tiny" and len(answer.model.version) == 12
    assert answer.timing_ms.model > 0 and answer.timing_ms.embed > 0


def test_every_way_to_send_gives_the_same_answer(client: TestClient, png: bytes) -> None:
    image = {"type": "base64", "data": base64.b64encode(png).decode()}
    raw = {"content-type": "image/png"}
    answers = [
        post(client, "/v1/segment", SEGMENT, png),
        client.post("/v1/segment", json={**SEGMENT, "image": image}),
        client.post("/v1/segment", content=png, headers=raw, params={"vocabulary": ",".join(WORDS)}),
        client.post("/v1/segment", content=png, headers=raw, params={"vocabulary": json.dumps(WORDS), "threshold": "0.0"}),
        client.post("/v1/segment", content=png, headers={**raw, REQUEST_HEADER: json.dumps(SEGMENT)}),
    ]
    segments = [answer.json()["segments"] for answer in answers]
    assert segments[0]
    assert all(other == segments[0] for other in segments)


def test_points_and_boxes(client: TestClient, host: Host, png: bytes, picture: NDArray[np.uint8]) -> None:
    request = {"points": [[10, 20], [70, 50]], "boxes": [[5, 6, 30, 20]], "vocabulary": WORDS}
    answer = MasksResponse.model_validate_json(post(client, "/v1/prompt", request, png).content)
    library: Segmenter = host._loaded().engine.segmenter
    expected = library.points(picture, [(10, 20), (70, 50)], vocabulary=WORDS) + library.boxes(picture, [(5, 6, 35, 26)], vocabulary=WORDS)
    assert [(item.label, item.area) for item in answer.segments] == [(item.word, item.area) for item in expected]
    assert [item.predicted_iou for item in answer.segments] == pytest.approx([item.predicted_iou for item in expected])
    (one,) = post(client, "/v1/prompt", {"points": [[10, 20], [70, 50]], "labels": [1, 0]}, png).json()["segments"]
    (alone,) = library.points(picture, [(10, 20), (70, 50)], [1, 0])
    assert (one["area"], one["label"]) == (alone.area, None)


def test_everything(client: TestClient, host: Host, png: bytes, picture: NDArray[np.uint8]) -> None:
    library: Segmenter = host._loaded().engine.segmenter
    found = library.everything(picture, 3)
    answer = post(client, "/v1/everything", {"points_per_side": 3}, png).json()
    assert [item["area"] for item in answer["segments"]] == [item.area for item in found]
    best = found[0].predicted_iou
    answer = post(client, "/v1/everything", {"points_per_side": 3, "threshold": best}, png).json()
    assert [item["area"] for item in answer["segments"]] == [item.area for item in found if item.predicted_iou >= best]
    answer = post(client, "/v1/everything", {"points_per_side": 3, "max_segments": 1}, png).json()
    assert len(answer["segments"]) == 1
    assert ("more segments" in " ".join(answer["warnings"])) == (len(found) > 1)


def test_an_image_is_kept_and_named_by_its_id(client: TestClient, host: Host, png: bytes) -> None:
    created = client.post("/v1/images", content=png, headers={"content-type": "image/png"})
    assert created.status_code == 201
    image_id = created.json()["image_id"]
    assert post(client, "/v1/images", {}, png).json()["image_id"] == image_id
    prompt = {"points": [[10, 20]]}
    direct = post(client, "/v1/prompt", prompt, png).json()
    cached = post(client, "/v1/prompt", {**prompt, "image_id": image_id}).json()
    assert cached["segments"] == direct["segments"]
    assert cached["timing_ms"]["embed"] == 0 < direct["timing_ms"]["embed"]
    host._loaded().kept.clear()  # as in another replica
    again = post(client, "/v1/prompt", {**prompt, "image_id": image_id}).json()
    assert again["segments"] == direct["segments"]
    assert again["timing_ms"]["embed"] > 0
    assert (
        post(client, "/v1/segment", {**SEGMENT, "image_id": image_id}).json()["segments"]
        == post(client, "/v1/segment", SEGMENT, png).json()["segments"]
    )


def test_id_maps(client: TestClient, png: bytes) -> None:
    answer = post(client, "/v1/segment", {**SEGMENT, "mask_format": "png_idmap", "include_unknown": True}, png).json()
    ids = decoded_map(base64.b64decode(answer["id_map"]["data"]))
    assert ids.shape == (60, 90)
    assert {segment["id"]: segment["area"] for segment in answer["segments"]} == {
        int(value): int(count) for value, count in zip(*np.unique(ids, return_counts=True), strict=True)
    }
    plain = post(client, "/v1/segment", {**SEGMENT, "include_unknown": True}, png, Accept="image/png")
    assert plain.headers["content-type"] == "image/png"
    assert np.array_equal(decoded_map(plain.content), ids)
    problem(post(client, "/v1/segment", SEGMENT, png, Accept="text/html"), "not_acceptable")


def test_what_words_may_bring(client: TestClient, png: bytes) -> None:
    def scores(request: dict[str, Any]) -> list[float]:
        answer = post(client, "/v1/prompt", {"points": [[10, 20]], **request}, png)
        assert answer.status_code == 200, answer.text
        found: list[float] = [segment["score"] for segment in answer.json()["segments"]]
        return found

    plain = scores({"vocabulary": WORDS})
    assert scores({"vocabulary": WORDS, "templates": list(template_set("simple"))}) == pytest.approx(plain, abs=1e-5)
    assert scores({"vocabulary": WORDS, "templates": "vild14"}) == pytest.approx(
        scores({"vocabulary": WORDS, "templates": list(template_set("vild14"))}), abs=1e-5
    )
    assert scores({"vocabulary": WORDS, "templates": ["{} there"]}) != pytest.approx(plain, abs=1e-7)
    own = [{"name": word, "templates": ["{} there"]} for word in WORDS]
    assert scores({"vocabulary": own}) == pytest.approx(scores({"vocabulary": WORDS, "templates": ["{} there"]}), abs=1e-5)
    assert scores({"vocabulary": WORDS, "scales": [64]}) == plain
    assert scores({"vocabulary": WORDS, "scales": [96]}) != plain
    assert len(scores({"vocabulary_id": "shapes"})) == 1


def test_own_sentences_of_a_packaged_vocabulary_are_bounded(client: TestClient, png: bytes) -> None:
    many = [f"{{}} {number}" for number in range(LIMITS.sentences)]
    problem(post(client, "/v1/prompt", {"points": [[10, 20]], "vocabulary_id": "shapes", "templates": many}, png), "limit_exceeded")


def test_what_is_served(client: TestClient) -> None:
    models = ModelsResponse.model_validate_json(client.get("/v1/models").content)
    assert models.limits == LIMITS
    assert [(model.name, model.method, model.size, model.scales) for model in models.models] == [("tiny", "mask_generation", 64, (64,))]
    assert models.models[0].checkpoint == "tiny"  # and not where it lies
    listed = VocabulariesResponse.model_validate_json(client.get("/v1/vocabularies").content).vocabularies
    assert [item.id for item in listed] == list(PACKAGED)
    assert {item.id: item.classes for item in listed}["voc_20"] == 20
    assert client.get("/healthz").json() == {"status": "ok", "model": None}
    assert client.get("/readyz").json()["model"]["version"] == models.models[0].version


def test_the_openapi_document_names_the_requests(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    for path, name in (("segment", "SegmentRequest"), ("prompt", "PromptRequest"), ("everything", "EverythingRequest"), ("images", "ImageRequest")):
        content = document["paths"][f"/v1/{path}"]["post"]["requestBody"]["content"]
        assert content["application/json"]["schema"] == {"$ref": f"#/components/schemas/{name}"}
    text = json.dumps(document)
    references = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert references <= set(document["components"]["schemas"])
    assert client.get("/docs").status_code == 200


def test_request_ids_and_figures(client: TestClient, png: bytes) -> None:
    answer = post(client, "/v1/segment", SEGMENT, png, **{"X-Request-ID": "mine-1"})
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == "mine-1"
    other = client.get("/v1/nothing", headers={"X-Request-ID": "two words"})
    assert problem(other, "not_found").request_id == other.headers["x-request-id"] != "two words"
    figures = client.get("/metrics").text
    assert 'uniovseg_requests_total{process="test",route="/v1/segment",status="200"}' in figures
    assert 'uniovseg_stage_seconds_count{process="test",stage="model"}' in figures


def test_answers_are_compressed_for_who_takes_it(client: TestClient, png: bytes) -> None:
    request = {"boxes": [[index, 0, 30, 20] for index in range(10)], "mask_format": "polygon"}
    assert post(client, "/v1/prompt", request, png, **{"Accept-Encoding": "gzip"}).headers["content-encoding"] == "gzip"
    assert "content-encoding" not in post(client, "/v1/prompt", request, png, **{"Accept-Encoding": "identity"}).headers


WRONG = [
    ("/v1/segment", {}, "invalid_request"),
    ("/v1/segment", {**SEGMENT, "vocabulary_id": "shapes"}, "invalid_request"),
    ("/v1/segment", {"vocabulary": []}, "invalid_vocabulary"),
    ("/v1/segment", {"vocabulary": [" "]}, "invalid_vocabulary"),
    ("/v1/segment", {"vocabulary": ["a\u0000b"]}, "invalid_vocabulary"),
    ("/v1/segment", {"vocabulary": ["a", "A"]}, "invalid_request"),
    ("/v1/segment", {"vocabulary": ["x" * 300]}, "invalid_vocabulary"),
    ("/v1/segment", {"vocabulary": [{"name": "a", "templates": ["{0.__class__}"]}]}, "invalid_vocabulary"),
    ("/v1/segment", {"vocabulary": ["a"], "templates": ["{}{}"]}, "invalid_vocabulary"),
    ("/v1/segment", {"vocabulary_id": "../../etc/passwd"}, "invalid_vocabulary"),
    ("/v1/segment", {"vocabulary_id": "/etc/passwd.txt"}, "invalid_vocabulary"),
    ("/v1/segment", {"vocabulary": [str(index) for index in range(21)]}, "limit_exceeded"),
    ("/v1/segment", {"vocabulary": [{"name": "a", "synonyms": [str(index) for index in range(30)]}]}, "limit_exceeded"),
    ("/v1/segment", {"vocabulary": [str(index) for index in range(20)], "templates": "imagenet80"}, "limit_exceeded"),
    ("/v1/segment", {**SEGMENT, "task": "magic"}, "invalid_request"),
    ("/v1/segment", {**SEGMENT, "task": "instance", "include_unknown": True}, "invalid_request"),
    ("/v1/segment", {**SEGMENT, "threshold": 2}, "invalid_request"),
    ("/v1/segment", {**SEGMENT, "scales": [100]}, "invalid_request"),
    ("/v1/segment", {**SEGMENT, "scales": [32_000]}, "limit_exceeded"),
    ("/v1/segment", {**SEGMENT, "scales": [32, 64, 96, 128, 160]}, "limit_exceeded"),
    ("/v1/segment", {**SEGMENT, "max_segments": 10**30}, "limit_exceeded"),
    ("/v1/segment", {**SEGMENT, "colour": "red"}, "invalid_request"),
    ("/v1/segment", {**SEGMENT, "timeout_s": -1}, "invalid_request"),
    ("/v1/segment", {**SEGMENT, "type": "uniovseg.segment.v2"}, "invalid_request"),
    ("/v1/segment", [SEGMENT], "invalid_request"),
    ("/v1/prompt", {}, "invalid_request"),
    ("/v1/prompt", {"points": [[1]]}, "invalid_request"),
    ("/v1/prompt", {"points": [[1, 2]] * 11}, "limit_exceeded"),
    ("/v1/prompt", {"boxes": [[1, 2, 3, 4]] * 11}, "limit_exceeded"),
    ("/v1/prompt", {"points": [[1, 2]], "labels": [1, 0]}, "invalid_request"),
    ("/v1/prompt", {"points": [[1, 2]], "labels": [2]}, "invalid_request"),
    ("/v1/prompt", {"points": [[1, 2]], "labels": [0]}, "invalid_request"),
    ("/v1/prompt", {"points": [[91, 2]]}, "invalid_request"),
    ("/v1/prompt", {"points": [[1e308, 2]]}, "invalid_request"),
    ("/v1/prompt", {"boxes": [[1, 2, 0, 4]]}, "invalid_request"),
    ("/v1/prompt", {"boxes": [[1, 2, 300, 4]]}, "invalid_request"),
    ("/v1/everything", {"points_per_side": 0}, "invalid_request"),
    ("/v1/everything", {"points_per_side": 65}, "limit_exceeded"),
    ("/v1/images", {"colour": "red"}, "invalid_request"),
]


@pytest.mark.parametrize(("path", "request_", "code"), WRONG)
def test_requests_that_cannot_be_used(client: TestClient, png: bytes, path: str, request_: Any, code: str) -> None:
    problem(post(client, path, request_, png), code)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"[" * 10_000, "invalid_json"),
        (b'{"a":' * 3000, "invalid_json"),
        (b'{"points": [[NaN, 1]]}', "invalid_request"),
        (b'{"points": [[Infinity, 1]]}', "invalid_request"),
        (b'{"points": [[1e999, 1]]}', "invalid_request"),
        (b'{"points": [[1' + b"0" * 400 + b", 1]]}", "invalid_request"),
        (b'{"points": [[1, 1]], "vocabulary": ["\\ud800"]}', "invalid_json"),
        (b'{"points": [[1, 1]], "vocabulary": ["\xff\xfe"]}', "invalid_json"),
        (b'{"points": [[1, 1]], "image_id": "../../etc/passwd"}', "invalid_request"),
        (b'{"points": [[1, 1]], "image_id": "%2e%2e%2f"}', "invalid_request"),
        (b'{"points": [[1, 1]], "image_id": "' + b"0" * 32 + b'"}', "image_not_found"),
        (b'{"points": [[1, 1]]}', "image_missing"),
        (b'{"points": [[1, 1]], "image": {"data": "!"}}', "invalid_image"),
        (b'{"points": [[1, 1]], "image": {"data": "\xc3\xa9"}}', "invalid_image"),
        (b'{"points": [[1, 1]], "image": {"data": "AAAA"}}', "invalid_image"),
        (b'{"points": [[1, 1]], "image": {"type": "url", "data": "http://localhost/"}}', "invalid_request"),
        (b'{"points": [[1, 1]], "image": {"data": "' + b"A" * 270_000 + b'"}}', "too_large"),
        (b'{"points": [[1, 1]], "image": {"data": "' + b"A" * 300_000 + b'"}}', "too_large"),
        (b'{"points": [[1, 1]], "image": {"data": "AA"}, "image_id": "a"}', "invalid_request"),
    ],
)
def test_json_that_cannot_be_used(client: TestClient, text: bytes, code: str) -> None:
    problem(client.post("/v1/prompt", content=text, headers={"content-type": "application/json"}), code)


def test_a_request_beside_its_image_is_bounded(client: TestClient, png: bytes) -> None:
    image = {"image": {"data": base64.b64encode(png + bytes(LIMITS.request_bytes)).decode()}}
    assert post(client, "/v1/segment", SEGMENT | image).status_code == 200
    words = [f"word {number}" for number in range(LIMITS.request_bytes // 8)]
    problem(post(client, "/v1/segment", {"vocabulary": words} | image), "too_large")


def test_images_that_cannot_be_used(client: TestClient, png: bytes) -> None:
    raw = {"content-type": "image/png"}
    for data, code in (
        (b"", "image_missing"),
        (b"no image", "invalid_image"),
        (png[:100], "invalid_image"),
        (png + bytes(200_000), "too_large"),
        (encoded(np.zeros((1, 701, 3), np.uint8)), "too_large"),
        (encoded(np.zeros((500, 500, 3), np.uint8)), "too_large"),
    ):
        problem(client.post("/v1/everything", content=data, headers=raw), code)
    assert (
        client.post("/v1/everything", content=encoded(np.zeros((1, 700, 3), np.uint8)), headers=raw, params={"points_per_side": 1}).status_code == 200
    )


def test_bodies_that_cannot_be_taken_apart(client: TestClient, png: bytes) -> None:
    multipart = {"content-type": "multipart/form-data; boundary=x"}
    for body, headers, code in (
        (b"", {"content-type": "text/plain"}, "unsupported_media_type"),
        (b"abc", {"content-type": "application/x-www-form-urlencoded"}, "unsupported_media_type"),
        (png, {"content-type": "image/png", "content-encoding": "gzip"}, "unsupported_media_type"),
        (b"abc", {"content-type": "multipart/form-data"}, "invalid_body"),
        (b"abc", multipart, "invalid_body"),
        (b"--x\r\n\r\nabc\r\n--x--", multipart, "invalid_body"),
        (b'--x\r\nContent-Disposition: form-data; name="other"\r\n\r\nabc\r\n--x--\r\n', multipart, "invalid_body"),
        (b'--x\r\nContent-Disposition: form-data; name="request"\r\n\r\n{"points": [[1, 1]]}\r\n--x--\r\n', multipart, "image_missing"),
        (b'--x\r\nContent-Disposition: form-data; name="request"\r\n\r\n' + b" " * 30_000 + b"\r\n--x--\r\n", multipart, "invalid_body"),
        (bytes(300_000), multipart, "too_large"),
    ):
        problem(client.post("/v1/prompt", content=body, headers=headers), code)
    problem(client.get("/v1/prompt"), "method_not_allowed")
    problem(client.post("/v1/prompt/../../etc"), "not_found")


def test_queries_that_cannot_be_used(client: TestClient, png: bytes) -> None:
    raw = {"content-type": "image/png"}
    for query, code in (
        ("points=[[1,1]", "invalid_json"),
        ("points=" + "[" * 5000, "invalid_json"),
        ("points=[[1,1]]&points=[[1,1]]", "invalid_request"),
        ("points=[[1,1]]&colour=red", "invalid_request"),
        ("points=1", "invalid_request"),
        ("points=[[1,1]]&timeout_s=nan", "invalid_request"),
        ("points=[[1,1]]&vocabulary=a,,b", "invalid_vocabulary"),
        ("points=[[1,1]]&vocabulary=%ff%00", "invalid_vocabulary"),
    ):
        problem(client.post(f"/v1/prompt?{query}", content=png, headers=raw), code)
    problem(client.post("/v1/prompt?points=[[1,1]]", content=png, headers={**raw, REQUEST_HEADER: "{}"}), "invalid_request")


def test_an_image_is_given_once(client: TestClient, png: bytes) -> None:
    request = {"points": [[1, 1]], "image_id": "a"}
    assert problem(post(client, "/v1/prompt", request, png), "image_twice").seen == "file, image_id"


def test_time_is_bounded(client: TestClient, png: bytes) -> None:
    problem(post(client, "/v1/segment", {**SEGMENT, "timeout_s": 1e-6}, png), "timeout")


def test_keys(host: Host, png: bytes) -> None:
    basic = f"Basic {base64.b64encode(b'anybody:two').decode()}"
    with client_of(host, keys=("one", "two", "drei-à")) as client:  # à ends in the byte of a space in Latin 1
        for headers in ({}, {"Authorization": "Bearer three"}, {"X-API-Key": ""}, {"Authorization": "Basic one"}, {"X-API-Key": "onetwo"}):
            answer = client.get("/v1/models", headers=headers)
            problem(answer, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"
        for authorization in ("Bearer one", "Bearer drei-à", basic):
            assert client.get("/v1/models", headers={b"Authorization": authorization.encode()}).status_code == 200
        for key in ("two", "drei-à"):
            assert client.get("/v1/models", headers={b"X-API-Key": key.encode()}).status_code == 200
        problem(client.get("/v1/models", headers={b"X-API-Key": "vier-à".encode()}), "unauthorized")
        problem(post(client, "/v1/segment", SEGMENT, png), "unauthorized")
        assert [client.get(path).status_code for path in ("/healthz", "/readyz", "/metrics", "/docs")] == [200] * 4


def test_other_origins_are_let_in_by_name_only(host: Host) -> None:
    origin = {"Origin": "https://example.org"}
    with client_of(host) as client:
        assert "access-control-allow-origin" not in client.get("/healthz", headers=origin).headers
    with client_of(host, cors_origins=("https://example.org",)) as client:
        assert client.get("/healthz", headers=origin).headers["access-control-allow-origin"] == "https://example.org"
        assert "access-control-allow-origin" not in client.get("/healthz", headers={"Origin": "https://other.org"}).headers
    with client_of(host, cors_origins=("https://example.org",), uploads=0) as client:
        busy = client.get("/v1/models", headers=origin)
        assert busy.status_code == 503 and busy.headers["access-control-allow-origin"] == "https://example.org"
        assert {"X-Request-ID", "Retry-After"} <= set(busy.headers["access-control-expose-headers"].split(", "))


def test_too_many_requests(host: Host, png: bytes) -> None:
    with client_of(host, uploads=0) as client:
        answer = post(client, "/v1/segment", SEGMENT, png)
        problem(answer, "overloaded")
        assert answer.headers["retry-after"] == "1"
        assert client.get("/healthz").status_code == 200


def test_too_many_bytes_of_bodies(host: Host, png: bytes) -> None:
    """Only while they are under way: what was refused and what was answered leaves its room to the next."""
    with client_of(host, upload_bytes=len(png) + 1) as client:
        for media, body, status in (("image/png", png, 200), ("application/json", b" " * (len(png) + 2), 503), ("image/png", png, 200)):
            answer = client.post("/v1/prompt?points=[[1,1]]", content=body, headers={"content-type": media})
            assert answer.status_code == status, answer.text
            if status == 503:
                problem(answer, "overloaded")


def test_no_model_and_faults_of_ours(png: bytes) -> None:
    class Broken:
        async def call(self, call: object) -> Any:
            raise ZeroDivisionError("secret")

        async def describe(self) -> Any:
            raise OSError("/secret/path")

    with client_of(Broken()) as client:
        assert "secret" not in post(client, "/v1/segment", SEGMENT, png).text
        problem(post(client, "/v1/segment", SEGMENT, png), "internal")
        problem(client.get("/v1/models"), "internal")


def test_adapters_and_a_page_stand_beside_the_routes(host: Host, tmp_path: Any) -> None:
    (tmp_path / "index.html").write_text("<p>hello</p>")
    router = APIRouter()
    router.add_api_route("/hf", lambda: {"adapter": True})
    with client_of(host, routers=(router,), page=tmp_path) as client:
        assert client.get("/").text == "<p>hello</p>"
        assert client.get("/hf").json() == {"adapter": True}
        assert client.get("/healthz").json()["status"] == "ok"
        problem(client.get("/other.js"), "not_found")
        problem(client.get("/..%2f..%2fetc/passwd"), "not_found")
