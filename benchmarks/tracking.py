"""What tracking costs: seconds per anchor and per epoch, on a local MLflow database. Fails above the bar of 0.1 s.

.venv/bin/python benchmarks/tracking.py
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

from rco import checkpoint, tracking
from rco.record import Record
from rco.spec import NetworkSpec, save_network

BAR = 0.1
SPEC = NetworkSpec(model="resnet32", stem="auto", in_channels=3, num_classes=10, image_size=32)


def main() -> int:
    """Time 20 anchors and 200 epochs; exit status 1 if the median anchor is above the bar."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        context = tracking.Context(
            tracking_uri=f"sqlite:///{root}/mlflow.db", pipeline_run="bench", artifact_root=(root / "artifacts").as_uri()
        )
        tracking.open_parent(context, "bench", "bench", {})
        data = {"name": "bench", "source": "bench", "digest": "0" * 64}
        run = tracking.ModelRun.open(context, context.client(), Record(key="student", params={}, data=data))
        anchors = []
        for epoch in range(1, 21):
            folder = root / str(epoch)
            digest = save_network(folder / "anchor.safetensors", SPEC.build(epoch), SPEC)
            about = {"epoch": epoch, "sha256": digest, "model": SPEC.model, "val_accuracy": 0.5, "hardness": 0.1, "lr": 0.1}
            checkpoint.write_json(folder / "anchor.json", about)
            started = time.perf_counter()
            run.anchor(folder)
            anchors.append(time.perf_counter() - started)
        started = time.perf_counter()
        for epoch in range(1, 201):
            run.log(epoch, dict.fromkeys(("loss", "label_loss", "mimic_loss", "lr", "val_accuracy", "stage"), 0.5))
        run.close()
        per_epoch = (time.perf_counter() - started) / 200
    median = statistics.median(anchors)
    print(f"an anchor (ResNet-32, 1.9 MB): median {median:.3f} s, largest {max(anchors):.3f} s; an epoch: {per_epoch:.4f} s")
    return int(median > BAR)


if __name__ == "__main__":
    sys.exit(main())
