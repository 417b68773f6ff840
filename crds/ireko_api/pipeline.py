"""`spec.pipeline`: which methods make the family, and their settings.

Multistage low-rank fine-tuning of super-transformers (MLFS) cuts one teacher into a nested family; deltas
factor what is left in each member; quantization then stores each member in the bits that its device has room for.
All but one may be left out.
"""

from __future__ import annotations

import itertools
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ireko_api.base import NUMBER, Boolean, Integer, Rule, SpecModel

MAX_STEPS = 10_000_000
DEFAULT_TEACHER_STEPS = 1800

Ratio = Annotated[float, Field(gt=0, le=1), NUMBER]
Ratios = Annotated[tuple[Ratio, ...], Field(min_length=1, max_length=8)]
LearningRate = Annotated[float, Field(gt=0, le=1), NUMBER]
WarmupRatio = Annotated[float, Field(ge=0, le=0.9), NUMBER]
WeightDecay = Annotated[float, Field(ge=0, le=1), NUMBER]


def _goes_down_from_one(axis: str) -> Rule:
    """The rule that the ratios of `axis` start at the teacher's own size and shrink."""

    def holds(space: Any) -> bool:
        ratios = getattr(space, axis)
        return ratios[0] == 1 and all(left > right for left, right in itertools.pairwise(ratios))

    return Rule(
        message=f"{axis} must start with 1, the teacher's own size, and each ratio must be smaller than the"
        " one before,"
        " e.g. [1, 0.75, 0.5]",
        cel=f"!has(self.{axis}) || (self.{axis}[0] == 1.0 && self.{axis}.map(r, -r).isSorted()"
        f" && self.{axis}.all(a, self.{axis}.exists_one(b, a == b)))",
        holds=holds,
        field=axis,
    )


class SearchSpace(SpecModel):
    """The sizes that the nested family is trained for, as ratios of the teacher's dimensions."""

    RULES: ClassVar[tuple[Rule, ...]] = tuple(map(_goes_down_from_one, ("hidden", "intermediate", "layers")))

    hidden: Ratios = (1.0, 0.75, 0.5)
    """Widths of the residual stream. Attention heads shrink with it, so a product is rounded to whole
    heads."""
    intermediate: Ratios = (1.0, 0.5, 0.25, 0.125)
    """Widths of the feed-forward layers."""
    layers: Ratios = (1.0, 0.67, 0.5)
    """Numbers of layers; a product is rounded to whole layers."""


def _steps_by_default(validated: dict[str, Any]) -> int:
    return 0 if validated.get("method") == "Skip" else DEFAULT_TEACHER_STEPS


class TeacherStage(SpecModel):
    """MLFS stage 0: the teacher itself is fine-tuned on the task. Its result is the largest member."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            message="method Skip trains nothing, so its steps are 0: drop steps, or choose method Full or"
            " LowRank",
            cel="self.method != 'Skip' || !has(self.steps) || self.steps == 0",
            holds=lambda stage: stage.method != "Skip" or stage.steps == 0,
            field="steps",
        ),
        Rule(
            message="methods Full and LowRank need at least 1 step, e.g. 1800: raise steps, or choose method"
            " Skip",
            cel="self.method == 'Skip' || !has(self.steps) || self.steps >= 1",
            holds=lambda stage: stage.method == "Skip" or stage.steps >= 1,
            field="steps",
        ),
    )

    method: Literal["Full", "LowRank", "Skip"] = "Full"
    """`Full` trains all weights, `LowRank` a low-rank pair per matrix (less memory, mostly a little less
    quality), `Skip` takes the teacher as it is, which is right for a model that was fine-tuned already."""
    steps: Annotated[Integer, Field(ge=0, le=MAX_STEPS)] = Field(default_factory=_steps_by_default)
    """Optimizer steps. 1800 unless given, 0 with method `Skip`."""
    learning_rate: LearningRate = 1e-4
    """Peak learning rate of AdamW; it decays linearly to zero after the warm-up."""
    warmup_ratio: WarmupRatio = 0.06
    """Share of the steps over which the learning rate rises from zero."""
    weight_decay: WeightDecay = 0.01
    """Decoupled weight decay of AdamW."""


class SupernetStage(SpecModel):
    """An MLFS stage in which one set of low-rank pairs is trained for many subnets at once."""

    steps: Annotated[Integer, Field(ge=0, le=MAX_STEPS)] = 600
    """Optimizer steps; 0 leaves the stage out. Each step trains `sampling.subnetsPerStep` subnets."""
    learning_rate: LearningRate = 2e-3
    """Peak learning rate of AdamW for the low-rank pairs, which bear about ten times that of full
    training."""
    warmup_ratio: WarmupRatio = 0.06
    """Share of the steps over which the learning rate rises from zero."""


class Stages(SpecModel):
    """The three stages of MLFS, each with a low-rank pair of its own on top of the frozen stages before
    it."""

    teacher: TeacherStage = TeacherStage()
    """Stage 0: fine-tune the teacher."""
    widths: SupernetStage = SupernetStage()
    """Stage 1: subnets of every width at full depth."""
    depths: SupernetStage = SupernetStage()
    """Stage 2: subnets of every width and depth."""


class Sampling(SpecModel):
    """Which subnets a training step sees."""

    subnets_per_step: Annotated[Integer, Field(ge=1, le=16)] = 3
    """Subnets trained in one step; they take turns. More make a step dearer and the family more even. With
    `InPlace` distillation the largest is trained beside them."""
    importance_order: Boolean = True
    """Sort heads and neurons by importance before training, so that a narrow subnet keeps those that matter
    most. `false` keeps the teacher's order, which is the baseline to compare with."""


