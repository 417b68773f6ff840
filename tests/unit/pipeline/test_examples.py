"""The examples: what a user copies has to be valid, and what it says of itself has to be true."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from tests.unit.memory.conftest import qwen2

from ireko_api.validation import find_problems, parse
from ireko_trainer.memory import Run, Stage, Texts
from ireko_trainer.pipeline.memory import AT_ONCE

GIB = 2**30


@pytest.mark.parametrize("name", ["qwen", "quickstart", "sst2", "stories", "stsb"])
def test_every_example_is_valid(repository: Path, name: str) -> None:
    assert find_problems(yaml.safe_load((repository / "examples" / f"{name}.yaml").read_text())) == []


def test_no_example_is_left_out(repository: Path) -> None:
    found = {path.stem for path in (repository / "examples").glob("*.yaml")}
    assert found == {"qwen", "quickstart", "sst2", "stories", "stsb"}


def test_the_model_of_seven_billion_fits_where_its_example_says(repository: Path) -> None:
    """On GPUs of 141 GB, of which 130 GiB are free, and into the memory that it asks for."""
    spec = parse(yaml.safe_load((repository / "examples" / "qwen.yaml").read_text())).spec
    length = spec.data.train.max_length
    run = Run(
        spec=spec,
        config=qwen2(),
        texts=Texts(train=length, validation=length, calibration=length),
        precision=torch.bfloat16,
        at_once=AT_ONCE,
        on_gpu=True,
    )
    stages: dict[str, Stage] = {stage.name: stage for stage in run.stages()}

    worker = max(stage.needed for stage in stages.values() if stage.process == "worker")
    trainer = max(stage.needed for stage in stages.values() if stage.process == "trainer")
    assert stages["select"].needed == worker
    assert worker < 130 * GIB
    assert trainer < spec.compute.head.resources.memory_bytes
    # What its comment says.
    assert round(worker / GIB) == 113
    assert round(stages["depths"].needed / GIB) == 74
    assert round(trainer / GIB) == 92
    assert round((stages["ship"].total - stages["ship"].needed) / GIB) == 57
