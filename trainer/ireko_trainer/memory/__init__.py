"""Memory: what a run will need, stage by stage, known before anything of it is loaded, and what there is."""

from __future__ import annotations

from ireko_trainer.memory.dry import Kept, Pass
from ireko_trainer.memory.parts import AtOnce, Texts
from ireko_trainer.memory.remedies import Run, remedies
from ireko_trainer.memory.room import Room, device_room, host_room, own_bytes
from ireko_trainer.memory.stages import estimate
from ireko_trainer.memory.terms import Process, Stage, Term, arithmetic, size, table

__all__ = [
    "AtOnce",
    "Kept",
    "Pass",
    "Process",
    "Room",
    "Run",
    "Stage",
    "Term",
    "Texts",
    "arithmetic",
    "device_room",
    "estimate",
    "host_room",
    "own_bytes",
    "remedies",
    "size",
    "table",
]
