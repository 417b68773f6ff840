"""Calls that run as Ray tasks: the same results, no more at once than have room, and what becomes of accidents."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch
from ray import cloudpickle

from ireko_trainer.delta.decompositions import Pair, Single, Truncation, curves_of, factors_of
from ireko_trainer.distributed import WorkerResources, WorkersLostError, World, run_on_workers
from ireko_trainer.distributed.cluster import ray_cluster
from ireko_trainer.distributed.tasks import RayTasks

pytestmark = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="tasks need a second processor")


@pytest.fixture(scope="module", autouse=True)
def functions_of_this_file() -> Iterator[None]:
    """Workers cannot import a test file."""
    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    yield
    cloudpickle.unregister_pickle_by_value(module)


SOMEBODY_ELSES = "127.0.0.1:6379"


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster of these tests, on a machine on which somebody else seems to have typed `ray start`."""
    # Not pytest's directory: Ray's sockets lie below it, and a socket's path is short.
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="ray-") as temporary:
        patch.setenv("RAY_TMPDIR", temporary)
        latest = Path(temporary) / "ray" / "ray_current_cluster"
        latest.parent.mkdir()
        latest.write_text(SOMEBODY_ELSES)
        with ray_cluster(cpus=1, gpus=0):
            yield


def matrices(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(70, 50, generator=generator, dtype=torch.float64).T for _ in range(count)]


def test_results_are_those_of_map_to_the_bit_and_in_its_order(cluster: None) -> None:
    some = matrices(6)
    jobs = [*(Single(weighed=one) for one in some), Pair(target=some[0], base=some[1], projected=True)]
    spread = RayTasks(at_once=2)

    for here, there in zip(map(curves_of, jobs), spread(curves_of, iter(jobs)), strict=True):
        assert [c for c, _ in here] == [c for c, _ in there]
        assert all(torch.equal(mine, yours) for (_, mine), (_, yours) in zip(here, there, strict=True))
    cuts = [Truncation(weighed=one, rank=7, scale=0.5) for one in some]
    for here, there in zip(map(factors_of, cuts), spread(factors_of, iter(cuts)), strict=True):
        assert torch.equal(here[0], there[0])
        assert torch.equal(here[1], there[1])


def test_a_cluster_that_somebody_else_started_is_left_alone(cluster: None) -> None:
    assert ray.get_runtime_context().gcs_address != SOMEBODY_ELSES


def _crowd(directory: Path) -> int:
    mine = directory / str(os.getpid())
    mine.touch()
    time.sleep(0.2)
    present = len(list(directory.iterdir()))
    mine.unlink()
    return present


def test_no_more_tasks_are_under_way_than_have_room(cluster: None, tmp_path: Path) -> None:
    made: list[int] = []

    def jobs() -> Iterator[Path]:
        for number in range(8):
            made.append(number)
            yield tmp_path

    results = RayTasks(at_once=2)(_crowd, jobs())

    assert next(results) <= 2
    assert len(made) < 8, "the last jobs are not made before the first are done"
    assert max(results) <= 2


def test_an_error_of_the_function_is_raised_as_it_was(cluster: None) -> None:
    with pytest.raises(KeyError, match="no such matrix") as raised:
        list(RayTasks(at_once=2)(_fail, [1, 2, 3]))
    assert type(raised.value) is KeyError


def _fail(_job: int) -> None:
    raise KeyError("no such matrix")


def _die_at_first(marker: Path) -> str:
    if not marker.exists():
        marker.touch()
        os._exit(1)
    return "alive"


def test_a_task_that_dies_is_tried_again(cluster: None, tmp_path: Path) -> None:
    assert list(RayTasks(at_once=2)(_die_at_first, [tmp_path / "a", tmp_path / "b"])) == ["alive", "alive"]


def _die(_job: int) -> None:
    os._exit(1)


def test_a_task_that_always_dies_is_a_lost_worker_and_can_go_on(cluster: None) -> None:
    with pytest.raises(
        WorkersLostError, match=r"died in each of 1 tries .* run the same command again to go on"
    ):
        list(RayTasks(at_once=2, retries=0)(_die, [1]))


def _decompose_alone(directory: str, world: World) -> None:
    if world.rank == 0:
        jobs = [Single(weighed=one) for one in matrices(4)]
        found = [errors for ((_, errors),) in world.spread(curves_of, jobs)]
        torch.save((world.spread, found, torch.get_num_threads()), f"{directory}/found.pt")
    world.barrier()


def test_workers_that_wait_lend_their_processors_to_the_first(tmp_path: Path) -> None:
    assert not ray.is_initialized() or ray.shutdown() is None
    run_on_workers(
        _decompose_alone,
        request_file=tmp_path,
        workers=2,
        resources=WorkerResources(cpus=1, gpus=0, memory_bytes=None, threads=1),
        max_failures=0,
        storage=tmp_path,
        name="tasks",
    )

    spread, found, threads = torch.load(tmp_path / "found.pt", weights_only=False)

    assert spread == RayTasks(at_once=2)
    assert threads == 1
    for one, errors in zip(matrices(4), found, strict=True):
        ((_, here),) = curves_of(Single(weighed=one))
        assert torch.equal(here, errors)
