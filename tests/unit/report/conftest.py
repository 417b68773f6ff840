"""Contents of reports: a usual one and one that fills every corner."""

from __future__ import annotations

import math
import random
from datetime import date

import pytest

from ireko_trainer.report import (
    BaselineEntry,
    CandidateEntry,
    Curve,
    Importance,
    MatrixBits,
    MemberEntry,
    ReportContent,
    TeacherEntry,
)

MIB = 1 << 20
TABLES = ("word", "position", "token_type")
MATRICES = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)


def member(
    target: str, mib: float, limit: float, quality: float, *, layers: int, bits: list[int]
) -> MemberEntry:
    tables = [MatrixBits(block="embeddings", matrix=f"{name}_embeddings", bits=8) for name in TABLES]
    inside = [
        MatrixBits(block=f"layer {layer}", matrix=matrix, bits=bits[layer % len(bits)])
        for layer in range(layers)
        for matrix in MATRICES
    ]
    head = MatrixBits(block="head", matrix="classifier", bits=None)
    return MemberEntry(
        target=target,
        quality=quality,
        size_bytes=int(mib * MIB),
        parameters=int(mib * 1.6e6),
        average_bits=sum(bits) / len(bits) + 0.25,
        hidden=384,
        heads=12,
        intermediate=1536,
        layers=tuple(range(layers)),
        max_size_bytes=int(limit * MIB),
        min_quality=0.8,
        metrics={"accuracy": quality, "agreement": min(1.0, quality + 0.06), "f1": quality - 0.01},
        bits=(*tables, *inside, head),
    )


def curve(stage: str, steps: int, *, seed: int) -> Curve:
    noise = random.Random(seed)
    points = []
    for step in range(1, steps + 1):
        loss = 0.7 * math.exp(-step / (steps / 4)) + 0.12 + noise.gauss(0, 0.03)
        values = {"loss": loss, "learning_rate": 1e-4, "gradient_norm": 1.0}
        for name in ("384x6", "288x4", "192x3"):
            if noise.random() < 0.5:
                values[f"loss/{name}"] = loss * (1 + len(name) / 20) + noise.gauss(0, 0.04)
        points.append((step, values))
    return Curve(stage=stage, points=tuple(points))


def scores(method: str, model: str, layers: int, *, seed: int) -> Importance:
    noise = random.Random(seed)
    return Importance(
        method=method,
        model=model,
        scores={f"encoder.layer.{i}": noise.uniform(-0.9, -0.2) for i in range(layers)},
    )


@pytest.fixture(scope="session")
def content() -> ReportContent:
    members = (
        member("gateway", 18.9, 20, 0.905, layers=6, bits=[8, 8, 4, 8]),
        member("kiosk", 9.6, 10, 0.889, layers=4, bits=[4, 8, 4]),
        member("sensor-hub", 4.8, 5, 0.861, layers=3, bits=[2, 4, 3]),
    )
    noise = random.Random(1)
    candidates = [
        CandidateEntry(
            label=f"candidate {i}",
            size_bytes=int(size * MIB),
            quality=0.925 - 0.25 / size - abs(noise.gauss(0, 0.03)),
        )
        for i in range(40)
        for size in [noise.uniform(3, 60)]
    ]
    return ReportContent(
        name="sentiment",
        model_name="sentiment",
        metric="accuracy",
        teacher=TeacherEntry(quality=0.914, size_bytes=int(86.6 * MIB), parameters=22_700_000),
        members=members,
        candidates=tuple(candidates),
        baselines=(BaselineEntry(label="uniform 4 bits", size_bytes=12 * MIB, quality=0.872),),
        curves=(curve("teacher", 600, seed=1), curve("widths", 300, seed=2), curve("depths", 300, seed=3)),
        importance=tuple(
            scores(method, m.target, len(m.layers), seed=i)
            for method in ("LIM", "ZD")
            for i, m in enumerate(members)
        ),
        lineage=(
            ("teacher sha256", "9f2c" * 16),
            ("train data sha256", "01ab" * 16),
            ("seed", "0"),
            ("torch", "2.15.0"),
            ("transformers", "5.23.0"),
        ),
        tracking_uri="http://mlflow.example:5000",
        created=date(2026, 3, 4),
    )
