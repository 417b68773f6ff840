"""The smallest run that has everything: an encoder, all stages, two workers on two nodes, two device targets.

The encoder is untrained and has two thin layers; the sentences are SST-2's. One thread per worker and float32 make
every run of one manifest come to the same weights, whatever happened on the way.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CLAIM = "storage"
TARGETS = {"gateway": 0.2, "camera": 0.1}
"""Device target → maxSizeMiB."""

_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_TRAIN, _VALIDATION = 96, 48


def write_inputs(folder: Path, *, sst2: Path) -> None:
    """What the manifest names: sentences for training and validation, and an encoder that knows their words."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    with gzip.open(sst2 / "train.jsonl.gz", "rt", encoding="utf-8") as lines:
        train = list(_some(lines, _TRAIN))
    with (sst2 / "dev.jsonl").open(encoding="utf-8") as lines:
        validation = list(_some(lines, _VALIDATION))
    for name, rows in {"train": train, "validation": validation}.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    words = sorted({word for row in train for word in row["sentence"].split()})
    vocabulary = {word: number for number, word in enumerate([*_SPECIAL, *words])}
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        num_attention_heads=4,
        num_hidden_layers=2,
        intermediate_size=256,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder / "teacher")
    BertTokenizerFast(vocab=vocabulary).save_pretrained(folder / "teacher")
    for file in (folder / "teacher").iterdir():
        file.chmod(0o644)  # weights are written for their owner alone, and pods are somebody else


def _some(lines: Iterator[str], count: int) -> Iterator[dict[str, Any]]:
    return (json.loads(line) for line, _ in zip(lines, range(count), strict=False))


def manifest(name: str, *, workers: int = 2, **compute: Any) -> dict[str, Any]:
    """A CompressionRun of all stages, whose workers keep off each other's nodes."""
    data = {"textColumns": ["sentence"], "labelColumn": "label", "maxLength": 32}
    return {
        "apiVersion": "ireko.dev/v1alpha1",
        "kind": "CompressionRun",
        "metadata": {"name": name},
        "spec": {
            "teacher": {"model": "teacher", "task": "text-classification"},
            "data": {
                "labels": ["negative", "positive"],
                "train": {"uri": "train.jsonl", **data},
                "validation": {"uri": "validation.jsonl", **data},
            },
            "pipeline": {"mlfs": _mlfs(), "quantization": {"importance": "LIM", "bits": [4, 8]}},
            "deviceTargets": [
                {"name": target, "constraints": {"maxSizeMiB": size}} for target, size in TARGETS.items()
            ],
            "compute": {
                "workers": workers,
                "resourcesPerWorker": {"cpu": "500m", "memory": "2Gi"},
                "head": {"resources": {"cpu": "1", "memory": "3Gi"}},
                "retryBackoffSeconds": 1,
                "podTemplate": {"spec": {"topologySpreadConstraints": [_one_worker_per_node(name)]}},
                "storage": {"persistentVolumeClaim": {"claimName": CLAIM}},
                **compute,
            },
        },
    }


def _mlfs() -> dict[str, Any]:
    return {
        "batchSize": 8,
        "precision": "float32",
        "searchSpace": {"hidden": [1, 0.5], "intermediate": [1, 0.5], "layers": [1, 0.5]},
        "stages": {
            "teacher": {"method": "Full", "steps": 40, "learningRate": 3e-3},
            "widths": {"steps": 120, "learningRate": 5e-3},
            "depths": {"steps": 30, "learningRate": 5e-3},
        },
        "recovery": {"steps": 10},
        "checkpointSeconds": 5,
    }


def _one_worker_per_node(run: str) -> dict[str, Any]:
    """Counts workers only, so that it says nothing about where the head goes."""
    workers = {"ireko.dev/run": run, "ray.io/node-type": "worker"}
    return {
        "topologyKey": "kubernetes.io/hostname",
        "maxSkew": 1,
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": workers},
    }
