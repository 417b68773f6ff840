"""How far a run is and how long it still takes, from the costs of its stages and the pace seen so far."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from ireko_api.handoff import Progress


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """A stage and its cost in subnet-steps: one forward and backward pass of one batch through one subnet."""

    name: str
    cost: float


class ProgressMeter:
    """Turns `advance(stage, step, total)` into `Progress` records.

    The pace is measured over this attempt only: what an earlier attempt finished says nothing about the machine
    that runs now. So the first report of a stage, which may be where that attempt stopped, gains nothing.
    """

    def __init__(self, *, stages: tuple[StageCost, ...], clock: Callable[[], float] = time.monotonic) -> None:
        self._stages = stages
        self._names = [stage.name for stage in stages]
        self._total = sum(stage.cost for stage in stages) or 1.0
        self._clock = clock
        self._began: float | None = None
        self._stage, self._done = "", 0.0
        self._gained = 0.0

    def advance(self, *, stage: str, step: int, total_steps: int, message: str = "") -> Progress:
        """The progress after `step` of `total_steps` of a stage."""
        index = self._names.index(stage)
        share = step / total_steps if total_steps else 1.0
        done = sum(earlier.cost for earlier in self._stages[:index]) + self._stages[index].cost * share
        return Progress(
            stage=stage,
            stage_index=index,
            stage_count=len(self._stages),
            step=step,
            total_steps=total_steps,
            percent=min(100, int(100 * done / self._total)),
            eta_seconds=self._eta(stage, done),
            message=message,
            updated_at=datetime.now(tz=UTC),
        )

    def _eta(self, stage: str, done: float) -> int | None:
        now = self._clock()
        if self._began is None:
            self._began = now
        if stage == self._stage:
            self._gained += done - self._done
        self._stage, self._done = stage, done
        elapsed = now - self._began
        if self._gained <= 0 or elapsed < 1.0:
            return None
        return round((self._total - done) * elapsed / self._gained)
