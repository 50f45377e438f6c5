"""What MLflow runs to load a student whose network cannot be traced. This file is copied into the registered model, beside the
factory's code and the weights; so it imports nothing of this project, and nothing imports it.
"""

from __future__ import annotations

import importlib
from operator import attrgetter
from typing import Any

import mlflow
import numpy as np
import torch
from safetensors.torch import load_file


class Student(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Builds the network with its factory and copies the weights into it. No pickle is read."""

    def load_context(self, context: Any) -> None:
        """Build the network.

        Args:
            context: its artifact `weights` is a safetensors file; its model_config has factory (package.module:function), its
                keyword arguments, and mean and std of each channel.
        """
        about = context.model_config
        module, _, attribute = about["factory"].partition(":")
        with torch.random.fork_rng(devices=[]):
            self.network = attrgetter(attribute)(importlib.import_module(module))(**about["arguments"]).float()
        self.network.load_state_dict(load_file(context.artifacts["weights"]))
        self.network.eval()
        self.mean, self.std = (torch.tensor(about[name], dtype=torch.float32).view(1, -1, 1, 1) for name in ("mean", "std"))

    # MLflow takes type hints for a schema of its own, and warns of those that are none.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Logits (B, K) of pixels (B, C, H, W) in 0..1."""
        pixels = torch.from_numpy(np.array(model_input, np.float32))
        with torch.inference_mode():
            return self.network((pixels - self.mean) / self.std).numpy()


mlflow.models.set_model(Student())
