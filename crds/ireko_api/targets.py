"""`spec.deviceTargets` and `spec.evaluation`: what the family is cut for and what it is judged by."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ireko_api.base import INT32_MAX, NUMBER, Integer, Rule, SpecModel, Text, name_of, trimmed

Metric = Literal[
    "accuracy", "f1", "matthews", "pearson", "spearman", "agreement", "fidelity", "neighbours", "likelihood"
]

CLASSIFICATION_METRICS = ("accuracy", "f1", "matthews", "agreement")
REGRESSION_METRICS = ("pearson", "spearman", "fidelity")
EMBEDDING_METRICS = ("fidelity", "neighbours", "pearson", "spearman")
LANGUAGE_METRICS = ("likelihood", "accuracy", "agreement")


class Constraints(SpecModel):
    """What a member must keep to fit a class of devices."""

    max_size_mib: Annotated[float, Field(ge=0.1, le=1_048_576, alias="maxSizeMiB"), NUMBER]
    """Largest size of the weight file that ships, in MiB (1048576 bytes), e.g. 20."""
    min_quality: Annotated[float, Field(ge=-1, le=1), NUMBER] | None = None
    """Lowest acceptable value of the metric on the validation texts, e.g. 0.85. The run fails when no member
    that fits the size reaches it."""
    min_quality_ratio: Annotated[float, Field(gt=0, le=2), NUMBER] | None = None
    """Lowest acceptable ratio of the member's metric to the teacher's, e.g. 0.97."""


class DeviceTarget(SpecModel):
    """One class of devices that one member of the family is chosen for."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            message="names of deviceTargets become aliases in MLflow, which keeps latest and v1, v2, … for"
            " itself: choose another name",
            cel="self.name != 'latest' && !self.name.matches('^v[0-9]+$')",
            holds=lambda target: target.name != "latest" and not re.fullmatch(r"v[0-9]+", target.name),
            field="name",
        ),
    )

    name: Annotated[Text, name_of(max_length=63)]
    """Name of the class, e.g. `gateway`; the alias of the registered model version. Lower-case letters,
    digits and hyphens."""
    runtime: Literal["torch"] = "torch"
    """What loads the model on the device. `torch`: PyTorch with Transformers."""
    constraints: Constraints
    """What the member must keep."""


Benchmark = Literal["arc_challenge", "hellaswag", "mmlu", "winogrande"]


class MultipleChoice(SpecModel):
    """Questions of a benchmark in a local file, answered by teacher and members through lm-evaluation-harness."""

    benchmark: Benchmark
    """Whose questions they are, which decides how they are laid out, worded and counted: `arc_challenge` and
    `hellaswag` by the accuracy that is normalized by the options' lengths, `mmlu` and `winogrande` by the plain
    one, all zero-shot. The number is reported under this name."""
    uri: Annotated[Text, trimmed(max_length=1024)]
    """JSON lines, or another table, as the benchmark's authors publish them: a path (relative paths start at the
    manifest, on a cluster at the storage's volume) or a URI of any scheme that fsspec knows."""
    limit: Annotated[Integer, Field(ge=1, le=INT32_MAX)] | None = None
    """Ask only so many questions, counted from the top. Without it all of them are asked."""


class Evaluation(SpecModel):
    """How members are judged."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            message="a benchmark is reported under its name, so name each in multipleChoice only once",
            cel="!has(self.multipleChoice) || self.multipleChoice.all(a,"
            " self.multipleChoice.exists_one(b, a.benchmark == b.benchmark))",
            holds=lambda evaluation: (
                len({asked.benchmark for asked in evaluation.multiple_choice or ()})
                == len(evaluation.multiple_choice or ())
            ),
            field="multipleChoice",
        ),
    )

    metric: Metric | None = None
    """The number that members are chosen by; larger is better. Without it: `accuracy` for classes, `spearman` for
    numbers, `fidelity` to the teacher where there are no labels, `likelihood` for text-generation. `agreement`,
    `fidelity` and `neighbours` compare with the teacher and need no labels. `likelihood` is 1 / perplexity, the
    geometric mean of the probabilities of the next tokens: a minQuality of 0.2 is a perplexity of at most 5, a
    minQualityRatio of 0.95 one of at most the teacher's / 0.95."""
    batch_size: Annotated[Integer, Field(ge=1, le=65536)] = 64
    """Texts per forward pass; fewer for text-generation where they hold more than 4096 tokens. It changes speed and
    memory, not results."""
    limit: Annotated[Integer, Field(ge=1, le=INT32_MAX)] | None = None
    """Judge by only so many validation rows, counted from the top. Without it all of them are used."""
    multiple_choice: Annotated[tuple[MultipleChoice, ...], Field(min_length=1, max_length=4)] | None = None
    """Benchmarks that teacher and finished members answer, for text-generation. They are reported beside the metrics
    and decide nothing. Asked through lm-eval, which the extra `eval` installs."""
