"""Training steps in biotorch, for benchmarks/run.py --peer=biotorch.

Runs under an interpreter that has biotorch and torch, which keras_fa does not need.
Reads a question a line from standard input and answers each with a line: what to make,
or of which network to time a step.
"""

import json
import sys
import time

import torch
from biotorch.layers import backpropagation, fa, usf
from torch import nn

_LAYERS = {"backprop": backpropagation, "fa": fa, "sign_fa": usf}


def mlp(shape, kind):
    """784-1000-10 of the layers of one kind."""
    return nn.Sequential(kind.Linear(*shape, 1000), nn.ReLU(), kind.Linear(1000, 10))


def lenet(shape, kind):
    """The LeNet of `keras_fa.models`."""
    return nn.Sequential(
        *(kind.Conv2d(shape[-1], 32, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(kind.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(kind.Conv2d(64, 128, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        *(kind.Linear(128, 256), nn.ReLU(), kind.Linear(256, 10)),
    )


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inside, outside, stride, kind):
        super().__init__()
        self.branch = nn.Sequential(
            kind.Conv2d(inside, outside, 3, stride, 1, bias=False),
            *(nn.BatchNorm2d(outside), nn.ReLU()),
            kind.Conv2d(outside, outside, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outside),
        )
        self.shortcut = nn.Identity()
        if stride > 1:
            self.shortcut = nn.Sequential(
                kind.Conv2d(inside, outside, 1, stride, bias=False),
                nn.BatchNorm2d(outside),
            )

    def forward(self, x):
        return torch.relu(self.branch(x) + self.shortcut(x))


def resnet18(shape, kind):
    """The ResNet-18 of `keras_fa.models`."""
    blocks = []
    inside = 64
    for outside in (64, 128, 256, 512):
        blocks.append(Block(inside, outside, 1 if outside == 64 else 2, kind))
        blocks.append(Block(outside, outside, 1, kind))
        inside = outside
    return nn.Sequential(
        kind.Conv2d(shape[-1], 64, 7, 2, 3, bias=False),
        *(nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
        *(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), kind.Linear(512, 10)),
    )


_NETWORKS = {"mlp": mlp, "lenet": lenet, "resnet18": resnet18}


def stepper(make, shape, batch, rule):
    """A function that does a training step on random data and returns its seconds."""
    torch.manual_seed(0)
    network = _NETWORKS[make](shape, _LAYERS[rule])
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)
    shape = shape if len(shape) == 1 else (shape[-1], *shape[:-1])
    x, y = torch.randn(batch, *shape), torch.randint(10, (batch,))

    def step():
        start = time.perf_counter()
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
        return time.perf_counter() - start

    return step


def main():
    """Answers questions until there are no more."""
    torch.set_num_threads(int(sys.argv[1]))
    about = {"rules": list(_LAYERS), "torch": torch.__version__}
    print(json.dumps(about), flush=True)
    steps = []
    for line in sys.stdin:
        question = json.loads(line)
        if "step" in question:
            answer = steps[question["step"]]()
        else:
            steps.append(stepper(**question))
            answer = len(steps) - 1
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
