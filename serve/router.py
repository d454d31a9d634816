"""Which replica a call goes to."""

import random
from typing import Any

from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
from ray.serve.request_router import PendingRequest, RunningReplica


class StickyRouter(ConsistentHashRouter):  # type: ignore[misc]
    """Calls of one session (an image id) go to one replica while it lives and has room, then to the next of a ring; others to the less busy of two."""

    def initialize_state(self, **kwargs: Any) -> None:
        """Any replica may stand in for the one that a session belongs to."""
        super().initialize_state(num_fallback_replicas=2**16, **kwargs)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replicas to try, best first; of several in one place the one with the shortest queue is taken."""
        if pending_request is not None and not pending_request.metadata.session_id and candidate_replicas:
            pending_request.routing_context.should_backoff = True
            return [random.sample(candidate_replicas, min(2, len(candidate_replicas)))]
        ranks: list[list[RunningReplica]] = await super().choose_replicas(candidate_replicas, pending_request)
        return ranks
