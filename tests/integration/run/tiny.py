"""A whole compression in seconds: a BERT of three layers, sentences that give their label away, `ireko run`.

Everything is real (the command, the trainer process, MLflow on SQLite); only the model is small. One torch
thread and float32 make every run of one manifest produce the same bytes, whatever happened on the way.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

NAME = "tiny"
TARGETS = {"big": 0.13, "small": 0.1}
"""Device target → maxSizeMiB. The teacher has 1 MiB, and 0.16 at 4 bits."""
TEACHER_STEPS, WIDTHS_STEPS, DEPTHS_STEPS, RECOVERY_STEPS = 60, 30, 30, 15
PATIENCE_SECONDS = 400.0
"""For one command on a busy machine; alone it takes a twentieth."""

_VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(200))]
_LABELS = ("neg", "pos")
_MISTAKEN = 0.05
"""Share of wrong labels: with none, every member is perfect and nothing is left to choose by."""


def specification() -> dict[str, Any]:
    """All stages of MLFS, recovery and quantization, for two device targets; a fresh copy to change."""
    data = {"labelColumn": "label", "maxLength": 32}
    return {
        "seed": 0,
        "teacher": {"model": "teacher", "task": "text-classification"},
        "data": {
            "labels": list(_LABELS),
            "train": {"uri": "train.jsonl", **data},
            "validation": {"uri": "validation.jsonl", **data},
        },
        "pipeline": {
            "mlfs": {
                "batchSize": 16,
                "precision": "float32",
                "searchSpace": {"hidden": [1, 0.5], "intermediate": [1, 0.5], "layers": [1, 0.67]},
                "stages": {
                    "teacher": {"method": "Full", "steps": TEACHER_STEPS, "learningRate": 3e-3},
                    "widths": {"steps": WIDTHS_STEPS, "learningRate": 5e-3},
                    "depths": {"steps": DEPTHS_STEPS, "learningRate": 5e-3},
                },
                "recovery": {"steps": RECOVERY_STEPS},
                "checkpointSeconds": 5,
            },
            "quantization": {"importance": "LIM", "bits": [4, 8]},
        },
        "deviceTargets": [
            {"name": name, "constraints": {"maxSizeMiB": size}} for name, size in TARGETS.items()
        ],
        "compute": {"workers": 0},
    }


def write_inputs(directory: Path) -> None:
    """The teacher, an untrained encoder, and texts of which three words give the label away."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(_VOCABULARY),
        hidden_size=64,
        num_attention_heads=4,
        num_hidden_layers=3,
        intermediate_size=512,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(directory / "teacher")
    BertTokenizerFast(vocab={word: number for number, word in enumerate(_VOCABULARY)}).save_pretrained(
        directory / "teacher"
    )
    random_numbers = random.Random(0)
    for split, count in (("train", 320), ("validation", 100)):
        rows = [_row(random_numbers, label=number % 2) for number in range(count)]
        (directory / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))


def _row(random_numbers: random.Random, *, label: int) -> dict[str, Any]:
    words = [f"w{random_numbers.randrange(10) + 10 * label}" for _ in range(3)]
    words += [f"w{random_numbers.randrange(20, 200)}" for _ in range(random_numbers.randrange(6))]
    random_numbers.shuffle(words)
    mistaken = random_numbers.random() < _MISTAKEN
    return {"text": " ".join(words), "label": _LABELS[1 - label if mistaken else label]}


@dataclass(frozen=True, kw_only=True)
class Ran:
    """A command that has ended."""

    exit_status: int
    stdout: str
    stderr: str

    @property
    def result(self) -> dict[str, Any]:
        """The JSON object on standard output, which must hold nothing else."""
        result: dict[str, Any] = json.loads(self.stdout)
        return result


