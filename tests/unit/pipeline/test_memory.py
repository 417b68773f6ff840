"""A run that cannot fit stops before its work starts, and says by how much; one that can is not held up."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoConfig, PretrainedConfig

from ireko_api.spec import CompressionRunSpec
from ireko_api.validation import parse
from ireko_trainer.distributed import World
from ireko_trainer.errors import UserError
from ireko_trainer.memory import Process, Room
from ireko_trainer.pipeline import memory
from ireko_trainer.pipeline.memory import MemoryCheck

MIB = 2**20


def spec_with(
    *,
    task: str = "text-generation",
    compute: dict[str, Any] | None = None,
    pipeline: dict[str, Any] | None = None,
) -> CompressionRunSpec:
    train: dict[str, Any] = {"uri": "train.jsonl", "maxLength": 64}
    if task != "text-generation":
        train["labelColumn"] = "label"
    return CompressionRunSpec.model_validate(
        {
            "teacher": {"model": "teacher", "task": task},
            "data": {"train": train},
            "pipeline": pipeline or {"mlfs": {}, "quantization": {}},
            "deviceTargets": [{"name": "gateway", "constraints": {"maxSizeMiB": 4000}}],
            "compute": compute or {},
        }
    )


def check(spec: CompressionRunSpec, **rooms: int) -> MemoryCheck:
    what = "so much is free in this test"
    found: dict[Process, Room] = {}
    for process in ("worker", "trainer"):
        if process in rooms:
            found[process] = Room(bytes=rooms[process] * MIB, what=what)
    return MemoryCheck(spec=spec, rooms=found, precision=torch.float32, on_gpu=False)


def seven_billion() -> PretrainedConfig:
    return AutoConfig.for_model(
        "qwen2",
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=152064,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )


def test_a_model_that_is_too_large_is_refused_by_its_config_with_the_arithmetic() -> None:
    with pytest.raises(UserError) as raised:
        check(spec_with(), worker=16 * 1024, trainer=16 * 1024).before_weights(seven_billion())
    said = str(raised.value)
    assert said.startswith("spec.pipeline: stage teacher needs ")
    assert "in a training worker, and so much is free in this test" in said
    # Method Full: weights, and gradients and two means for each.
    assert "85.1 GiB weights in training (7,615,616,512 × 12 bytes (gradients, 2 × AdamW))" in said
    assert "28.4 GiB weights of the teacher (7,615,616,512 × 4 bytes)" in said
    assert "What would help: spec.pipeline.mlfs.stages.teacher.method: LowRank (then " in said
    assert said.endswith("or more memory (a larger machine)")


def test_before_the_texts_are_read_a_classifier_is_refused_for_its_weights_alone() -> None:
    """How long the texts are nobody knows yet; that a model is too large for any of them is known."""
    spec, config = spec_with(task="text-classification"), AutoConfig.for_model("bert")
    check(spec, worker=2048, trainer=2048).before_weights(config)
    with pytest.raises(UserError, match=r"stage teacher needs 1\.7 GiB"):
        check(spec, worker=1024, trainer=2048).before_weights(config)


def test_the_process_that_ships_is_judged_by_its_own_room() -> None:
    spec, config = spec_with(task="text-classification"), AutoConfig.for_model("bert")
    with pytest.raises(UserError, match=r"stage quantize needs 1\.5 GiB in the trainer's own process"):
        check(spec, worker=2048, trainer=512).before_weights(config)


def test_weights_that_are_mapped_do_not_refuse_a_run_but_are_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    spec, config = spec_with(task="text-classification"), AutoConfig.for_model("bert")
    ship = next(
        stage for stage in check(spec, trainer=4096)._require(run_of(spec, config)) if stage.name == "ship"
    )
    between = (ship.needed + ship.total) // 2 // MIB
    caplog.set_level(logging.WARNING)
    check(spec, trainer=between).before_weights(config)
    assert "stage ship will be slow" in caplog.text


def run_of(spec: CompressionRunSpec, config: PretrainedConfig) -> memory.Run:
    texts = memory.Texts(train=1, validation=1, calibration=1)
    return memory.Run(spec=spec, config=config, texts=texts, precision=torch.float32, at_once=memory.AT_ONCE)


def test_the_default_request_is_no_limit_on_a_laptop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "host_room", lambda: Room(bytes=64 * 1024 * MIB, what="a large machine"))
    monkeypatch.setattr(memory, "own_bytes", lambda: 500 * MIB)
    of_driver = MemoryCheck.of_driver(spec_with())
    assert of_driver.rooms["trainer"].bytes == 64 * 1024 * MIB
    assert of_driver.rooms["worker"].bytes == (64 * 1024 - 500) * MIB


def test_workers_of_one_machine_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "host_room", lambda: Room(bytes=8000 * MIB, what="a machine"))
    monkeypatch.setattr(memory, "own_bytes", lambda: 500 * MIB)
    of_driver = MemoryCheck.of_driver(spec_with(compute={"workers": 4}))
    assert of_driver.rooms["worker"].bytes == 1500 * MIB
    assert "4 worker(s) that take 500 MiB each" in of_driver.rooms["worker"].what


def test_memory_that_the_manifest_names_is_a_limit_on_a_laptop_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "host_room", lambda: Room(bytes=8000 * MIB, what="a machine"))
    monkeypatch.setattr(memory, "own_bytes", lambda: 500 * MIB)
    of_driver = MemoryCheck.of_driver(spec_with(compute={"resourcesPerWorker": {"memory": "3Gi"}}))
    assert of_driver.rooms["worker"].bytes == (3072 - 500) * MIB
    assert of_driver.rooms["trainer"].bytes == 8000 * MIB


@pytest.mark.parametrize(
    ("recovery", "rooms"),
    [(None, {"trainer", "worker"}), ({"steps": 5}, {"trainer"})],
    ids=["alone", "trained"],
)
def test_factoring_is_done_on_gpus_where_the_factors_are_trained_there(
    recovery: dict[str, int] | None, rooms: set[str]
) -> None:
    """Without training steps there are no workers, and the trainer's own process has no GPU."""
    delta = {"targetReduction": 0.2, "recovery": recovery}
    gpus = {"resourcesPerWorker": {"gpu": 1}}
    of_driver = MemoryCheck.of_driver(spec_with(compute=gpus, pipeline={"delta": delta}))
    assert set(of_driver.rooms) == rooms
    assert of_driver.on_gpu == (recovery is not None)


