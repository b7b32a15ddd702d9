"""Training steps in torch and in biotorch, for benchmarks/run.py --peer=torch.

Runs under an interpreter that has torch, and biotorch if it is to be measured too.
"""

import sys
import time

import peer
import torch
from torch import nn

# Raw torch, in its three ways to be run.
MODES = ("torch", "torch, channels last", "torch, compiled")
_LAYERS = dict.fromkeys(MODES, nn)
try:
    from biotorch.layers import backpropagation, fa, usf
except ImportError:
    pass
else:
    _LAYERS |= {"backprop": backpropagation, "fa": fa, "sign_fa": usf}


def mlp(shape, kind, hidden_units):
    """Dense layers of one kind."""
    layers, inside = [], shape[-1]
    for units in hidden_units:
        layers += [kind.Linear(inside, units), nn.ReLU()]
        inside = units
    return nn.Sequential(*layers, kind.Linear(inside, 10))


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


def stepper(make, shape, batch, rule, low_precision=False, **arguments):
    """A function that does a training step on random data and returns its seconds."""
    torch.manual_seed(0)
    network = _NETWORKS[make](shape, _LAYERS[rule], **arguments)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)
    shape = shape if len(shape) == 1 else (shape[-1], *shape[:-1])
    x, y = torch.randn(batch, *shape), torch.randint(10, (batch,))
    if rule == "torch, channels last" and x.ndim == 4:
        network = network.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)

    def loss(x, y):
        with torch.autocast("cpu", torch.bfloat16, enabled=low_precision):
            return nn.functional.cross_entropy(network(x), y)

    if rule == "torch, compiled":
        loss = torch.compile(loss)

    def step():
        start = time.perf_counter()
        optimizer.zero_grad()
        loss(x, y).backward()
        optimizer.step()
        return time.perf_counter() - start

    return step


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    rules = [rule for rule in _LAYERS if rule not in MODES]
    about = {"rules": rules, "modes": MODES, "torch": torch.__version__}
    peer.answer(about, stepper)
