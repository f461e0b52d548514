"""Tasks on a Ray cluster (the extra ``ray``), on any of its machines.

Images and results must be reachable by the same names from all of them.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from simmim.errors import ConfigError, TrainingError

TRIES = 2
"""How often Ray does a task again whose process or machine was lost."""


def join_ray() -> None:
    """Join the cluster that RAY_ADDRESS names or that runs here, else start one of this machine.

    Raises:
        ConfigError: Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError("--engine ray needs Ray: pip install 'simmim[ray]'") from error
    # A cluster that is started here reports to nobody.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False)


def on_ray(
    call: Callable[[int], Any],
    numbers: Iterable[int],
    *,
    what: str,
    most: int | None = None,
    gpu: bool = False,
) -> Iterator[tuple[int, Any]]:
    """Call with each of the numbers; yields them with what came of it, as they are done.

    Args:
        call: Sent once; each task has one core.
        numbers: Taken as there is room for them.
        what: A number stands for, in words, for messages.
        most: Tasks at a time; None: as many as the cluster has cores.
        gpu: Whether each task has a GPU too, where the cluster has any.

    Raises:
        TrainingError: A task was lost too often; what a task raises is raised as it is.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    has = ray.cluster_resources()
    gpus = int(gpu and has.get("GPU", 0) > 0)
    most = most or max(1, int(has.get("GPU" if gpus else "CPU", 1)))
    task = ray.remote(max_retries=TRIES, num_cpus=1, num_gpus=gpus)(_do)
    sent = ray.put(call)
    waiting, running = iter(numbers), {}
    while True:
        for number in waiting:
            running[task.remote(sent, number)] = number
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
            raise TrainingError(f"Ray gave up {what} {number}: {error}.") from error
        yield number, result


def _do(call: Callable[[int], Any], number: int) -> Any:
    import torch

    torch.set_num_threads(1)
    return call(number)
