"""`make gpu`: what has to be proved on a GPU, in one command of a few minutes (`python3 -m benchmarks.gpu --help`).

It needs no virtual environment: PyTorch, torchvision, NumPy, scikit-learn, SciPy, safetensors, Pillow and matplotlib are
enough.
"""

import sys
from pathlib import Path

# The other benchmarks are scripts, which import each other by their bare names.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
