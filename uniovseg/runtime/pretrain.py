"""Pretraining of the shapes world's CLIP as a job: `uniovseg.pretraining` with tracking."""

from typing import Any

from pydantic import Field

from uniovseg.pretraining import PretrainConfig, pretrain
from uniovseg.runtime.provenance import code_version
from uniovseg.runtime.tracked_job import tracked
from uniovseg.runtime.tracking import TrackingConfig


class PretrainJobConfig(PretrainConfig):
    """A tracked pretraining."""

    tracking: TrackingConfig = Field(TrackingConfig(), description="MLflow")


@tracked("pretrain_clip")
def pretrain_job(config: PretrainJobConfig) -> dict[str, Any]:
    """Train; weights, card and report go to ``config.output``."""
    plain = PretrainConfig(**{name: getattr(config, name) for name in PretrainConfig.model_fields})
    return dict(pretrain(plain, code_version().get("git_commit", "unknown")))
