"""A bundle is the same for the same bytes, and one changed byte is found."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from ireko_trainer.errors import UserError
from ireko_trainer.serving import Bundle, verify_bundle, write_bundle


def bundle_of(checkpoint: Path, tokenizer: Any, directory: Path, **changes: Any) -> Bundle:
    settings: dict[str, Any] = {
        "task": "text-classification",
        "max_length": 16,
        "labels": ["no", "yes"],
        **changes,
    }
    return write_bundle(checkpoint=checkpoint, tokenizer=tokenizer, directory=directory, **settings)


def test_a_written_bundle_verifies(classifier_checkpoint: Path, tokenizer: Any, tmp_path: Path) -> None:
    bundle = bundle_of(classifier_checkpoint, tokenizer, tmp_path / "bundle")
    assert verify_bundle(bundle.directory) == bundle
    assert "checkpoint/model.safetensors" in bundle.files
    assert "checkpoint/tokenizer.json" in bundle.files
    assert "inference.json" in bundle.files


def test_the_same_checkpoint_gives_the_same_digest_wherever_it_lies(
    classifier_checkpoint: Path, tokenizer: Any, tmp_path: Path
) -> None:
    first = bundle_of(classifier_checkpoint, tokenizer, tmp_path / "one" / "bundle")
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(classifier_checkpoint, elsewhere)
    again = AutoTokenizer.from_pretrained(first.directory / "checkpoint")
    second = bundle_of(elsewhere, again, tmp_path / "two" / "bundle")
    assert second.sha256 == first.sha256


def test_writing_again_replaces_what_was_there(
    classifier_checkpoint: Path, tokenizer: Any, tmp_path: Path
) -> None:
    first = bundle_of(classifier_checkpoint, tokenizer, tmp_path / "bundle")
    (first.directory / "checkpoint" / "stray.bin").write_bytes(b"left by a crash")
    assert bundle_of(classifier_checkpoint, tokenizer, tmp_path / "bundle") == first
    assert verify_bundle(first.directory) == first


@pytest.mark.parametrize(
    "change", [{"max_length": 17}, {"labels": ["yes", "no"]}, {"task": "feature-extraction", "labels": []}]
)
def test_another_way_to_use_the_same_weights_is_another_bundle(
    change: dict[str, Any], classifier_checkpoint: Path, tokenizer: Any, tmp_path: Path
) -> None:
    first = bundle_of(classifier_checkpoint, tokenizer, tmp_path / "one")
    assert bundle_of(classifier_checkpoint, tokenizer, tmp_path / "two", **change).sha256 != first.sha256


@pytest.mark.parametrize("name", ["checkpoint/model.safetensors", "checkpoint/config.json", "inference.json"])
@pytest.mark.parametrize("position", [0, -1])
def test_one_flipped_bit_is_found_and_the_file_is_named(
    name: str, position: int, classifier_checkpoint: Path, tokenizer: Any, tmp_path: Path
) -> None:
    bundle = bundle_of(classifier_checkpoint, tokenizer, tmp_path / "bundle")
    path = bundle.directory / name
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} is damaged.*download the model again"):
        verify_bundle(bundle.directory)


def test_a_cut_file_is_told_from_a_damaged_one(
    classifier_checkpoint: Path, tokenizer: Any, tmp_path: Path
) -> None:
    bundle = bundle_of(classifier_checkpoint, tokenizer, tmp_path / "bundle")
    path = bundle.directory / "checkpoint" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors has \d+ bytes and its manifest says \d+"):
        verify_bundle(bundle.directory)


def test_missing_and_unlisted_files_are_named(
    classifier_checkpoint: Path, tokenizer: Any, tmp_path: Path
) -> None:
    bundle = bundle_of(classifier_checkpoint, tokenizer, tmp_path / "bundle")
    stray = bundle.directory / "checkpoint" / "pytorch_model.bin"
    stray.write_bytes(b"not ours")
    with pytest.raises(UserError, match=r"pytorch_model\.bin is not in the manifest"):
        verify_bundle(bundle.directory)
    stray.unlink()
    (bundle.directory / "inference.json").unlink()
    with pytest.raises(UserError, match=r"inference\.json is missing"):
        verify_bundle(bundle.directory)


def test_a_directory_that_is_no_bundle_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        verify_bundle(tmp_path)
