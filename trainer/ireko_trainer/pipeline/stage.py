"""Running one stage: skip it if it is done, else do it where an earlier attempt left off, and publish it.

Every worker of a training run calls the same stages in the same order. The first of them (rank 0) writes outputs
and speaks to MLflow; the others compute along, since averaging gradients takes all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ireko_trainer.distributed import World
from ireko_trainer.errors import InterruptedRunError
from ireko_trainer.pipeline.progress import ProgressMeter
from ireko_trainer.pipeline.stop import StopFlag
from ireko_trainer.pipeline.store import FinishedStage, Json, StageStore
from ireko_trainer.tracking.journal import MetricsJournal
from ireko_trainer.tracking.runs import FamilyRun


@dataclass(frozen=True, kw_only=True)
class Part:
    """The place of a stage in a phase of the run; most phases have one stage, recovery has one for each member."""

    phase: str
    index: int = 0
    count: int = 1


@dataclass(frozen=True, kw_only=True)
class StageAtWork:
    """What the body of a stage works with."""

    name: str
    directory: Path
    """Outputs and checkpoints go here; kept over attempts until the stage is finished."""
    part: Part
    world: World
    _stop: StopFlag
    _meter: ProgressMeter
    _family: FamilyRun | None
    _journal: MetricsJournal | None

    @property
    def writes(self) -> bool:
        """Whether this worker is the one that writes outputs."""
        return self._family is not None

    def stop(self) -> bool:
        """Whether to save and stop; all workers get the same answer, so all must ask."""
        return self.world.any(self._stop.is_raised())

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics of a step."""
        if self._journal is not None:
            self._journal.append(step=step, metrics=metrics)

    def progress(self, step: int, total_steps: int, message: str = "") -> None:
        """Show how far the stage is."""
        if self._family is not None:
            self._family.progress(
                self._meter.advance(
                    stage=self.part.phase,
                    step=self.part.index * total_steps + step,
                    total_steps=self.part.count * total_steps,
                    message=message,
                )
            )

    def check_stop(self, step: int, total_steps: int, message: str = "") -> None:
        """Show progress and raise InterruptedRunError if the run was asked to stop."""
        self.progress(step, total_steps, message)
        if self.stop():
            raise InterruptedRunError(f"stopped in stage {self.name} after {step} of {total_steps}")


Body = Callable[[StageAtWork], Json]
"""Does the work of a stage and returns its record; called on every worker."""


class StageRunner:
    """The stages of one run, on one worker.

    `family` is None on every worker but the first.
    """

    def __init__(
        self,
        *,
        store: StageStore,
        world: World,
        stop: StopFlag,
        meter: ProgressMeter,
        family: FamilyRun | None,
    ) -> None:
        self._store = store
        self._world = world
        self._stop = stop
        self._meter = meter
        self._family = family
        self.world = world

    def run(self, *, name: str, key: str, body: Body, part: Part | None = None) -> FinishedStage:
        """The finished stage with these inputs; `body` runs only if no attempt has finished it."""
        part = part or Part(phase=name)
        self._world.barrier()
        done = self._store.finished(name=name, key=key)
        # Nobody may finish the stage before everybody has looked.
        self._world.barrier()
        if done is None:
            self._work(name=name, key=key, body=body, part=part)
            self._world.barrier()
            done = self._store.finished(name=name, key=key)
            assert done is not None, f"stage {name} was finished and is not in the store"
        elif self._family is not None:
            self._family.reuse_stage(name=name, key=key, directory=done.directory)
        if self._family is not None:
            self._family.progress(
                self._meter.advance(stage=part.phase, step=part.index + 1, total_steps=part.count)
            )
        return done

    def _work(self, *, name: str, key: str, body: Body, part: Part) -> None:
        stage = self._store.begin(name=name, key=key)
        if self._family is None:
            body(self._at_work(name, stage.directory, part, journal=None))
            return
        with self._family.stage(name=name, key=key, directory=stage.directory) as tracked:
            record = body(self._at_work(name, stage.directory, part, journal=tracked.journal))
        tracked.journal.close()
        self._store.finish(stage, record=record)

    def _at_work(
        self, name: str, directory: Path, part: Part, *, journal: MetricsJournal | None
    ) -> StageAtWork:
        return StageAtWork(
            name=name,
            directory=directory,
            part=part,
            world=self._world,
            _stop=self._stop,
            _meter=self._meter,
            _family=self._family,
            _journal=journal,
        )
