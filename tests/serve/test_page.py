"""The page in a real browser (see `tests.browser`), before a service that knows the right answers."""

import asyncio
import io
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Download, Page, expect
from pycocotools import mask as coco_mask

from serve.api import create_api
from serve.measures import Measures
from serve.problems import ServiceError
from serve.samples import SIDE, WORDS_HEADER, sample_scene
from serve.samples import router as samples
from serve.service import Service
from tests.browser import running_browser, snap
from tests.serve.shapes_backend import Truth, parts
from uniovseg.api import EverythingRequest, Limits, PromptRequest, SegmentRequest
from uniovseg.data.shapes import Scene

PAGE = Path(__file__).parents[2] / "serve" / "page"
SEED = 28  # the first sample of the page
LIMITS = Limits(words=20, side=1000)
WAIT_MS = 60_000


class Server:
    """The service of a `Truth` on a port of this machine, in a thread."""

    def __init__(self, keys: tuple[str, ...] = ()) -> None:
        self.truth = Truth(range(40))
        service = Service(self.truth, self.truth, LIMITS, 900.0)
        api = create_api(service, measures=Measures("test"), uploads=100, upload_bytes=10**9, keys=keys, routers=(samples,), page=PAGE)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/"
        self._server = uvicorn.Server(uvicorn.Config(api, log_level="warning", lifespan="off"))
        self._thread = threading.Thread(target=asyncio.run, args=(self._server.serve([self._socket]),))
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def shared_server() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def server(shared_server: Server) -> Server:
    truth = shared_server.truth
    truth.calls.clear()
    truth.faults.clear()
    truth.files.clear()
    return shared_server


@pytest.fixture
def open_page(browser: Browser, server: Server) -> Iterator[Callable[..., Page]]:
    """Opens the page; at the end, nothing may have gone wrong in it."""
    opened: list[Page] = []
    faults: list[str] = []

    def opening(url: str = server.url, **context: Any) -> Page:
        page = browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **context}).new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on(
            "console",
            lambda message: faults.append(message.text) if message.type == "error" and "Failed to load resource" not in message.text else None,
        )
        page.goto(url)
        opened.append(page)
        return page

    expect.set_options(timeout=WAIT_MS)
    yield opening
    for page in opened:
        page.context.close()
    assert not faults


@pytest.fixture
def page(open_page: Callable[..., Page]) -> Page:
    page = open_page()
    expect(page.locator("#samples img")).to_have_count(3)
    return page


@pytest.fixture(scope="module")
def scene() -> Scene:
    return sample_scene(SEED)


def status(page: Page, text: str) -> None:
    expect(page.locator("#status")).to_contain_text(text)


def take_sample(page: Page) -> None:
    page.locator("#samples button").first.click()
    status(page, "ready")


def at(page: Page, x: float, y: float) -> tuple[float, float]:
    """Where a pixel of the sample is in the window."""
    page.locator("#canvas").scroll_into_view_if_needed()
    box = page.locator("#canvas").bounding_box()
    assert box is not None
    return box["x"] + x / SIDE * box["width"], box["y"] + y / SIDE * box["height"]


def inside(mask: NDArray[np.bool_]) -> tuple[float, float]:
    """The pixel that is farthest from the edge, as (x, y) of its centre."""
    import cv2

    depth = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return float(x) + 0.5, float(y) + 0.5


def object_masks(scene: Scene) -> list[tuple[str, NDArray[np.bool_]]]:
    """Names and masks of the shapes, largest first."""
    return sorted(parts(scene)[: len(scene.objects)], key=lambda item: -int(item[1].sum()))


def colour_at(page: Page, x: float, y: float) -> list[int]:
    """The canvas's colour at a pixel of the sample, once what was asked is drawn."""
    script = """([x, y]) => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => {
        const canvas = document.getElementById("canvas");
        done([...canvas.getContext("2d").getImageData(Math.floor(x * canvas.width), Math.floor(y * canvas.height), 1, 1).data]);
    })))"""
    found: list[int] = page.evaluate(script, [x / SIDE, y / SIDE])
    return found


