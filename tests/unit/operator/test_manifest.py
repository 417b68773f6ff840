"""Manifest files: what is read, what is refused, and how it is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ireko_operator.errors import ManifestError, UsageError
from ireko_operator.manifest import find_problem_lines, load_run, read_documents

Manifest = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_a_valid_manifest_has_no_problems(tmp_path: Path, make_manifest: Manifest, suffix: str) -> None:
    file = tmp_path / f"run{suffix}"
    file.write_text(json.dumps(make_manifest()) if suffix == ".json" else yaml.safe_dump(make_manifest()))

    assert find_problem_lines(file) == []
    assert load_run(file).metadata.name == "demo"


def test_every_problem_is_one_line_with_file_and_path(tmp_path: Path, make_manifest: Manifest) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(make_manifest(seed=-1, evaluation={"batchSize": 0})))

    lines = find_problem_lines(file)

    assert any(line.startswith(f"{file}: spec.seed: ") for line in lines)
    assert any(line.startswith(f"{file}: spec.evaluation.batchSize: ") for line in lines)


def test_problems_of_several_documents_say_which(tmp_path: Path, make_manifest: Manifest) -> None:
    file = tmp_path / "runs.yaml"
    file.write_text(yaml.safe_dump_all([make_manifest(), make_manifest(seed=-1)]))

    (line,) = find_problem_lines(file)

    assert line.startswith(f"{file}: document 2: spec.seed: ")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        (
            "a.yaml",
            "metadata:\n  name: a\n  name: b\n",
            "line 3, column 3: the key 'name' stands here a second time",
        ),
        ("a.yaml", "spec: [1, 2\nx: 1\n", "line 2, column 2: "),
        ("a.yaml", "a: !!python/object:os.system x\n", "line 1, column 4: could not determine a constructor"),
        ("a.yaml", "[" * 5000, "nested too deeply"),
        ("a.yaml", "a: \x00", "special characters are not allowed"),
        ("a.yaml", "# nothing\n---\n", "the file holds no manifest"),
        ("a.json", '{"a": 1,\n "a": 2}', "the key 'a' stands twice"),
        ("a.json", '{"a": \n', "line 2, column 1: "),
        ("a.json", "", "the file holds no manifest"),
    ],
)
def test_text_that_is_no_manifest_is_refused_with_its_place(
    tmp_path: Path, name: str, text: str, says: str
) -> None:
    file = tmp_path / name
    file.write_text(text)

    with pytest.raises(ManifestError) as caught:
        read_documents(file)

    (line,) = caught.value.lines
    assert line.startswith(f"{file}: ")
    assert says in line


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes(b"a: \xff")

    assert "not UTF-8" in find_problem_lines(file)[0]


@pytest.mark.parametrize("text", ["1e-4", "2.5E3", "1.e2", "-1e+2", ".5e1"])
def test_exponents_are_numbers_as_in_kubernetes(tmp_path: Path, text: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"rate: {text}\ndate: 2026-05-04\n")

    assert read_documents(file)[0].content == {"rate": float(text), "date": "2026-05-04"}


def test_merge_keys_may_be_overridden(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("base: &base {a: 1, b: 2}\nmore:\n  <<: *base\n  b: 3\n")

    assert read_documents(file)[0].content == {"base": {"a": 1, "b": 2}, "more": {"a": 1, "b": 3}}


def test_a_missing_file_and_a_directory_are_mistakes_in_the_command(tmp_path: Path) -> None:
    for path, says in ((tmp_path / "none.yaml", "does not exist"), (tmp_path, "is a directory")):
        with pytest.raises(UsageError, match=says):
            read_documents(path)


def test_run_takes_one_run(tmp_path: Path, make_manifest: Manifest) -> None:
    file = tmp_path / "runs.yaml"
    file.write_text(yaml.safe_dump_all([make_manifest(), make_manifest()]))

    with pytest.raises(ManifestError, match="holds 2 runs"):
        load_run(file)
