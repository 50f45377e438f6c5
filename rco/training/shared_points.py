"""Resume points of a training that several workers do together: worker 0 has them, and all take up what it has found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rco.training.distributed import World
from rco.training.resume_points import ResumePoints


class SharedPoints(ResumePoints):
    """As `ResumePoints`, for one of several workers. All ask the same at the same time, and hear the same.

    Args:
        folder, identity, every, files: of worker 0's points.
        world: the workers.

    Raises:
        InputError: in worker 0, as `ResumePoints`.
    """

    def __init__(self, folder: str, identity: Mapping[str, Any], *, every: float, files: Path | None, world: World) -> None:
        super().__init__(folder if world.main else "", identity, every=every, files=files)
        self.world, self._keeps = world, bool(folder)
        self._found = world.of_main(self._found)

    @property
    def keeps(self) -> bool:
        """As `ResumePoints.keeps`, of all workers."""
        return self._keeps

    def due(self) -> bool:
        """As `ResumePoints.due`; a signal that has reached one worker stops all."""
        if not self.keeps:
            return False
        agreed = self.world.most(self.stopping or int(super().due()))
        if agreed > 1:  # no signal that is answered has the number 1
            self.stopping = agreed
        return agreed > 0

    def keep(self) -> None:
        """As `ResumePoints.keep`. All workers call it: parts of the state may be gathered from them."""
        if self.world.main:
            super().keep()
            return
        if self.keeps:
            for make in self._makers.values():
                make()
        if self.stopping is not None:
            raise SystemExit(128 + self.stopping)

    @property
    def gave_up(self) -> str | None:
        """As `ResumePoints.gave_up`."""
        words: str | None = self.world.of_main(super().gave_up)
        return words
