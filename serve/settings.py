"""What the service is configured with: the arguments of `serve.app.build`."""

from typing import Any, Self

from pydantic import Field, model_validator

from uniovseg.api import Limits
from uniovseg.config import Config

GIB = 1024**3


class ModelSource(Config):
    """Which model is served. It is the ``user_config`` of the deployment ``Segmenter``: changing it there swaps the model without a restart."""

    checkpoint: str = Field("shapes", description="folder, s3:// URI, models:/name/version or models:/name@alias of MLflow, or shapes (packaged)")
    name: str = Field("uniovseg", pattern=r"^[0-9A-Za-z._-]{1,64}$", description="name of the model in answers")
    changes: dict[str, Any] = Field({}, description="settings of the method that differ from the checkpoint's, such as {size: 896}")


class ReplicaConfig(Config):
    """One process with the model."""

    device: str = Field("cpu", description="torch device")
    max_batch: int = Field(8, ge=1, description="images whose features are computed in one call")
    decoders: int = Field(2, ge=1, description="processes that decode images")
    decode_seconds: float = Field(10.0, gt=0, description="time for one image, after which its decoder is killed")
    embeddings_bytes: int = Field(GIB, ge=0, description="memory for features of images of POST /v1/images")


class ServiceConfig(Config):
    """The application."""

    checkpoint: str = Field("shapes", description="see `ModelSource`")
    name: str = Field("uniovseg", pattern=r"^[0-9A-Za-z._-]{1,64}$", description="name of the model in answers")
    changes: dict[str, Any] = Field({}, description="see `ModelSource`")
    replica: ReplicaConfig = Field(ReplicaConfig(), description="a process with the model")
    replicas: int = Field(1, ge=1, description="processes with the model, at least")
    max_replicas: int | None = Field(None, ge=1, description="with autoscaling: at most; null: no autoscaling")
    cpus: float = Field(1.0, ge=0, description="CPUs of a replica")
    gpus: float = Field(0.0, ge=0, description="GPUs of a replica; a fraction shares one")
    ongoing: int = Field(16, ge=2, description="requests in a replica; more than a batch, so that the next is ready")
    queued: int = Field(64, ge=0, description="requests that wait for a replica, for each ingress; more are answered 503")
    ingresses: int = Field(1, ge=1, description="HTTP processes")
    uploads: int = Field(256, ge=1, description="requests in an ingress, waiting ones and bodies on their way included; more are answered 503")
    upload_bytes: int = Field(GIB // 2, ge=1, description="memory for the bodies of those requests; more are answered 503")
    images_bytes: int = Field(GIB // 4, ge=1, description="memory for the files of POST /v1/images")
    images_seconds: float = Field(900.0, gt=0, description="an image that was not used for this long is forgotten")
    drain_seconds: float = Field(65.0, ge=0, description="time for requests under way when a replica stops")
    limits: Limits = Field(Limits(), description="what a request may ask for")
    keys_file: str | None = Field(
        None, description="file with API keys, one a line; keys of the environment variable UNIOVSEG_API_KEYS (commas) join them"
    )
    keys_required: bool = Field(False, description="do not start without API keys")
    cors_origins: tuple[str, ...] = Field((), description="origins whose pages may call the service; none by default")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas is below replicas; seen: {self.max_replicas}, allowed: {self.replicas} or more")
        for key in ("upload_bytes", "images_bytes"):
            if (seen := getattr(self, key)) < self.limits.bytes:
                raise ValueError(f"{key} has no room for one image of limits.bytes; seen: {seen}, allowed: {self.limits.bytes} or more")
        return self

    @property
    def source(self) -> ModelSource:
        """The model to serve."""
        return ModelSource(checkpoint=self.checkpoint, name=self.name, changes=self.changes)
