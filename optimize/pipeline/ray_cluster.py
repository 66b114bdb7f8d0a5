"""A sweep's runs as tasks on a Ray cluster; a task whose worker dies is run again, and loses nothing stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from optimize import errors
from optimize.pipeline.sweeping import Task, run_one
from optimize.sweep_facts import Point

RETRIES = 3


def run(
    arguments: Sequence[tuple[Task, str, str]],
    address: str,
    cpus: float,
    gpus: float,
    on_done: Callable[[str, str], None],
) -> list[Point]:
    """Run every task in two rounds, as `sweeping.run` says.

    Raises:
        BackendMissing: When Ray is not installed or no cluster answers at `address`.
    """
    try:
        import ray
    except ImportError as error:
        raise errors.BackendMissing("Ray is not installed.", hint="pip install 'model-optimize[ray]'") from error
    try:
        ray.init(address=None if address == "local" else address, log_to_driver=False, include_dashboard=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise errors.BackendMissing(f"no Ray cluster answers at '{address}': {error}") from error
    try:
        task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES, retry_exceptions=False)(run_one)
        ray.wait(submitted := [task.remote(*item, False) for item in arguments], num_returns=len(arguments))
        del submitted
        pending: dict[Any, int] = {task.remote(*item, True): place for place, item in enumerate(arguments)}
        points: dict[int, Point] = {}
        while pending:
            ready, _ = ray.wait(list(pending), num_returns=1)
            place = pending.pop(ready[0])
            try:
                points[place] = ray.get(ready[0])
            except ray.exceptions.RayError as error:
                label, variables = arguments[place][0].label, dict(arguments[place][0].variables)
                message = f"its worker was lost {RETRIES + 1} times: {type(error).__name__}"
                points[place] = Point(label=label, variables=variables, verdict="ERROR", error=message)
            on_done(points[place].label, points[place].verdict)
        return [points[place] for place in range(len(arguments))]
    finally:
        ray.shutdown()
