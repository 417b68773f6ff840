"""Before work starts: what will each stage need, and is there so much?

It is asked twice. Before the teacher's weights are loaded its config tells what does not depend on the texts, which is
most of it for a large model. When the texts are read their lengths tell the rest. Each process answers for the memory
that it can see: the driver on a laptop for everything but GPUs, the workers of a cluster for themselves and, by the
manifest, for the head that ships the family after them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from transformers import PretrainedConfig

from ireko_api.handoff import RunRequest
from ireko_api.quantity import to_bytes
from ireko_api.spec import CompressionRunSpec, Resources
from ireko_trainer.data import EncodedDataset
from ireko_trainer.distributed import World, in_cluster
from ireko_trainer.errors import UserError
from ireko_trainer.memory import (
    AtOnce,
    Kept,
    Pass,
    Process,
    Room,
    Run,
    Stage,
    Texts,
    arithmetic,
    device_room,
    host_room,
    own_bytes,
    remedies,
    size,
    table,
)
from ireko_trainer.pipeline.bits import BASELINE_ORDERS
from ireko_trainer.pipeline.deltas import DELTA_ROWS
from ireko_trainer.pipeline.inputs import Inputs, load_inputs
from ireko_trainer.pipeline.judging import BATCH_TOKENS, SAMPLE_SIZE, SAMPLE_TOKENS
from ireko_trainer.pipeline.plan import meter_for
from ireko_trainer.pipeline.precision import training_precision
from ireko_trainer.pipeline.training import ORDER_ROWS
from ireko_trainer.tracking.runs import FamilyRun

AT_ONCE = AtOnce(
    order_rows=ORDER_ROWS,
    delta_rows=DELTA_ROWS,
    batch_tokens=BATCH_TOKENS,
    sample_rows=SAMPLE_SIZE,
    sample_tokens=SAMPLE_TOKENS,
    baselines=len(BASELINE_ORDERS),
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class MemoryCheck:
    """One run, as far as one process can judge it."""

    spec: CompressionRunSpec
    rooms: Mapping[Process, Room]
    """What there is for each kind of process; those that another process judges are left out."""
    precision: torch.dtype
    on_gpu: bool
    passes: dict[Pass, Kept] = field(default_factory=dict)
    """What the first estimate found serves the second one where the texts have one length."""

    @classmethod
    def of_driver(cls, spec: CompressionRunSpec) -> MemoryCheck:
        """On a machine of one's own, before workers are started."""
        on_gpu = spec.compute.resources_per_worker.gpu > 0 and spec.trains
        here = host_room()
        rooms: dict[Process, Room] = {"trainer": here}
        if not on_gpu:
            rooms["worker"] = _share_of_a_worker(here, spec)
        # A process that only asks what a GPU can do takes some of its memory: the workers ask.
        wanted = spec.pipeline.mlfs.precision if spec.pipeline.mlfs is not None else "auto"
        if on_gpu and wanted == "auto":
            wanted = "bfloat16"
        precision = training_precision(wanted=wanted, device=torch.device("cpu"))
        return cls(spec=spec, rooms=rooms, precision=precision, on_gpu=on_gpu)

    @classmethod
    def of_worker(cls, spec: CompressionRunSpec, world: World) -> MemoryCheck:
        """Inside a training worker, or in the trainer's own process where that trains."""
        on_gpu = world.device.type == "cuda"
        rooms: dict[Process, Room] = {}
        if on_gpu:
            rooms["worker"] = device_room(world.device)
        elif in_cluster():
            rooms["worker"] = _after_growth(host_room(), spec)
        if in_cluster():
            rooms["trainer"] = _room_of_head(spec) if spec.training_workers else host_room()
        wanted = spec.pipeline.mlfs.precision if spec.pipeline.mlfs is not None else "auto"
        precision = training_precision(wanted=wanted, device=world.device)
        return cls(spec=spec, rooms=rooms, precision=precision, on_gpu=on_gpu)

    def before_weights(self, config: PretrainedConfig) -> None:
        """Refuse what cannot fit however short the texts are.

        Raises UserError with the arithmetic and what would help.
        """
        if self.rooms:
            self._require(self._run(config, _shortest(self.spec)))

    def with_texts(self, inputs: Inputs) -> str:
        """Write the estimate to the log; returns a sentence about the largest stage, nothing where nobody asks.

        Raises UserError with the arithmetic and what would help.
        """
        if not self.rooms:
            return ""
        texts = Texts(
            train=_longest(inputs.train),
            validation=_longest(inputs.validation),
            calibration=_longest(inputs.calibration),
        )
        stages = self._require(self._run(inputs.teacher.model.config, texts))
        log.info("memory that the stages will need at most:\n%s", table(stages))
        judged = [stage for stage in stages if stage.process in self.rooms]
        peak = max(judged, key=lambda stage: stage.total)
        return f"needs up to {size(peak.total)} of memory ({peak.name}); {self.rooms[peak.process].what}"

    def _run(self, config: PretrainedConfig, texts: Texts) -> Run:
        return Run(
            spec=self.spec,
            config=config,
            texts=texts,
            precision=self.precision,
            at_once=AT_ONCE,
            on_gpu=self.on_gpu,
            passes=self.passes,
        )

    def _require(self, run: Run) -> list[Stage]:
        stages = run.stages()
        judged = [stage for stage in stages if stage.process in self.rooms]
        lacking = {stage.name: stage.needed - self.rooms[stage.process].bytes for stage in judged}
        worst = max(judged, key=lambda stage: lacking[stage.name])
        if lacking[worst.name] > 0:
            raise UserError(_refusal(run, worst, self.rooms[worst.process]))
        for stage in judged:
            room = self.rooms[stage.process]
            if stage.total > room.bytes:
                log.warning(
                    "stage %s will be slow: with the weights that it reads from files it takes %s, and %s",
                    stage.name,
                    size(stage.total),
                    room.what,
                )
        return stages


