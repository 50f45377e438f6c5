"""check: validate a whole run before anything expensive."""

from components.generated import check_component
from rco.config.parameters import PARAMETERS
from rco.config.plugins import installed
from rco.tasks.settings import Settings

check = check_component(
    "check",
    module="check",
    own={"max_stages": int},
    constants={"plugins": installed()},
    parameters={p.name: p.kind for p in PARAMETERS.values()},
    outputs=list(Settings.__dataclass_fields__),
    doc="Validate every parameter, resolve what was left open, open the run in MLflow.",
)
