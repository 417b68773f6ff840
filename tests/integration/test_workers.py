from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from ireko_trainer.distributed import WorkerResources, World, run_on_workers
from ireko_trainer.distributed.cluster import interface_of
from ireko_trainer.errors import InterruptedRunError, UserError
from ireko_trainer.pipeline.files import Json
from ireko_trainer.pipeline.progress import ProgressMeter, StageCost
from ireko_trainer.pipeline.stage import StageAtWork, StageRunner
from ireko_trainer.pipeline.stop import StopFlag
from ireko_trainer.pipeline.storage import SharedDirectory
from ireko_trainer.pipeline.store import StageStore


def _two_workers(rank: int, directory: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=2)
    world = World(rank=rank, size=2)
    gradients = [torch.full((2, 3), float(rank)), torch.tensor([10.0 * rank])]
    world.all_reduce(gradients)
    torch.save((gradients, world.any(rank == 1), world.any(False)), f"{directory}/{rank}.pt")
    dist.destroy_process_group()


def test_two_workers_get_the_mean_gradient_and_one_answer(tmp_path: Path) -> None:
    multiprocessing.spawn(_two_workers, args=(str(tmp_path),), nprocs=2)
    for rank in (0, 1):
        gradients, raised, quiet = torch.load(tmp_path / f"{rank}.pt")
        assert torch.equal(gradients[0], torch.full((2, 3), 0.5))
        assert torch.equal(gradients[1], torch.tensor([5.0]))
        assert raised
        assert not quiet


def _asked_to_stop_alone(rank: int, directory: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=2)
    storage = SharedDirectory(Path(directory))
    runner = StageRunner(
        store=StageStore(storage=storage),
        world=World(rank=rank, size=2),
        stop=StopFlag(storage=storage),
        meter=ProgressMeter(stages=(StageCost(name="select", cost=1),)),
        family=None,
    )

    def body(stage: StageAtWork) -> Json:
        (Path(directory) / f"worked-{rank}").touch()
        StopFlag(storage=storage).raise_()
        for step in range(5):
            stage.check_stop(step, 5)
        return {}

    try:
        runner.run(name="select", key="k", body=body, alone=True)
    except InterruptedRunError as error:
        (Path(directory) / f"stopped-{rank}").write_text(str(error))
    dist.destroy_process_group()


def test_a_stop_of_the_worker_that_works_alone_stops_those_that_wait_for_it(tmp_path: Path) -> None:
    multiprocessing.spawn(_asked_to_stop_alone, args=(str(tmp_path),), nprocs=2)

    assert not (tmp_path / "worked-1").exists()
    assert (tmp_path / "stopped-0").read_text() == "stopped in stage select after 0 of 5"
    assert (tmp_path / "stopped-1").read_text() == "stopped in stage select"


def test_one_worker_keeps_its_gradients() -> None:
    gradient = torch.tensor([1.0, 2.0])
    World().all_reduce([gradient])
    assert torch.equal(gradient, torch.tensor([1.0, 2.0]))


def test_no_workers_means_this_process(tmp_path: Path) -> None:
    called: list[tuple[str, World]] = []
    threads = torch.get_num_threads()
    run_on_workers(
        lambda request, world: called.append((request, world)),
        request_file=tmp_path / "request.json",
        workers=0,
        resources=WorkerResources(cpus=1, gpus=0, memory_bytes=None, threads=threads),
        max_failures=0,
        storage=tmp_path,
        name="local",
    )
    assert called == [(str(tmp_path / "request.json"), World())]


def test_more_cpus_than_the_machine_has_are_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ask for 100000 CPUs and this machine has \d+; lower workers"):
        run_on_workers(
            lambda _request, _world: None,
            request_file=tmp_path / "request.json",
            workers=1000,
            resources=WorkerResources(cpus=100, gpus=0, memory_bytes=None, threads=1),
            max_failures=0,
            storage=tmp_path,
            name="too-many",
        )


def test_workers_are_reached_by_the_interface_of_their_node() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.1") is None
