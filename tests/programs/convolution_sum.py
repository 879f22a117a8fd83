"""A compiled depthwise convolution and a matrix product of Paddle. Prints: Paddle's version, whether numba is used,
the sum.

Arguments: the project's folder; 'paddle' to import Paddle first, as a user's own script may.
"""
import sys

sys.path.insert(0, sys.argv[1])
if 'paddle' in sys.argv[2:]:
    import paddle
from kernels import compiled  # noqa: E402, I001
import paddle  # noqa: E402, F811

from nas import accelerate  # noqa: E402

paddle.seed(0)
layer = paddle.nn.Conv2D(8, 8, 5, 1, 2, groups=8, bias_attr=False)
x = paddle.randn([4, 8, 9, 9])
out = accelerate(layer)(x)
print(paddle.__version__, compiled.numba is not None, repr(float(out.sum() + paddle.matmul(x, x).sum())))