def downloaded(page: Page, button: str) -> tuple[str, bytes]:
    with page.expect_download() as waiting:
        page.locator(button).click()
    download: Download = waiting.value
    return download.suggested_filename, Path(download.path()).read_bytes()


def masks_shown(page: Page) -> list[NDArray[np.bool_]]:
    """The masks that are switched on, by way of the download."""
    _, data = downloaded(page, "#save-json")
    return [coco_mask.decode(segment["mask"]).astype(bool) for segment in json.loads(data)["segments"]]


# -- words ------------------------------------------------------------------------------------------------------------------------------------------


def test_words_give_named_segments_that_can_be_switched(page: Page, server: Server, scene: Scene) -> None:
    take_sample(page)
    names = [name for name, _ in parts(scene)]
    assert set(page.locator("#words").input_value().split(", ")) <= set(names)
    page.locator("input[name=task][value=instance]").check()
    page.locator("#segment").click()
    status(page, f"{len(names)} segments")
    (request,) = server.truth.requests
    assert isinstance(request, SegmentRequest)
    assert (request.task, request.threshold) == ("instance", 0.3)
    assert page.locator("#legend .name").all_text_contents() == names

    page.locator("#names").uncheck()
    point = inside(object_masks(scene)[0][1])
    coloured = colour_at(page, *point)
    place = names.index(object_masks(scene)[0][0])
    page.locator("#legend input").nth(place).uncheck()
    page.mouse.move(2, 2)
    plain = colour_at(page, *point)
    assert max(abs(a - b) for a, b in zip(coloured, plain, strict=True)) > 20
    assert np.abs(np.array(plain[:3], int) - scene.image[int(point[1]), int(point[0])]).max() < 25  # JPEG, and the picture is scaled
    assert len(masks_shown(page)) == len(names) - 1
    page.locator("#toggle-all").click()
    page.locator("#toggle-all").click()
    assert all((a == b).all() for a, (_, b) in zip(masks_shown(page), parts(scene), strict=True))


def test_a_packaged_vocabulary_takes_the_place_of_words(page: Page, server: Server) -> None:
    take_sample(page)
    page.locator("#vocabulary").select_option("cityscapes")
    expect(page.locator("#words")).to_be_hidden()
    page.locator("#segment").click()
    status(page, "Nothing was found")
    assert [request.vocabulary_id for request in server.truth.requests] == ["cityscapes"]


def test_words_are_text_and_nothing_else(page: Page, server: Server) -> None:
    take_sample(page)
    page.locator("#words").fill("<img src=x onerror=alert(1)>, sand, Sand ,, <b>bold</b>")
    page.locator("#words").press("Enter")
    status(page, "found")
    (request,) = server.truth.requests
    assert request.vocabulary == ("<img src=x onerror=alert(1)>", "sand", "<b>bold</b>")


def test_the_legend_highlights(page: Page, scene: Scene) -> None:
    take_sample(page)
    page.locator("#names").evaluate("box => box.click()")
    page.locator("#segment").click()
    status(page, "segments")
    first = object_masks(scene)[0][0]
    ground = inside(parts(scene)[-1][1])
    before = colour_at(page, *ground)
    item = page.locator("#legend li").filter(has=page.get_by_text(first, exact=True)).first
    item.locator("input").focus()
    expect(item).to_have_class("raised")
    assert colour_at(page, *ground) != before  # the others are paler
    item.locator("input").blur()
    assert colour_at(page, *ground) == before


# -- clicks and boxes -------------------------------------------------------------------------------------------------------------------------------


def prompting(page: Page, words: str = "") -> None:
    take_sample(page)
    page.locator("#words").fill(words)
    page.locator("#tab-prompts").click()


