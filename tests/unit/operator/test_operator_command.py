"""`ireko operator` before it meets a cluster: its options, their variables, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ireko_operator.cli import app
from ireko_operator.launch.platform import PolicyException, SubmissionMode
from ireko_operator.process import operator as process
from ireko_operator.process.settings import OperatorSettings

RUN = CliRunner()


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> list[OperatorSettings]:
    """What the command would have started with."""
    started: list[OperatorSettings] = []

    def run_operator(settings: OperatorSettings) -> int:
        started.append(settings)
        return 0

    monkeypatch.setattr(process, "run_operator", run_operator)
    monkeypatch.setattr("ireko_operator.process.command.leave_out_what_is_not_needed", lambda: None)
    return started


def test_every_option_arrives(settings: list[OperatorSettings], tmp_path: Path) -> None:
    defaults = tmp_path / "pod.yaml"
    defaults.write_text("spec: {nodeSelector: {pool: gpu}}")
    options = (
        "--namespace a --namespace b --namespace a --trainer-image t:1 --tracking-uri http://m "
        "--allowed-tracking-uri http://n --allow HostPath --allow RunAsRoot --submission-mode HTTPMode --workers 8 "
        "--progress-interval 5 --no-leader-elect --lease-name l --lease-namespace ops --host 127.0.0.1 --port 0 "
        f"--log-format text --log-level DEBUG --kubeconfig k --pod-defaults {defaults}"
    )
    result = RUN.invoke(app, ["operator", *options.split()])
    assert result.exit_code == 0, result.output
    (started,) = settings
    assert started == OperatorSettings(
        namespaces=("a", "b"),
        trainer_image="t:1",
        tracking_uri="http://m",
        allowed_tracking_uris=frozenset({"http://n"}),
        pod_defaults={"spec": {"nodeSelector": {"pool": "gpu"}}},
        exceptions=frozenset({PolicyException.HOST_PATH, PolicyException.RUN_AS_ROOT}),
        submission_mode=SubmissionMode.HTTP,
        workers=8,
        progress_interval=5.0,
        leader_elect=False,
        lease_name="l",
        lease_namespace="ops",
        identity=started.identity,
        host="127.0.0.1",
        port=0,
        log_format="text",
        log_level="debug",
        kubeconfig=Path("k"),
    )


def test_variables_stand_for_options(settings: list[OperatorSettings]) -> None:
    variables = {"IREKO_TRAINER_IMAGE": "t:2", "IREKO_NAMESPACE": "a b", "IREKO_LEADER_ELECT": "false"}
    result = RUN.invoke(app, ["operator"], env=variables)
    assert result.exit_code == 0, result.output
    assert (settings[0].trainer_image, settings[0].namespaces) == ("t:2", ("a", "b"))
    assert not settings[0].leader_elect


def test_two_processes_never_have_the_same_identity(settings: list[OperatorSettings]) -> None:
    for _ in range(2):
        RUN.invoke(app, ["operator", "--trainer-image", "t"])
    assert settings[0].identity != settings[1].identity


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "--trainer-image or $IREKO_TRAINER_IMAGE"),
        (["--trainer-image", "t", "--log-level", "loud"], "choose debug, info, warning or error"),
        (
            ["--trainer-image", "t", "--pod-defaults", "missing.yaml"],
            "--pod-defaults missing.yaml: No such file",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_a_sentence(
    settings: list[OperatorSettings], options: list[str], sentence: str
) -> None:
    result = RUN.invoke(app, ["operator", *options])
    assert result.exit_code == 2
    assert sentence in " ".join(result.output.split())
    assert not settings


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("spec: [", "is no YAML"), ("[1]", "must be a pod template"), ("kind: Pod", "must be a pod")],
)
def test_pod_defaults_that_are_no_pod_template_are_refused(
    settings: list[OperatorSettings], tmp_path: Path, text: str, sentence: str
) -> None:
    file = tmp_path / "pod.yaml"
    file.write_text(text)
    result = RUN.invoke(app, ["operator", "--trainer-image", "t", "--pod-defaults", str(file)])
    assert result.exit_code == 2
    assert sentence in " ".join(result.output.split())


def test_other_commands_load_nothing_that_only_the_operator_needs() -> None:
    loaded = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, ireko_operator.cli; "
            "print([name for name in ('kopf', 'kubernetes', 'mlflow', 'prometheus_client') if name in sys.modules])",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert loaded.stdout.strip() == "[]"


def test_the_operator_leaves_out_the_packages_that_cost_memory_and_does_its_work_without() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys\n"
            "from ireko_operator.process.footprint import leave_out_what_is_not_needed\n"
            "leave_out_what_is_not_needed()\n"
            "import ireko_operator.process.operator, ireko_operator.reconcile.cluster\n"
            "print([name for name in ('numpy', 'pandas', 'pyarrow', 'torch', 'ray') if sys.modules.get(name)])",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