@dataclass(frozen=True, kw_only=True)
class Case:
    """A directory with inputs and a manifest, its working directory, and the command to use them."""

    directory: Path
    workdir: Path
    tracking_uri: str
    name: str = NAME

    @classmethod
    def make(cls, directory: Path, *, inputs: Path, database: Path) -> Case:
        """A case in `directory` with copies of the inputs and of a migrated MLflow database."""
        shutil.copytree(inputs, directory, dirs_exist_ok=True)
        workdir = directory / "state"
        workdir.mkdir()
        shutil.copyfile(database, workdir / "mlflow.db")
        case = cls(directory=directory, workdir=workdir, tracking_uri=f"sqlite:///{workdir / 'mlflow.db'}")
        case.write_manifest(specification())
        return case

    def on(self, tracking_uri: str) -> Case:
        """The same case with its results in another tracking store."""
        return replace(self, tracking_uri=tracking_uri)

    def with_workdir(self, workdir: Path) -> Case:
        """The same case with another working directory, and the database in it."""
        shutil.copyfile(self.workdir / "mlflow.db", workdir / "mlflow.db")
        return replace(self, workdir=workdir, tracking_uri=f"sqlite:///{workdir / 'mlflow.db'}")

    @property
    def manifest(self) -> Path:
        return self.directory / "run.yaml"

    @property
    def log(self) -> Path:
        return self.workdir / "runs" / self.name / "trainer.log"

    @property
    def storage(self) -> Path:
        identity = json.loads((self.workdir / "runs" / self.name / "run.json").read_text())
        return self.workdir / "storage" / str(identity["uid"])

    def write_manifest(self, spec: Mapping[str, Any]) -> None:
        manifest = {
            "apiVersion": "ireko.dev/v1alpha1",
            "kind": "CompressionRun",
            "metadata": {"name": self.name},
            "spec": spec,
        }
        self.manifest.write_text(yaml.safe_dump(manifest))

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """`ireko run` in a session of its own."""
        command = [sys.executable, "-m", "ireko_operator.cli", "run", str(self.manifest)]
        command += ["--workdir", str(self.workdir), "--output", "json", *arguments]
        return subprocess.Popen(
            command,
            # A store that an earlier test named in this process is none of the command's business.
            env={**_without(os.environ, "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, **environment: str) -> Ran:
        """`ireko run` to its end."""
        with self.running(*arguments, **environment) as process:
            return finish(process)

    @contextlib.contextmanager
    def running(self, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
        """`ireko run` while a test does something to it; killed if the test does not see it end.

        A trainer that outlives its command is left alone, as it would be outside of tests.
        """
        process = self.start(*arguments, **environment)
        try:
            yield process
        finally:
            if process.poll() is None:
                for pid in (process.pid, self.trainer_pid()):
                    if pid is not None:
                        with contextlib.suppress(ProcessLookupError):
                            os.killpg(pid, signal.SIGKILL)
                process.communicate()

    def trainer_pid(self) -> int | None:
        """The living trainer of this case, found by what it was started with."""
        request = str(self.workdir / "runs" / self.name / "request.json")
        return next(
            (pid for pid, words in processes() if "ireko_trainer" in words and request in words), None
        )

    def log_tail(self) -> str:
        """The end of what the trainer wrote, for the message of a failed test."""
        return self.log.read_text()[-4000:] if self.log.exists() else "(the trainer wrote no log)"

    def stages(self) -> dict[str, Path]:
        """The finished stages by directory name, which is the stage's name and the hash of its inputs."""
        return {
            path.name: path
            for path in (self.storage / "stages").iterdir()
            if path.is_dir() and not path.name.endswith(".partial")
        }

    def steps_in(self, stage: str) -> int | None:
        """Steps that an unfinished stage has recorded, or None where it has not begun or is finished."""
        try:
            begun = next((self.storage / "stages").glob(f"{stage}-*.partial"), None)
        except FileNotFoundError:
            return None
        if begun is None:
            return None
        try:
            return len((begun / "metrics.jsonl").read_text().splitlines())
        except FileNotFoundError:
            return 0

    def registry(self) -> dict[str, Any]:
        """What people and devices can see: versions with their bundles, and aliases. Nothing that may differ."""
        versions = sorted(
            self.client.search_model_versions(f"name = '{self.name}'"),
            key=lambda version: int(version.version),
        )
        return {
            "versions": {
                int(version.version): (version.tags["device.target"], version.tags["bundle.sha256"])
                for version in versions
            },
            "aliases": {
                alias: int(version)
                for alias, version in self.client.get_registered_model(self.name).aliases.items()
            },
        }

    @functools.cached_property
    def client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(self.tracking_uri, self.tracking_uri)


MakeCase = Callable[[], Case]


@dataclass(frozen=True, kw_only=True)
class Undisturbed:
    """A run from beginning to end, and what the registry held then."""

    case: Case
    ran: Ran
    registry: dict[str, Any]


def finish(process: subprocess.Popen[str], *, patience: float = PATIENCE_SECONDS) -> Ran:
    """Wait for a command to end."""
    stdout, stderr = process.communicate(timeout=patience)
    return Ran(exit_status=process.returncode, stdout=stdout, stderr=stderr)


def wait_until(
    reached: Callable[[], bool],
    *,
    process: subprocess.Popen[str],
    seconds: float = 0.01,
    patience: float = PATIENCE_SECONDS,
) -> bool:
    """Wait for something that a command does; False when the command ended without it."""
    deadline = time.monotonic() + patience
    while not reached():
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(seconds)
    return True


def processes() -> Iterator[tuple[int, list[str]]]:
    """Every process of this machine with the words of its command line."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                yield int(entry.name), (entry / "cmdline").read_text(errors="replace").split("\0")


def _without(environment: Mapping[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in names}
