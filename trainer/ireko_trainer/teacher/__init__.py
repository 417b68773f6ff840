"""The teacher: found wherever its URI points, checked, and loaded without running anybody's code."""

from __future__ import annotations

from ireko_trainer.teacher.checkpoint import head_labels
from ireko_trainer.teacher.load import LoadedTeacher, load_teacher, model_class
from ireko_trainer.teacher.resolve import resolve

__all__ = ["LoadedTeacher", "head_labels", "load_teacher", "model_class", "resolve"]