class Distillation(SpecModel):
    """Where subnets learn from, and how much each loss counts."""

    teacher: Literal["Frozen", "InPlace"] = "Frozen"
    """`Frozen` distils from the result of stage 0, which does not change. `InPlace` distils from the largest
    subnet while it trains on the labels, as the MLFS paper has it; dearer, and it needs a `labelColumn`."""
    alpha: Annotated[float, Field(ge=0, le=1), NUMBER] = 0.9
    """Weight of distillation against the labels, which get 1 - alpha. Without labels only distillation
    counts."""
    beta: Annotated[float, Field(ge=0, le=10), NUMBER] = 0.1
    """Weight of matching the hidden states of each layer."""
    temperature: Annotated[float, Field(ge=0.1, le=20), NUMBER] = 1.0
    """Softens the teacher's and the subnets' predictions before they are compared; 1 leaves them as they
    are."""
    projection: Annotated[Integer, Field(ge=1, le=4096)] = 128
    """Dimension that hidden states are projected to before they are compared."""


class GradientScaling(SpecModel):
    """How gradients of small subnets are weighed against those of large ones."""

    gamma: Annotated[float, Field(ge=0, le=2), NUMBER] = 0.5
    """Exponent of (parameters of the largest / parameters of the subnet). 0 weighs all subnets alike."""


class Recovery(SpecModel):
    """A short training of the chosen members alone, after selection."""

    steps: Annotated[Integer, Field(ge=1, le=MAX_STEPS)] = 200
    """Optimizer steps for each chosen member."""
    learning_rate: LearningRate = 1e-3
    """Peak learning rate of AdamW; it decays linearly to zero."""


