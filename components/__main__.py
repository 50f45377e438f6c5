"""`python -m components TASK --executor_input JSON`: a task of a compiled pipeline, in the image that holds its code.

KFP writes a component's code into the pipeline, and Kubernetes keeps it six times for every task. The image has it already.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main(arguments: list[str]) -> None:
    """Run a task as KFP's own executor does.

    Args:
        arguments: the name of the component's file, which is that of its function; then what KFP's executor takes.
    """
    os.environ["_KFP_RUNTIME"] = "true"  # KFP's own switch: what compiles pipelines takes two seconds to import
    from kfp.dsl.executor_main import executor_main

    name, *others = arguments
    file = Path(__file__).with_name(f"{name}.py")
    sys.argv[1:] = ["--component_module_path", str(file), "--function_to_execute", name, *others]
    executor_main()


if __name__ == "__main__":
    main(sys.argv[1:])
