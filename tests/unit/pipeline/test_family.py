"""How a worker that cannot go on is heard by those that would wait for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ireko_api.handoff import FAILURE_FILE, Failure, RunRequest
from ireko_api.spec import CompressionRunSpec
from ireko_trainer.distributed import World
from ireko_trainer.errors import UserError
from ireko_trainer.pipeline.family import read_failure, train_family, write_failure
from ireko_trainer.pipeline.storage import SharedDirectory

SPEC = {
    "teacher": {"model": "nowhere", "task": "feature-extraction"},
    "data": {"train": {"uri": "train.jsonl"}},
    "pipeline": {"mlfs": {"stages": {"teacher": {"method": "Skip"}}}},
    "deviceTargets": [{"name": "gateway", "constraints": {"maxSizeMiB": 20}}],
}


@pytest.fixture
def request_file(tmp_path: Path) -> str:
    request = RunRequest(
        name="broken",
        uid="u",
        spec_digest="d",
        spec=CompressionRunSpec.model_validate(SPEC),
        base_dir=str(tmp_path),
        storage=str(tmp_path),
        # Nothing listens there: who speaks to MLflow does not come to an end.
        tracking_uri="http://127.0.0.1:9",
    )
    path = tmp_path / "request.json"
    path.write_text(request.to_json())
    return str(path)


def test_a_worker_that_fails_says_why_and_ends_the_others_that_would_wait_for_it(
    request_file: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="does not exist"):
        train_family(request_file, World(rank=1, size=2))

    failure = read_failure(SharedDirectory(tmp_path))
    assert failure is not None
    assert failure.reason == "InvalidInput"
    assert failure.message.startswith("spec.teacher.model: nowhere means")


def test_workers_that_are_started_in_place_of_failed_ones_do_nothing(
    request_file: str, tmp_path: Path
) -> None:
    storage = SharedDirectory(tmp_path)
    said = Failure(reason="StorageFull", message="no space left on the device of another worker")
    write_failure(storage, said)

    train_family(request_file, World(rank=0, size=2))

    assert read_failure(storage) == said
    assert {path.name for path in tmp_path.iterdir()} == {FAILURE_FILE, "request.json"}
