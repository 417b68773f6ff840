"""What an algorithm knows of the other workers: it averages with them, votes with them and waits for them.

The algorithms know no Ray. With one worker nothing here does anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from ireko_trainer.delta import Spread, one_by_one


@dataclass(frozen=True, kw_only=True)
class World:
    """The workers of one training run, as seen by one of them."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")
    spread: Spread = one_by_one
    """For independent calls of a stage that one worker does alone: `map`, or what uses the others' processors."""

    def all_reduce(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace each tensor by its mean over the workers, in place, with one collective call."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.size
        offset = 0
        for tensor in tensors:
            tensor.copy_(flat[offset : offset + tensor.numel()].view_as(tensor))
            offset += tensor.numel()

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any worker; all workers get the same answer."""
        if self.size == 1:
            return flag
        # Between GPUs only what is on a GPU can be reduced.
        votes = torch.tensor([int(flag)], device=self.device)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return bool(votes.item())

    def barrier(self) -> None:
        """Wait until every worker is here."""
        if self.size > 1:
            dist.barrier()
