"""The adapters around a scripted backend: requests as their clients send them, masks decoded by others' rules."""

import asyncio
import base64
import io
import itertools
import json
import struct
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from serve.adapters import ROUTERS
from serve.adapters.cvat import write as write_cvat
from serve.adapters.label_studio import encode_rle
from serve.api import create_api
from serve.calls import Call, Description, Outcome
from serve.host import Host
from serve.masks import Found, write_id_map, write_segments
from serve.measures import Measures
from serve.samples import _drawn
from serve.service import Service
from serve.settings import ModelSource
from tests.serve.conftest import LIMITS, REPLICA, client_of
from uniovseg.api import EverythingRequest, Limits, ModelInfo, PromptRequest, SegmentRequest, VocabularyRef

HEIGHT, WIDTH = 24, 40
MODEL = ModelInfo(name="shapes", version="abc", checkpoint="c", method="m", size=64, scales=(64,), templates="simple")


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


PICTURE = png()
ENCODED = base64.b64encode(PICTURE).decode()


def shapes() -> list[NDArray[np.bool_]]:
    """A ring with a loose pixel, a block that ends in the image's last pixel, and nothing."""
    ring = np.zeros((HEIGHT, WIDTH), bool)
    ring[2:12, 3:15] = True
    ring[5:9, 6:10] = False
    ring[15, 2] = True
    block = np.zeros((HEIGHT, WIDTH), bool)
    block[10:, 30:] = True
    return [ring, block, np.zeros((HEIGHT, WIDTH), bool)]


def found_of(mask: NDArray[np.bool_], **fields: Any) -> Found:
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    x, y, width, height = (int(value) for value in coco_mask.toBbox(rle))
    return Found(
        {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()},
        (x, y, x + width, y + height),
        int(mask.sum()),
        **fields,
    )


