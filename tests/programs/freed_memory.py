"""Backward passes that read what a forward pass has left. With MALLOC_PERTURB_, glibc overwrites memory that is freed;
arrays of few bytes it keeps aside.

Argument: the project's folder.
"""
import copy
import sys

sys.path.insert(0, sys.argv[1])
from kernels import compiled  # noqa: E402, F401, I001  before Paddle
import numpy as np  # noqa: E402
import paddle  # noqa: E402
import paddle.nn.functional as F  # noqa: E402

import genotypes  # noqa: E402
from model import Cell  # noqa: E402
from nas import accelerate  # noqa: E402
from nas.layers import parts_of  # noqa: E402

paddle.seed(0)
x, layer = paddle.randn([8, 400, 8, 8]), paddle.nn.Conv2D(400, 8, 1, bias_attr=False)
x.stop_gradient = False
block, = parts_of(layer)
block.smallest = 0
assert block.applies([x])
out = block([x])
assert float((out - layer(x)).abs().max()) < 1e-3
out.sum().backward()

# The edges of a cell read nodes that lie in its output, which nothing else keeps: ReLU keeps its own output.
plain = Cell(genotypes.PC_DARTS, 4, 4, 4, False, False)
inputs, found = [paddle.randn([4, 4, 12, 12]) for _ in range(2)], []
for cell in (plain, accelerate(copy.deepcopy(plain))):
    loss = F.relu(cell(*inputs, 0.0)).sum()
    gradients = paddle.grad(loss, [p for p in cell.parameters() if not p.stop_gradient])
    found.append(np.concatenate([gradient.numpy().ravel() for gradient in gradients]))
difference = np.linalg.norm(found[1] - found[0]) / np.linalg.norm(found[0])
assert difference < 2e-3, difference
