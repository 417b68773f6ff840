"""A run that is killed again and again ends as one that was left alone: the same bytes under the same names."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from subprocess import Popen
from typing import Any

import pytest
from tiny import (
    DEPTHS_STEPS,
    NAME,
    TEACHER_STEPS,
    WIDTHS_STEPS,
    Case,
    MakeCase,
    Ran,
    Undisturbed,
    finish,
    specification,
    wait_until,
)

SEED = int(os.environ.get("IREKO_TEST_KILL_SEED", random.randrange(1000)))
"""Of the moments of the kills: others in every session, and the same again when a failure names them."""

Blow = Callable[[Popen[str], int], None]
"""Ends the processes of a command and its trainer, or asks them to end."""


def kill_trainer(_process: Popen[str], trainer: int) -> None:
    os.kill(trainer, signal.SIGKILL)


def kill_command(process: Popen[str], _trainer: int) -> None:
    process.kill()


def kill_both(process: Popen[str], trainer: int) -> None:
    process.kill()
    os.kill(trainer, signal.SIGKILL)


def press_control_c(process: Popen[str], _trainer: int) -> None:
    process.send_signal(signal.SIGINT)


@dataclass(frozen=True, kw_only=True)
class Moment:
    """When and how a run is disturbed."""

    stage: str
    step: int
    seconds: float
    """After the step, for stages that have none."""
    blow: Blow

    def __str__(self) -> str:
        return f"{self.blow.__name__} in {self.stage} after step {self.step} and {self.seconds:.2f} s"


def moments(seed: int) -> list[Moment]:
    """One kill of each kind, each in a later stage than the one before."""
    random_numbers = random.Random(seed)

    def at(stage: str, blow: Blow, *, steps: int = 0, seconds: float = 0.0) -> Moment:
        return Moment(
            stage=stage,
            step=random_numbers.randrange(steps) if steps else 0,
            seconds=random_numbers.uniform(0, seconds),
            blow=blow,
        )

    return [
        at("teacher", kill_trainer, steps=TEACHER_STEPS - 5),
        at("widths", press_control_c, steps=WIDTHS_STEPS // 2),
        at("depths", kill_command, steps=DEPTHS_STEPS // 2),
        at(random_numbers.choice(["select", "member", "quantize"]), kill_both, seconds=0.5),
        at("publish", kill_trainer, seconds=1.0),
    ]


@dataclass(frozen=True, kw_only=True)
class Disturbed:
    """A run that was disturbed at every moment and then left alone."""

    case: Case
    attempts: dict[str, Ran]
    """By the name of the blow at each moment."""
    last: Ran
    registry: dict[str, Any]


@pytest.fixture(scope="module")
def disturbed(make_case: MakeCase) -> Disturbed:
    case = make_case()
    attempts = {str(moment): _disturb(case, moment) for moment in moments(SEED)}
    last = case.run()
    assert last.exit_status == 0, f"seed {SEED}: {list(attempts)}\n{last.stderr}\n{case.log_tail()}"
    return Disturbed(case=case, attempts=attempts, last=last, registry=case.registry())


def _disturb(case: Case, moment: Moment) -> Ran:
    with case.running() as process:
        reached = wait_until(lambda: _has_reached(case, moment), process=process)
        assert reached, f"seed {SEED}: ended before {moment}\n{finish(process).stderr}\n{case.log_tail()}"
        time.sleep(moment.seconds)
        trainer = case.trainer_pid()
        assert trainer is not None, f"seed {SEED}: no trainer at {moment}"
        moment.blow(process, trainer)
        return finish(process)


def _has_reached(case: Case, moment: Moment) -> bool:
    steps = case.steps_in(moment.stage)
    # Steps that an earlier attempt left are seen before this one's trainer is there.
    return steps is not None and steps >= moment.step and case.trainer_pid() is not None


def test_the_registry_holds_the_same_bytes_under_the_same_names(
    disturbed: Disturbed, undisturbed: Undisturbed
) -> None:
    assert disturbed.registry == undisturbed.registry, f"seed {SEED}: {list(disturbed.attempts)}"


def test_the_result_is_that_of_the_undisturbed_run(disturbed: Disturbed, undisturbed: Undisturbed) -> None:
    for part in ("name", "phase", "teacher", "members"):
        assert disturbed.last.result[part] == undisturbed.ran.result[part]


def test_whoever_survives_says_how_to_go_on(disturbed: Disturbed) -> None:
    for moment, attempt in disturbed.attempts.items():
        if "kill_command" in moment or "kill_both" in moment:
            assert attempt.exit_status == -signal.SIGKILL
            continue
        assert attempt.exit_status == 3, f"{moment}: {attempt.stderr}"
        assert attempt.result["phase"] == "Interrupted"
        command = f"ireko run {disturbed.case.manifest} --workdir {disturbed.case.workdir}"
        assert f"Go on with: {command}" in attempt.stderr
        # A stop asked for in one stage may be noticed in the next.
        says = "killed by SIGKILL" if "kill_trainer" in moment else "stopped "
        assert says in attempt.stderr, moment


def test_every_step_is_in_mlflow_once_and_every_stage_has_one_run(disturbed: Disturbed) -> None:
    client, run_id = disturbed.case.client, disturbed.last.result["runId"]
    experiment = client.get_run(run_id).info.experiment_id
    runs = client.search_runs([experiment])
    nested = {run.info.run_name: run for run in runs if run.info.run_id != run_id}

    assert len(nested) == len(runs) - 1, "one parent, and one nested run for each stage"
    assert {run.info.status for run in runs} == {"FINISHED"}
    for stage, steps in {"teacher": TEACHER_STEPS, "widths": WIDTHS_STEPS, "depths": DEPTHS_STEPS}.items():
        history = client.get_metric_history(nested[stage].info.run_id, "loss")
        assert Counter(reading.step for reading in history) == Counter(range(1, steps + 1)), stage


def test_nothing_half_done_is_left(disturbed: Disturbed) -> None:
    assert not list((disturbed.case.storage / "stages").glob("*.partial"))
    assert disturbed.case.trainer_pid() is None


# --- the finished run with a changed manifest -------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Changed:
    """What a run of a changed manifest left on top of what was there."""

    case: Case
    ran: Ran
    before: dict[str, int]
    """Inode of every stage that was finished."""
    registry: dict[str, Any]

    @property
    def added(self) -> set[str]:
        """The names of the stages that were done."""
        return {name.rpartition("-")[0] for name in set(self.case.stages()) - set(self.before)}

    def taken_over(self) -> set[str]:
        """The stages that MLflow shows as taken over from an earlier run."""
        run = self.case.client.get_run(self.ran.result["runId"])
        runs = self.case.client.search_runs(
            [run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
        )
        return {run.info.run_name for run in runs if "ireko.stage.source_run" in run.data.tags}


def _rerun(case: Case, spec: dict[str, Any]) -> Changed:
    before = _inodes(case)
    case.write_manifest(spec)
    ran = case.run()
    assert ran.exit_status == 0, ran.stderr + case.log_tail()
    assert {name: inode for name, inode in _inodes(case).items() if name in before} == before
    return Changed(case=case, ran=ran, before=before, registry=case.registry())


def _inodes(case: Case) -> dict[str, int]:
    return {name: (path / "record.json").stat().st_ino for name, path in case.stages().items()}


@pytest.fixture(scope="module")
def with_a_third_target(disturbed: Disturbed) -> Changed:
    spec = specification()
    spec["deviceTargets"].append({"name": "medium", "constraints": {"maxSizeMiB": 0.131}})
    return _rerun(disturbed.case, spec)


@pytest.fixture(scope="module")
def with_a_longer_recovery(with_a_third_target: Changed) -> Changed:
    spec = specification()
    spec["pipeline"]["mlfs"]["recovery"]["steps"] += 5
    return _rerun(with_a_third_target.case, spec)


def test_a_target_that_asks_for_the_same_shapes_costs_no_training(with_a_third_target: Changed) -> None:
    assert with_a_third_target.added == {"palette", "select", "quantize-medium", "publish"}
    assert {"teacher", "order", "widths", "depths"} < with_a_third_target.taken_over()


def test_a_new_target_adds_its_version_and_touches_no_other(
    disturbed: Disturbed, with_a_third_target: Changed
) -> None:
    before, after = disturbed.registry, with_a_third_target.registry

    assert after["aliases"] == {**before["aliases"], "medium": 3}
    assert {number: after["versions"][number] for number in before["versions"]} == before["versions"]
    assert after["versions"][3][0] == "medium"


def test_another_recovery_does_the_members_again_and_nothing_before_them(
    with_a_longer_recovery: Changed,
) -> None:
    kinds = {name.partition("-")[0] for name in with_a_longer_recovery.added}

    assert kinds == {"member", "quantize", "publish"}
    assert {
        *("teacher", "order", "palette", "widths", "depths", "select")
    } == with_a_longer_recovery.taken_over()


def test_aliases_move_to_the_members_of_the_changed_recovery(
    disturbed: Disturbed, with_a_longer_recovery: Changed
) -> None:
    aliases, versions = (with_a_longer_recovery.registry[part] for part in ("aliases", "versions"))

    for target, (_, bundle) in ((target, versions[aliases[target]]) for target in ("big", "small")):
        assert aliases[target] > max(disturbed.registry["aliases"].values())
        assert bundle not in {known for _, known in disturbed.registry["versions"].values()}
        tags = with_a_longer_recovery.case.client.get_model_version_by_alias(NAME, target).tags
        assert tags["ireko.run.id"] == with_a_longer_recovery.ran.result["runId"]
    attempts = json.loads((with_a_longer_recovery.case.workdir / "runs" / NAME / "status.json").read_text())[
        "attempts"
    ]
    assert attempts[-1]["outcome"] == "Succeeded"