def test_clicks_shape_a_mask_of_the_image_that_was_sent_once(page: Page, server: Server, scene: Scene) -> None:
    prompting(page)
    (_, first), (_, second), *_ = object_masks(scene)
    page.mouse.click(*at(page, *inside(first)))
    status(page, "Mask 1")
    assert (masks_shown(page)[0] == first).all()
    page.mouse.click(*at(page, *inside(second)))
    expect(page.locator("#legend .figure").last).not_to_be_empty()
    status(page, "Mask 1")
    page.keyboard.down("Shift")
    page.mouse.click(*at(page, *inside(first)))
    page.keyboard.up("Shift")
    expect(page.locator("#progress")).to_be_hidden()
    (mask,) = masks_shown(page)
    assert (mask == second & ~first).all()
    request = server.truth.requests[-1]
    assert isinstance(request, PromptRequest)
    assert request.labels == (1, 1, 0)
    assert np.abs(np.array(request.points[0]) - inside(first)).max() < 1.5

    asked = len(server.truth.requests)
    page.locator("#undo").click()
    page.locator("#undo").click()
    assert (masks_shown(page)[0] == first).all()
    page.locator("#next").click()
    page.mouse.click(*at(page, *inside(second)))
    expect(page.locator("#legend li")).to_have_count(2)
    assert (masks_shown(page)[1] == second).all()
    assert len(server.truth.requests) == asked + 1  # what was known is not asked again
    assert server.truth.uploads == 1


def test_a_dragged_box_gives_a_named_mask(page: Page, server: Server, scene: Scene) -> None:
    name, mask = object_masks(scene)[0]
    prompting(page, f"{name}, sand")
    ys, xs = np.nonzero(mask)
    page.mouse.move(*at(page, xs.min(), ys.min()))
    page.mouse.down()
    page.mouse.move(*at(page, xs.max() + 1, ys.max() + 1), steps=4)
    page.mouse.up()
    status(page, name)
    assert page.locator("#legend .name").all_text_contents() == [name]
    assert (masks_shown(page)[0] == mask).all()
    request = server.truth.requests[-1]
    assert isinstance(request, PromptRequest)
    seen = np.array(request.boxes[0])
    assert np.abs(seen - [xs.min(), ys.min(), xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()]).max() < 2
    page.locator("#words").fill("sand")
    page.locator("#words").blur()
    expect(page.locator("#legend .name")).to_have_text(["Mask 1"])


def test_everything(page: Page, server: Server, scene: Scene) -> None:
    take_sample(page)
    page.locator("#words").fill("")
    page.locator("#tab-everything").click()
    page.locator("#grid").select_option("16")
    page.locator("#everything").click()
    status(page, f"{len(parts(scene))} segments")
    (request,) = server.truth.requests
    assert isinstance(request, EverythingRequest)
    assert request.points_per_side == 16
    page.locator("#tab-prompts").click()
    expect(page.locator("#results")).to_be_hidden()
    page.locator("#tab-everything").click()
    expect(page.locator("#legend li")).to_have_count(len(parts(scene)))


def test_the_keyboard_alone(page: Page, server: Server, scene: Scene) -> None:
    for _ in range(40):
        if page.evaluate("document.activeElement.closest('#samples') !== null"):
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    status(page, "ready")
    page.locator("#tab-words").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#tab-prompts")).to_be_focused()
    page.locator("#canvas").focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Shift+ArrowUp")
    status(page, f"x {int(SIDE * 0.49)}, y {int(SIDE * 0.4)}")
    page.keyboard.press("Enter")
    status(page, "predicted IoU")
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Shift+Enter")
    expect(page.locator("#progress")).to_be_hidden()
    request = server.truth.requests[-1]
    assert isinstance(request, PromptRequest)
    assert request.labels == (1, 0)
    assert np.allclose(request.points, [(SIDE * 0.49, SIDE * 0.4), (SIDE * 0.59, SIDE * 0.4)])
    page.keyboard.press("Escape")
    status(page, "Cleared")
    expect(page.locator("#results")).to_be_hidden()
    page.keyboard.press("Control+z")
    page.keyboard.press("Control+z")
    expect(page.locator("#legend li")).to_have_count(1)

    page.locator("input[name=tool][value=positive]").focus()
    page.keyboard.press("ArrowLeft")  # round to the last: box
    page.locator("#canvas").focus()
    page.keyboard.press("Shift+ArrowLeft")
    page.keyboard.press("Enter")
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator("#legend li")).to_have_count(2)
    request = server.truth.requests[-1]
    assert isinstance(request, PromptRequest)
    assert np.allclose(request.boxes, [(SIDE * 0.4, SIDE * 0.5, SIDE * 0.1, SIDE * 0.1)])


