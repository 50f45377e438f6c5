"""Which images of a batch one of several workers takes: a batch is cut, so that all shares together are exactly the batch."""

from __future__ import annotations

from dataclasses import dataclass

_LEAST = 2  # images of a share: BatchNorm cannot learn from one


@dataclass(frozen=True)
class Share:
    """One of `size` equal shares, number `rank` from 0. By default everything.

    A batch of fewer than two images a share is not cut: every worker takes all of it.
    """

    rank: int = 0
    size: int = 1

    def of(self, count: int) -> slice:
        """The part of a batch of `count` images that is this share: contiguous, the first shares larger by one if need be."""
        if count < _LEAST * self.size:
            return slice(0, count)
        each, more = divmod(count, self.size)
        start = self.rank * each + min(self.rank, more)
        return slice(start, start + each + (self.rank < more))

    def weight(self, count: int) -> float:
        """What this share's mean counts for in the mean of the whole batch: the weights of all shares make 1."""
        if count < _LEAST * self.size:
            return 1 / self.size
        part = self.of(count)
        return float(part.stop - part.start) / count

    def batches(self, count: int) -> slice:
        """Which of `count` whole batches are this share, where batches are not cut; there may be none."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)


WHOLE = Share()