def load_checked(request: RunRequest, *, cache: Path, check: MemoryCheck, family: FamilyRun | None) -> Inputs:
    """The inputs of a run that fits; how much it needs is told to the log and to whoever watches the run.

    Raises UserError for inputs that cannot be used and for a run that does not fit.
    """
    inputs = load_inputs(request, cache=cache, before_weights=check.before_weights)
    sentence = check.with_texts(inputs)
    if sentence and family is not None:
        meter = meter_for(request.spec)
        family.progress(meter.advance(stage="teacher", step=0, total_steps=1, message=sentence))
    return inputs


def _refusal(run: Run, stage: Stage, room: Room) -> str:
    elsewhere = stage.process == "worker" and run.spec.training_workers
    who = "a training worker" if elsewhere else "the trainer's own process"
    helpful = remedies(run, stage)
    mend = f"What would help: {'; '.join(helpful)}; or more memory" if helpful else "It takes more memory"
    return (
        f"spec.pipeline: stage {stage.name} needs {size(stage.needed)} in {who}, and {room.what}. "
        f"The arithmetic: {arithmetic(stage)}. {mend} ({_more(run, stage)})"
    )


def _more(run: Run, stage: Stage) -> str:
    if run.on_gpu and stage.process == "worker":
        return "a larger GPU"
    if not in_cluster():
        return "a larger machine"
    own = stage.process == "worker" or not run.spec.training_workers
    return "spec.compute.resourcesPerWorker.memory" if own else "spec.compute.head.resources.memory"


def _share_of_a_worker(here: Room, spec: CompressionRunSpec) -> Room:
    """What one worker of this machine has: its part, or what the manifest gives it."""
    workers = spec.training_workers
    room = here
    if workers:
        each = own_bytes()
        room = Room(
            bytes=max(0, here.bytes // workers - each),
            what=f"{here.what}, for {workers} worker(s) that take {size(each)} each before they begin",
        )
    memory = spec.compute.resources_per_worker.memory
    if memory == Resources().memory:
        # The default is a request for clusters and says nothing about this machine.
        return room
    stated = max(0, to_bytes(memory) - own_bytes())
    if stated >= room.bytes:
        return room
    what = f"spec.compute.resourcesPerWorker.memory {memory} leaves {size(stated)} beside the process itself"
    return Room(bytes=stated, what=what)


def _after_growth(room: Room, spec: CompressionRunSpec) -> Room:
    """What a worker may grow to when it runs out of memory."""
    most = spec.compute.max_memory
    if most is None:
        return room
    more = to_bytes(most) - spec.compute.resources_per_worker.memory_bytes
    return replace(room, bytes=room.bytes + more, what=f"{room.what}, which may grow to maxMemory {most}")


def _room_of_head(spec: CompressionRunSpec) -> Room:
    memory = spec.compute.head.resources
    left = max(0, memory.memory_bytes - own_bytes())
    return Room(
        bytes=left,
        what=f"spec.compute.head.resources.memory {memory.memory} leaves {size(left)} beside the process itself",
    )


def _shortest(spec: CompressionRunSpec) -> Texts:
    """What is known of the texts before they are read: language models get windows of one length."""
    if spec.teacher.task != "text-generation":
        return Texts(train=1, validation=1, calibration=1)
    data = spec.data
    return Texts(
        train=data.train.max_length,
        validation=(data.validation or data.train).max_length,
        calibration=(data.calibration or data.train).max_length,
    )


def _longest(data: EncodedDataset) -> int:
    return int(data.lengths.max())
