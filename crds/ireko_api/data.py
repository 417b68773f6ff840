"""`spec.data`: the texts the family learns from, is judged by, and is calibrated on."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ireko_api.base import INT32_MAX, Integer, Rule, SpecModel, Text, trimmed

Format = Literal["auto", "jsonl", "csv", "parquet", "text"]
ProblemType = Literal["SingleLabel", "Regression"]
Column = Annotated[Text, Field(min_length=1, max_length=256)]

DEFAULT_HOLDOUT_PERCENT = 10


class DataSource(SpecModel):
    """One table of texts: where it lies, which columns count, how long a text may be."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            message="format text has one text per line and no columns: drop labelColumn and leave one entry"
            " in textColumns,"
            " or choose jsonl, csv or parquet",
            cel="self.format != 'text' || (!has(self.labelColumn) && self.textColumns.size() == 1)",
            holds=lambda source: (
                source.format != "text" or (source.label_column is None and len(source.text_columns) == 1)
            ),
            field="format",
        ),
    )

    uri: Annotated[Text, trimmed(max_length=1024)]
    """Where the table is: a path (relative paths start at the manifest, on a cluster at the storage's volume) or a
    URI of any scheme that fsspec knows, such as `s3://bucket/train.parquet`. A name that ends in `.gz` is
    decompressed."""
    format: Format = "auto"
    """How the table is written. `auto` goes by the file's name: `.jsonl`, `.csv` and `.tsv`, `.parquet`,
    `.txt`, each with or without `.gz`. Plain text has one text per line; for text-generation a text may have many
    lines where lines that are only `<|endoftext|>` part them."""
    text_columns: Annotated[tuple[Column, ...], Field(min_length=1, max_length=2)] = ("text",)
    """The column with the text, or the two columns of a text pair such as a premise and a hypothesis. For
    text-generation it may hold conversations: lists of messages with `role` and `content`, which the teacher's own
    chat template turns into text."""
    label_column: Column | None = None
    """The column with the labels. Without it the table has texts only, which is enough to distil on."""
    max_length: Annotated[Integer, Field(ge=4, le=131072)] = 128
    """Tokens after which a text is cut. Cost grows with it, so take what the device will see, not what the
    teacher can. For text-generation all texts are one running text, cut into windows of so many tokens."""
    limit: Annotated[Integer, Field(ge=1, le=INT32_MAX)] | None = None
    """Use only so many rows, counted from the top. Without it every row is used."""


def _holdout_by_default(validated: dict[str, Any]) -> int:
    return DEFAULT_HOLDOUT_PERCENT if validated.get("validation") is None else 0


class Data(SpecModel):
    """What the family is trained on and judged by."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            message="validation and holdoutPercent are two ways to get the same rows: drop holdoutPercent,"
            " or drop validation",
            cel="!has(self.validation) || !has(self.holdoutPercent) || self.holdoutPercent == 0",
            holds=lambda data: data.validation is None or data.holdout_percent == 0,
            field="holdoutPercent",
        ),
        Rule(
            message="without rows to judge by, nothing can be chosen: give validation, or a holdoutPercent"
            " of at least 1",
            cel="has(self.validation) || !has(self.holdoutPercent) || self.holdoutPercent >= 1",
            holds=lambda data: data.validation is not None or data.holdout_percent >= 1,
            field="holdoutPercent",
        ),
        Rule(
            message="a regression predicts numbers, which have no names: drop labels, or set problemType to"
            " SingleLabel",
            cel="!has(self.labels) || !has(self.problemType) || self.problemType != 'Regression'",
            holds=lambda data: data.labels is None or data.problem_type != "Regression",
            field="labels",
        ),
        Rule(
            message="label names must differ from each other: their order is the class index, so no name may"
            " appear twice",
            cel="!has(self.labels) || self.labels.all(a, self.labels.exists_one(b, a == b))",
            holds=lambda data: data.labels is None or len(set(data.labels)) == len(data.labels),
            field="labels",
        ),
    )

    labels: (
        Annotated[
            tuple[Annotated[Text, Field(min_length=1, max_length=64)], ...],
            Field(min_length=2, max_length=256),
        ]
        | None
    ) = None
    """Names of the classes in the order of their indices. Strings in `labelColumn` are looked up here;
    numbers there are indices already. Without names the teacher's own are used, or the indices."""
    problem_type: ProblemType | None = None
    """What a label means: one class of several (`SingleLabel`) or a number to predict (`Regression`). Without
    it: `Regression` when the labels are fractions or the teacher has one output, `SingleLabel` otherwise."""
    train: DataSource
    """The texts to train and distil on."""
    validation: DataSource | None = None
    """The texts that members are judged by and chosen with; never trained on. Without it `holdoutPercent` of
    `train` is."""
    holdout_percent: Annotated[Integer, Field(ge=0, le=50)] = Field(default_factory=_holdout_by_default)
    """Share of `train`, in percent, that is set aside for judging. Only without `validation`, and then 10
    unless given. For text-generation whole documents are set aside."""
    calibration: DataSource | None = None
    """The texts by which layers and matrices are ranked by importance. Without it the training texts
    serve."""
