"""Ingest: SA-1B tars or COCO sets to a shard set, by Ray Data.

The source is cut into parts: a byte range of a tar, a range of a COCO set's images. A part is one task (`uniovseg.runtime.parts`), which streams
the samples, checks each, and writes shard, rejects and commit; a read error inside a part goes on at the first sample not yet kept (`uniovseg.data.tar`).
"""

import dataclasses
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from pydantic import Field

from uniovseg import storage
from uniovseg.config import Config
from uniovseg.data.coco import CocoImage, load_image, read_annotations
from uniovseg.data.sa1b import parse_sample
from uniovseg.data.tar import TarDamage, read_samples
from uniovseg.errors import DataError
from uniovseg.records import ImageMasks, Rejected
from uniovseg.runtime.parts import check_commits, run_parts
from uniovseg.runtime.session import ray_session
from uniovseg.runtime.shards import Commit, PartRange, check_settings, read_commits, write_manifest, write_part
from uniovseg.runtime.tracked_job import tracked
from uniovseg.runtime.tracking import TrackingConfig
from uniovseg.storage import Location

IMAGES_A_PART = 64
"""Images of a COCO set that one task reads."""


class IngestConfig(Config):
    """From source files to a shard set."""

    source: str = Field(..., description="sa1b: a tar, or a folder of tars; coco_*: the annotation JSON; any URI that pyarrow opens")
    output: str = Field(..., description="folder of the shard set")
    format: Literal["sa1b", "coco_panoptic", "coco_instances"] = Field("sa1b", description="what the source is")
    images: str | None = Field(None, description="coco_*: folder of the images; null: images/ beside the JSON")
    panoptic: str | None = Field(None, description="coco_panoptic: folder of the PNGs; null: beside the JSON, with its name")
    verify: Literal["header", "decode"] = Field("header", description="header: check image markers and size; decode: decode every image too")
    rows_per_group: int = Field(64, ge=1, description="rows of a Parquet row group")
    part_bytes: int = Field(256 * 1024**2, ge=1024, description="bytes of a tar that one task reads, and holds in memory; COCO: 64 images a task")
    cpus: int = Field(2, ge=1, description="CPUs of a local cluster")
    tracking: TrackingConfig = Field(TrackingConfig(), description="MLflow")


@dataclass(frozen=True, slots=True)
class TarPart:
    """The samples that a byte range of a tar owns; ``size`` is the tar's, in bytes."""

    range: PartRange
    size: int

    def samples(self, *, decode: bool) -> Iterator[tuple[int, ImageMasks | Rejected]]:
        """Offset and record, or rejection, of each sample. Raises StorageError when the tar cannot be read on."""
        source = self.range.source
        for item in read_samples(source, self.size, self.range.begin, self.range.end):
            if isinstance(item, TarDamage):
                yield item.offset, Rejected(key=item.key, source=source, offset=item.offset, reason="damaged_tar", detail=item.detail)
            else:
                yield item.offset, parse_sample(item.files, item.key, source, item.offset, decode=decode)


@dataclass(frozen=True, slots=True)
class CocoPart:
    """A range of a COCO set's images."""

    range: PartRange
    images: tuple[CocoImage, ...]

    def samples(self, *, decode: bool) -> Iterator[tuple[int, ImageMasks | Rejected]]:
        """Offset and record, or rejection, of each image; the offset is the image's number in the annotation file."""
        for number, image in enumerate(self.images, start=self.range.begin):
            record = load_image(image, decode=decode)
            yield number, dataclasses.replace(record, offset=number) if isinstance(record, Rejected) else record


Part = TarPart | CocoPart


def plan_parts(config: IngestConfig) -> list[Part]:
    """Cut the source into parts. Raises DataError when there is nothing to read."""
    parts = _tar_parts(config) if config.format == "sa1b" else _coco_parts(config)
    if not parts:
        raise DataError("nothing to ingest", seen=config.source, allowed="a .tar file, a folder with .tar files, or a COCO JSON with images")
    return parts


def _tar_parts(config: IngestConfig) -> list[Part]:
    location = Location.of(config.source)
    parts: list[Part] = []
    for tar in [location] if location.uri.endswith(".tar") else storage.list_files(location, ".tar"):
        size = storage.size(tar)
        begins = range(0, max(size, 1), config.part_bytes)
        parts += [TarPart(_range(tar, begin, min(begin + config.part_bytes, size)), size) for begin in begins]
    return parts


def _coco_parts(config: IngestConfig) -> list[Part]:
    location = Location.of(config.source)
    images = read_annotations(location.uri, config.images or location.uri.rpartition("/")[0] + "/images", config.panoptic)
    chunks = [(begin, tuple(images[begin : begin + IMAGES_A_PART])) for begin in range(0, len(images), IMAGES_A_PART)]
    return [CocoPart(_range(location, begin, begin + len(chunk)), chunk) for begin, chunk in chunks]


def _range(location: Location, begin: int, end: int) -> PartRange:
    """Names hold a checksum of the whole URI, so that tars of one name in two folders can share an output."""
    stem = location.name.rpartition(".")[0] or location.name
    return PartRange(name=f"{stem}-{zlib.crc32(location.uri.encode()):08x}-{begin:014d}", source=location.uri, begin=begin, end=end)


def _settings(config: IngestConfig) -> dict[str, str]:
    """What the rows depend on beside the source."""
    folders = {"images": config.images, "panoptic": config.panoptic} if config.format != "sa1b" else {}
    return {"verify": config.verify} | {name: Location.of(folder).uri if folder else "beside the JSON" for name, folder in folders.items()}


@tracked("ingest")
def ingest(config: IngestConfig) -> dict[str, Any]:
    """Ingest what is not yet committed, then write the manifest; returns the counts.

    Raises:
        ConfigError: the output holds commits of another source, or of another cut of it.
        StorageError: something could not be read or written; what is committed stays, and the same call goes on from there.
    """
    started = time.perf_counter()
    config = config.model_copy(update={"output": Location.of(config.output).uri})  # workers have another working directory
    output = Location(config.output)
    parts = plan_parts(config)
    commits = read_commits(output)
    check_commits(commits, parts, "part_bytes")
    check_settings(output, _settings(config), begun=bool(commits))
    left = [part for part in parts if part.range.name not in commits]
    if left:
        with ray_session(config.cpus):
            uris = {key: uri for key in ("source", "output", "images", "panoptic") if (uri := getattr(config, key)) is not None}
            commits |= run_parts(left, partial(_ingest_part, config), "ingesting parts", len(parts), uris)
    manifest = write_manifest(output, [commits[part.range.name] for part in parts])
    return {
        "samples": manifest.samples, "masks": manifest.masks, "rejected": sum(manifest.rejects.values()), "rejects": manifest.rejects,
        "shards": len(manifest.shards), "parts": len(parts), "parts_already_done": len(parts) - len(left),
        "seconds": round(time.perf_counter() - started, 2),
    }  # fmt: skip


def _ingest_part(config: IngestConfig, part: Part) -> Commit:
    samples = part.samples(decode=config.verify == "decode")
    return write_part(part.range, samples, Location.of(config.output), config.rows_per_group)