class Scripted:
    """Answers every call with the shapes, and keeps what was asked."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.model = MODEL

    async def call(self, call: Call) -> Outcome:
        self.calls.append(call)
        request = call.request
        assert request is not None
        words = ["cat", "grass", "cat"] if request.named else [None] * 3
        found = [
            found_of(mask, label=word, score=score, predicted_iou=None if isinstance(request, SegmentRequest) else 0.75)
            for mask, word, score in zip(shapes(), words, [0.9, 0.5, 0.25], strict=True)
        ]
        if isinstance(request, PromptRequest):
            found = found[:1]
        vocabulary = VocabularyRef(fingerprint="f", classes=2) if request.named else None
        id_map = write_id_map(found, (HEIGHT, WIDTH)) if request.mask_format == "png_idmap" else None
        return Outcome(
            model=self.model, size=(HEIGHT, WIDTH), segments=write_segments(found, request.mask_format), vocabulary=vocabulary, id_map=id_map
        )

    async def describe(self) -> Description:
        return Description(MODEL, ())


class NoImages:
    async def get(self, image_id: str) -> bytes | None:
        return None

    async def put(self, image_id: str, image: bytes) -> None:
        raise AssertionError

    async def touch(self, image_id: str) -> None:
        raise AssertionError


@pytest.fixture
def backend() -> Scripted:
    return Scripted()


@pytest.fixture
def http(backend: Scripted) -> Iterator[TestClient]:
    api = create_api(Service(backend, NoImages(), Limits(), 60), measures=Measures("test"), uploads=9, upload_bytes=10**9, routers=ROUTERS)
    with TestClient(api, raise_server_exceptions=False) as client:
        yield client


def asked(backend: Scripted) -> Any:
    """The last request, but for its time."""
    request = backend.calls[-1].request
    assert request is not None
    return request.model_copy(update={"timeout_s": None})


MUCH: list[dict[str, Any]] = [{}] * (Limits().request_bytes // 4)


@pytest.mark.parametrize("path", ["/hf", "/cvat", "/label-studio/predict", "/v2/models/shapes/infer", "/v1/prompt"])
def test_json_beside_images_is_bounded_before_it_is_parsed(http: TestClient, path: str) -> None:
    """Whatever stands around it, even quotes far apart."""
    fields = {"inputs": MUCH, "image": ENCODED, "tasks": MUCH, "label_config": ""}
    reply = http.post(path, json=fields)
    assert reply.status_code == 413 and "beside its image" in reply.json()["detail"], reply.text


def test_images_beside_json_are_not_counted(http: TestClient, backend: Scripted) -> None:
    large = PICTURE + bytes(Limits().request_bytes)
    encoded = base64.b64encode(large).decode()
    tasks = [{"data": {"picture": f"data:image/png;base64,{encoded}"}}] * 8
    for path, body in (("/label-studio/predict", {"tasks": tasks, "label_config": CONFIG}), ("/hf?vocabulary=cat", {"inputs": encoded})):
        reply = http.post(path, content=json.dumps(body).replace("/", "\\/"), headers={"Content-Type": "application/json"})
        assert reply.status_code == 200 and backend.calls[-1].image == large, reply.text


# -- Hugging Face -----------------------------------------------------------------------------------------------------------------------------------


def read_png(text: str) -> NDArray[Any]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


@pytest.mark.parametrize("path", ["/hf?vocabulary=cat", "/cvat?vocabulary=cat", "/label-studio/predict"])
def test_masks_are_written_in_time(http: TestClient, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """The time of the request bounds the writing of its masks too."""
    monkeypatch.setattr("uniovseg.deadline.time", SimpleNamespace(monotonic=lambda: 1e18))
    body = {"inputs": ENCODED, "image": ENCODED, "tasks": [TASK], "label_config": CONFIG}
    reply = http.post(path, json=body)
    assert reply.status_code == 408 and reply.json()["code"] == "timeout", reply.text


def test_answers_name_the_model_that_gave_them(http: TestClient, backend: Scripted) -> None:
    """It may have been replaced since the request came."""
    backend.model = MODEL.model_copy(update={"version": "new"})
    reply = http.post("/label-studio/predict", json={"tasks": [TASK], "label_config": CONFIG}).json()
    assert reply["model_version"] == reply["results"][0]["model_version"] == "new"
    assert http.post("/label-studio/predict", json={"tasks": [], "label_config": CONFIG}).json() == {"results": [], "model_version": "abc"}
    body = {"inputs": [bytes_input("image", ENCODED), bytes_input("request", EverythingRequest().model_dump_json())]}
    assert http.post("/v2/models/shapes/infer", json=body).json()["model_version"] == "new"
    other = http.post("/v2/models/shapes/versions/abc/infer", json=body)
    assert other.status_code == 404 and other.json()["allowed"] == "shapes new"


def test_hugging_face_takes_a_raw_image_and_answers_png_masks(http: TestClient, backend: Scripted) -> None:
    reply = http.post("/hf", params={"vocabulary": "cat, grass"}, content=PICTURE, headers={"Content-Type": "image/png"})
    assert reply.status_code == 200, reply.text
    assert [(item["label"], item["score"]) for item in reply.json()] == [("cat", 0.9), ("grass", 0.5), ("cat", 0.25)]
    for item, mask in zip(reply.json(), shapes(), strict=True):
        np.testing.assert_array_equal(read_png(item["mask"]), mask * 255)
    request = asked(backend)
    assert request == SegmentRequest(vocabulary=("cat", "grass"), max_segments=100) and backend.calls[-1].image == PICTURE


def test_hugging_face_takes_json_with_parameters(http: TestClient, backend: Scripted) -> None:
    body = {"inputs": ENCODED, "parameters": {"threshold": 0.4, "overlap_mask_area_threshold": 0.5, "mask_threshold": 0.5, "subtask": "instance"}}
    reply = http.post("/hf?vocabulary_id=ade20k", json=body)
    assert reply.status_code == 200, reply.text
    assert asked(backend) == SegmentRequest(vocabulary_id="ade20k", task="instance", threshold=0.4, min_visible=0.5, max_segments=100)
    assert backend.calls[-1].image == PICTURE
    reply = http.post("/hf", json={"inputs": ENCODED, "parameters": {"vocabulary": ["cat", "dog"]}})
    assert asked(backend).vocabulary == ("cat", "dog")


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        ({"inputs": ENCODED}, 422, "vocabulary or vocabulary_id is required"),
        ({"inputs": ENCODED, "parameters": {"vocabulary": ["a"], "mask_threshold": 0.3}}, 422, "mask_threshold"),
        ({"inputs": ENCODED, "parameters": {"vocabulary": ["a"], "subtask": "parts"}}, 422, "parameters.subtask"),
        ({"inputs": "###", "parameters": {"vocabulary": ["a"]}}, 400, "not base64"),
        ({"parameters": {}}, 422, "inputs: Field required"),
    ],
)
def test_hugging_face_errors(http: TestClient, body: dict[str, Any], status: int, error: str) -> None:
    reply = http.post("/hf", json=body)
    assert reply.status_code == status and error in reply.json()["error"], reply.text
    assert reply.json()["request_id"] == reply.headers["X-Request-ID"]


# -- KServe -----------------------------------------------------------------------------------------------------------------------------------------


def bytes_input(name: str, text: str) -> dict[str, Any]:
    return {"name": name, "datatype": "BYTES", "shape": [1], "data": [text]}


def test_kserve_metadata(http: TestClient) -> None:
    assert http.get("/v2/health/live").json() == {"live": True}
    assert http.get("/v2/health/ready").json() == {"ready": True}
    assert http.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    for path in ("/v2/models/shapes", "/v2/models/shapes/versions/abc"):
        metadata = http.get(path).json()
        assert (metadata["name"], metadata["versions"]) == ("shapes", ["abc"])
        assert [item["name"] for item in metadata["inputs"]] == ["image", "request"]
        assert http.get(f"{path}/ready").status_code == 200
    for path in ("/v2/models/other", "/v2/models/shapes/versions/2", "/v2/models/%2e%2e%2fshapes"):
        reply = http.get(path)
        assert reply.status_code == 404 and reply.json()["code"] == "not_found"


@pytest.mark.parametrize("request_", [SegmentRequest(vocabulary=("cat", "grass")), PromptRequest(points=((1, 2),)), EverythingRequest()], ids=repr)
def test_kserve_infers(http: TestClient, backend: Scripted, request_: Any) -> None:
    body = {"id": "7", "inputs": [bytes_input("image", ENCODED), bytes_input("request", request_.model_dump_json())]}
    reply = http.post("/v2/models/shapes/infer", json=body)
    assert reply.status_code == 200, reply.text
    answer = reply.json()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("shapes", "abc", "7")
    assert asked(backend) == request_ and backend.calls[-1].image == PICTURE
    outputs = {item["name"]: item for item in answer["outputs"]}
    count = 1 if isinstance(request_, PromptRequest) else 3
    for counts, mask in zip(outputs["masks"]["data"], shapes()[:count], strict=True):
        np.testing.assert_array_equal(coco_mask.decode({"size": [HEIGHT, WIDTH], "counts": counts.encode()}), mask)
    assert outputs["boxes"]["shape"] == [count, 4] and outputs["boxes"]["data"][:4] == [2, 2, 13, 14]
    assert outputs["areas"]["data"][0] == 105
    assert outputs["scores"]["data"] == [0.9, 0.5, 0.25][:count]
    assert outputs["labels"]["data"] == (["cat", "grass", "cat"] if request_.named else [""] * count)
    assert json.loads(outputs["answer"]["data"][0])["segments"][0]["area"] == 105
    for item in outputs.values():
        assert len(item["data"]) == np.prod(item["shape"])


def test_kserve_reads_binary_tensors(http: TestClient, backend: Scripted) -> None:
    words = SegmentRequest(vocabulary=("Gänse",), mask_format="none")
    raw = [struct.pack("<I", len(data)) + data for data in (PICTURE, words.model_dump_json().encode())]
    tensors = [
        {"name": name, "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(data)}}
        for name, data in zip(("image", "request"), raw, strict=True)
    ]
    head = json.dumps({"inputs": tensors, "outputs": [{"name": "labels", "parameters": {"binary_data": False}}]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
    reply = http.post("/v2/models/shapes/versions/abc/infer", content=head + b"".join(raw), headers=headers)
    assert reply.status_code == 200, reply.text
    assert [item["name"] for item in reply.json()["outputs"]] == ["labels"]
    assert asked(backend) == words and backend.calls[-1].image == PICTURE
    cut = http.post("/v2/models/shapes/infer", content=(head + b"".join(raw))[:-1], headers=headers)
    assert cut.status_code == 422 and "binary_data_size" in cut.json()["error"]
    for length in ("x", "-1", "9" * 30, str(len(head) + 10**6)):
        reply = http.post("/v2/models/shapes/infer", content=head, headers=headers | {"Inference-Header-Content-Length": length})
        assert reply.status_code == 422, reply.text


@pytest.mark.parametrize(
    ("inputs", "status", "error"),
    [
        ([bytes_input("image", ENCODED)], 422, "request is missing"),
        ([bytes_input("image", "#"), bytes_input("request", "{}")], 400, "not base64"),
        ([bytes_input("image", ENCODED), bytes_input("request", "{}")], 422, "type"),
        ([bytes_input("image", ENCODED), bytes_input("request", '{"type": "uniovseg.segment.v1"}')], 422, "vocabulary"),
        ([bytes_input("mask", "a")], 422, "unknown"),
        ([bytes_input("request", " " * 2**21)], 413, "too large"),
        ([bytes_input("request", "{}"), bytes_input("request", "{}")], 422, "twice"),
        ([{"name": "image", "datatype": "FP32", "shape": [2], "data": [1.5, 2]}], 422, "not one element"),
        ([{"name": "request", "datatype": "BYTES", "shape": [1], "data": [3]}], 422, "not one string"),
    ],
)
def test_kserve_errors(http: TestClient, inputs: list[dict[str, Any]], status: int, error: str) -> None:
    reply = http.post("/v2/models/shapes/infer", json={"inputs": inputs})
    assert reply.status_code == status and error in reply.json()["error"], reply.text


# -- Label Studio -----------------------------------------------------------------------------------------------------------------------------------

CONFIG = """<View><!-- a comment -->
  <Image name="other" value="$elsewhere"/><Image name="photo" value="$picture" zoom="true"/>
  <BrushLabels name="brush" toName="photo"><Label value="cat" background="#f00"/><Label value="grass"/></BrushLabels>
  <KeyPointLabels name="click" toName="photo" smart="true"><Label value="cat"/></KeyPointLabels>
