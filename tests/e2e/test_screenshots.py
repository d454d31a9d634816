"""What people look at while a sweep runs, and after it, as pictures: ``make platform-screenshots``."""

import json
import re
import threading
import time
from pathlib import Path
from urllib.parse import quote

import pytest
from mlflow.tracking import MlflowClient
from playwright.sync_api import expect

from tests.browser import running_browser, snap
from tests.e2e.cluster import Cluster
from uniovseg import storage
from uniovseg.data.coco import write_sa1b_tars
from uniovseg.data.shapes import SceneConfig, image_masks
from uniovseg.runtime.tracking import PARENT
from uniovseg.storage import Location

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SCENES, TRIALS, STEPS = 64, 4, 20
EXPERIMENT = "sweeps"
WAIT_SECONDS = 600
"""Only so that a fault ends."""
DRAWING_MS = 4000
"""What MLflow takes to draw its charts; it goes on asking its server, so that no quiet network ends the wait."""


def test_the_dashboard_during_a_sweep_and_the_comparison_after_it(cluster: Cluster, bucket: str, tmp_path: Path) -> None:
    tracked = ("tracking.uri=null", f"tracking.experiment={EXPERIMENT}")
    for path in write_sa1b_tars([image_masks(SceneConfig(), 0, index) for index in range(SCENES)], tmp_path / "tars", per_tar=SCENES):
        storage.upload_file(path, Location.of(bucket) / f"seen/tars/{path.name}")
    cluster.submit("jobs/ingest.py", f"source={bucket}/seen/tars", f"output={bucket}/seen/shards", *tracked)

    overrides = [f"data.train={bucket}/seen/shards", f"validation.shards={bucket}/seen/shards", f"steps={STEPS}", f"validation.every={STEPS // 2}"]
    overrides += [f"checkpoint_every={STEPS // 2}", "validation.images=4", "log_every=5", "workers=1"]
    task = (f"task.overrides={json.dumps(overrides)}", f"search={{name: optuna, trials: {TRIALS}}}", "scheduler={name: none}")
    command = ("jobs/tune.py", "--config", "jobs/configs/sweep_losses_shapes.yaml", f"output={bucket}/seen/sweep", *task, *tracked)
    failures: list[AssertionError] = []

    def sweep() -> None:
        try:
            cluster.submit(*command)
        except AssertionError as error:
            failures.append(error)

    job = threading.Thread(target=sweep)
    job.start()
    client = MlflowClient(tracking_uri=cluster.tracking_uri)

    def trials() -> list[str]:
        experiment = client.get_experiment_by_name(EXPERIMENT)
        runs = client.search_runs([experiment.experiment_id]) if experiment else []
        return [run.info.run_id for run in runs if PARENT in run.data.tags and "loss" in run.data.metrics]

    deadline = time.monotonic() + WAIT_SECONDS
    while len(trials()) < 2 and job.is_alive() and time.monotonic() < deadline:
        time.sleep(1)
    with running_browser() as browser:
        page = browser.new_page(
            viewport={"width": 1800, "height": 1000}, extra_http_headers={"Authorization": f"Bearer {cluster.environment['RAY_AUTH_TOKEN']}"}
        )
        for name, shown in (("jobs", "jobs/tune.py"), ("cluster", "ALIVE"), ("actors", "Trainable|TrainController|RayTrainWorker")):
            page.goto(f"{cluster.dashboard}/#/{name}")
            expect(page.get_by_text(re.compile(shown)).first).to_be_visible(timeout=60_000)
            snap(page, f"ray_{name}", tmp_path)
        job.join(WAIT_SECONDS)
        assert not failures, failures
        found = trials()
        assert len(found) == TRIALS
        experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
        page = browser.new_page(viewport={"width": 1800, "height": 1000})
        page.goto(f"{cluster.tracking_uri}/#/compare-runs?runs={quote(json.dumps(found))}&experiments={quote(json.dumps([experiment]))}")
        expect(page.get_by_text("val_box_iou").first).to_be_visible(timeout=60_000)
        page.wait_for_timeout(DRAWING_MS)
        snap(page, "mlflow_comparison", tmp_path)
        page.goto(f"{cluster.tracking_uri}/#/experiments/{experiment}/runs?compareRunsMode=CHART")
        expect(page.get_by_text("val_box_iou").first).to_be_visible(timeout=60_000)
        page.wait_for_timeout(DRAWING_MS)
        snap(page, "mlflow_charts", tmp_path)
