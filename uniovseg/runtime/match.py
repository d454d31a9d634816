"""Matching as a job: an image-entities set and a segmenter to a set of mask-entity pairs (method: 3.3).

Everything is frozen here, so it is computed once: people look at the pairs, a sweep over scales reads the cost matrices, and the adapter trains on them.
A part is one row group of the entities; it is matched by one worker and commits alone (`uniovseg.runtime.shards`), so a run that is started again goes on.
"""

import time
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

from pydantic import Field
from rich.progress import track

from uniovseg.checkpoint import located
from uniovseg.config import Config
from uniovseg.data import entities, pairs
from uniovseg.data.images import decode_image
from uniovseg.data.shards import ShardSet
from uniovseg.errors import ConfigError, DataError
from uniovseg.methods.promptable import RegionConfig
from uniovseg.models.phrases import PhraseEmbeddings
from uniovseg.models.text_classifier import template_set
from uniovseg.pairing import PairingConfig, pair_image
from uniovseg.records import ImagePairs, Rejected
from uniovseg.runtime.pool import THREADS, PoolConfig, over_items, use_threads
from uniovseg.runtime.shards import Commit, PartRange, check_settings, read_commits, write_manifest, write_records
from uniovseg.runtime.tracked_job import tracked
from uniovseg.runtime.tracking import TrackingConfig
from uniovseg.segmenter import Segmenter
from uniovseg.storage import Location
from uniovseg.training import pick_device


class MatchConfig(Config):
    """From entities to pairs."""

    entities: str = Field(..., description="image-entities shard set (made by jobs/refine.py)")
    output: str = Field(..., description="folder of the pairs")
    checkpoint: str = Field("shapes", description="stage-1 checkpoint that proposes masks; 'shapes': the packaged model of the shapes world")
    regions: RegionConfig = Field(RegionConfig(sizes=(896, 1024)), description="the scale set and the templates")
    pairing: PairingConfig = Field(PairingConfig(), description="proposals and matching")
    rows_per_group: int = Field(64, ge=1, description="rows of a Parquet row group")
    pool: PoolConfig = Field(PoolConfig(), description="where the work is done")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA where there is one")
    threads: int = Field(0, ge=0, description=THREADS)
    tracking: TrackingConfig = Field(TrackingConfig(), description="MLflow")


class Matcher:
    """Matches one part after another with one loaded model. Built in the worker; the configuration must hold absolute paths."""

    def __init__(self, config: MatchConfig) -> None:
        use_threads(config.threads, config.pool)
        self.config = config
        self.source = ShardSet(config.entities)
        changes = {"regions": config.regions.model_dump(mode="json")}
        self.method = Segmenter.load(config.checkpoint, str(pick_device(config.device)), changes).method
        self.phrases = PhraseEmbeddings(self.method.clip, template_set(config.regions.templates))

    def __call__(self, part: PartRange) -> Commit:
        """Match the rows of one row group and commit them."""
        return write_records(part, self._rows(part), Location(self.config.output), self.config.rows_per_group, pairs.to_table)

    def _rows(self, part: PartRange) -> Iterator[tuple[int, ImagePairs | Rejected]]:
        table = self.source.read_group(part.begin)
        for row in range(len(table)):
            record = self.source.record(entities.to_record, table, row)
            try:
                yield row, pair_image(self.config.pairing, self.method, self.phrases, record, decode_image(record.image))
            except DataError as error:
                yield row, Rejected(key=record.key, source=part.source, offset=row, reason="undecodable_image", detail=str(error))


@tracked("match")
def match(config: MatchConfig) -> dict[str, Any]:
    """Match what is not yet committed, then write the manifest; returns the counts.

    Raises:
        ConfigError: the output was begun with other settings.
        DataError: `entities` is no image-entities set.
    """
    started = time.perf_counter()
    paths = {"output": Location.of(config.output).uri, "entities": Location.of(config.entities).uri, "checkpoint": located(config.checkpoint)}
    config = config.model_copy(update=paths)  # workers have another working directory
    output, source = Location(config.output), ShardSet(config.entities)
    shards = source.manifest.shards
    parts = [
        PartRange(
            name=f"{Location(shards[ref.shard].name).name.removesuffix('.parquet')}-{ref.group:05d}", source=source.location.uri, begin=i, end=i + 1
        )
        for i, ref in enumerate(source.groups)
    ]
    commits = read_commits(output)
    if strange := [name for name, commit in commits.items() if commit.part not in parts]:
        raise ConfigError("the output holds parts of other entities", seen=strange[0], fix="give another output folder")
    settings = {"checkpoint": config.checkpoint, "regions": config.regions.model_dump_json(), "pairing": config.pairing.model_dump_json()}
    check_settings(output, settings)
    left = [part for part in parts if part.name not in commits]
    done = over_items(config.pool, partial(Matcher, config), left, {"entities": config.entities, "output": config.output})
    commits |= {commit.part.name: commit for commit in track(done, "matching masks and entities", total=len(left))}
    manifest = write_manifest(output, [commits[part.name] for part in parts], settings)
    return {
        "images": manifest.samples, "masks": manifest.masks, "entities": manifest.entities, "pairs": manifest.pairs,
        "rejected": sum(manifest.rejects.values()), "parts": len(parts), "parts_already_done": len(parts) - len(left),
        "seconds": round(time.perf_counter() - started, 1),
    }  # fmt: skip
