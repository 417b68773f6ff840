"""What `ireko run` says when a run cannot go on, and that it goes on once the cause is gone."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from tiny import Case, MakeCase, Undisturbed, finish, specification, wait_until

PATIENCE = {"IREKO_TRACKING_PATIENCE_SECONDS": "3"}


class Server(Protocol):
    """What the fixture `mlflow_server` gives."""

    uri: str

    def start(self) -> None: ...

    def stop(self) -> None: ...


@pytest.fixture(scope="module")
def case(make_case: MakeCase) -> Case:
    """A case that tests change one after the other; its finished stages stay."""
    return make_case()


# --- two at once ------------------------------------------------------------------------------------------


def test_a_second_command_says_who_is_at_work_and_the_first_can_be_stopped_at_once(case: Case) -> None:
    case.write_manifest(specification())
    with case.running() as first:
        assert wait_until(lambda: case.trainer_pid() is not None, process=first)

        second = case.run()

        assert second.exit_status == 1
        assert second.stdout == ""
        assert f"The run 'tiny' is being worked on by process {first.pid} on " in second.stderr
        assert f"kill -INT {first.pid}" in second.stderr
        assert first.poll() is None
        first.send_signal(signal.SIGINT)
        stopped = finish(first)
    assert stopped.exit_status == 3, stopped.stderr
    assert stopped.result["phase"] == "Interrupted"


# --- what the manifest asks for cannot be done ------------------------------------------------------------


def test_nothing_fits_names_the_closest_candidate(case: Case) -> None:
    spec = specification()
    spec["pipeline"]["mlfs"]["searchSpace"] = {"hidden": [1], "intermediate": [1], "layers": [1]}
    spec["pipeline"]["quantization"]["bits"] = [8]
    case.write_manifest(spec)

    ran = case.run()

    assert ran.exit_status == 1, ran.stderr
    assert (
        "Failed: spec.deviceTargets[0].constraints.maxSizeMiB: 0.13 is too small for big: the closest candidate, "
        "hidden 64, intermediate 512, 3 layers at 8 bits, needs 0.29 MiB" in ran.stderr
    )
    assert "Then go on with: ireko run" in ran.stderr
    assert (ran.result["phase"], ran.result["members"]) == ("Failed", [])


def test_a_diverging_stage_is_stopped_at_its_first_bad_step(case: Case) -> None:
    """A squared error of 1e30² is infinite in float32, so the first step diverges on any machine."""
    rows = [{"text": f"w{number}", "score": 1e30} for number in range(64)]
    (case.directory / "huge.jsonl").write_text("\n".join(map(json.dumps, rows)))
    spec = specification()
    source = {"uri": "huge.jsonl", "labelColumn": "score", "maxLength": 32}
    spec["data"] = {"problemType": "Regression", "train": source}
    case.write_manifest(spec)

    ran = case.run()

    assert ran.exit_status == 1, ran.stderr
    assert (
        f"Failed: stage teacher diverged at step 1 of {spec['pipeline']['mlfs']['stages']['teacher']['steps']}"
        in (ran.stderr)
    )
    assert "the loss is inf" in ran.stderr
    assert "the learning rate is not at fault: look for labels of enormous size" in ran.stderr


# --- MLflow away ------------------------------------------------------------------------------------------


def test_an_unreachable_mlflow_is_named_before_anything_is_started(make_case: MakeCase) -> None:
    case = make_case()

    ran = case.run("--tracking-uri", "http://127.0.0.1:9")

    assert ran.exit_status == 1
    assert "MLflow at http://127.0.0.1:9 does not answer" in ran.stderr
    assert not case.log.exists()


def test_an_mlflow_that_goes_away_ends_the_run_and_nothing_is_lost_when_it_is_back(
    make_case: MakeCase, undisturbed: Undisturbed, mlflow_server: Server
) -> None:
    case = make_case().on(mlflow_server.uri)
    with case.running("--tracking-uri", mlflow_server.uri, **PATIENCE) as process:
        assert wait_until(lambda: case.steps_in("widths") is not None, process=process), case.log_tail()
        mlflow_server.stop()
        ended = finish(process)

    assert ended.exit_status == 1, ended.stderr + case.log_tail()
    assert f"MLflow at {mlflow_server.uri} did not answer for 3 s" in ended.stderr
    assert f"--tracking-uri {mlflow_server.uri}" in ended.stderr
    finished = set(case.stages())
    assert any(name.startswith("teacher-") for name in finished)

    mlflow_server.start()
    resumed = case.run("--tracking-uri", mlflow_server.uri)

    assert resumed.exit_status == 0, resumed.stderr + case.log_tail()
    assert case.registry() == undisturbed.registry
    assert finished < set(case.stages())


# --- a full disk ------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for a database and a teacher, and for nothing more."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = _mount(disk, "size=4M")
    if mounted.returncode != 0:
        pytest.skip(f"mounting a small file system is not allowed here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def _mount(disk: Path, options: str) -> subprocess.CompletedProcess[str]:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_full_disk_is_named_and_the_run_goes_on_when_there_is_room(
    make_case: MakeCase, small_disk: Path, undisturbed: Undisturbed
) -> None:
    case = make_case().with_workdir(small_disk)

    full = case.run()

    assert full.exit_status == 1, full.stderr
    assert "no space left" in full.stderr or "disk is full" in full.stderr
    assert str(small_disk) in full.stderr
    assert "Then go on with: ireko run" in full.stderr

    assert _mount(small_disk, "remount,size=64M").returncode == 0
    resumed = case.run()

    assert resumed.exit_status == 0, resumed.stderr + case.log_tail()
    assert case.registry() == undisturbed.registry


# --- manifests that are none ------------------------------------------------------------------------------


def test_every_problem_of_a_manifest_is_listed_at_once(make_case: MakeCase) -> None:
    case = make_case()
    spec: dict[str, Any] = specification()
    spec["teacher"]["task"] = "text-clasification"
    spec["pipeline"]["mlfs"]["stages"]["widths"]["learningRate"] = "fast"
    spec["pipeline"]["quantisation"] = spec["pipeline"].pop("quantization")
    spec["deviceTargets"][1]["name"] = "big"
    del spec["deviceTargets"][0]["constraints"]["maxSizeMiB"]
    case.write_manifest(spec)

    ran = case.run()

    assert ran.exit_status == 1
    assert ran.stdout == ""
    lines = ran.stderr.splitlines()
    assert all(line.startswith(f"{case.manifest}: spec.") for line in lines), ran.stderr
    for path in (
        "spec.teacher.task",
        "spec.pipeline.mlfs.stages.widths.learningRate",
        "spec.pipeline.quantisation",
        "spec.deviceTargets[0].constraints.maxSizeMiB",
    ):
        assert sum(line.startswith(f"{case.manifest}: {path}: ") for line in lines) == 1, ran.stderr
    assert not (case.workdir / "runs").exists()


def test_a_file_that_is_not_there_is_named_with_its_field(case: Case) -> None:
    spec = specification()
    spec["data"]["train"]["uri"] = "nowhere.jsonl"
    case.write_manifest(spec)

    ran = case.run()

    assert ran.exit_status == 1
    assert "Failed: spec.data.train" in ran.stderr
    assert str(case.directory / "nowhere.jsonl") in ran.stderr
    assert "Traceback" not in ran.stderr
