"""The storage of a run in an object store: a real S3 server, machines that come and go, and deaths at any line."""

from __future__ import annotations

import contextlib
import itertools
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from object_store import BUCKET, ObjectServer, on_machine

from ireko_trainer.errors import StorageNotWritableError
from ireko_trainer.pipeline.objectstore import ObjectStore
from ireko_trainer.pipeline.stop import StopFlag
from ireko_trainer.pipeline.storage import open_storage
from ireko_trainer.pipeline.store import STATE_FILE, StageStore
from ireko_trainer.tracking.journal import JOURNAL_FILE

Machine = Callable[[str], ObjectStore]


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectServer]:
    server = ObjectServer()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def machine(server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Opens the storage of this test's run on a machine, which is empty when it is named first."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    if server.server is None:
        server.start()
    server.client.create_bucket(Bucket=BUCKET)
    prefix = tmp_path.name

    def open_on(name: str) -> ObjectStore:
        with on_machine(tmp_path / name):
            return ObjectStore(f"s3://{BUCKET}/{prefix}", patience_seconds=1.0)

    return open_on


def fill(directory: Path, *, step: int) -> None:
    """The training state and the metrics after a step."""
    (directory / STATE_FILE).write_bytes(b"state %d" % step * 1000)
    (directory / JOURNAL_FILE).write_text("".join(f"{number}\n" for number in range(step)))


# --- stages -----------------------------------------------------------------------------------------------


def test_a_finished_stage_is_found_on_another_machine(machine: Machine) -> None:
    here, there = StageStore(storage=machine("here")), StageStore(storage=machine("there"))
    stage = here.begin(name="widths", key="k")
    fill(stage.directory, step=3)
    (stage.directory / "checkpoint").mkdir()
    (stage.directory / "checkpoint" / "model.safetensors").write_bytes(b"weights" * 5000)
    assert there.finished(name="widths", key="k") is None

    here.finish(stage, record={"sha256": "abc"})
    found = there.finished(name="widths", key="k")

    assert found is not None
    assert found.record == {"sha256": "abc"}
    assert (found.output("checkpoint") / "model.safetensors").read_bytes() == b"weights" * 5000
    assert there.named(found.identity).output(JOURNAL_FILE).read_text() == "0\n1\n2\n"


def test_only_what_is_asked_for_is_fetched(machine: Machine) -> None:
    here, there = StageStore(storage=machine("here")), StageStore(storage=machine("there"))
    stage = here.begin(name="teacher", key="k")
    fill(stage.directory, step=1)
    (stage.directory / "large").write_bytes(b"0" * 1000)
    here.finish(stage, record={})

    found = there.finished(name="teacher", key="k")

    assert found is not None
    directory = found.output(JOURNAL_FILE).parent
    assert [path.name for path in directory.iterdir()] == [JOURNAL_FILE]


def test_what_was_kept_of_a_stage_is_what_an_empty_machine_starts_from(machine: Machine) -> None:
    stage = StageStore(storage=machine("here")).begin(name="widths", key="k")
    fill(stage.directory, step=2)
    stage.keep()
    kept = stage.kept_metrics()
    fill(stage.directory, step=3)  # this machine dies before it keeps that

    again = StageStore(storage=machine("there")).begin(name="widths", key="k")

    assert (again.directory / STATE_FILE).read_bytes() == b"state 2" * 1000
    assert (again.directory / JOURNAL_FILE).read_text() == "0\n1\n"
    assert kept == again.kept_metrics() == 4


def test_all_workers_start_from_the_same_state_whatever_lies_on_their_machines(machine: Machine) -> None:
    stage = StageStore(storage=machine("here")).begin(name="widths", key="k")
    fill(stage.directory, step=2)
    stage.keep()
    fill(stage.directory, step=3)
    (stage.directory / "checkpoint").mkdir()

    for name in ("here", "there"):
        again = StageStore(storage=machine(name)).begin(name="widths", key="k")
        assert sorted(path.name for path in again.directory.iterdir()) == [JOURNAL_FILE, STATE_FILE]
        assert (again.directory / STATE_FILE).read_bytes() == b"state 2" * 1000


def test_a_superseded_checkpoint_takes_no_room(
    machine: Machine, server: ObjectServer, tmp_path: Path
) -> None:
    store = StageStore(storage=machine("here"))
    stage = store.begin(name="widths", key="k")
    for step in (1, 2, 3):
        fill(stage.directory, step=step)
        stage.keep()
    names = [key.rpartition("/")[2] for key in server.keys(f"{tmp_path.name}/stages/widths-k/")]
    assert sorted(names) == sorted(["at-work.json", JOURNAL_FILE, STATE_FILE])

    store.finish(stage, record={})

    names = [key.rpartition("/")[2] for key in server.keys(f"{tmp_path.name}/stages/widths-k/")]
    assert sorted(names) == sorted(["finished.json", JOURNAL_FILE, "record.json"])


def test_a_sweep_leaves_finished_stages_only(machine: Machine, server: ObjectServer, tmp_path: Path) -> None:
    storage = machine("here")
    store = StageStore(storage=storage)
    for name in ("abandoned", "finished"):
        stage = store.begin(name=name, key="k")
        fill(stage.directory, step=1)
        stage.keep()
    store.finish(stage, record={})

    store.sweep()

    assert {key.partition("/")[0] for key in server.keys(f"{tmp_path.name}/stages/")} == {"finished-k"}
    assert [path.name for path in (storage.directory / "stages").iterdir()] == ["finished-k"]


# --- deaths -----------------------------------------------------------------------------------------------


class Death(BaseException):
    """The process is gone: nothing after it runs, no handler and no retry."""


class Mortal:
    """A file system whose user dies before a certain request that changes something."""

    _CHANGES = ("put", "pipe_file", "rm", "rm_file")

    def __init__(self, filesystem: Any, *, lives: int) -> None:
        self._filesystem = filesystem
        self._lives = lives
        self.survived = True

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._filesystem, name)
        if name not in self._CHANGES:
            return method

        def one_life_less(*arguments: Any) -> Any:
            if self._lives == 0:
                self.survived = False
                raise Death
            self._lives -= 1
            if name == "put":
                # Files are sent one after the other, and a death comes between them as well.
                sources, targets = arguments
                for source, target in zip(sources[:-1], targets[:-1], strict=True):
                    one_file = (self._filesystem.put, [source], [target])
                    one_file[0](*one_file[1:])
                    if self._lives == 0:
                        self.survived = False
                        raise Death
                    self._lives -= 1
            return method(*arguments)

        return one_life_less


