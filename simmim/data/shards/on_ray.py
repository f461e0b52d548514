"""Shards on a Ray cluster: one task per shard.

Each machine lists the images itself and checks that they are those of the machine that asked.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from typing import Any

from simmim.config.data import ShardConfig
from simmim.data.on_ray import join_ray, on_ray
from simmim.data.processes import Place
from simmim.data.shards.make import Engine, Work, plan_job
from simmim.data.shards.plan import Job, check_same


def ray_engine(config: ShardConfig, job: Job, workers: int | None) -> Engine:
    """An engine whose tasks are done by a cluster; see ``join_ray``.

    Args:
        config: From which each machine makes the job anew.
        job: What it must come to.
        workers: Most tasks at a time; None: as many as the cluster has cores.

    Raises:
        ConfigError: Ray is not installed.
    """
    join_ray()
    asked = job.describe()

    def run(work: Work, numbers: Iterable[int]) -> Iterator[tuple[int, Any]]:
        call = partial(_do, work, config, asked)
        return on_ray(call, numbers, what="shard", most=workers)

    return run


def _do(work: Callable[..., Any], config: ShardConfig, asked: dict[str, Any], number: int) -> Any:
    return work(_job(config, repr(asked)), number, Place(bytearray(8)))


@lru_cache(maxsize=1)
def _job(config: ShardConfig, asked: str) -> Job:
    """The job, made once per process."""
    import ast

    job = plan_job(config)
    check_same(job.describe(), ast.literal_eval(asked), job.out)
    return job