def test_all_controls_come_in_order_and_show_their_focus(page: Page) -> None:
    take_sample(page)
    page.locator("#segment").click()
    status(page, "segments")
    page.locator(".skip").focus()
    reached: list[str] = []
    for _ in range(60):
        page.keyboard.press("Tab")
        name, outline = page.evaluate("""() => {
            const now = document.activeElement;
            const shown = now.matches(".choice input") ? now.nextElementSibling : now;
            return [now.id || now.name || now.closest("[id]")?.id || now.localName, getComputedStyle(shown).outlineStyle];
        }""")
        if name == "body" or name in reached[:1]:
            break
        assert outline == "solid", name
        reached.append(name)
    wanted = [
        "choose",
        "sample",
        "clear",
        "canvas",
        "vocabulary",
        "words",
        "tab-words",
        "task",
        "segment",
        "toggle-all",
        "legend",
        "opacity",
        "names",
    ]
    wanted += ["save-json", "save-overlay", "save-ids"]
    assert [name for name in dict.fromkeys(reached) if name in wanted] == wanted


# -- files ------------------------------------------------------------------------------------------------------------------------------------------


def test_downloads(page: Page, scene: Scene) -> None:
    take_sample(page)
    page.locator("#segment").click()
    status(page, "segments")
    name, data = downloaded(page, "#save-json")
    told = json.loads(data)
    assert name == f"sample_{SEED}_segments.json"
    assert told["image"] == {"name": f"sample_{SEED}.jpg", "width": SIDE, "height": SIDE}
    assert [item["label"] for item in told["segments"]] == [name for name, _ in parts(scene)]
    assert told["segments"][0]["bbox"] == list(coco_mask.toBbox(told["segments"][0]["mask"]))

    name, data = downloaded(page, "#save-ids")
    ids = np.array(Image.open(io.BytesIO(data)))
    assert name == f"sample_{SEED}_ids.png"
    wanted = np.zeros_like(ids)
    for place, (_, mask) in enumerate(parts(scene), 1):
        wanted[mask] = place
    assert ids.dtype == np.uint8
    assert (ids == wanted).all()

    name, data = downloaded(page, "#save-overlay")
    overlay = np.array(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert name == f"sample_{SEED}_overlay.png"
    assert overlay.shape == scene.image.shape
    assert np.abs(overlay - scene.image).mean() > 10


def test_small_segments_are_seen_over_large_ones_but_numbered_by_rank(page: Page) -> None:
    script = """async (masks) => {
        const { prepared, topmost } = await import("/masks.js");
        const segments = prepared(masks.map((mask, place) => ({ mask, id: place + 1, area: [6, 1, 2][place] })));
        const size = { width: 3, height: 2 };
        segments[2].visible = false;
        const found = [{}, { byArea: true }, { byArea: true, raised: 0 }].map((options) => [...topmost(segments, size, options).places]);
        return [...found, [...topmost(segments, size, { byArea: true, step: 2 }).places]];
    }"""
    masks = [np.ones((2, 3)), np.eye(2, 3) * [[1], [0]], np.eye(2, 3)]
    coded = [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
    found = page.evaluate(script, [{"size": rle["size"], "counts": rle["counts"].decode()} for rle in coded])
    assert found == [[1] * 6, [2, 1, 1, 1, 1, 1], [1] * 6, [2, 1]]


def test_wide_id_maps_have_sixteen_bits(page: Page) -> None:
    values = list(range(0, 60_000, 1000))
    script = """async ([values, most]) => {
        const { greyPng } = await import("/png.js");
        const blob = await greyPng(Uint16Array.from(values), { width: 12, height: 5 }, most);
        return [...new Uint8Array(await blob.arrayBuffer())];
    }"""
    image = Image.open(io.BytesIO(bytes(page.evaluate(script, [values, 60_000]))))
    assert (np.array(image).ravel() == values).all()


def test_run_lengths_are_those_of_pycocotools(page: Page) -> None:
    rng = np.random.default_rng(0)
    masks = [rng.random(shape) < share for shape in ((1, 1), (7, 5), (64, 31), (480, 640)) for share in (0.0, 0.03, 0.5, 1.0)]
    masks.append(np.add.outer(np.arange(900) % 100 < 50, np.arange(1200) % 300 < 20) == 1)  # runs of many lengths, long ones too
    for mask in masks:
        rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        text = {"size": rle["size"], "counts": rle["counts"].decode()}
        script = """async (rle) => {
            const mask = (await import("/rle.js")).decode(rle);
            return [mask.length, mask.reduce((sum, value, at) => (sum * 31 + value * (at % 1009 + 1)) % 1000003, 7)];
        }"""
        length, digest = page.evaluate(script, text)
        expected = 7
        for at, value in enumerate(mask.ravel().tolist()):
            expected = (expected * 31 + value * (at % 1009 + 1)) % 1000003
        assert (length, digest) == (mask.size, expected)
    for wrong in ("", "~~~", "0", "ooooooooooo"):
        with pytest.raises(Exception, match="RangeError"):
            page.evaluate("async (counts) => (await import('/rle.js')).decode({ size: [4, 4], counts })", wrong)


def choose_file(page: Page, name: str, kind: str, data: bytes) -> None:
    page.locator("#file").set_input_files({"name": name, "mimeType": kind, "buffer": data})


def encoded(image: NDArray[np.uint8], form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, form, **options)
    return file.getvalue()


def test_pictures_are_sent_upright_within_limits_and_in_a_form_that_is_taken(page: Page, server: Server) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, :30] = (250, 0, 0)
    for form, kind in (("JPEG", "image/jpeg"), ("JPEG", "image/png"), ("PNG", "image/png"), ("WEBP", "image/jpeg")):
        server.truth.files.clear()
        with page.expect_response("**/v1/images"):
            choose_file(page, "turned", kind, encoded(image, form, exif=exif))
        status(page, "ready")
        sent = np.array(Image.open(io.BytesIO(next(iter(server.truth.files.values())))).convert("RGB"))
        expect(page.locator("#canvas")).to_have_attribute("aria-label", f"Image turned, {sent.shape[1]} by {sent.shape[0]} pixels")
        if form != "WEBP":  # which Chromium does not turn
            assert sent.shape == (60, 40, 3), (form, kind)
            assert sent[10, 20, 0] > 200 > 50 > sent[50, 20, 0], (form, kind)
    wide = np.zeros((600, 1500, 3), np.uint8)
    for data, kind, note, size, form in (
        (encoded(image, "GIF"), "image/gif", "The image is ready.", (60, 40), "PNG"),
        (encoded(wide, "PNG"), "image/png", "Made smaller to 1000 × 400", (1000, 400), "PNG"),
        (encoded(wide[:, :1200], "JPEG"), "image/jpeg", "Made smaller to 1000 × 500", (1000, 500), "JPEG"),
    ):
        server.truth.files.clear()
        choose_file(page, "picture", kind, data)
        status(page, note)
        sent_file = Image.open(io.BytesIO(next(iter(server.truth.files.values()))))
        assert (sent_file.size, sent_file.format) == (size, form)


def test_images_are_dropped_and_pasted(page: Page, server: Server) -> None:
    data = list(encoded(np.zeros((20, 30, 3), np.uint8), "PNG"))
    script = """([data, kind]) => {
        const files = new DataTransfer();
        files.items.add(new File([Uint8Array.from(data)], `${kind}.png`, { type: "image/png" }));
        const [dropped, pasted] = [{ dataTransfer: files }, { clipboardData: files }];
        const options = { bubbles: true, cancelable: true };
        dispatchEvent(kind === "paste" ? new ClipboardEvent(kind, { ...options, ...pasted }) : new DragEvent(kind, { ...options, ...dropped }));
    }"""
    page.evaluate(script, [data, "drop"])
    expect(page.locator("#canvas")).to_have_attribute("aria-label", "Image drop.png, 30 by 20 pixels")
    page.evaluate(script, [data, "paste"])
    expect(page.locator("#canvas")).to_have_attribute("aria-label", "Image paste.png, 30 by 20 pixels")


# -- what goes wrong --------------------------------------------------------------------------------------------------------------------------------


def test_what_is_no_picture(page: Page) -> None:
    choose_file(page, "notes.png", "image/png", b"no picture")
    problem = page.locator("#problem")
    expect(problem).to_contain_text("cannot be read")
    expect(problem).to_contain_text("JPEG, PNG, WebP")


def test_refusals_are_told_in_words(page: Page, tmp_path: Path) -> None:
    take_sample(page)
    page.locator("#words").fill(",".join(f"word {number}" for number in range(LIMITS.words + 1)))
    page.locator("#segment").click()
    problem = page.locator("#problem")
    expect(problem).to_contain_text("The request asks for too much")
    expect(problem).to_contain_text("Words: more than allowed.")
    assert problem.locator("dd").all_text_contents() == [str(LIMITS.words + 1), str(LIMITS.words)]
    snap(page, "error", tmp_path)
    page.locator("#words").fill("sand")
    page.locator("#again").click()
    expect(problem).to_be_hidden()
    status(page, "und")


def test_words_are_asked_for(page: Page, server: Server) -> None:
    page.locator("#segment").click()
    status(page, "Choose an image first.")
    take_sample(page)
    page.locator("#words").fill(" , ")
    page.locator("#segment").click()
    status(page, "Type at least one word")
    expect(page.locator("#words")).to_be_focused()
    assert not server.truth.requests


def test_a_busy_service_is_asked_again(page: Page, server: Server, tmp_path: Path) -> None:
    take_sample(page)
    server.truth.faults.extend([ServiceError("overloaded", "all replicas are busy")] * 2)
    page.locator("#segment").click()
    status(page, "The service is busy. Trying again in 1 s")
    snap(page, "busy", tmp_path)
    status(page, "segments")
    server.truth.faults.extend([ServiceError("overloaded", "all replicas are busy")] * 9)
    page.locator("#segment").click()
    status(page, "Trying again")
    page.locator("#stop").click()
    status(page, "Stopped.")
    server.truth.faults.clear()


def test_a_forgotten_image_is_sent_again(page: Page, server: Server) -> None:
    take_sample(page)
    server.truth.files.clear()
    page.locator("#segment").click()
    status(page, "segments")
    assert server.truth.uploads == 2


def test_a_service_that_does_not_answer(page: Page) -> None:
    take_sample(page)
    page.context.set_offline(True)
    page.locator("#segment").click()
    expect(page.locator("#problem")).to_contain_text("The service does not answer")
    page.locator("#dismiss").click()
    expect(page.locator("#canvas")).to_be_focused()
    page.locator("#segment").click()
    expect(page.locator("#problem")).to_be_visible()
    page.context.set_offline(False)
    page.locator("#again").click()
    expect(page.locator("#canvas")).to_be_focused()
    status(page, "segments")


def test_a_download_that_fails_is_told(page: Page) -> None:
    take_sample(page)
    page.locator("#segment").click()
    status(page, "segments")
    page.evaluate("() => { OffscreenCanvas.prototype.convertToBlob = () => Promise.reject(new Error('out of memory')); }")
    page.locator("#save-overlay").click()
    expect(page.locator("#problem")).to_contain_text("Out of memory.")


def test_what_stops_work_has_the_last_word(page: Page) -> None:
    """Work that another step makes needless ends without a word; the Stop button says so."""
    take_sample(page)
    page.route("**/v1/segment", lambda route: None)
    page.locator("#segment").click()
    status(page, "Looking")
    page.locator("#stop").click()
    expect(page.locator("#stop")).to_be_hidden()
    status(page, "Stopped.")
    page.locator("#segment").click()
    status(page, "Looking")
    page.locator("#tab-prompts").click()
    expect(page.locator("#stop")).to_be_hidden()
    status(page, "Click the image")


def test_a_key_is_asked_for(open_page: Callable[..., Page], tmp_path: Path) -> None:
    guarded = Server(keys=("open-sesame",))
    try:
        page = open_page(guarded.url)
        form = page.locator("#key")
        expect(form).to_be_visible()
        page.locator("#key-value").fill("wrong")
        page.locator("#key-value").press("Enter")
        expect(form).to_contain_text("refused this key")
        snap(page, "key", tmp_path)
        page.locator("#key-value").fill("open-sesame")
        page.locator("#key-value").press("Enter")
        expect(page.locator("#samples img")).to_have_count(3)
        expect(form).to_be_hidden()
        take_sample(page)
        assert page.evaluate("localStorage.length") == 0
        page.reload()
        expect(page.locator("#samples img")).to_have_count(3)
    finally:
        guarded.stop()


def test_nothing_else_runs_beside_the_page(page: Page, server: Server) -> None:
    response = page.request.get(server.url)
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    sources = "".join(file.read_text() for file in PAGE.iterdir())
    assert not [word for word in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "style=", 'onclick="') if word in sources]