def work(storage: ObjectStore) -> None:
    """Two checkpoints and the end of a stage."""
    store = StageStore(storage=storage)
    stage = store.begin(name="widths", key="k")
    for step in (1, 2):
        fill(stage.directory, step=step)
        stage.keep()
    for name in ("config.json", "model.safetensors"):
        (stage.directory / name).write_text(f"the {name}")
    store.finish(stage, record={"steps": 2})


def test_whoever_dies_at_any_request_leaves_a_finished_stage_or_a_resumable_one(
    server: ObjectServer, machine: Machine, tmp_path: Path
) -> None:
    seen = set()
    for lives in itertools.count():
        for key in server.keys(f"{tmp_path.name}/"):
            server.client.delete_object(Bucket=BUCKET, Key=f"{tmp_path.name}/{key}")
        dying = machine(f"dying-{lives}")
        mortal = Mortal(dying._filesystem, lives=lives)
        dying._filesystem = mortal
        with contextlib.suppress(Death):
            work(dying)
        seen.add(left_behind(StageStore(storage=machine(f"next-{lives}"))))
        if mortal.survived:
            break
    assert lives > 10
    assert seen == {"nothing", "step 1", "step 2", "finished"}


def left_behind(store: StageStore) -> str:
    """What a dead machine left for the next one, which has to be whole."""
    found = store.finished(name="widths", key="k")
    if found is not None:
        assert found.record == {"steps": 2}
        for name in ("config.json", "model.safetensors"):
            assert found.output(name).read_text() == f"the {name}"
        assert found.output(JOURNAL_FILE).read_text() == "0\n1\n"
        return "finished"
    directory = store.begin(name="widths", key="k").directory
    if not list(directory.iterdir()):
        return "nothing"
    for step in (1, 2):
        if (directory / STATE_FILE).read_bytes() == b"state %d" % step * 1000:
            assert (directory / JOURNAL_FILE).read_text() == "0\n1\n"[: 2 * step]
            return f"step {step}"
    raise AssertionError("neither step is there")


