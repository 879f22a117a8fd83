"""The edges that leave a state, forward and backward. Prints a digest of all numbers.

Argument: the project's folder.
"""
import hashlib
import sys

sys.path.insert(0, sys.argv[1])
from kernels import compiled  # noqa: E402, F401, I001  before Paddle
import paddle  # noqa: E402

from model_search import MixedOp  # noqa: E402
from nas import fused  # noqa: E402
from nas.methods import DARTS  # noqa: E402

paddle.seed(0)
mixed = [MixedOp(4, 1, DARTS()) for _ in range(2)]
outgoing = fused.OutgoingEdges([list(edge._ops) for edge in mixed], [0, 1], fused.is_supported)
x, weights = paddle.randn([4, 4, 16, 16]), paddle.rand([2, 8])
x.stop_gradient = weights.stop_gradient = False
out = outgoing.compiled([x], weights)
parameters = [p for edge in mixed for p in edge.parameters() if p.trainable]
gradients = paddle.grad((out * out).sum(), [x, weights] + parameters)
digest = hashlib.sha256(b''.join(tensor.numpy().tobytes() for tensor in [out] + gradients))
print(digest.hexdigest())
