"""Memory: what a run will need, stage by stage, known before anything of it is loaded, and what there is."""

from __future__ import annotations

from ireko_trainer.memory.stages import Texts, estimate
from ireko_trainer.memory.terms import Stage, Term, arithmetic, size, table

__all__ = ["Stage", "Term", "Texts", "arithmetic", "estimate", "size", "table"]
