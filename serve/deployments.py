"""The Ray Serve deployments: thin shells around `Host`, `Kept` and the HTTP application."""

import asyncio
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from serve.calls import Call, Description, Reply
from serve.front import LOG, log_to_stderr
from serve.kept import Kept
from serve.measures import Measures
from serve.problems import Refusal, ServiceError
from serve.settings import ModelSource, ServiceConfig
from uniovseg.errors import ConfigError

RESENDS = 2
"""How often a call is sent again when its replica died: what a model computes may be computed twice."""

RESEND_PAUSE_S = 0.1
"""Seconds; the pause before resend n is random, up to this times n: not all calls of a dead replica reach the next one at once."""

KEYS_VARIABLE = "UNIOVSEG_API_KEYS"


class Segmenter:
    """A replica: a model and what belongs to it."""

    def __init__(self, config: ServiceConfig) -> None:
        from serve.host import Host  # torch, which an ingress does not need

        log_to_stderr()
        self.host = Host(config.replica, config.limits, config.images_seconds)
        self.source: ModelSource | None = None
        self.outdated = False

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Load the model of a `ModelSource`; the one before answers until it is there, and goes on where it cannot be loaded.

        Serve stops a replica whose `reconfigure` raises: an update with a wrong checkpoint would end all of them. It calls this for a change of the
        replica's rank too, which follows the death of another replica: the model that is here stays.
        """
        source = ModelSource.model_validate(user_config)
        self.outdated = False
        if source == self.source:
            return
        try:
            await self.host.load(source)
            self.source = source
        except Exception:
            if self.source is None:
                raise
            self.outdated = True
            LOG.exception("the model cannot be loaded; the one before goes on", extra={"fields": {"checkpoint": source.checkpoint}})

    async def call(self, call: Call) -> Reply:
        """Answer a call."""
        return await self.host.call(call)

    async def describe(self) -> Description | Refusal:
        """The model and the vocabularies."""
        found = await self.host.describe()
        if isinstance(found, Refusal):
            return found
        return replace(found, model=found.model.model_copy(update={"outdated": self.outdated}))

    def check_health(self) -> None:
        """Raise where the replica is to be replaced."""
        self.host.check()

    def __del__(self) -> None:
        if hasattr(self, "host"):
            self.host.close()


class Images:
    """The files of POST /v1/images."""

    def __init__(self, config: ServiceConfig) -> None:
        self.kept: Kept[bytes] = Kept(config.images_bytes, config.images_seconds)

    async def get(self, image_id: str) -> bytes | None:
        """The file, or None."""
        return self.kept.get(image_id)

    async def put(self, image_id: str, image: bytes) -> None:
        """Keep a file."""
        self.kept.put(image_id, image, len(image))

    async def touch(self, image_id: str) -> None:
        """The file is in use."""
        self.kept.get(image_id)


class Replicas:
    """`serve.calls.Backend` over the handle of `Segmenter`."""

    def __init__(self, handle: DeploymentHandle, measures: Measures) -> None:
        self.handle, self.measures = handle, measures

    async def call(self, call: Call) -> Reply:
        """Answer a call, where the image id's features are if there is one. Raises ServiceError."""
        until = monotonic() + call.seconds
        handle = self.handle.options(session_id=call.image_id) if call.image_id else self.handle
        lost = ServiceError("replica_lost", f"the replica died under the request {RESENDS + 1} times")
        reply: Reply = await _resent(lambda: handle.call.remote(replace(call, seconds=max(0.0, until - monotonic()))), lost, self.measures.resent)
        return reply

    async def describe(self) -> Description | Refusal:
        """The model. Raises ServiceError."""
        lost = ServiceError("not_ready", "no replica lives long enough to answer")
        found: Description | Refusal = await _resent(self.handle.describe.remote, lost, self.measures.resent)
        return found


class RemoteImages:
    """`serve.calls.ImageStore` over the handle of `Images`. A store that died is empty: its images are sent again by their clients."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self.handle = handle

    async def get(self, image_id: str) -> bytes | None:
        """The file, or None. Raises ServiceError."""
        found: bytes | None = await self._asked("get", image_id)
        return found

    async def put(self, image_id: str, image: bytes) -> None:
        """Keep a file. Raises ServiceError."""
        await self._asked("put", image_id, image)

    async def touch(self, image_id: str) -> None:
        """The file is in use; nobody waits for the store to know, and no request fails where it cannot be told."""
        try:
            self.handle.touch.remote(image_id)
        except Exception:
            LOG.exception("the store of images was not told of a use")

    async def _asked(self, method: str, *arguments: Any) -> Any:
        lost = ServiceError("replica_lost", "the store of images does not answer")
        return await _resent(lambda: getattr(self.handle, method).remote(*arguments), lost)


async def _resent(send: Callable[[], Any], lost: ServiceError, note: Callable[[], None] = lambda: None) -> Any:
    """The answer to what `send` sends, sent again where a replica dies under it; `note` is told each time. Raises `lost` where all die."""
    for sent in range(1, RESENDS + 2):
        try:
            return await _answer_of(send())
        except RayActorError:
            note()
        if sent <= RESENDS:
            await asyncio.sleep(random.uniform(0, sent * RESEND_PAUSE_S))
    raise lost


async def _answer_of(response: Any) -> Any:
    """What a replica answers; when nobody waits any more, it is told. Raises ServiceError where none takes the call."""
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        raise
    except BackPressureError as error:
        raise ServiceError("overloaded", "all replicas are busy and their queue is full") from error
    except DeploymentUnavailableError as error:
        raise ServiceError("not_ready", "no replica can be started") from error


class Ingress:
    """An HTTP process."""

    def __init__(self, model: DeploymentHandle, images: DeploymentHandle, config: ServiceConfig) -> None:
        self.model, self.images, self.config = model, images, config
        self.keys = api_keys(config.keys_file, config.keys_required)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        from ray.serve import get_replica_context

        from serve import samples
        from serve.adapters import ROUTERS
        from serve.api import create_api
        from serve.service import Service

        log_to_stderr()
        LOG.info("API keys", extra={"fields": {"keys": len(self.keys)}})
        measures = Measures(get_replica_context().replica_id.unique_id)
        page = Path(__file__).with_name("page")
        config = self.config
        return create_api(
            Service(Replicas(self.model, measures), RemoteImages(self.images), config.limits, config.images_seconds),
            measures=measures,
            uploads=config.uploads,
            upload_bytes=config.upload_bytes,
            keys=self.keys,
            cors_origins=config.cors_origins,
            routers=(*ROUTERS, samples.router),
            page=page if (page / "index.html").exists() else None,
            echo_request_id=False,
        )


def api_keys(file: str | None, required: bool = False) -> tuple[str, ...]:
    """The API keys of the environment and of a file, one a line.

    Raises:
        ConfigError: the file cannot be read or has none; there are none although they are required.
    """
    keys = [key.strip() for key in os.environ.get(KEYS_VARIABLE, "").split(",")]
    if file is not None:
        try:
            lines = Path(file).read_text("utf-8").split()
        except (OSError, UnicodeError) as error:
            raise ConfigError("the file of API keys cannot be read", seen=file, allowed="text, one key a line") from error
        if not lines:
            raise ConfigError("the file of API keys is empty", seen=file, allowed="one key a line")
        keys += lines
    found = tuple(dict.fromkeys(key for key in keys if key))
    if required and not found:
        raise ConfigError(
            "there are no API keys",
            seen=f"keys_file={file}, {KEYS_VARIABLE} names none",
            fix="name a file that the ingress's machine has, or set the variable where Ray runs there",
        )
    return found
