from __future__ import annotations

import errno
from pathlib import Path
from typing import BinaryIO

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ireko_trainer.errors import StorageFullError
from ireko_trainer.pipeline.files import (
    explained_full_disk,
    explained_io_errors,
    write_json,
    write_whole,
)
from ireko_trainer.pipeline.storage import SharedDirectory
from ireko_trainer.pipeline.store import StageStore, content_key

SIMPLE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(inputs=st.dictionaries(st.sampled_from("abcd"), SIMPLE, max_size=4))
def test_a_key_does_not_depend_on_the_order_of_its_inputs(inputs: dict[str, object]) -> None:
    assert content_key(**inputs) == content_key(**dict(reversed(inputs.items())))


def test_a_changed_input_changes_the_key() -> None:
    assert content_key(steps=10) != content_key(steps=11)


def test_an_unfinished_stage_is_not_found_and_keeps_its_files(tmp_path: Path) -> None:
    stage = StageStore(storage=SharedDirectory(tmp_path)).begin(name="widths", key="k")
    (stage.directory / "checkpoint").write_text("half way")
    again = StageStore(storage=SharedDirectory(tmp_path))
    assert again.finished(name="widths", key="k") is None
    assert (again.begin(name="widths", key="k").directory / "checkpoint").read_text() == "half way"


def test_a_finished_stage_is_found_with_its_record(tmp_path: Path) -> None:
    store = StageStore(storage=SharedDirectory(tmp_path))
    stage = store.begin(name="widths", key="k")
    (stage.directory / "weights").write_text("trained")
    store.finish(stage, record={"steps": 3})
    found = StageStore(storage=SharedDirectory(tmp_path)).finished(name="widths", key="k")
    assert found is not None
    assert found.record == {"steps": 3}
    assert found.output("weights").read_text() == "trained"
    assert store.finished(name="widths", key="other") is None


def test_a_failed_write_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_json(path, {"old": True})
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})
    assert '"old": true' in path.read_text()


def test_a_training_state_that_could_not_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    write_whole(path, lambda file: torch.save({"step": 1}, file))

    def fails(file: BinaryIO) -> None:
        torch.save({"step": 2}, file)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, fails)
    assert torch.load(path, weights_only=True) == {"step": 1}


def test_a_full_disk_is_named_with_the_remedy(tmp_path: Path) -> None:
    with (
        pytest.raises(StorageFullError, match=r"no space left on the device; free some \(nothing is lost\)"),
        explained_io_errors(tmp_path),
        Path("/dev/full").open("wb", buffering=0) as full,
    ):
        full.write(b"x")


def test_a_full_disk_is_recognized_when_only_the_text_of_an_error_names_it(tmp_path: Path) -> None:
    with pytest.raises(StorageFullError, match=f"{tmp_path}: no space left"), explained_full_disk(tmp_path):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    def complains_of_the_place() -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        finally:
            raise RuntimeError("unexpected pos 704 vs 598")

    with pytest.raises(StorageFullError, match=f"{tmp_path}: no space left"), explained_full_disk(tmp_path):
        complains_of_the_place()

    with pytest.raises(RuntimeError, match="something else"), explained_full_disk(tmp_path):
        raise RuntimeError("something else")
