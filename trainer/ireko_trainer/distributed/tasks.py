"""Independent calls as Ray tasks, where several have room at once.

While the first training worker does a stage alone the others wait for it, and the processors that belong to them do
nothing. Tasks run there. They ask Ray for no CPU of their own, since all are lent to the workers already; what bounds
them, and the memory that they take, is that no more are under way than processors wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ireko_trainer.delta.decompositions import Job, Result
from ireko_trainer.distributed.lost import WorkersLostError, last_line, out_of_memory

if TYPE_CHECKING:
    from ray import ObjectRef


@dataclass(frozen=True, kw_only=True)
class RayTasks:
    """A `Spread` over the nodes of the cluster that this process belongs to.

    Every task computes with as many threads as this process, so that its result is the same to the bit. Results come
    in the order of the jobs, and jobs are taken when a place is free. An error of the function is raised as it was.

    Raises WorkersLostError when a task died again and again, OutOfMemoryError when Ray ended it for want of memory.
    """

    at_once: int
    retries: int = 3
    """By Ray, of a task whose process or machine died; an error that the function raised is not tried again."""

    def __call__(self, function: Callable[[Job], Result], jobs: Iterable[Job], /) -> Iterator[Result]:
        """See the class."""
        import ray

        threads = torch.get_num_threads()
        task = ray.remote(num_cpus=0, max_retries=self.retries)(_call)
        free = _places(self.at_once, threads=threads)
        places: dict[ObjectRef[Any], str] = {}
        waiting: deque[ObjectRef[Any]] = deque()
        try:
            for job in jobs:
                while not free:
                    free += _given_back(places)
                    while waiting and waiting[0] not in places:
                        yield _result(waiting.popleft(), tries=self.retries + 1)
                place = free.pop()
                sent = task.options(scheduling_strategy=_on(place)).remote(function, job, threads)
                places[sent] = place
                waiting.append(sent)
            while waiting:
                yield _result(waiting.popleft(), tries=self.retries + 1)
        finally:
            for unfinished in waiting:
                ray.cancel(unfinished)


def _call(function: Callable[[Job], Result], job: Job, threads: int) -> Result:
    torch.set_num_threads(threads)
    return function(job)


def _places(at_once: int, *, threads: int) -> list[str]:
    """A node for each task that may be under way: all nodes in turn, each as often as its processors allow."""
    import ray

    room = {
        node["NodeID"]: int(node["Resources"].get("CPU", 0) // threads)
        for node in ray.nodes()
        if node["Alive"]
    }
    rounds = range(max(room.values(), default=0))
    found = [node for turn in rounds for node, places in room.items() if turn < places]
    return found[:at_once] or [ray.get_runtime_context().get_node_id()]


def _on(node: str) -> Any:
    """On a node, or on another one when that is gone."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node_id=node, soft=True)


def _given_back(places: dict[ObjectRef[Any], str]) -> list[str]:
    """Wait until a task has ended, and take its place."""
    import ray

    done, _ = ray.wait(list(places), num_returns=1)
    return [places.pop(one) for one in done]


def _result(sent: ObjectRef[Any], *, tries: int) -> Any:
    import ray
    from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

    try:
        return ray.get(sent)
    except RayTaskError as error:
        raise error.cause from error
    except OutOfMemoryError as error:
        raise out_of_memory(error) from error
    except RayError as error:
        raise WorkersLostError(
            f"a part of the work died in each of {tries} tries on the training workers' machines; the last "
            f"time: {last_line(error)}. Everything that was finished is kept: run the same command again to go on"
        ) from error
