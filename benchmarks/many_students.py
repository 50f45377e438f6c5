"""Do several students train faster as one batched program? Stacked weights and torch.func.vmap beside one after the other.

    make bench-students

The same students (seeds of one stage), the same images, the same loss, looked-up anchor logits in both cases; figures are
student images a second. Gradients of the two ways are compared first.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from harness import HERE, machine, median_seconds, save, table
from torch import Tensor, nn

TAU, BATCH = 4.0, 64
CASES = {"digits-mlp": (1, 8), "digits-cnn-s": (1, 8), "resnet8": (3, 32)}


def loss_of(logits: Tensor, anchor: Tensor, labels: Tensor) -> Tensor:
    """The objective of the paper."""
    mimicry = F.kl_div(F.log_softmax(logits / TAU, 1), F.log_softmax(anchor / TAU, 1), reduction="batchmean", log_target=True)
    return F.cross_entropy(logits, labels) + TAU**2 * mimicry


def students(name: str, count: int) -> list[nn.Module]:
    """Seeds of one network."""
    from rco.models.build import build_network

    channels, size = CASES[name]
    return [build_network(name, in_channels=channels, num_classes=10, image_size=size, seed=s) for s in range(count)]


def one_by_one(networks: list[nn.Module], x: Tensor, anchor: Tensor, y: Tensor) -> Any:
    """A step of each student in turn."""
    optimizers = [torch.optim.SGD(n.parameters(), lr=0.01, momentum=0.9, nesterov=True, fused=True) for n in networks]

    def step() -> None:
        for network, optimizer in zip(networks, optimizers, strict=True):
            optimizer.zero_grad(set_to_none=True)
            loss_of(network(x), anchor, y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    return step


def stacked(networks: list[nn.Module], x: Tensor, anchor: Tensor, y: Tensor) -> Any:
    """A step of all students at once: weights (S, ...), one optimiser for the stacks.

    BatchNorm's running statistics are left out: vmap cannot update them in place, so this flatters it.
    """
    from torch.func import functional_call, grad, stack_module_state, vmap

    without_statistics(networks)
    parameters, buffers = stack_module_state(networks)
    template = networks[0]
    optimizer = torch.optim.SGD(list(parameters.values()), lr=0.01, momentum=0.9, nesterov=True, fused=True)

    def loss(weights: dict[str, Tensor], state: dict[str, Tensor]) -> Tensor:
        return loss_of(functional_call(template, (weights, state), (x,)), anchor, y)

    gradients = vmap(grad(loss), in_dims=(0, 0), randomness="same")

    def step() -> dict[str, Tensor]:
        found: dict[str, Tensor] = gradients(parameters, buffers)
        for name, parameter in parameters.items():
            parameter.grad = found[name]
        optimizer.step()
        return found

    return step


def without_statistics(networks: list[nn.Module]) -> None:
    """BatchNorm by the batch alone."""
    for network in networks:
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.track_running_stats, module.running_mean, module.running_var = False, None, None
                module.num_batches_tracked = None


def agreement(name: str, x: Tensor, anchor: Tensor, y: Tensor) -> float:
    """Largest difference between the gradients of the two ways, relative to the largest gradient."""
    single, together = students(name, 2), students(name, 2)
    found = stacked(together, x, anchor, y)()
    worst = 0.0
    for s, network in enumerate(single):
        loss_of(network(x), anchor, y).backward()  # type: ignore[no-untyped-call]
        for key, parameter in network.named_parameters():
            assert parameter.grad is not None
            scale = parameter.grad.abs().max().clamp_min(1e-6)
            worst = max(worst, float((found[key][s].detach() - parameter.grad).abs().max() / scale))
    return worst


def main() -> int:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "many_students.json")
    told = parser.parse_args()
    torch.set_num_threads(told.threads)
    rows: list[dict[str, Any]] = []
    for name, (channels, size) in CASES.items():
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(BATCH, channels, size, size, generator=generator)
        anchor, y = torch.randn(BATCH, 10, generator=generator), torch.randint(10, (BATCH,), generator=generator)
        difference = agreement(name, x, anchor, y)
        for count in (3, 8):
            apart = BATCH * count / median_seconds(one_by_one(students(name, count), x, anchor, y), told.rounds)
            together = BATCH * count / median_seconds(stacked(students(name, count), x, anchor, y), told.rounds)
            rows.append(
                {
                    "student": name,
                    "students": count,
                    "one_by_one": apart,
                    "stacked": together,
                    "ratio": together / apart,
                    "gradient_difference": difference,
                }
            )
    heads = ["student", "students", "one by one, images/s", "stacked, images/s", "ratio", "largest gradient difference"]
    for row in rows:
        row["shown"] = [
            str(row["student"]),
            str(row["students"]),
            *(f"{row[key]:,.0f}" for key in ("one_by_one", "stacked")),
            f"{row['ratio']:.2f}",
            f"{row['gradient_difference']:.1e}",
        ]
    print(table(heads, [row.pop("shown") for row in rows]))
    save(told.output, {"machine": machine(), "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
