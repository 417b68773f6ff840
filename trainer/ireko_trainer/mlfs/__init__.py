"""MLFS: one teacher becomes a family of nested subnets that share their weights (arXiv 2404.01353).

permute_by_importance(model=teacher, batches=calibration)          # what matters first; outputs unchanged
supernet = Supernet(model=copy.deepcopy(teacher), rank=8, alpha=16.0, precision=torch.bfloat16)
palette = Palette.of(shapes_of_space(full=supernet.full, hidden=[1, 0.75], intermediate=[0.25], layers=[1]))
stage = SupernetStage(
    name="widths",
    palette=palette,
    optimization=Optimization(steps=600, learning_rate=2e-3),
    distillation=Distillation(),
)
train_supernet(supernet=supernet, frozen_teacher=teacher, batches=batch_at_step, stage=stage)
supernet.extract(palette.shapes[0]).save_pretrained("member")      # a standard Hugging Face checkpoint
"""

from __future__ import annotations

from ireko_trainer.mlfs.architectures import architecture_of, layout_of, teacher_heads, teacher_shape
from ireko_trainer.mlfs.axes import Architecture, Axis, Layout, Role
from ireko_trainer.mlfs.importance import Importance, measure_importance, permute, permute_by_importance
from ireko_trainer.mlfs.loop import Hooks, Optimization, TrainingState
from ireko_trainer.mlfs.losses import Distillation
from ireko_trainer.mlfs.sampling import Palette, draw
from ireko_trainer.mlfs.shapes import Heads, Shape, layers_kept, shapes_of_space
from ireko_trainer.mlfs.subnets import ParameterCount, count_parameters, skeleton, subnet_config
from ireko_trainer.mlfs.supernet import Batch, Forward, Supernet
from ireko_trainer.mlfs.train import SupernetStage, recover, train_supernet, train_teacher

__all__ = [
    "Architecture",
    "Axis",
    "Batch",
    "Distillation",
    "Forward",
    "Heads",
    "Hooks",
    "Importance",
    "Layout",
    "Optimization",
    "Palette",
    "ParameterCount",
    "Role",
    "Shape",
    "Supernet",
    "SupernetStage",
    "TrainingState",
    "architecture_of",
    "count_parameters",
    "draw",
    "layers_kept",
    "layout_of",
    "measure_importance",
    "permute",
    "permute_by_importance",
    "recover",
    "shapes_of_space",
    "skeleton",
    "subnet_config",
    "teacher_heads",
    "teacher_shape",
    "train_supernet",
    "train_teacher",
]
