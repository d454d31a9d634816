"""Refining as a whole. The language models are a tiny random LLaVA served by the `transformers` package; what they say is noise, how they are asked is not."""

import asyncio
import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aiohttp import web

from jobs import _cli
from jobs import refine as refine_job
from tests.runtime.http_server import serving
from uniovseg.data import shapes
from uniovseg.data.entities import read_entities
from uniovseg.data.shapes import SceneConfig, draw_scene, image_text, scene_rng
from uniovseg.data.shards import ShardSet
from uniovseg.errors import ConfigError, DataError, EndpointError
from uniovseg.records import ImageText
from uniovseg.runtime.refine import RefineConfig, plan_parts, refine, refine_here
from uniovseg.text.prompts import load_prompt

ROOT = Path(__file__).parents[2]
SCENE = SceneConfig(size=64)
PAIRS = 20


def write_pairs(path: Path, pairs: list[ImageText], group: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"key": [p.key for p in pairs], "image": [p.image for p in pairs], "caption": [p.caption for p in pairs]}
    pq.write_table(pa.table(columns), path, row_group_size=group)
    return str(path)


@pytest.fixture(scope="module")
def pairs() -> list[ImageText]:
    return [image_text(SCENE, 3, index, 0.0) for index in range(PAIRS)]


@pytest.fixture(scope="module")
def source(pairs: list[ImageText], tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.parquet", pairs, 4)


def test_the_shapes_captions_by_rules_in_this_process(source: str, pairs: list[ImageText], tmp_path: Path) -> None:
    report = refine_here(RefineConfig(source=source, output=str(tmp_path), part_samples=8))
    records = list(read_entities(tmp_path))
    for index, (record, pair) in enumerate(zip(records, pairs, strict=True)):
        assert (record.key, record.image, record.caption) == (pair.key, pair.image, pair.caption)
        assert sorted(record.entities) == sorted(shapes.entities(draw_scene(SCENE, scene_rng(3, shapes.TEXT_STREAM, index), held_out=False)))
    manifest = ShardSet(tmp_path).manifest
    assert (report["samples"], report["entities"], report["parts"]) == (PAIRS, sum(len(record.entities) for record in records), 3)
    assert (manifest.samples, manifest.entities, manifest.models) == (PAIRS, report["entities"], {})
    assert manifest.settings == {"refine": "none", "parser": "rules"}
    assert refine_here(RefineConfig(source=source, output=str(tmp_path), part_samples=8))["parts_already_done"] == 3


def test_webdataset_tars_and_coco_captions_give_the_same_entities(pairs: list[ImageText], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uniovseg.runtime.refine.TAR_BYTES", 20_000)
    (tmp_path / "tars").mkdir()
    (tmp_path / "images").mkdir()
    with tarfile.open(tmp_path / "tars/a.tar", "w") as archive:
        for pair in pairs:
            for ending, data in (("jpg", pair.image), ("txt", pair.caption.encode())):
                info = tarfile.TarInfo(f"{pair.key}.{ending}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
            (tmp_path / f"images/{pair.key}.jpg").write_bytes(pair.image)
    images = [{"id": number, "file_name": f"{pair.key}.jpg"} for number, pair in enumerate(pairs)]
    notes = [{"image_id": number, "caption": pair.caption} for number, pair in enumerate(pairs)]
    (tmp_path / "captions.json").write_text(json.dumps({"images": images, "annotations": notes}))

    by_tar = refine_here(RefineConfig(source=str(tmp_path / "tars"), format="webdataset", output=str(tmp_path / "a")))
    by_coco = refine_here(RefineConfig(source=str(tmp_path / "captions.json"), format="coco", output=str(tmp_path / "b"), part_samples=6))
    assert by_tar["parts"] > 2 and by_coco["parts"] == 4
    for found, said in zip(read_entities(tmp_path / "a"), read_entities(tmp_path / "b"), strict=True):
        assert (found.key, found.image, found.entities) == (said.key, said.image, said.entities)
    assert by_tar["samples"] == PAIRS


def test_what_names_nothing_is_rejected_with_its_caption(tmp_path: Path, pairs: list[ImageText]) -> None:
    image = pairs[0].image
    source = write_pairs(tmp_path / "a.parquet", [ImageText(key=str(n), image=image, caption=text) for n, text in enumerate(["a photo", "a dog"])], 9)
    assert refine_here(RefineConfig(source=source, output=str(tmp_path / "out")))["rejects"] == {"no_entities": 1}
    (row,) = ShardSet(tmp_path / "out").rejects().to_pylist()
    assert row == {"key": "0", "source": source, "offset": 0, "reason": "no_entities", "detail": "a photo"}


def test_an_output_of_other_settings_is_refused(source: str, tmp_path: Path) -> None:
    refine_here(RefineConfig(source=source, output=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"another source, or of another part_samples, captions_per_image, refine, parser"):
        refine_here(RefineConfig(source=source, output=str(tmp_path), parser="nltk"))


def test_every_setting_that_rows_depend_on_changes_the_names_of_parts(source: str, tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("be brief\n---\n{caption}")
    base: dict[str, Any] = {"source": source, "output": "out", "parser": "llm", "llm": {"model": "m"}}
    changes: list[dict[str, Any]] = [
        {},
        {"parser": "rules"},
        {"refine": "lvlm", "captioner": {"model": "m"}},
        {"llm": {"model": "n"}},
        {"llm": {"model": "m", "parameters": {"temperature": 1}}},
        {"entities_prompt": str(own)},
        {"limits": {"entities": 3}},
        {"images": str(tmp_path)},
    ]
    names = [plan_parts(RefineConfig.model_validate(base | change))[0].range.name for change in changes]
    assert len(set(names)) == len(changes)
    same = plan_parts(RefineConfig.model_validate(base | {"llm": {"model": "m", "url": "http://elsewhere/v1", "concurrency": 1}, "cache": "c"}))
    assert same[0].range.name == names[0]


def test_a_model_that_is_asked_must_be_named(source: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"llm\.model must be given"):
        RefineConfig(source=source, output=str(tmp_path), parser="llm")
    with pytest.raises(ConfigError, match="asked on Ray; seen: llm"):
        refine_here(RefineConfig.model_validate({"source": source, "output": str(tmp_path), "parser": "llm", "llm": {"model": "m"}}))
    with pytest.raises(DataError, match="no image-text pairs"):
        refine_here(RefineConfig(source=str(tmp_path), output=str(tmp_path)))


def test_real_captions_by_nltk(tmp_path: Path) -> None:
    real = os.environ.get("UNIOVSEG_REAL_DATA")
    if real is None or "NLTK_DATA" not in os.environ:
        pytest.skip("UNIOVSEG_REAL_DATA or NLTK_DATA is not set")
    annotations, images = f"{real}/coco_mini/annotations/captions_train2017.json", f"{real}/coco_mini/train2017"
    config = RefineConfig(source=annotations, format="coco", images=images, output=str(tmp_path), parser="nltk", part_samples=32)
    report = refine_here(config)
    assert report["samples"] == len(json.loads(Path(annotations).read_text())["images"]) and report["parts"] == 3
    assert report["entities"] > 4 * report["samples"]


@dataclass(frozen=True)
class ServedModel:
    """A model's name, and its servers' base URLs: as it stands, and with answers constrained to the schema."""

    name: str
    stock: str
    schema: str


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedModel]:
    pytest.importorskip("transformers")
    pytest.importorskip("xgrammar")
    folder = tmp_path_factory.mktemp("llava")
    ports = [free_port(), free_port()]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.runtime.llm_server", str(folder / "model"), *map(str, ports)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ | offline, stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 300  # only so that a fault ends
        for port in ports:
            while not healthy(port):
                assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()[-3000:]
                time.sleep(0.1)
        yield ServedModel(str(folder / "model"), *(f"http://127.0.0.1:{port}/v1" for port in ports))
    finally:
        process.kill()
        process.wait()


def healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def asking(served: ServedModel, url: str, **settings: Any) -> dict[str, Any]:
    """The part of a configuration that asks the served model for both steps, with replies short enough for noise."""
    endpoint = {"url": url, "model": served.name, "parameters": {"temperature": 0, "max_tokens": 100}, "concurrency": 4, "pause": 0.01}
    endpoint |= {"prompt_price": 2.0, "completion_price": 10.0} | settings
    limits = {"caption_characters": 24, "entities": 3, "entity_characters": 10}
    return {"refine": "lvlm", "parser": "llm", "captioner": endpoint, "llm": endpoint, "limits": limits, "part_samples": 8, "cpus": 5}


@dataclass
class FaultyProxy:
    """Stands before a server: every fifth request gets a fault, each of five in turn. Knows which question was answered and how often it was asked.

    Attributes:
        target: base URL of the server.
        answers_left: after so many answers it breaks every connection; None: never.
        requests: those that met it up.
    """

    target: str
    answers_left: int | None = None
    requests: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    asked_again: list[str] = field(default_factory=list)

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        question = hashlib.sha256(body).hexdigest()
        if self.answered[question]:
            self.asked_again.append(question)
        if self.answers_left is not None and self.answers_left <= 0:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        self.requests += 1
        fault = ("429", "500", "time-out", "cut", "503")[self.requests // 5 % 5] if self.requests % 5 == 0 else None
        if fault:
            self.faults[fault] += 1
        if fault == "time-out":
            await asyncio.Event().wait()  # until the client gives up
        if fault in ("429", "500", "503"):
            return web.Response(status=int(fault), text="injected", headers={"Retry-After": "0"} if fault == "429" else {})
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self.target}/chat/completions", data=body, headers=request.headers) as response,
        ):
            status, text = response.status, await response.text()
        if fault == "cut":
            return web.Response(status=status, text=text[: len(text) // 2], content_type="application/json")
        if status == 200:
            self.answered[question] += 1
            if self.answers_left is not None:
                self.answers_left -= 1
        return web.Response(status=status, text=text, content_type="application/json")


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_cluster")
def test_with_a_fifth_of_faults_nothing_is_lost_and_nothing_asked_twice(
    served: ServedModel, source: str, pairs: list[ImageText], tmp_path: Path
) -> None:
    proxy = FaultyProxy(served.schema, answers_left=15)
    cache = str(tmp_path / "cache")
    with serving(proxy) as url:
        settings = asking(served, url, timeout=5.0)
        config = RefineConfig.model_validate({"source": source, "output": str(tmp_path / "out"), "cache": cache} | settings)
        with pytest.raises(EndpointError, match="run the same command again"):
            refine(config)
        assert not (tmp_path / "out/manifest.json").exists()
        proxy.answers_left = None  # it is up again
        report = refine(config)
    assert report["samples"] == PAIRS and report["rejects"] == {}
    assert [record.key for record in read_entities(tmp_path / "out")] == [pair.key for pair in pairs]
    assert set(proxy.faults) == {"429", "500", "time-out", "cut", "503"} and proxy.faults.total() == proxy.requests // 5
    assert proxy.asked_again == []

    captioner, llm = report["models"]["captioner"], report["models"]["llm"]
    assert captioner["replies"] == llm["replies"] == PAIRS  # all of them, of both runs
    assert (captioner["bad_replies"], llm["bad_replies"]) == (0, 0)
    answers = [json.loads(path.read_text())["answer"] for path in Path(cache).rglob("*.json")]
    assert len(answers) == len(proxy.answered)
    assert captioner["prompt_hash"] == load_prompt("caption").hash and llm["prompt_hash"] == load_prompt("entities").hash
    for use in (captioner, llm):
        assert use["model"] == served.name and use["prompt_tokens"] > use["completion_tokens"] > 0
        assert use["cost"] == pytest.approx((2 * use["prompt_tokens"] + 10 * use["completion_tokens"]) / 1e6)

    # The same again into another folder, with nobody to ask: every answer is in the cache.
    asked = proxy.requests
    again = refine(config.model_copy(update={"output": str(tmp_path / "again")}))
    assert proxy.requests == asked
    assert again["models"] == report["models"]
    assert list(read_entities(tmp_path / "again")) == list(read_entities(tmp_path / "out"))


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_cluster")
def test_a_server_that_ignores_the_schema_gives_failures_with_their_text(
    served: ServedModel, pairs: list[ImageText], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = ImageText(key="broken", image=b"\xff\xd8\xff\xc0\x00\x0b\x08\x00\x10\x00\x10\x01\x01\x11\x00" + b"\xff\xd9", caption="a dog")
    source = write_pairs(tmp_path / "a.parquet", [*pairs[:2], broken], 9)
    config = RefineConfig.model_validate(
        {"source": source, "output": str(tmp_path / "out")} | asking(served, served.stock, parameters={"max_tokens": 12})
    )
    path = tmp_path / "config.json"
    path.write_text(config.model_dump_json())
    assert _cli.run(RefineConfig, refine_job.main, ["--config", str(path)]) == 0
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert (report["samples"], report["rejects"]) == (0, {"bad_reply": 2, "refused": 1})
    first, second, refused = ShardSet(tmp_path / "out").rejects().to_pylist()
    answers = {json.loads(entry.read_text())["answer"]["text"] for entry in (tmp_path / "out/cache").rglob("*.json")}
    for row, pair in ((first, pairs[0]), (second, pairs[1])):
        assert (row["key"], row["source"], row["reason"]) == (pair.key, source, "bad_reply")
        assert any(row["detail"].endswith(f"reply: {text!r}") for text in answers)
    assert refused["key"] == "broken" and refused["detail"].startswith("HTTP 500")
    assert report["models"]["captioner"]["replies"] == report["models"]["captioner"]["bad_replies"] == 4  # each was asked once more
    assert "0 images" in capsys.readouterr().out