</View>"""
NOWHERE = {"type": "rectangle", "original_width": "nan", "original_height": 1, "value": {"x": 1, "y": 1, "width": 1, "height": 1}}
TASK = {"id": 1, "data": {"picture": f"data:image/png;base64,{ENCODED}"}}


def slow_decode(rle: Sequence[int]) -> NDArray[np.uint8]:
    """Label Studio's run lengths, bit by bit, as its format is published: the values of the stream."""
    bits = "".join(f"{byte:08b}" for byte in rle)
    at = 0

    def read(count: int) -> int:
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    total, width = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < total:
        repeated = read(1)
        length = read(sizes[read(2)]) + 1
        values += [read(width)] * length if repeated else [read(width) for _ in range(length)]
    assert len(values) == total and len(bits) - at < 8
    return np.array(values, np.uint8)


def test_label_studio_segments_a_task_by_the_labels_of_its_brush(http: TestClient, backend: Scripted) -> None:
    reply = http.post("/label-studio/predict", json={"tasks": [TASK, TASK], "label_config": CONFIG, "project": "1.2", "params": {"context": None}})
    assert reply.status_code == 200, reply.text
    assert reply.json()["model_version"] == "abc"
    assert asked(backend).vocabulary == ("cat", "grass") and backend.calls[-1].image == PICTURE
    first, second = reply.json()["results"]
    ids = [item.pop("id") for result in (first, second) for item in result["result"]]
    assert len(set(ids)) == 4, "regions of all tasks live side by side"
    assert first == second and first["score"] == pytest.approx(0.7)
    assert len(first["result"]) == 2, "a brush without a pixel is none"
    for item, mask, word in zip(first["result"], shapes(), ["cat", "grass"], strict=False):
        assert (item["from_name"], item["to_name"], item["type"]) == ("brush", "photo", "brushlabels")
        assert (item["original_width"], item["original_height"]) == (WIDTH, HEIGHT)
        assert item["value"]["format"] == "rle" and item["value"]["brushlabels"] == [word]
        np.testing.assert_array_equal(slow_decode(item["value"]["rle"]).reshape(HEIGHT, WIDTH, 4), np.repeat(mask[..., None] * 255, 4, axis=2))


