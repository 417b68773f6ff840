"""`spec.teacher`: the model that the whole family is cut from."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from ireko_api.base import Boolean, Rule, SpecModel, Text, trimmed

Task = Literal["feature-extraction", "text-classification", "text-generation", "fill-mask"]
DType = Literal["auto", "float32", "bfloat16", "float16"]


class Teacher(SpecModel):
    """The teacher: a Hugging Face checkpoint, wherever it lies, and the task that it is compressed for."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            message="only models from the Hugging Face hub have revisions: drop revision, or write the model"
            " as hf://org/name",
            cel="!has(self.revision) || self.model.startsWith('hf://')",
            holds=lambda teacher: teacher.revision is None or teacher.model.startswith("hf://"),
            field="revision",
        ),
    )

    model: Annotated[Text, trimmed(max_length=1024)]
    """Where the teacher's checkpoint directory is. One of `hf://org/name` (the Hugging Face hub), a path or
    `file://path` (relative paths start at the manifest, on a cluster at the storage's volume), `s3://bucket/dir` or
    any other scheme that fsspec knows, `models:/name@alias` (the MLflow registry), or `package://python_package/dir`
    (files of an installed package)."""
    revision: Annotated[Text, trimmed(max_length=256)] | None = None
    """Branch, tag or commit of a hub model; only with `hf://`. Without it the newest commit of the main
    branch is used, which may change from one run to the next."""
    task: Task
    """What the model is for; decides its head, its losses and how it is scored. This release executes
    `feature-extraction` (sentence embeddings), `text-classification` and `text-generation` (decoders, which learn
    from running text); the trainer refuses `fill-mask`."""
    dtype: DType = "auto"
    """Number format the teacher is loaded in. `auto` takes float32, in which training is safe everywhere."""
    trust_remote_code: Boolean = False
    """Whether Python code inside the teacher's repository may run. Leave it `false` unless you have read that
    code."""
