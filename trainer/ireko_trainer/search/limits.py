"""What a device target demands of a member, and how far a candidate is from it."""

from __future__ import annotations

from dataclasses import dataclass

MEBIBYTE = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class DeviceLimits:
    """The constraints of one device target; None means unconstrained."""

    target: str
    field: str
    """Path of the target in the manifest, such as `spec.deviceTargets[0]`, for error texts."""
    max_bytes: int
    min_quality: float | None = None
    min_quality_ratio: float | None = None
    """Of the teacher's quality."""

    @property
    def max_mebibytes(self) -> float:
        """The size limit as the manifest has it: whole bytes do not give 0.14 MiB back."""
        return round(self.max_bytes / MEBIBYTE, 4)

    def quality_floor(self, *, teacher_quality: float) -> float | None:
        """The lowest quality that satisfies both quality constraints; None if there is neither."""
        floors = [] if self.min_quality is None else [self.min_quality]
        if self.min_quality_ratio is not None:
            floors.append(self.min_quality_ratio * teacher_quality)
        return max(floors, default=None)


@dataclass(frozen=True, kw_only=True)
class Miss:
    """One constraint that a member misses."""

    constraint: str
    limit: float
    value: float

    def __str__(self) -> str:
        return f"{self.constraint} is {self.limit:g} and it reaches {self.value:.4g}"


def misses(
    limits: DeviceLimits, *, size_bytes: int, quality: float, teacher_quality: float
) -> tuple[Miss, ...]:
    """Every constraint that a member of this size and quality misses; empty means that it fits."""
    found: list[Miss] = []
    if size_bytes > limits.max_bytes:
        found.append(Miss(constraint="maxSizeMiB", limit=limits.max_mebibytes, value=size_bytes / MEBIBYTE))
    if limits.min_quality is not None and quality < limits.min_quality:
        found.append(Miss(constraint="minQuality", limit=limits.min_quality, value=quality))
    ratio = quality / teacher_quality if teacher_quality else 0.0
    if limits.min_quality_ratio is not None and ratio < limits.min_quality_ratio:
        found.append(Miss(constraint="minQualityRatio", limit=limits.min_quality_ratio, value=ratio))
    return tuple(found)
