"""`python -m components TASK --executor_input JSON`: a task of a compiled pipeline, in the image that holds its code.

KFP writes a component's code into the pipeline, and Kubernetes keeps it six times for every task. The image has it already;
where the interface follows from the pipeline, it makes the function for the inputs of the task.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys


def main(arguments: list[str]) -> None:
    """Run a task as KFP's own executor does.

    Args:
        arguments: the name of the component's file, which is that of its function; `--executor_input`; what KFP hands to tasks.
    """
    os.environ["_KFP_RUNTIME"] = "true"  # KFP's own switch: what compiles pipelines takes two seconds to import
    from kfp.dsl.executor import Executor

    logging.basicConfig(stream=sys.stdout, format="[KFP Executor %(asctime)s %(levelname)s]: %(message)s", level=logging.INFO)
    name, _, text = arguments
    given = json.loads(text)
    module = importlib.import_module(f"components.{name}")
    function = module.in_image(given) if hasattr(module, "in_image") else getattr(module, name)
    Executor(executor_input=given, function_to_execute=function).execute()


if __name__ == "__main__":
    main(sys.argv[1:])
