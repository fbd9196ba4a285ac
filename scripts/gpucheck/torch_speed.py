"""Images a second of the check's net in PyTorch, forward and backward, in float32. Run by a Python that has torch.

Arguments: batch, rounds, GPU ("" for the CPU), 1 to allow TF32, outputs of the convolutions, of fc6 and fc7, dropout.
"""

from __future__ import annotations

import sys
import time


def main(batch: str, rounds: str, gpu: str, tf32: str, convolutions: str, inner: str, dropout: str) -> None:
    """Print ``images_per_second N``: the median round after three to warm up."""
    import torch
    from torch import nn

    device = torch.device(f"cuda:{gpu}" if gpu else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32 == "1"
    c = [int(number) for number in convolutions.split(",")]
    f = [int(number) for number in inner.split(",")]

    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    def norm() -> nn.Module:
        return nn.LocalResponseNorm(5, 1e-4, 0.75)

    net = nn.Sequential(
        *(nn.Conv2d(3, c[0], 11, 4), nn.ReLU(), pool(), norm()),
        *(nn.Conv2d(c[0], c[1], 5, 1, 2, groups=2), nn.ReLU(), pool(), norm()),
        *(nn.Conv2d(c[1], c[2], 3, 1, 1), nn.ReLU()),
        *(nn.Conv2d(c[2], c[3], 3, 1, 1, groups=2), nn.ReLU()),
        *(nn.Conv2d(c[3], c[4], 3, 1, 1, groups=2), nn.ReLU(), pool(), nn.Flatten()),
        *(nn.Linear(36 * c[4], f[0]), nn.ReLU(), nn.Dropout(float(dropout))),
        *(nn.Linear(f[0], f[1]), nn.ReLU(), nn.Dropout(float(dropout)), nn.Linear(f[1], 1)),
    ).to(device)
    images = 128 * torch.randn(int(batch), 3, 224, 224, device=device)
    ages = 120 * torch.rand(int(batch), 1, device=device)

    def step() -> float:
        started = time.perf_counter()
        net.zero_grad(set_to_none=True)
        (((net(images) - ages) ** 2).sum() / (2 * int(batch))).backward()
        if gpu:
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    for _ in range(3):
        step()
    times = sorted(step() for _ in range(int(rounds)))
    print(f"images_per_second {int(batch) / times[len(times) // 2]:.6g}")


if __name__ == "__main__":
    main(*sys.argv[1:])
