"""How large a pipeline must be compiled for what is wanted of it; its shape is fixed from then on."""

from __future__ import annotations

from collections.abc import Sequence

from rco.config.branches import Comparison
from rco.config.parameters import RunConfig
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


def slots_for(comparison: Comparison, given: Sequence[int] | None = None, max_stages: int | None = None) -> list[int]:
    """Slots that a pipeline for this comparison needs: the default ones, where they are enough.

    Args:
        given: what the user wants them to be.
        max_stages: that the greedy branch of the default ones has.

    Raises:
        InputError: as for `stages_for`; it names the branch.
    """
    from pipelines.comparison import DEFAULT_SLOTS
    from rco.config.branches import assign
    from rco.tasks.comparison_preflight import steps_needed

    usual = list(given or [*DEFAULT_SLOTS[:-1], max_stages or DEFAULT_SLOTS[-1]])
    if comparison.branches[0].config.route.route:
        return usual
    needs = steps_needed(comparison.branches)
    try:
        assign(needs, usual)
    except InputError:
        if given or max_stages:
            raise
        return list(needs.values())
    return usual
