"""How large a pipeline must be compiled for what is wanted of it; its shape is fixed from then on."""

from __future__ import annotations

from rco.config.branches import Comparison
from rco.config.shape import DEFAULT_STAGES, STUDENT, Shape
from rco.core.errors import InputError


def shape_for(comparison: Comparison, max_stages: int | None = None, *, run: bool = True) -> Shape:
    """What a pipeline for a run or a comparison is compiled for: what chooses before every stage has room for the default
    number of stages, so that most runs, and most comparisons of the same branches, share a package; or for more.

    A route that exists is not looked at: it may lie where only the cluster reaches it.

    Args:
        max_stages: what the user wants it to be.
        run: whether this very run is wanted; else the package is for other parameters as well.

    Raises:
        InputError: a strategy cannot be followed, the student's epochs do not go round, or `max_stages` is not enough.
    """
    from rco.tasks.validate import chooses_one_by_one, shape_of

    steps = dict.fromkeys((branch.key for branch in comparison.branches), 1)
    if not comparison.reference.route.route:
        steps = shape_of(comparison).steps
    for key in (branch.key for branch in comparison.branches if chooses_one_by_one(branch)):
        if run and max_stages is not None and max_stages < steps[key]:
            whose = "this run" if key == STUDENT else f"branch {key!r}"
            problem = f"is not enough: {whose} has {steps[key]} stages"
            raise InputError("max_stages", max_stages, problem, f"Give {steps[key]} or more")
        steps[key] = max_stages or max(DEFAULT_STAGES, steps[key])
    return Shape(kinds=comparison.kinds, grid=comparison.grid, steps=steps)
