"""Accelerated and plain networks where numba is not installed. Prints: numba, equal?, all cells by source state?"""
import sys

sys.path.insert(0, sys.argv[1])
sys.modules['numba'] = None
import paddle  # noqa: E402

from kernels import compiled  # noqa: E402
from model_search import Network  # noqa: E402
from nas import accelerate  # noqa: E402

plain, fast = Network(8, 4, 3, 'DARTS'), accelerate(Network(8, 4, 3, 'DARTS'))
fast.set_state_dict(plain.state_dict())
x = paddle.randn([4, 3, 8, 8])
a, b = plain(x), fast(x)
b.sum().backward()
print(compiled.numba, float((a - b).abs().max() / a.abs().max()) < 1e-4,
      all(cell._acceleration.edges for cell in fast.cells))
