"""Training on the shapes world from nothing: what ``python jobs/train.py`` does without ``--config``."""

import tempfile
from pathlib import Path
from typing import Any

from uniovseg import storage
from uniovseg.data.shapes_sets import ShapesConfig, write_shapes
from uniovseg.data.shards import MANIFEST
from uniovseg.runtime import doctor
from uniovseg.runtime.ingest import IngestConfig, ingest
from uniovseg.runtime.session import ray_session
from uniovseg.runtime.train import TrainJobConfig, fit, with_absolute_paths
from uniovseg.storage import Location

MOST_SCENES = 4096
"""Scenes of the set at most; a shorter run gets one for each sample that it trains on."""


def train_on_shapes(config: TrainJobConfig) -> dict[str, Any]:
    """`fit`, after the training set is made and ingested where ``config.data.train`` is not a shard set yet. Returns the training's report."""
    config = with_absolute_paths(config)
    shards = Location.of(config.data.train)
    with ray_session(doctor.slots(config)):
        doctor.require(doctor.first_checks(config))
        if not storage.exists(shards / MANIFEST):
            doctor.check_shared(config, doctor.cluster_nodes(config))
            _make(config, shards)
        return fit(config)


def _make(config: TrainJobConfig, shards: Location) -> None:
    """Draw the scenes here, put their tars beside the shards, where every node sees them, and ingest them."""
    scenes = min(MOST_SCENES, config.steps * config.batch_size)
    tars = Location(f"{shards.uri}_tars")
    with tempfile.TemporaryDirectory() as folder:
        write_shapes(ShapesConfig(output=folder, seed=config.seed, image_masks=scenes, image_text=0, evaluation=0))
        for tar in sorted((Path(folder) / "image_masks").iterdir()):
            storage.upload_file(tar, tars / tar.name)
    ingest(IngestConfig(source=tars.uri, output=shards.uri, part_bytes=8 * 1024**2))
