"""The working directory: identity, atomic files and the lock that outlives a killed `ireko run`."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ireko_operator.errors import LockedError, StorageError
from ireko_operator.workdir import RunDirectory, Workdir, write_atomically

HOLD = """
import sys, time
from pathlib import Path
from ireko_operator.workdir import Workdir
with Workdir.at(Path(sys.argv[1])).run("demo").locked(notice=print) as descriptor:
    {body}
    print("held", flush=True)
    time.sleep(60)
"""


def ignore(_sentence: str) -> None:
    """Nobody listens."""


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return Workdir.at(tmp_path).run("demo")


def hold(root: Path, body: str = "pass") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(body=body), str(root)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_identity_of_a_run_is_made_once(directory: RunDirectory) -> None:
    with directory.locked(notice=ignore):
        uid = directory.uid()

    assert Workdir.at(directory.root).run("demo").uid() == uid
    assert Workdir.at(directory.root).run("other").uid() != uid


def test_a_damaged_identity_is_not_replaced(directory: RunDirectory) -> None:
    with directory.locked(notice=ignore):
        (directory.path / "run.json").write_text("{}")

        with pytest.raises(StorageError, match=r"run.json is damaged"):
            directory.uid()


def test_a_second_run_is_told_who_holds_the_lock(directory: RunDirectory) -> None:
    holder = hold(directory.root)
    try:
        with pytest.raises(LockedError, match=f"process {holder.pid} on .* since 20"):
            directory.locked(notice=ignore).__enter__()
    finally:
        holder.kill()
        holder.communicate()


def test_the_lock_of_a_killed_run_is_free(directory: RunDirectory) -> None:
    holder = hold(directory.root)
    holder.kill()
    holder.communicate()

    with directory.locked(notice=ignore):
        assert (directory.path / "lock").read_text().startswith(f'{{"pid": {os.getpid()}')


def test_the_trainer_of_a_killed_run_is_waited_for(directory: RunDirectory) -> None:
    orphan = "import subprocess; child = subprocess.Popen(['cat'], stdin=0, stdout=2, pass_fds=[descriptor])"
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(body=orphan), str(directory.root)],
        stdin=reading,
        stdout=subprocess.PIPE,
        text=True,
    )
    os.close(reading)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    process.kill()
    process.communicate()
    said: list[str] = []

    def let_the_orphan_end(sentence: str) -> None:
        said.append(sentence)
        threading.Timer(0.3, os.close, [writing]).start()

    with directory.locked(notice=let_the_orphan_end):
        assert said == [
            "An earlier `ireko run` of 'demo' was killed; waiting for its trainer to save its state."
        ]


def test_a_trainer_that_never_ends_is_named(directory: RunDirectory) -> None:
    orphan = "import subprocess; subprocess.Popen(['sleep', '5'], stdout=2, pass_fds=[descriptor])"
    holder = hold(directory.root, orphan)
    holder.kill()
    holder.communicate()

    with pytest.raises(LockedError, match="pgrep -af ireko_trainer"):
        directory.locked(notice=ignore, orphan_seconds=0.2).__enter__()


def test_a_failed_write_leaves_the_old_text_and_no_litter(tmp_path: Path) -> None:
    file = tmp_path / "status.json"
    write_atomically(file, "old")

    with pytest.raises(UnicodeEncodeError):
        write_atomically(file, "new \udcff")

    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]
    assert file.read_text() == "old"


def test_a_full_disk_is_a_sentence() -> None:
    with pytest.raises(StorageError, match=r"Cannot write /dev/full: the disk is full"):
        _write_to_full_device()


def _write_to_full_device() -> None:
    from ireko_operator.errors import writing_to

    path = Path("/dev/full")
    with writing_to(path), path.open("w") as file:
        file.write("x")
        file.flush()
        os.fsync(file.fileno())


def test_a_file_in_the_way_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")

    with pytest.raises(StorageError, match="choose another --workdir"):
        Workdir.at(tmp_path / "state").run("demo").locked(notice=ignore).__enter__()


def test_an_unreadable_status_is_as_good_as_none(directory: RunDirectory) -> None:
    assert directory.read_status() is None
    write_atomically(directory.status, "{")
    assert directory.read_status() is None
