"""`python -m rco.tasks NAME arguments.json`: one task by itself."""

import sys

from rco.tasks import comparison_tasks
from rco.tasks.run import main

if __name__ == "__main__":
    assert comparison_tasks  # registers its tasks
    sys.exit(main(sys.argv[1:]))