class Mlfs(SpecModel):
    """Multistage low-rank fine-tuning of super-transformers: one training, a nested family of subnets."""

    rank: Annotated[Integer, Field(ge=1, le=1024)] = 8
    """Rank of the low-rank pairs. Higher ranks learn more and cost more memory."""
    lora_alpha: Annotated[float, Field(gt=0, le=4096), NUMBER] = 16.0
    """Scale of the low-rank update, which is multiplied by loraAlpha / rank."""
    search_space: SearchSpace = SearchSpace()
    """The sizes that subnets may have."""
    batch_size: Annotated[Integer, Field(ge=1, le=65536)] = 32
    """Texts per optimizer step, over all workers."""
    stages: Stages = Stages()
    """The three stages of training."""
    sampling: Sampling = Sampling()
    """Which subnets a training step sees."""
    distillation: Distillation = Distillation()
    """Where subnets learn from."""
    gradient_scaling: GradientScaling = GradientScaling()
    """How subnets of different size share the low-rank pairs."""
    recovery: Recovery | None = None
    """A short training of each chosen member alone. Without it members ship as they were cut."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """NUMBER format of training. `auto` takes bfloat16 where the hardware computes in it, float32
    elsewhere."""
    gradient_checkpointing: Boolean = False
    """Keep only the inputs of the layers for the backward pass and compute the rest again. It changes no result, takes
    a third more time and a fraction of the memory for activations: for long texts and large models."""
    checkpoint_seconds: Annotated[Integer, Field(ge=5, le=86400)] = 60
    """Seconds between checkpoints: the most work that an interruption can cost."""


class DeltaRecovery(SpecModel):
    """A short training of the factored matrices of each member, which imitates the member as it was."""

    steps: Annotated[Integer, Field(ge=1, le=MAX_STEPS)] = 200
    """Optimizer steps for each member."""
    learning_rate: LearningRate = 2e-5
    """Peak learning rate of AdamW; it decays linearly to zero. Factors start near their best: higher rates can undo
    more than they gain."""
    batch_size: Annotated[Integer, Field(ge=1, le=65536)] = 32
    """Texts per optimizer step, over all workers."""
    replacement: Literal["Off", "Progressive", "Blend"] = "Off"
    """How factored blocks take the place of the original ones. `Off`: all at once. `Progressive` draws for each
    block and step which of the two runs, by a chance that rises to 1, as the DeltaLLM paper has it; `Blend` mixes
    both in that proportion."""
    first_share: Annotated[float, Field(ge=0, le=1), NUMBER] = 0.3
    """Share of blocks that is replaced in the first step, unless replacement is `Off`."""
    complete_at: Annotated[float, Field(gt=0, le=1), NUMBER] = 0.5
    """Share of the steps after which all blocks are replaced."""
    checkpoint_seconds: Annotated[Integer, Field(ge=5, le=86400)] = 60
    """Seconds between checkpoints: the most work that an interruption can cost."""


class Delta(SpecModel):
    """Blocks that share the matrices of a base block and keep low-rank differences (DeltaLLM), or low-rank matrices of
    their own where that is better."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            message="exactly one of targetReduction and rank must be given, e.g. targetReduction: 0.1",
            cel="has(self.targetReduction) != has(self.rank)",
            holds=lambda delta: (delta.target_reduction is None) != (delta.rank is None),
            field="targetReduction",
        ),
        Rule(
            message="sharing Basis has no bases, so coefficients One means nothing there: drop coefficients, or set"
            " sharing to Delta",
            cel="!has(self.sharing) || self.sharing != 'Basis' || !has(self.coefficients)"
            " || self.coefficients == 'Auto'",
            holds=lambda delta: delta.sharing != "Basis" or delta.coefficients == "Auto",
            field="coefficients",
        ),
    )

    target_reduction: Annotated[float, Field(gt=0, le=0.95), NUMBER] | None = None
    """Share of the weights in the blocks' matrices that is to be saved. Ranks are allocated over all of them, so that
    the last number stored is worth as much everywhere."""
    rank: Annotated[Integer, Field(ge=1, le=65536)] | None = None
    """One rank for every matrix of the blocks that follow; every `span`-th block is a base and stays as it is."""
    modules: Literal["All", "Mlp", "Attention"] = "All"
    """Which matrices of a block take part."""
    sharing: Literal["Delta", "Basis"] = "Delta"
    """`Delta` adds low-rank factors to a multiple of a base block's matrix, which is stored once. `Basis` has no base;
    the same matrix of `span` blocks shares one of its two factors where that is better."""
    coefficients: Literal["Auto", "One"] = "Auto"
    """How much of the base is taken. `Auto`: 0, 1 or the projection, whichever leaves least; 0 shares nothing, and the
    report says so where that is most. `One`: 1, as the paper has it, with every `span`-th block as a base."""
    initialization: Literal["Curvature", "Whitened", "Plain"] = "Curvature"
    """What the factors are best at before training: `Plain` the weights, `Whitened` the outputs on the calibration
    texts, `Curvature` the answers, which takes backward passes."""
    span: Annotated[Integer, Field(ge=2, le=64)] = 2
    """Blocks per base, or blocks per shared basis."""
    keep_first: Annotated[Integer, Field(ge=0, le=1000)] = 0
    """Blocks at the beginning that are left as they are."""
    keep_last: Annotated[Integer, Field(ge=0, le=1000)] = 0
    """Blocks at the end that are left as they are."""
    recovery: DeltaRecovery | None = None
    """A short training of the factors. Without it members ship as they were factored."""
    materialize: Boolean = False
    """Ship each member as a plain Hugging Face checkpoint, which any runtime loads without Ireko: factors are
    multiplied out and added to their base. It stores every matrix whole, at two bytes a weight, so it is as large as
    the member was before it was factored, and `maxSizeMiB` is held against that. For comparisons, for further
    training, and for runtimes that do not know factored layers; not to save space."""


