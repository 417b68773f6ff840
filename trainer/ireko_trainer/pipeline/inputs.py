"""What every stage starts from: the loaded teacher and the encoded data, with the digests that stages are keyed by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PretrainedConfig

from ireko_api.handoff import RunRequest
from ireko_api.spec import CompressionRunSpec, DataSource
from ireko_trainer.data import EncodedDataset, label_space, load_data, load_split
from ireko_trainer.data.questions import Question, questions_digest, read_questions
from ireko_trainer.errors import UserError
from ireko_trainer.evaluation import default_metric
from ireko_trainer.evaluation.harness import require_harness
from ireko_trainer.pipeline.bits import require_whole_groups, uniform_bits
from ireko_trainer.quant import describe
from ireko_trainer.quant.checkpoint import check_storable
from ireko_trainer.teacher import LoadedTeacher, head_labels, load_teacher, resolve


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The teacher as it came and the data as token ids."""

    teacher: LoadedTeacher
    train: EncodedDataset
    validation: EncodedDataset
    calibration: EncodedDataset
    metric: str
    """What members are judged by."""
    questions: Mapping[str, Sequence[Question]] = field(default_factory=dict)
    """Benchmark -> what teacher and members are asked."""

    @property
    def task(self) -> str:
        """The Hugging Face pipeline task."""
        return self.teacher.task

    @property
    def regression(self) -> bool:
        """Whether the teacher predicts one number instead of a class."""
        return self.teacher.labels is not None and self.teacher.labels.regression

    @property
    def data_digests(self) -> dict[str, str]:
        """sha256 of the token ids and labels of each split."""
        return {
            "train": self.train.digest,
            "validation": self.validation.digest,
            "calibration": self.calibration.digest,
        }

    def forget_weights(self) -> None:
        """Give the memory of the teacher's weights back: later stages load the checkpoint that the first one left."""
        self.teacher.model.to("meta")

    @property
    def question_digests(self) -> dict[str, str]:
        """sha256 of the questions of each benchmark."""
        return {name: questions_digest(asked) for name, asked in self.questions.items()}


def load_inputs(
    request: RunRequest, *, cache: Path, before_weights: Callable[[PretrainedConfig], None] = lambda _: None
) -> Inputs:
    """Load the teacher and every split; deterministic, so that driver and workers see the same.

    A teacher that has to be downloaded is kept in `cache`. `before_weights` sees the teacher's config before the
    weights are loaded, and may raise.

    Raises UserError for whatever in `spec.teacher` or `spec.data` cannot be used.
    """
    spec, base_dir = request.spec, Path(request.base_dir)
    teacher = _load_teacher(request, base_dir=base_dir, cache_dir=cache, before_weights=before_weights)
    labels = teacher.labels

    def load(source: DataSource, name: str) -> EncodedDataset:
        return load_data(
            source=source,
            base_dir=base_dir,
            tokenizer=teacher.tokenizer,
            task=teacher.task,
            labels=labels,
            field=f"spec.data.{name}",
        )

    if spec.data.validation is not None:
        train, validation = load(spec.data.train, "train"), load(spec.data.validation, "validation")
    else:
        train, validation = load_split(
            source=spec.data.train,
            base_dir=base_dir,
            tokenizer=teacher.tokenizer,
            task=teacher.task,
            labels=labels,
            field="spec.data.train",
            percent=spec.data.holdout_percent,
            seed=spec.seed,
        )
    calibration = train if spec.data.calibration is None else load(spec.data.calibration, "calibration")
    return Inputs(
        teacher=teacher,
        train=train,
        validation=validation,
        calibration=calibration,
        metric=spec.evaluation.metric
        or default_metric(
            task=teacher.task,
            regression=labels is not None and labels.regression,
            has_labels=validation.labels is not None,
        ),
        questions=_load_questions(spec, base_dir=base_dir),
    )


def _load_questions(spec: CompressionRunSpec, *, base_dir: Path) -> dict[str, list[Question]]:
    wanted = spec.evaluation.multiple_choice or ()
    if wanted:
        require_harness()
    return {
        source.benchmark: read_questions(
            source=source, base_dir=base_dir, field=f"spec.evaluation.multipleChoice[{index}]"
        )
        for index, source in enumerate(wanted)
    }


def _load_teacher(
    request: RunRequest,
    *,
    base_dir: Path,
    cache_dir: Path,
    before_weights: Callable[[PretrainedConfig], None],
) -> LoadedTeacher:
    spec = request.spec
    labels = None
    if spec.teacher.task == "text-classification":
        # The labels of the data and the head of the teacher have to agree, and each may be missing.
        directory = resolve(
            uri=spec.teacher.model, base_dir=base_dir, revision=spec.teacher.revision, cache_dir=cache_dir
        )
        labels = label_space(data=spec.data, base_dir=base_dir, head=head_labels(directory))
    teacher = load_teacher(
        spec=spec.teacher,
        base_dir=base_dir,
        cache_dir=cache_dir,
        labels=labels,
        seed=spec.seed,
        before_weights=before_weights,
    )
    _require_storable(spec, teacher)
    mlfs = spec.pipeline.mlfs
    if teacher.new_head and (mlfs is None or mlfs.stages.teacher.method == "Skip"):
        raise UserError(
            f"spec.teacher.model: {spec.teacher.model} has no classification head, and nothing trains a new one; set "
            "spec.pipeline.mlfs.stages.teacher.method to Full, or name a teacher that is fine-tuned on the task"
        )
    return teacher


def _require_storable(spec: CompressionRunSpec, teacher: LoadedTeacher) -> None:
    """Say before anything is trained that no file can hold this family in few bits, or its rows in such groups."""
    if spec.pipeline.quantization is not None:
        layout = describe(teacher.model)
        check_storable(type(teacher.model).__name__, layout, uniform_bits(layout, bits=8))
        require_whole_groups(layout, spec.pipeline.quantization)