def test_label_studio_answers_a_click_and_a_box(http: TestClient, backend: Scripted) -> None:
    drawn = {"original_width": WIDTH, "original_height": HEIGHT, "to_name": "photo", "from_name": "click"}
    click = drawn | {"type": "keypointlabels", "is_positive": 1, "value": {"x": 25, "y": 50, "width": 0.3, "keypointlabels": ["grass"]}}
    away = drawn | {"type": "keypointlabels", "is_positive": 0, "value": {"x": 75, "y": 25, "width": 0.3, "keypointlabels": ["grass"]}}
    box = drawn | {"type": "rectanglelabels", "value": {"x": 10, "y": 50, "width": 20, "height": 25, "rectanglelabels": ["grass"]}}

    def predict(*items: Any) -> Any:
        reply = http.post("/label-studio/predict", json={"tasks": [TASK], "label_config": CONFIG, "params": {"context": {"result": items}}})
        assert reply.status_code == 200, reply.text
        return reply.json()["results"][0]

    found = predict(click, away)
    assert asked(backend) == PromptRequest(points=((10, 12), (30, 6)), labels=(1, 0))
    (item,) = found["result"]
    assert item["value"]["brushlabels"] == ["grass"] and item["score"] == 0.75
    np.testing.assert_array_equal(slow_decode(item["value"]["rle"]).reshape(HEIGHT, WIDTH, 4)[..., 3] > 0, shapes()[0])
    predict(box)
    assert asked(backend) == PromptRequest(boxes=((4, 12, 8, 6),))


