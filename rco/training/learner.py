"""What learns in a training, as one module: the network and the objective's own weights; for several workers, in DDP."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rco.models.taps import Output, observe
from rco.objectives.stage import StageLoss
from rco.training.distributed import World


class Learner(nn.Module):
    """A network and its objective. The names of the attributes are those in a resume point."""

    def __init__(self, model: nn.Module, objective: StageLoss) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, x: Tensor, anchor: Output | None, labels: Tensor) -> dict[str, Tensor]:
        """The parts of the loss, means over these images (B, C, H, W).

        Args:
            anchor: what the frozen anchor says of them.
            labels: (B,), int64; or (B, K) float32, as for `rco.objectives.stage.label_loss`.
        """
        parts: dict[str, Tensor] = self.objective(observe(self.model, x, self.objective.taps.student), anchor, labels)
        return parts


def shared(learner: Learner, world: World, *, sync_batchnorm: bool = False) -> nn.Module:
    """The learner as several workers train it: their weights start as worker 0's, and their gradients are averaged.

    Args:
        sync_batchnorm: BatchNorm takes its statistics of the whole batch. The network's own modules are replaced.
    """
    if world.alone or not any(p.requires_grad for p in learner.parameters()):
        return learner
    if sync_batchnorm:
        nn.SyncBatchNorm.convert_sync_batchnorm(learner)  # type: ignore[no-untyped-call]
    # A network may have weights on which no logit depends. No device is named: inputs lie where they belong.
    return DistributedDataParallel(learner, find_unused_parameters=True)
