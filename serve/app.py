"""The service as a Ray Serve application.

``serve run serve.app:build checkpoint=shapes replicas=2``, ``serve deploy serve/service.yaml``, or ``python -m serve`` on this machine.
"""

from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.schema import LoggingConfig

from serve.deployments import Images, Ingress, Segmenter
from serve.settings import ServiceConfig

OVERHEAD_CPUS = 0.1
"""CPUs that an HTTP process and the store of images are counted as: they wait most of their time."""

FEW_ARENAS = {"MALLOC_ARENA_MAX": "2"}
"""Environment of replicas. By itself glibc gives each thread a heap of its own, and none uses what another has freed: each grows to the largest image."""


def build(args: ServiceConfig) -> serve.Application:
    """The application: HTTP processes, replicas with the model, a store of images."""
    quiet = LoggingConfig(enable_access_log=False)
    scale = {
        "num_replicas": args.replicas if args.max_replicas is None else None,
        "autoscaling_config": None
        if args.max_replicas is None
        else AutoscalingConfig(min_replicas=args.replicas, max_replicas=args.max_replicas, target_ongoing_requests=args.ongoing / 2),
    }
    segmenter = serve.deployment(Segmenter, name="Segmenter").options(
        **{key: value for key, value in scale.items() if value is not None},
        ray_actor_options={"num_cpus": args.cpus, "num_gpus": args.gpus, "runtime_env": {"env_vars": FEW_ARENAS}},
        max_ongoing_requests=args.ongoing,
        max_queued_requests=args.queued,
        user_config=args.source.model_dump(),
        request_router_config=RequestRouterConfig(request_router_class="serve.router.StickyRouter"),
        health_check_period_s=5,
        health_check_timeout_s=30,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=args.drain_seconds,
        logging_config=quiet,
    )
    images = serve.deployment(Images, name="Images").options(
        ray_actor_options={"num_cpus": OVERHEAD_CPUS}, max_ongoing_requests=256, logging_config=quiet
    )
    ingress = serve.deployment(serve.ingress()(Ingress), name="Ingress").options(
        num_replicas=args.ingresses,
        ray_actor_options={"num_cpus": OVERHEAD_CPUS},
        max_ongoing_requests=2 * args.uploads,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=args.drain_seconds,
        logging_config=quiet,
    )
    application: serve.Application = ingress.bind(segmenter.bind(args), images.bind(args), args)
    return application
