"""The same work on a Ray cluster (the extra ``ray``): one task per shard, on any of its machines.

The images and the folder of the shards must be reachable by the same names from all of them. Each
machine lists the images itself and checks that they are those of the machine that asked.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any

from simmim.config.data import ShardConfig
from simmim.data.processes import Place
from simmim.data.shards.make import Engine, Work, plan_job
from simmim.data.shards.plan import Job, check_same
from simmim.errors import ConfigError, TrainingError

TRIES = 2
"""How often Ray does a task again whose process or machine was lost."""


def on_ray(config: ShardConfig, job: Job, workers: int | None) -> Engine:
    """Join the cluster that RAY_ADDRESS names or that runs here, else start one of this machine.

    Args:
        config: From which each machine makes the job anew.
        job: What it must come to.
        workers: Most tasks at a time; None: as many as the cluster has cores.

    Raises:
        ConfigError: Ray is not installed.
    """
    try:
        import ray
        from ray.exceptions import RayError, RayTaskError
    except ImportError as error:
        raise ConfigError("--engine ray needs Ray: pip install 'simmim[ray]'") from error
    # A cluster that is started here reports to nobody.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False)
    asked = job.describe()
    most = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))

    def run(work: Work, numbers: Iterable[int]) -> Iterator[tuple[int, Any]]:
        task = ray.remote(max_retries=TRIES, num_cpus=1)(_do)
        waiting, running = iter(numbers), {}
        while True:
            for number in waiting:
                running[task.remote(work, config, asked, number)] = number
                if len(running) >= most:
                    break
            if not running:
                return
            (done,), _ = ray.wait(list(running), num_returns=1)
            number = running.pop(done)
            try:
                result = ray.get(done)
            except RayTaskError as error:
                raise error.cause from error
            except RayError as error:
                raise TrainingError(f"Ray gave up shard {number}: {error}.") from error
            yield number, result

    return run


def _do(work: Callable[..., Any], config: ShardConfig, asked: dict[str, Any], number: int) -> Any:
    import torch

    torch.set_num_threads(1)
    return work(_job(config, repr(asked)), number, Place(bytearray(8)))


@lru_cache(maxsize=1)
def _job(config: ShardConfig, asked: str) -> Job:
    """The job, made once per process."""
    import ast

    job = plan_job(config)
    check_same(job.describe(), ast.literal_eval(asked), job.out)
    return job
