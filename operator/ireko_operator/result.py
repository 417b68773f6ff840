"""The outcome of `ireko run` as the JSON object that scripts read."""

from __future__ import annotations

from typing import Any

from ireko_api.status import CompressionRunStatus

EXIT_STATUS = {"Succeeded": 0, "Failed": 1, "Interrupted": 3}
"""By phase: done; something to mend first; the same command goes on."""


def result_of(status: CompressionRunStatus, *, name: str, tracking_uri: str) -> dict[str, Any]:
    """The JSON object; `runId`, `teacher` and `report` are null and `members` empty until there are any."""
    teacher = status.teacher
    return {
        "name": name,
        "phase": status.phase,
        "trackingUri": tracking_uri,
        "runId": status.mlflow.run_id if status.mlflow else None,
        "teacher": {"metrics": teacher.metrics, "sizeBytes": teacher.size_bytes} if teacher else None,
        "members": [
            {
                "target": member.target,
                "modelUri": member.model_uri,
                "version": member.version,
                "sizeBytes": member.size_bytes,
                "parameters": member.parameters,
                "averageBits": member.average_bits,
                "metrics": member.metrics,
            }
            for member in status.members
        ],
        "report": status.report,
    }