def test_samples_are_the_same_each_time(page: Page, server: Server) -> None:
    first, second, other = (page.request.get(f"{server.url}v1/samples/{seed}.jpg") for seed in (5, 5, 6))
    assert first.body() == second.body() != other.body()
    assert first.headers["content-type"] == "image/jpeg"
    assert set(first.headers[WORDS_HEADER.lower()].split(", ")) <= {name for name, _ in parts(sample_scene(5))}
    assert page.request.get(f"{server.url}v1/samples/-1.jpg").status == 422


# -- a phone, and the dark --------------------------------------------------------------------------------------------------------------------------

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}


def test_a_finger_taps_holds_and_drags(open_page: Callable[..., Page], server: Server, scene: Scene) -> None:
    page = open_page(**PHONE)
    page.locator("#samples button").first.tap()
    status(page, "ready")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator("#tab-prompts").tap()
    (_, first), (_, second), *_ = object_masks(scene)
    page.touchscreen.tap(*at(page, *inside(first)))
    status(page, "predicted IoU")
    touch = page.context.new_cdp_session(page)

    def send(kind: str, *points: tuple[float, float]) -> None:
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y} for x, y in points]})

    send("touchStart", at(page, *inside(second)))
    while len(server.truth.requests) < 2:
        page.wait_for_timeout(50)
    send("touchEnd")
    request = server.truth.requests[-1]
    assert isinstance(request, PromptRequest)
    assert request.labels == (1, 0)

    send("touchStart", at(page, *inside(first)))
    send("touchMove", at(page, *inside(first)), at(page, *inside(second)))  # a second finger points at nothing
    send("touchMove", at(page, *inside(first)))
    send("touchEnd")

    page.locator("input[name=tool][value=box]").tap()
    page.locator("#canvas").scroll_into_view_if_needed()
    send("touchStart", at(page, 100, 100))
    send("touchMove", at(page, 150, 160))
    send("touchMove", at(page, 200, 220))
    send("touchEnd")
    while len(server.truth.requests) < 3:
        page.wait_for_timeout(50)
    request = server.truth.requests[-1]
    assert isinstance(request, PromptRequest)
    assert len(server.truth.requests) == 3 and np.abs(np.array(request.boxes[0]) - [100, 100, 100, 120]).max() < 3


