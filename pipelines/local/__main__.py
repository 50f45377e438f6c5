"""The inner process: `python -m pipelines.local request.json`."""

import sys
from pathlib import Path

from pipelines.local.work import main

if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
