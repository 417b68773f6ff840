"""Runs of the tiny case that several tests look at."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

# `--import-mode=importlib` puts no test directory on the path, and the tests here share a module.
sys.path.insert(0, str(Path(__file__).parent))

from tiny import Case, MakeCase, Undisturbed, write_inputs

os.environ.setdefault("COLUMNS", "200")


@pytest.fixture(scope="session")
def tiny_inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny-inputs")
    write_inputs(directory)
    return directory


@pytest.fixture(scope="session")
def make_case(
    tiny_inputs: Path, migrated_mlflow_db: Path, tmp_path_factory: pytest.TempPathFactory
) -> MakeCase:
    """Makes a case in a directory of its own, with a working directory that holds an empty MLflow database."""
    return lambda: Case.make(tmp_path_factory.mktemp("case"), inputs=tiny_inputs, database=migrated_mlflow_db)


@pytest.fixture(scope="session")
def undisturbed(make_case: MakeCase) -> Undisturbed:
    case = make_case()
    ran = case.run(
        # Stages of a second would end before MLflow's first look at the machine.
        MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL="0.2",
        MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING="1",
    )
    assert ran.exit_status == 0, ran.stderr + case.log_tail()
    return Undisturbed(case=case, ran=ran, registry=case.registry())
