"""Running one stage: skip it if it is done, else do it where an earlier attempt left off, and publish it.

Every worker of a training run calls the same stages in the same order. The first of them (rank 0) writes outputs
and speaks to MLflow; the others compute along, since averaging gradients takes all of them. A stage that averages
nothing is done by the first worker alone, while the others wait for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ireko_trainer.distributed import World
from ireko_trainer.errors import InterruptedRunError
from ireko_trainer.pipeline.files import Json
from ireko_trainer.pipeline.progress import ProgressMeter
from ireko_trainer.pipeline.stop import StopFlag
from ireko_trainer.pipeline.store import FinishedStage, StageStore, WorkingStage
from ireko_trainer.tracking.journal import JOURNAL_FILE, MetricsJournal
from ireko_trainer.tracking.runs import FamilyRun
from ireko_trainer.tracking.stages import STATE_FILE

_VISIBLE_SECONDS = 90.0
"""How long a network file system may take to show one machine what another one wrote: NFS remembers names that
were not there for up to 60 s."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """The place of a stage in a phase of the run; most phases have one stage, recovery has one for each member."""

    phase: str
    index: int = 0
    count: int = 1


@dataclass(frozen=True, kw_only=True)
class StageAtWork:
    """What the body of a stage works with."""

    part: Part
    world: World
    _working: WorkingStage
    _stop: StopFlag
    _meter: ProgressMeter
    _family: FamilyRun | None
    _journal: MetricsJournal | None

    @property
    def name(self) -> str:
        """Of the stage."""
        return self._working.name

    @property
    def directory(self) -> Path:
        """Outputs and checkpoints go here."""
        return self._working.directory

    def keep(self) -> None:
        """Let the training state in the directory survive this machine; the first worker calls it."""
        self._working.keep()

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
"""Does the work of a stage and returns its record, which counts on the first worker."""


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

    def run(
        self, *, name: str, key: str, body: Body, part: Part | None = None, alone: bool = False
    ) -> FinishedStage:
        """The finished stage with these inputs; `body` runs only if no attempt has finished it.

        It runs on every worker, or, if it works `alone`, on the first one.
        """
        part = part or Part(phase=name)
        self._world.barrier()
        done = self._store.finished(name=name, key=key)
        # What one has seen the others may not see yet, and nobody may finish the stage before everybody has looked.
        if self._world.any(done is not None):
            done = done or self._now_finished(name=name, key=key)
            if self._family is not None:
                self._family.reuse_stage(name=name, key=key, directory=_tracked(done))
        else:
            if alone:
                self._work_alone(name=name, key=key, body=body, part=part)
            else:
                self._work(self._world, name=name, key=key, body=body, part=part)
            self._world.barrier()
            done = self._now_finished(name=name, key=key)
        if self._family is not None:
            self._family.progress(
                self._meter.advance(stage=part.phase, step=part.index + 1, total_steps=part.count)
            )
        return done

    def _work_alone(self, *, name: str, key: str, body: Body, part: Part) -> None:
        """The others wait for one vote: they cannot take part in those that the body asks for."""
        interrupted: InterruptedRunError | None = None
        if self._world.rank == 0:
            try:
                alone = World(device=self._world.device, spread=self._world.spread)
                self._work(alone, name=name, key=key, body=body, part=part)
            except InterruptedRunError as error:
                interrupted = error
        if self._world.any(interrupted is not None):
            raise interrupted or InterruptedRunError(f"stopped in stage {name}")

    def _work(self, world: World, *, name: str, key: str, body: Body, part: Part) -> None:
        stage = self._store.begin(name=name, key=key)
        if self._family is None:
            body(self._at_work(stage, world, part, journal=None))
            return
        with self._family.stage(
            name=name, key=key, directory=stage.directory, kept=stage.kept_metrics
        ) as tracked:
            record = body(self._at_work(stage, world, part, journal=tracked.journal))
            # MLflow is told what would be told again, with other times, if it were lost.
            stage.keep(surely=True)
        tracked.journal.close()
        self._store.finish(stage, record=record)

    def _now_finished(self, *, name: str, key: str) -> FinishedStage:
        deadline = time.monotonic() + (_VISIBLE_SECONDS if self._world.size > 1 else 0)
        done = self._store.finished(name=name, key=key)
        while done is None and time.monotonic() < deadline:
            time.sleep(0.2)
            done = self._store.finished(name=name, key=key)
        assert done is not None, f"stage {name} was finished and is not in the store"
        return done

    def _at_work(
        self, stage: WorkingStage, world: World, part: Part, *, journal: MetricsJournal | None
    ) -> StageAtWork:
        return StageAtWork(
            part=part,
            world=world,
            _working=stage,
            _stop=self._stop,
            _meter=self._meter,
            _family=self._family,
            _journal=journal,
        )


def _tracked(done: FinishedStage) -> Path:
    """The directory of a finished stage, with what tells MLflow about it."""
    done.output(STATE_FILE)
    return done.output(JOURNAL_FILE).parent
