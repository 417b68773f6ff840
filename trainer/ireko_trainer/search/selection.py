"""The member that ships to a target: the best of the candidates that satisfy its constraints, or a clear refusal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ireko_trainer.errors import NothingFitsError
from ireko_trainer.mlfs import Shape
from ireko_trainer.search.limits import DeviceLimits, misses
from ireko_trainer.search.palette import describe


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A trained subnet with its bits, as it would ship."""

    shape: Shape
    average_bits: float
    size_bytes: int
    quality: float
    """On the validation data, with the weights as they load from the shipped file."""


def choose(*, limits: DeviceLimits, candidates: Sequence[Candidate]) -> Candidate:
    """The best candidate within the size limit; at equal quality the smaller one.

    Quality floors are not applied here: a recovery training may still raise the quality of what is chosen.
    """
    fitting = [candidate for candidate in candidates if candidate.size_bytes <= limits.max_bytes]
    if not fitting:
        closest = min(candidates, key=lambda candidate: candidate.size_bytes)
        raise NothingFitsError(_refusal(limits, closest, teacher_quality=1.0))
    return max(fitting, key=lambda candidate: (candidate.quality, -candidate.size_bytes))


def require_fit(*, limits: DeviceLimits, member: Candidate, teacher_quality: float) -> None:
    """Raise NothingFitsError, with the constraint that is missed, unless the finished member satisfies its target."""
    if misses(limits, size_bytes=member.size_bytes, quality=member.quality, teacher_quality=teacher_quality):
        raise NothingFitsError(_refusal(limits, member, teacher_quality=teacher_quality))


def _refusal(limits: DeviceLimits, closest: Candidate, *, teacher_quality: float) -> str:
    missed = misses(
        limits, size_bytes=closest.size_bytes, quality=closest.quality, teacher_quality=teacher_quality
    )
    return (
        f"{limits.field}: no member fits {limits.target}; the closest candidate ({describe(closest.shape)}, "
        f"{closest.average_bits:.2f} bits) misses {' and '.join(f'{miss}' for miss in missed)}. Relax the constraint, "
        "raise maxSizeMiB, train longer (spec.pipeline.mlfs.stages, recovery), or widen "
        "spec.pipeline.mlfs.searchSpace"
    )