LOOKS: dict[str, dict[str, Any]] = {"light": {}, "dark": {"color_scheme": "dark"}, "phone": PHONE, "phone_dark": PHONE | {"color_scheme": "dark"}}


@pytest.mark.parametrize("look", LOOKS)
def test_main_states_fit_the_window(look: str, open_page: Callable[..., Page], scene: Scene, tmp_path: Path) -> None:
    page = open_page(**LOOKS[look])
    expect(page.locator("#samples img")).to_have_count(3)
    width = page.evaluate("innerWidth")

    def keep(state: str) -> None:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        snap(page, f"{look}_{state}", tmp_path)

    keep("empty")
    take_sample(page)
    page.locator("#segment").click()
    status(page, "segments")
    keep("words")
    page.locator("#tab-prompts").click()
    (_, first), (_, second), *_ = object_masks(scene)
    page.mouse.click(*at(page, *inside(first)))
    status(page, "IoU")
    page.locator("#next").click()
    page.mouse.click(*at(page, *inside(second)))
    expect(page.locator("#legend li")).to_have_count(2)
    page.keyboard.down("Shift")
    page.mouse.click(*at(page, *inside(parts(scene)[-1][1])))
    page.keyboard.up("Shift")
    expect(page.locator("#progress")).to_be_hidden()
    keep("prompts")
    page.locator("#tab-everything").click()
    page.locator("#everything").click()
    status(page, "segments")
    keep("everything")