class Quantization(SpecModel):
    """Weights in few bits, block by block, within the size that the device has room for."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            message="bits must be different and ascending, e.g. [2, 4, 8]",
            cel="self.bits.isSorted() && self.bits.all(a, self.bits.exists_one(b, a == b))",
            holds=lambda quantization: list(quantization.bits) == sorted(set(quantization.bits)),
            field="bits",
        ),
        Rule(
            message="averageBits must lie between the smallest and the largest entry of bits",
            cel="!has(self.averageBits)"
            " || (self.averageBits >= double(self.bits.min()) && self.averageBits <="
            " double(self.bits.max()))",
            holds=lambda quantization: (
                quantization.average_bits is None
                or min(quantization.bits) <= quantization.average_bits <= max(quantization.bits)
            ),
            field="averageBits",
        ),
    )

    method: Literal["RTN", "GPTQ", "GPTAQ"] = "GPTQ"
    """How weights are rounded, always to a symmetric grid whose scales are searched per group. `RTN`: each to the
    nearest point. `GPTQ`: so that on the calibration texts later columns make up for the errors of earlier ones.
    `GPTAQ`: so that they also make up for the errors of earlier layers, at twice the time."""
    importance: Literal[
        "Sensitivity", "Search", "Interaction", "LIM", "ZD", "Random", "Reverse", "FirstBlock", "Uniform"
    ] = "Sensitivity"
    """What gets more bits. `Sensitivity` measures how far each matrix moves the answers at each width and takes the
    best choice that fits. `Search` goes on from there by exchanging bits and measuring again. `Interaction` measures
    which blocks hurt together, at two widths. The others are orders of whole blocks: `LIM` by how much a block
    changes its input, `ZD` by the spread of its weights; `Random`, `Reverse` (of LIM), `FirstBlock` and `Uniform`
    are baselines to compare with."""
    granularity: Literal["Matrix", "Fused", "Block"] = "Matrix"
    """What gets bits as one under `Sensitivity` and `Search`: each matrix, the matrices that a runtime may fuse
    (query, key and value; gate and up), or whole blocks."""
    bits: Annotated[tuple[Literal[2, 3, 4, 5, 6, 8], ...], Field(min_length=1, max_length=6)] = (2, 3, 4, 8)
    """Bit widths that a matrix may get, ascending."""
    average_bits: Annotated[float, Field(ge=2, le=8), NUMBER] | None = None
    """Cap on the mean bits per quantized weight, scales not counted. Without it the size of the device target
    is the only budget."""
    group_size: Literal[32, 64, 128, 256] | None = None
    """Consecutive weights of a row that share one scale; must divide every row. Smaller groups are more exact and
    store more scales. Without it 64, 32 where 64 does not divide a row, and one scale per row where 32 does not
    either."""


class Pipeline(SpecModel):
    """The methods of this run, in the order in which they are applied. All but one may be left out."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            message="at least one of mlfs, delta and quantization must be given; mlfs: {} takes every default",
            cel="has(self.mlfs) || has(self.delta) || has(self.quantization)",
            holds=lambda pipeline: any((pipeline.mlfs, pipeline.delta, pipeline.quantization)),
            field="mlfs",
        ),
        Rule(
            message="a member that is multiplied out again takes as many bits as one that was never factored, and is"
            " further from the teacher: drop materialize, drop quantization, or quantize without delta",
            cel="!has(self.delta) || !has(self.quantization) || !has(self.delta.materialize)"
            " || !self.delta.materialize",
            holds=lambda pipeline: (
                pipeline.delta is None or pipeline.quantization is None or not pipeline.delta.materialize
            ),
            field="delta.materialize",
        ),
    )

    mlfs: Mlfs | None = None
    """Train a nested family and cut members from it. Without it every member has the teacher's shape."""
    delta: Delta | None = None
    """Store each member's blocks as shared and low-rank matrices. Without it every matrix is stored whole."""
    quantization: Quantization | None = None
    """Store each member's weights in few bits. Without it members are stored in 16 or 32 bits."""
