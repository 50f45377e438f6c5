"""What preparing a data set costs that is too large for memory: every file is decoded once; images a second, and peak memory.

    make bench-prepare

JPEG photographs are made first (random, smooth, 320 x 240 pixels), as many as make 2.5 GiB of 224 x 224 pixels in colour.
Preparing runs in a process of its own, whose peak memory is what the system says of it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from harness import HERE, machine, save, table
from PIL import Image

CODE = """
import json, resource, sys, time
from pathlib import Path
from rco.data.config import DataConfig
from rco.data.prepare import prepare
from rco.data.sources.kinds import check_source, source_digest
config = DataConfig(dataset=sys.argv[1], image_size=224)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
times = [time.monotonic()]
check_source(config); times.append(time.monotonic())
digest = source_digest(config); times.append(time.monotonic())
cpu = time.process_time()
manifest = prepare(config, Path(sys.argv[2]), digest); times.append(time.monotonic())
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
check, hashed, prepared = (b - a for a, b in zip(times, times[1:]))
print(json.dumps({"storage": manifest.storage, "images": sum(manifest.sizes.values()), "check_s": check, "digest_s": hashed,
                  "prepare_s": prepared, "cpu_s": time.process_time() - cpu,
                  "before_mib": before, "peak_mib": peak}))
"""


def photographs(root: Path, count: int, classes: int = 10) -> int:
    """Write `count` different JPEG files in class folders; returns their bytes."""
    rng, total = np.random.default_rng(0), 0
    for number in range(count):
        small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
        path = root / str(number % classes) / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        small.resize((320, 240), Image.Resampling.BICUBIC).save(path, quality=90)
        total += path.stat().st_size
    return total


def main() -> int:
    """Measure; print a table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=2.5, help="of decoded images")
    options = parser.parse_args()
    count = int(np.ceil(options.gib * 2**30 / (3 * 224 * 224)))
    with tempfile.TemporaryDirectory() as scratch:
        began = time.monotonic()
        size = photographs(Path(scratch) / "photographs", count)
        print(f"{count:,} files of {size / 2**20:.0f} MiB made in {time.monotonic() - began:.0f} s", flush=True)
        command = [sys.executable, "-c", CODE, str(Path(scratch) / "photographs"), str(Path(scratch) / "out")]
        row = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    row |= {"gib": options.gib, "file_mib": size / 2**20, "images_per_second": row["images"] / row["prepare_s"]}
    columns = table(
        ("images", "decoded GiB", "files MiB", "check s", "digest s", "prepare s", "CPU s", "images/s", "peak MiB"),
        [
            (
                f"{row['images']:,}",
                f"{row['gib']:g}",
                f"{row['file_mib']:.0f}",
                f"{row['check_s']:.1f}",
                f"{row['digest_s']:.1f}",
                f"{row['prepare_s']:.1f}",
                f"{row['cpu_s']:.1f}",
                f"{row['images_per_second']:.0f}",
                f"{row['peak_mib']:.0f}",
            )
        ],
    )
    print(columns)
    save(HERE / "results" / "prepare_data.json", {"machine": machine(), "prepare": row})
    return 0 if row["storage"] == "files" else 1


if __name__ == "__main__":
    sys.exit(main())
