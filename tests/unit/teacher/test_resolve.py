"""Every kind of URI leads to one checkpoint directory, or to a sentence."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from ireko_trainer.errors import UserError
from ireko_trainer.teacher import resolve

SaveTeacher = Callable[..., Path]


@pytest.fixture
def find(tmp_path: Path) -> Callable[..., Path]:
    def find_teacher(uri: str, *, revision: str | None = None) -> Path:
        return resolve(uri=uri, base_dir=tmp_path, revision=revision, cache_dir=tmp_path / "cache")

    return find_teacher


@pytest.mark.parametrize("form", ["{path}", "file://{path}", "teacher", "./teacher", "file://teacher"])
def test_paths_may_be_absolute_relative_and_with_scheme(
    form: str, find: Callable[..., Path], save_teacher: SaveTeacher
) -> None:
    directory = save_teacher()
    assert find(form.format(path=directory)) == directory


@pytest.mark.parametrize("inside", ["checkpoint", "artifacts/checkpoint", "data/model"])
def test_a_bundle_is_looked_through_for_its_checkpoint(
    inside: str, find: Callable[..., Path], save_teacher: SaveTeacher, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    (bundle / "pooling").mkdir(parents=True)
    (bundle / "pooling" / "config.json").write_text("{}")
    shutil.copytree(save_teacher(), bundle / inside)
    assert find("bundle") == bundle / inside


def test_two_checkpoints_are_one_too_many(find: Callable[..., Path], save_teacher: SaveTeacher) -> None:
    root = save_teacher("family/large").parent
    save_teacher("family/small")
    with pytest.raises(
        UserError, match=r"^spec.teacher.model: .* holds 2 checkpoints \(large, small\); name one"
    ):
        find(str(root))


def test_a_package_directory_is_found_without_running_the_package(
    find: Callable[..., Path], save_teacher: SaveTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "shipped_teacher"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    shutil.copytree(save_teacher(), package / "models" / "tiny")
    monkeypatch.syspath_prepend(str(package.parent))
    assert find("package://shipped_teacher/models/tiny") == package / "models" / "tiny"
    assert "shipped_teacher" not in sys.modules


def test_a_remote_directory_is_downloaded_once_and_again_when_it_changed(
    find: Callable[..., Path], save_teacher: SaveTeacher
) -> None:
    remote = fsspec.filesystem("memory")
    remote.put(f"{save_teacher()}/", "/models/teacher/", recursive=True)
    first = find("memory://models/teacher")
    assert (first / "model.safetensors").stat().st_size > 0
    assert find("memory://models/teacher") == first
    remote.pipe("/models/teacher/config.json", remote.cat("/models/teacher/config.json") + b"\n")
    assert find("memory://models/teacher") != first


def test_an_interrupted_download_leaves_nothing_that_looks_complete(
    find: Callable[..., Path],
    save_teacher: SaveTeacher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    remote = fsspec.filesystem("memory")
    remote.put(f"{save_teacher()}/", "/models/broken-off/", recursive=True)

    def break_off(*args: object, **kwargs: object) -> None:
        raise OSError("reset by peer")

    with monkeypatch.context() as patch:
        patch.setattr(type(remote), "get", break_off)
        with pytest.raises(
            UserError, match=r"^spec.teacher.model: memory://.* cannot be downloaded \(reset by peer\)"
        ):
            find("memory://models/broken-off")
    assert [path for path in (tmp_path / "cache").iterdir() if path.is_dir()] == []
    assert (find("memory://models/broken-off") / "config.json").is_file()


def test_a_hub_model_comes_from_the_cache_at_its_revision(
    find: Callable[..., Path], save_teacher: SaveTeacher, tmp_path: Path
) -> None:
    commit = "0123456789012345678901234567890123456789"
    repository = tmp_path / "cache" / "hub" / "models--someone--encoder"
    shutil.copytree(save_teacher(), repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    assert find("hf://someone/encoder") == repository / "snapshots" / commit
    assert find("hf://someone/encoder", revision=commit) == repository / "snapshots" / commit


@pytest.mark.parametrize(
    ("uri", "revision", "message"),
    [
        (
            "nowhere",
            None,
            r"nowhere means .*/nowhere, which does not exist; name the directory with .*config\.json",
        ),
        ("some.file", None, r"some\.file means .*/some\.file, which is a file; name the directory"),
        ("empty", None, r"empty holds no Hugging Face checkpoint .* save the teacher with save_pretrained"),
        ("hf://a/b/c", None, r"hf://a/b/c is not of the form hf://organisation/name"),
        ("hf://no/such", None, r"hf://no/such cannot be downloaded \(.*\); check the trainer's network"),
        (
            "package://no_such_package/x",
            None,
            r"needs the Python package no_such_package, which is not installed",
        ),
        ("package://json/nothing", None, r"the Python package json has no directory 'nothing'"),
        (
            "package://json/../..",
            None,
            r"is not of the form package://<python package>/<directory inside it>",
        ),
        ("package://os.path/x", None, r"is not of the form package://"),
        ("gs://bucket/x", None, r"gs://bucket/x needs a driver for gs://; .*install gcsfs"),
        ("nosuch://x/y", None, r"nosuch://x/y has the unknown scheme nosuch://"),
        ("memory://nothing/here", None, r"there is nothing at memory://nothing/here"),
    ],
)
def test_what_cannot_be_found_is_said_in_a_sentence(
    uri: str, revision: str | None, message: str, find: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "some.file").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=f"^spec.teacher.model: .*{message}"):
        find(uri, revision=revision)


def test_a_revision_belongs_to_hub_models_only(find: Callable[..., Path]) -> None:
    with pytest.raises(
        UserError, match=r"^spec.teacher.revision: 'main' is for hf:// models, not for teacher"
    ):
        find("teacher", revision="main")
