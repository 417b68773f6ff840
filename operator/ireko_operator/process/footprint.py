"""Keeps out of the operator's memory what it has no use for."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import cast

_UNUSED = ("numpy", "pandas", "pyarrow", "scipy")
"""MLflow's client imports them where they are installed: 85 MiB. The operator's image goes without them."""


def leave_out_what_is_not_needed() -> None:
    """Have these packages look as if they were not installed; call it before MLflow is imported."""
    for name in _UNUSED:
        sys.modules.setdefault(name, cast("ModuleType", None))
