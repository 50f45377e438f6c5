"""check_comparison: validate a whole comparison before anything expensive."""

from components.generated import check_component
from rco.config.kinds import MOST, OPTIONS, SHARED
from rco.config.parameters import PARAMETERS
from rco.config.plugins import installed
from rco.tasks.settings import SlotSettings

check_comparison = check_component(
    "check_comparison",
    module="comparison",
    own={"slots": list},
    constants={"outputs": MOST, "plugins": installed()},
    parameters={
        **{option.name: option.kind for option in OPTIONS.values()},
        **{name: PARAMETERS[name].kind for name in SHARED},
    },
    outputs=[
        *("data", "teacher", "filing"),
        *(f"{task}_{slot}" for slot in range(1, MOST + 1) for task in SlotSettings.__dataclass_fields__),
    ],
    doc="Validate every branch, resolve what was left open, open the run in MLflow.",
)
