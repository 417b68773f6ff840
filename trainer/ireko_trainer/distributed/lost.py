"""What is told to the user where Ray could not keep a part of the work alive."""

from __future__ import annotations

import re

from ireko_trainer.errors import UserError

_NODE_MEMORY = re.compile(r"was ([\d.]+ *[KMGT]?B used / [\d.]+ *[KMGT]?B limit)")
"""How Ray says how full a node was, e.g. `1.90GB used / 2.00GB limit`."""


class WorkersLostError(UserError):
    """Workers died more often than the manifest allows, or tasks more often than Ray tries."""

    reason = "WorkerLost"


class OutOfMemoryError(UserError):
    """Ray ended a part of the training because its machine or pod had hardly any memory left."""

    reason = "OutOfMemory"


def out_of_memory(error: Exception) -> OutOfMemoryError:
    """The same in words that help."""
    place = _NODE_MEMORY.search(str(error))
    where = f" ({place[1]})" if place else ""
    return OutOfMemoryError(
        f"Ray ended a part of the training because there was hardly any memory left{where}. Raise "
        "spec.compute.head.resources.memory or resourcesPerWorker.memory, on a laptop close other programs, or lower "
        "batchSize or maxLength. Everything up to the last checkpoint is kept"
    )


def last_line(error: Exception) -> str:
    """What an error ends with, or its name."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
