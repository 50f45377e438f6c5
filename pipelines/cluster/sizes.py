"""How large a pipeline must be compiled for what is wanted of it; its shape is fixed from then on."""

from __future__ import annotations

from rco.config.branches import Comparison
from rco.config.parameters import RunConfig
from rco.config.shape import Shape
from rco.core.errors import InputError


def stages_for(config: RunConfig, given: int | None = None) -> int:
    """Stages that a pipeline for this run needs room for: the default number, so that most runs share a package, or more.

    A route that exists is not looked at: it may lie where only the cluster reaches it.

    Args:
        given: what the user wants it to be.

    Raises:
        InputError: the strategy cannot be followed, the student's epochs do not go round, or `given` is not enough.
    """
    from pipelines.rco import DEFAULT_STAGES
    from rco.tasks.preflight import stages_needed

    needed = 1 if config.route.route else stages_needed(config)
    if given is not None and given < needed:
        raise InputError("max_stages", given, f"is not enough: this run has {needed} stages", f"Give {needed} or more")
    return given or max(DEFAULT_STAGES, needed)


def shape_for(comparison: Comparison, max_stages: int | None = None, *, run: bool = True) -> Shape:
    """What a pipeline for this comparison is compiled for: branches that choose before every stage have room for the default
    number, so that most comparisons of these branches share a package, or for more.

    A route that exists is not looked at: it may lie where only the cluster reaches it.

    Args:
        max_stages: what the user wants it to be.
        run: whether this very comparison is to be run; else the package is for other parameters as well.

    Raises:
        InputError: as for `stages_for`; it names the branch.
    """
    from pipelines.rco import DEFAULT_STAGES
    from rco.strategies.base import Adaptive
    from rco.tasks.comparison_preflight import steps_needed

    adaptive = [b.key for b in comparison.branches if isinstance(b.config.anchors.strategy, Adaptive)]
    steps = {b.key: 1 for b in comparison.branches}
    if not comparison.branches[0].config.route.route:
        steps = steps_needed(comparison.branches)
    for key in adaptive:
        if run and max_stages is not None and max_stages < steps[key]:
            problem = f"is not enough: branch {key!r} has {steps[key]} stages"
            raise InputError("max_stages", max_stages, problem, f"Give {steps[key]} or more")
        steps[key] = max_stages or max(DEFAULT_STAGES, steps[key])
    return Shape(kinds=comparison.kinds, grid=comparison.grid, steps=steps)
