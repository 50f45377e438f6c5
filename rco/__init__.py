"""Route Constrained Optimization: a student distils better if it follows its teacher's route (Jin et al., ICCV 2019).

    import rco

    data = rco.prepare_dataset("digits", "data")
    route = rco.train_route(data, "digits-cnn-l", "route")
    student, rows = rco.distill_student("digits-cnn-s", route, data)

The pieces are in the packages (`rco.strategies`, `rco.objectives`, `rco.training`, ...); these functions put them together.
Nothing heavy is imported until it is used.
"""

from importlib import import_module
from typing import Any

_MODULES = {
    "prepare_dataset": "rco.api",
    "train_route": "rco.api",
    "distill_student": "rco.api",
    "load": "rco.tracking.registry",
    "InputError": "rco.core.errors",
    "Dataset": "rco.data.dataset",
    "NetworkInput": "rco.data.network_input",
    "Route": "rco.models.route",
    "RunConfig": "rco.config.parameters",
}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'rco' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