def test_label_studio_tasks_share_one_time(http: TestClient, backend: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(10**9, 25)  # each look at the clock takes 25 s
    monkeypatch.setattr("serve.adapters.label_studio.time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr("serve.adapters.label_studio.time_is_over", lambda limits: 10**9 + limits.seconds)
    reply = http.post("/label-studio/predict", json={"tasks": [TASK] * 3, "label_config": CONFIG})
    assert reply.status_code == 200, reply.text
    left = Limits().seconds
    assert [call.request and call.request.timeout_s for call in backend.calls] == [left, left - 25, max(left - 50, 0.001)]


def test_label_studio_takes_no_turned_photographs(http: TestClient) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.open(io.BytesIO(PICTURE)).save(buffer, "JPEG", exif=exif)
    task = {"data": {"picture": f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"}}
    reply = http.post("/label-studio/predict", json={"tasks": [task], "label_config": CONFIG})
    assert reply.status_code == 400, reply.text
    assert reply.json()["code"] == "invalid_image" and reply.json()["seen"] == "EXIF orientation 6"


def test_label_studio_setup_and_health(http: TestClient) -> None:
    assert http.get("/label-studio/health").json() == {"status": "UP", "model_class": "shapes"}
    assert http.post("/label-studio/setup", json={"project": "1.2", "schema": CONFIG}).json() == {"model_version": "abc"}
    assert http.post("/label-studio/webhook", json={"action": "ANNOTATION_CREATED"}).status_code == 200


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"tasks": [{"data": {"picture": "http://127.0.0.1:1/a.png"}}]}, "image_missing"),
        ({"tasks": [{"data": {"picture": "/data/upload/../../etc/passwd"}}]}, "image_missing"),
        ({"tasks": [{"data": {}}]}, "image_missing"),
        ({"tasks": [TASK] * 9}, "limit_exceeded"),
        ({"label_config": "<View/>"}, "invalid_request"),
        ({"label_config": CONFIG.replace('toName="photo"', 'toName="none"')}, "invalid_request"),
        ({"label_config": "<View>"}, "invalid_request"),
        ({"label_config": " " * 2**21 + CONFIG}, "too_large"),
        ({"label_config": '<!DOCTYPE a [<!ENTITY b "c">]><View>&b;</View>'}, "invalid_request"),
        ({"label_config": '<View><Image name="photo" value="$picture"/><BrushLabels name="b" toName="photo"/></View>'}, "invalid_vocabulary"),
        ({"params": {"context": {"result": [{"type": "keypointlabels", "value": {"x": 1}}]}}}, "invalid_request"),
        ({"params": {"context": {"result": [{"type": 3, "value": []}]}}}, "invalid_request"),
        ({"params": {"context": {"result": [NOWHERE]}}}, "invalid_request"),
    ],
)  # fmt: skip
def test_label_studio_errors(http: TestClient, change: dict[str, Any], code: str) -> None:
    reply = http.post("/label-studio/predict", json={"tasks": [TASK], "label_config": CONFIG} | change)
    assert reply.json()["code"] == code and 400 <= reply.status_code < 500, reply.text


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (200, 333)])
def test_label_studio_run_lengths(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(1)
    noise = random.random(shape) < 0.5
    for mask in (noise, np.zeros(shape, bool), np.ones(shape, bool), cv2.blur(noise.astype(np.float32), (5, 5)) > 0.5):
        np.testing.assert_array_equal(slow_decode(encode_rle(mask)), np.repeat(mask.ravel(), 4) * np.uint8(255))


# -- CVAT -------------------------------------------------------------------------------------------------------------------------------------------


def test_cvat_gets_masks_within_their_boxes(http: TestClient, backend: Scripted) -> None:
    reply = http.post("/cvat", params={"vocabulary": "cat,grass"}, json={"image": ENCODED, "threshold": 0.3})
    assert reply.status_code == 200, reply.text
    assert asked(backend) == SegmentRequest(vocabulary=("cat", "grass"), task="instance", threshold=0.3, max_segments=100)
    assert backend.calls[-1].image == PICTURE
    items = reply.json()
    assert [(item["type"], item["label"], item["confidence"]) for item in items] == [("mask", "cat", "0.9"), ("mask", "grass", "0.5")]
    for item, mask in zip(items, shapes(), strict=False):
        *pixels, left, top, right, bottom = item["mask"]
        dense = np.zeros((HEIGHT, WIDTH), bool)
        dense[top : bottom + 1, left : right + 1] = np.reshape(pixels, (bottom - top + 1, right - left + 1))
        np.testing.assert_array_equal(dense, mask)
    corners = np.reshape(items[0]["points"], (-1, 2))
    assert (corners.min(0).tolist(), corners.max(0).tolist()) == ([3, 2], [14, 11]), "the outer outline of the ring, not its hole or the loose pixel"
    assert http.post("/cvat", json={"image": ENCODED}).status_code == 422


@pytest.mark.parametrize(
    ("pixels", "box"),
    [
        ([(7, 9)], (9, 7, 10, 8)),
        ([(7, 9), (7, 10), (7, 11)], (9, 7, 12, 8)),
        ([(7, 9), (8, 9)], (9, 7, 10, 9)),
        ([(7, 9), (7, 10), (8, 9), (8, 10)], (9, 7, 10, 8)),
        ([(7, 9), (8, 10), (9, 11), (8, 12), (7, 13)], (9, 7, 14, 10)),
        ([(1, 1), (20, 30), (20, 31)], (30, 20, 32, 21)),
    ],
)
def test_cvat_gets_polygons_of_thin_masks_too(pixels: list[tuple[int, int]], box: tuple[int, int, int, int]) -> None:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[tuple(np.transpose(pixels))] = True
    (item,) = json.loads(write_cvat(write_segments([found_of(mask, label="cat", score=0.5)], "coco_rle")))
    corners = np.reshape(item["points"], (-1, 2))
    assert cv2.contourArea(corners.astype(np.float32)) > 0
    assert (*corners.min(0), *corners.max(0)) == box


def test_cvat_gets_masks_as_long_as_there_is_room(http: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.adapters.cvat.MASK_PIXELS", 13 * 14)
    reply = http.post("/cvat?vocabulary=cat,grass", json={"image": ENCODED})
    assert [item["label"] for item in reply.json()] == ["cat"]


def test_instances_are_not_every_mask_with_every_word() -> None:
    """Of the packaged model, whose every mask has some score for every word."""
    file, words = _drawn(28)
    host = Host(REPLICA, LIMITS, 900.0)
    try:
        asyncio.run(host.load(ModelSource()))
        with client_of(host, routers=ROUTERS) as client:
            request = {"image": {"data": base64.b64encode(file).decode()}, "vocabulary": words.split(", "), "task": "instance"}
            everything = client.post("/v1/segment", json=request).json()["segments"]
            image = base64.b64encode(file).decode()
            cvat = client.post(f"/cvat?vocabulary={words}", json={"image": image})
            hugging = client.post(f"/hf?vocabulary={words}", json={"inputs": image, "parameters": {"subtask": "instance"}})
    finally:
        host.close()
    assert len(everything) > 300
    for items in (cvat.json(), hugging.json()):
        masks = {str(item["mask"]) for item in items}
        assert 20 < len(items) < 100 and len(items) - len(masks) < 5
