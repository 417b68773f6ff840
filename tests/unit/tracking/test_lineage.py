"""Specs become parameters that MLflow can show."""

from __future__ import annotations

import platform

import torch

from ireko_trainer.tracking.lineage import flat_parameters, lineage_tags


def test_a_spec_becomes_dotted_names_and_plain_strings() -> None:
    spec = {
        "seed": 0,
        "teacher": {"model": "hf://a/b", "revision": None, "trustRemoteCode": False},
        "pipeline": {"mlfs": {"searchSpace": {"hidden": [1, 0.5]}}},
        "deviceTargets": [{"name": "gateway", "constraints": {"maxSizeMiB": 20}}],
    }
    assert flat_parameters(spec) == {
        "seed": "0",
        "teacher.model": "hf://a/b",
        "teacher.trustRemoteCode": "false",
        "pipeline.mlfs.searchSpace.hidden": "[1, 0.5]",
        "deviceTargets.gateway.constraints.maxSizeMiB": "20",
    }


def test_lineage_names_the_data_the_teacher_and_the_versions() -> None:
    tags = lineage_tags(seed=7, teacher_sha256="ab", data_sha256={"train": "cd", "validation": "ef"})
    assert tags["ireko.seed"] == "7"
    assert tags["ireko.teacher.sha256"] == "ab"
    assert tags["ireko.data.train.sha256"] == "cd"
    assert tags["ireko.data.validation.sha256"] == "ef"
    assert tags["ireko.version.python"] == platform.python_version()
    assert torch.__version__.startswith(tags["ireko.version.torch"].split("+")[0])
