"""Predict a folder or an s3 prefix of images by words, as COCO results: `python jobs/predict.py images=FOLDER vocabulary=coco_panoptic output=RESULTS`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.console import Console

from jobs import _cli
from uniovseg.runtime.predict import PredictConfig, predict


def main(config: PredictConfig) -> dict[str, object]:
    """Predict; the report holds the counts."""
    report = predict(config)
    rejected = sum(report["rejected"].values())
    Console().print(f"{report['images']} images: {report['segments']} segments, {report['instances']} instances; {rejected} images rejected")
    return report


if __name__ == "__main__":
    sys.exit(_cli.run(PredictConfig, main))
