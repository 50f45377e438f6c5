"""`python -m rco.tasks NAME arguments.json`: one task by itself."""

import sys

from rco.tasks.process import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