def test_what_only_factors_is_refused_in_the_trainers_own_process() -> None:
    spec = spec_with(pipeline={"delta": {"targetReduction": 0.2}})
    with pytest.raises(UserError, match=r"stage select needs .* in the trainer's own process") as raised:
        check(spec, worker=10**5, trainer=10**6).before_weights(seven_billion())
    said = str(raised.value)
    assert "their roots, both ways (" in said
    assert "spec.pipeline.delta.initialization: Whitened (then " in said


def test_a_driver_leaves_gpus_to_the_workers() -> None:
    of_driver = MemoryCheck.of_driver(spec_with(compute={"resourcesPerWorker": {"gpu": 1}}))
    assert set(of_driver.rooms) == {"trainer"}
    assert of_driver.precision == torch.bfloat16


def test_on_a_laptop_the_driver_has_asked_already() -> None:
    assert MemoryCheck.of_worker(spec_with(), World()).rooms == {}


def test_on_a_cluster_a_worker_asks_for_itself_and_for_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(memory, "host_room", lambda: Room(bytes=1500 * MIB, what="of the container"))
    monkeypatch.setattr(memory, "own_bytes", lambda: 500 * MIB)
    compute = {"workers": 2, "head": {"resources": {"memory": "4Gi"}}}
    of_worker = MemoryCheck.of_worker(spec_with(compute=compute), World(rank=1, size=2))
    assert of_worker.rooms["worker"].bytes == 1500 * MIB
    assert of_worker.rooms["trainer"].bytes == (4096 - 500) * MIB
    assert "spec.compute.head.resources.memory 4Gi" in of_worker.rooms["trainer"].what


def test_a_worker_that_may_grow_is_judged_by_what_it_may_grow_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(memory, "host_room", lambda: Room(bytes=1500 * MIB, what="of the container"))
    of_worker = MemoryCheck.of_worker(spec_with(compute={"maxMemory": "6Gi"}), World())
    assert of_worker.rooms["worker"].bytes == (1500 + 4096) * MIB


def test_the_examples_fit_a_laptop(repository: Path, minilm_dir: Path) -> None:
    """With two gibibytes left beside the process, and every text as long as it may be."""
    config = AutoConfig.from_pretrained(minilm_dir)
    for name in ("quickstart", "sst2", "stsb"):
        spec = parse(yaml.safe_load((repository / "examples" / f"{name}.yaml").read_text())).spec
        length = spec.data.train.max_length
        texts = memory.Texts(train=length, validation=length, calibration=length)
        run = memory.Run(
            spec=spec, config=config, texts=texts, precision=torch.float32, at_once=memory.AT_ONCE
        )
        check(spec, worker=2048, trainer=2048)._require(run)
