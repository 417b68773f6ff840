"""`ireko` end to end, with a playing trainer and a real MLflow store on SQLite."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from ireko_operator.cli import app

PATIENCE = 120.0
PLAYING_TRAINER = Path(__file__).parent / "playing_trainer"

SPEC = {
    "teacher": {"model": "file:///models/teacher", "task": "text-classification"},
    "data": {"train": {"uri": "train.jsonl", "textColumns": ["sentence"], "labelColumn": "label"}},
    "pipeline": {"quantization": {"bits": [4, 8]}},
    "deviceTargets": [
        {"name": "gateway", "constraints": {"maxSizeMiB": 20}},
        {"name": "sensor", "constraints": {"maxSizeMiB": 5}},
    ],
}
MANIFEST = {
    "apiVersion": "ireko.dev/v1alpha1",
    "kind": "CompressionRun",
    "metadata": {"name": "demo"},
    "spec": SPEC,
}


@dataclass(frozen=True, kw_only=True)
class Desk:
    """A directory with a manifest and a working directory, and the command to use them."""

    directory: Path
    environment: dict[str, str]

    @property
    def manifest(self) -> Path:
        return self.directory / "run.yaml"

    @property
    def workdir(self) -> Path:
        return self.directory / "state"

    @property
    def tracking_uri(self) -> str:
        return f"sqlite:///{self.workdir / 'mlflow.db'}"

    @property
    def storage(self) -> Path:
        uid = json.loads((self.workdir / "runs" / "demo" / "run.json").read_text())["uid"]
        return self.workdir / "storage" / str(uid)

    def ireko(self, *arguments: str, **environment: str) -> Result:
        # MLflow writes the URI that it was told into the environment of this process.
        cleared = {"MLFLOW_TRACKING_URI": None, "MLFLOW_REGISTRY_URI": None}
        return CliRunner(env={**cleared, **self.environment, **environment}).invoke(app, list(arguments))

    def run(self, *arguments: str, **environment: str) -> Result:
        return self.ireko(
            "run", str(self.manifest), "--workdir", str(self.workdir), *arguments, **environment
        )

    def start(self, **environment: str) -> subprocess.Popen[str]:
        """`ireko run` as a process of its own."""
        command = [sys.executable, "-m", "ireko_operator.cli", "run", str(self.manifest)]
        return subprocess.Popen(
            [*command, "--workdir", str(self.workdir), "--output", "json"],
            env={**os.environ, **self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads((self.workdir / "runs" / "demo" / "status.json").read_text())
        return status

    def trainer_pid(self) -> int:
        """The pid of the living trainer, found by what it was started with."""
        request = str(self.workdir / "runs" / "demo" / "request.json")
        for process in Path("/proc").iterdir():
            if process.name.isdigit():
                try:
                    words = (process / "cmdline").read_text().split("\0")
                except OSError:
                    continue
                if "ireko_trainer" in words and request in words:
                    return int(process.name)
        pytest.fail("no trainer is alive")


@pytest.fixture
def desk(tmp_path: Path, migrated_mlflow_db: Path) -> Desk:
    desk = Desk(directory=tmp_path, environment={"PYTHONPATH": str(PLAYING_TRAINER), "COLUMNS": "200"})
    desk.workdir.mkdir()
    shutil.copyfile(migrated_mlflow_db, desk.workdir / "mlflow.db")
    desk.manifest.write_text(yaml.safe_dump(MANIFEST))
    return desk


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes to end after the test."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def working(desk: Desk) -> Callable[[], bool]:
    def at_half() -> bool:
        try:
            return (desk.storage / "checkpoint").read_text() == "5"
        except FileNotFoundError:
            return False

    return at_half


def test_a_finished_run_is_only_shown_until_its_manifest_changes(desk: Desk) -> None:
    first = desk.run("--output", "json")

    assert first.exit_code == 0, first.output
    result = json.loads(first.stdout)
    assert list(result) == ["name", "phase", "trackingUri", "runId", "teacher", "members", "report"]
    assert (result["name"], result["phase"], result["trackingUri"]) == (
        "demo",
        "Succeeded",
        desk.tracking_uri,
    )
    assert result["teacher"] == {"metrics": {"accuracy": 0.92}, "sizeBytes": 90_000_000}
    assert result["members"][0] == {
        "target": "gateway",
        "modelUri": "models:/demo@gateway",
        "version": "1",
        "sizeBytes": 4 * 1024 * 1024,
        "parameters": 4_000_000,
        "averageBits": 4.25,
        "metrics": {"accuracy": 0.9},
    }
    assert Path(result["report"]).read_text() == "<html></html>"
    assert "100 %  widths (2/3), step 10/10, about 1 min left" in first.stderr
    assert desk.status()["phase"] == "Succeeded"

    second = desk.run("--output", "json")

    assert json.loads(second.stdout) == result
    assert (desk.workdir / "runs" / "demo" / "trainer.log").read_text().count("--- attempt") == 1

    shown = desk.ireko("show", "demo", "--workdir", str(desk.workdir), "--output", "json")
    assert json.loads(shown.stdout)["members"] == result["members"]

    text = desk.run()
    assert "models:/demo@sensor" in text.stdout
    assert 'mlflow.pyfunc.load_model("models:/demo@gateway")' in text.stdout
    assert f"Report: {result['report']}" in text.stdout
    assert "97.8%" in text.stdout, "quality of the member by that of the teacher"

    desk.manifest.write_text(yaml.safe_dump({**MANIFEST, "spec": {**SPEC, "seed": 7}}))
    changed = json.loads(desk.run("--output", "json").stdout)
    assert changed["phase"] == "Succeeded"
    assert changed["runId"] != result["runId"]


def test_the_users_mistake_is_told_in_the_trainers_words(desk: Desk) -> None:
    result = desk.run("--output", "json", PLAY="fail")

    assert result.exit_code == 1
    assert "Failed: spec.data.train.uri: no-such.jsonl does not exist." in result.stderr
    assert f"Then go on with: ireko run {desk.manifest} --workdir {desk.workdir}" in result.stderr
    assert "last lines" not in result.stderr
    printed = json.loads(result.stdout)
    assert (printed["phase"], printed["members"], printed["teacher"]) == ("Failed", [], None)


def test_a_trainer_that_dies_at_once_shows_its_last_words(desk: Desk) -> None:
    result = desk.run(PLAY="crash")

    assert result.exit_code == 1
    assert "exit status 1 without saying why" in result.stderr
    assert "    Traceback: out of luck" in result.stderr
    assert "Then go on with: ireko run" in result.stderr


def test_ctrl_c_saves_the_state_and_the_same_command_goes_on(
    desk: Desk, started: list[subprocess.Popen[str]]
) -> None:
    process = desk.start(PLAY="hang")
    started.append(process)
    wait_for(working(desk))

    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=PATIENCE)

    assert process.returncode == 3, stderr
    assert "Stopping: the trainer saves its state first." in stderr
    assert "Interrupted: Stopped at step 5; the state is saved." in stderr
    assert "Go on with: ireko run" in stderr
    assert json.loads(stdout)["phase"] == "Interrupted"

    resumed = desk.run("--output", "json")

    assert resumed.exit_code == 0, resumed.output
    assert "starting at step 5" in (desk.workdir / "runs" / "demo" / "trainer.log").read_text()
    assert [attempt["outcome"] for attempt in desk.status()["attempts"]] == ["Interrupted", "Succeeded"]


def test_a_killed_trainer_is_reported_with_its_last_words(
    desk: Desk, started: list[subprocess.Popen[str]]
) -> None:
    process = desk.start(PLAY="hang")
    started.append(process)
    wait_for(working(desk))

    os.kill(desk.trainer_pid(), signal.SIGKILL)
    _, stderr = process.communicate(timeout=PATIENCE)

    assert process.returncode == 3, stderr
    assert "The trainer was killed by SIGKILL. Most often that means that memory ran out" in stderr
    assert "    starting at step 0" in stderr
    assert "Go on with: ireko run" in stderr


def test_a_killed_command_leaves_nothing_that_a_second_one_collides_with(
    desk: Desk, started: list[subprocess.Popen[str]]
) -> None:
    process = desk.start(PLAY="hang", PLAY_SAVE_SECONDS="3")
    started.append(process)
    wait_for(working(desk))

    occupied = desk.run()
    assert occupied.exit_code == 1
    assert f"is being worked on by process {process.pid}" in occupied.stderr

    process.kill()
    process.wait()
    resumed = desk.run()

    assert resumed.exit_code == 0, resumed.output
    assert "waiting for its trainer to save its state" in resumed.stderr
    assert "starting at step 5" in (desk.workdir / "runs" / "demo" / "trainer.log").read_text()


def test_an_unreachable_server_is_named_and_nothing_is_started(desk: Desk) -> None:
    result = desk.run("--tracking-uri", "http://user:secret@127.0.0.1:9")

    assert result.exit_code == 1
    assert "MLflow at http://user:***@127.0.0.1:9 does not answer" in result.stderr
    assert not (desk.workdir / "runs" / "demo" / "trainer.log").exists()
    assert (
        f"Then go on with: ireko run {desk.manifest} --workdir {desk.workdir} --tracking-uri" in result.stderr
    )


def test_validate_prints_every_problem_of_every_file(desk: Desk) -> None:
    wrong = desk.directory / "wrong.yaml"
    wrong.write_text(yaml.safe_dump({**MANIFEST, "metadata": {"name": "Not A Name"}, "extra": 1}))

    result = desk.ireko("validate", str(desk.manifest), str(wrong))

    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0] == f"{desk.manifest}: valid"
    assert any(line.startswith(f"{wrong}: metadata.name: ") for line in lines)
    assert any(line.startswith(f"{wrong}: extra: ") for line in lines)


def test_run_refuses_an_invalid_manifest_with_the_same_lines(desk: Desk) -> None:
    desk.manifest.write_text(yaml.safe_dump({**MANIFEST, "extra": 1}))

    result = desk.run("--output", "json")

    assert result.exit_code == 1
    assert result.stderr.startswith(f"{desk.manifest}: extra: ")
    assert result.stdout == ""
    assert not (desk.workdir / "runs").exists()


@pytest.mark.parametrize("command", ["run", "validate"])
def test_a_file_that_is_not_there_is_a_usage_error(desk: Desk, command: str) -> None:
    for path, says in ((desk.directory / "none.yaml", "does not exist"), (desk.directory, "is a directory")):
        result = desk.ireko(command, str(path))

        assert result.exit_code == 2
        assert says in result.stderr


def test_show_says_what_is_there_instead(desk: Desk) -> None:
    missing = desk.ireko("show", "demo", "--workdir", str(desk.directory / "elsewhere"))
    assert missing.exit_code == 1
    assert "There is no MLflow database" in missing.stderr

    empty = desk.ireko("show", "demo", "--workdir", str(desk.workdir))
    assert empty.exit_code == 1
    assert "Nothing is registered there yet." in empty.stderr


def test_crd_prints_what_kubectl_takes(desk: Desk) -> None:
    result = desk.ireko("crd")

    assert result.exit_code == 0
    assert yaml.safe_load(result.stdout)["metadata"]["name"] == "compressionruns.ireko.dev"


def test_validate_and_help_start_without_mlflow() -> None:
    script = "import sys, ireko_operator.cli; sys.exit('mlflow' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_the_version_is_that_of_the_distribution(desk: Desk) -> None:
    result = desk.ireko("--version")

    assert result.exit_code == 0
    assert result.stdout.startswith("ireko 0.")