def test_a_file_that_somebody_changed_is_refused_and_the_stage_is_done_again(
    server: ObjectServer, machine: Machine, tmp_path: Path
) -> None:
    work(machine("here"))
    prefix = f"{tmp_path.name}/stages/widths-k/"
    (weights,) = (key for key in server.keys(prefix) if key.endswith("model.safetensors"))
    server.client.put_object(Bucket=BUCKET, Key=prefix + weights, Body=b"the model.safetensorS")

    there = StageStore(storage=machine("there"))
    found = there.finished(name="widths", key="k")
    assert found is not None
    with pytest.raises(StorageNotWritableError, match=r"model\.safetensors is not what was written there"):
        found.output("model.safetensors")

    assert StageStore(storage=machine("third")).finished(name="widths", key="k") is None


# --- what cannot be used ----------------------------------------------------------------------------------


def test_a_bucket_that_does_not_exist_is_named_with_its_field(machine: Machine, tmp_path: Path) -> None:
    machine("here")
    with on_machine(tmp_path):
        storage = open_storage("s3://nowhere/run")

    with pytest.raises(
        StorageNotWritableError,
        match=r"^spec\.compute\.storage\.objectStore\.uri: s3://nowhere/run cannot be used \(.*\); create the bucket",
    ):
        storage.require_writable()


def test_missing_credentials_are_named_with_the_field_that_brings_them(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)

    with pytest.raises(StorageNotWritableError, match=r"AWS_ACCESS_KEY_ID .*objectStore\.credentialsSecret"):
        machine("here").require_writable()


def test_a_refused_write_is_named_with_what_has_to_be_allowed(server: ObjectServer, machine: Machine) -> None:
    storage = machine("here")
    _check_permissions_after(server, requests=0)
    try:
        with pytest.raises(StorageNotWritableError, match="get, put, list and delete objects there"):
            storage.require_writable()
    finally:
        _check_permissions_after(server, requests=float("inf"))
    storage.require_writable()


def _check_permissions_after(server: ObjectServer, *, requests: float) -> None:
    """The server knows no user, so it refuses everybody once it checks."""
    request = urllib.request.Request(
        f"{server.endpoint}/moto-api/reset-auth",
        data=str(requests).encode(),
        headers={"Content-Type": "text/plain"},
    )
    urllib.request.urlopen(request, timeout=10).close()


def test_a_driver_that_is_not_installed_is_named(tmp_path: Path) -> None:
    with (
        on_machine(tmp_path),
        pytest.raises(Exception, match=r"objectStore\.uri: gs://bucket/run needs a driver"),
    ):
        open_storage("gs://bucket/run")


def test_training_does_not_wait_for_a_store_that_is_away_and_what_must_be_written_says_so(
    server: ObjectServer, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    storage = machine("here")
    store = StageStore(storage=storage)
    stage = store.begin(name="widths", key="k")
    fill(stage.directory, step=1)
    stage.keep()
    fill(stage.directory, step=2)
    server.stop()
    try:
        stage.keep()
        with pytest.raises(
            StorageNotWritableError, match=r"did not answer for 1 s .*the next attempt goes on"
        ):
            store.finish(stage, record={})
    finally:
        server.start()

    stage.keep()

    again = StageStore(storage=machine("there")).begin(name="widths", key="k")
    assert (again.directory / STATE_FILE).read_bytes() == b"state 2" * 1000


# --- small files ------------------------------------------------------------------------------------------


def test_a_stop_is_seen_on_every_machine_and_forgotten_by_the_next_attempt(machine: Machine) -> None:
    here, there = StopFlag(storage=machine("here")), StopFlag(storage=machine("there"))
    here.clear()
    assert not there.is_raised()

    here.raise_()

    assert StopFlag(storage=machine("third")).is_raised()
    here.clear()
    assert not StopFlag(storage=machine("third")).is_raised()


def test_small_files_are_replaced_and_removed(machine: Machine) -> None:
    here, there = machine("here"), machine("there")
    assert there.read("trained.json") is None
    here.write("trained.json", b"1")
    assert there.read("trained.json") == b"1"
    here.write("trained.json", b"2")
    assert there.read("trained.json") == b"2"
    for storage in (here, there):
        storage.remove("trained.json")
    assert there.read("trained.json") is None
