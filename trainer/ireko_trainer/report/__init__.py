"""The report of a family: one self-contained page and the pictures on it, from plain numbers."""

from __future__ import annotations

from ireko_trainer.report.content import (
    BaselineEntry,
    CandidateEntry,
    Curve,
    Importance,
    MatrixBits,
    MemberEntry,
    ReportContent,
    TeacherEntry,
)
from ireko_trainer.report.page import REPORT_FILE, ReportFiles, write_report

__all__ = [
    "REPORT_FILE",
    "BaselineEntry",
    "CandidateEntry",
    "Curve",
    "Importance",
    "MatrixBits",
    "MemberEntry",
    "ReportContent",
    "ReportFiles",
    "TeacherEntry",
    "write_report",
]
