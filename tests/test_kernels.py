"""The compiled loops of kernels/ against Paddle's own operations."""
import copy
import os
import subprocess
import sys

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from conftest import PROGRAMS, ROOT, needs_numba, relative_error

import model_search
from nas import fused
from nas.acceleration import accelerate
from nas.layers import parts_of
from nas.methods import DARTS


@needs_numba
@pytest.mark.parametrize('stride, size, images', [(1, (8, 8), 4), (1, (7, 9), 5), (2, (8, 8), 4), (2, (7, 9), 3),
                                                  (1, (32, 32), 2),
                                                  (1, (2, 2), 64)])
def test_the_edges_of_a_state_equal_paddles_operations(stride, size, images):
    """Outputs, gradients of the input, of the weights of convolutions and operations, running statistics."""
    paddle.seed(0)
    mixed = [model_search.MixedOp(6, stride, DARTS()) for _ in range(3)]
    outgoing = fused.OutgoingEdges([list(edge._ops) for edge in mixed], [0, 1, 2], fused.is_supported)
    x, weights = paddle.randn([images, 6, *size]), paddle.rand([3, len(mixed[0]._ops)])
    x.stop_gradient = weights.stop_gradient = False
    parameters = [p for edge in mixed for p in edge.parameters() if p.trainable]
    statistics = [p for edge in mixed for p in edge.parameters() if not p.trainable]
    for s in statistics:  # also where the edges' statistics differ
        s.set_value(s + paddle.rand(s.shape))
    before, upstream, results = [s.numpy() for s in statistics], None, []

    def together():
        return [paddle.add_n(terms) for terms in outgoing(x, weights, fused.Scales(weights, 6, [outgoing]))]

    def one_by_one():
        return [edge(x, w) for edge, w in zip(mixed, weights)]
    for compute in (together, one_by_one):
        for s, value in zip(statistics, before):
            s.set_value(value)
        outs = compute()
        upstream = upstream or [paddle.randn(out.shape) for out in outs]
        gradients = paddle.grad(sum((o * u).sum() for o, u in zip(outs, upstream)), [x, weights] + parameters)
        results.append([value.numpy() for value in outs + gradients + statistics])
    for a, b in zip(*results):
        assert relative_error(a, b) < 1e-5


def compiled_convolution(x, layer):
    """The output of a convolution by a block, or None where that does not apply."""
    block, = parts_of(layer)
    if block is not None:
        block.smallest = 0
    return block([x]) if block is not None and block.applies([x]) else None


def compare_convolution(layer, x):
    """Output and gradients of the compiled convolution against Paddle's."""
    x.stop_gradient = False
    out, expected = compiled_convolution(x, layer), layer(x)
    upstream = paddle.randn(out.shape)
    inputs = [x, layer.weight] + [layer.bias] * (layer.bias is not None)
    ours, theirs = [[value] + paddle.grad((value * upstream).sum(), inputs) for value in (out, expected)]
    for a, b in zip(ours, theirs):
        # a weight's gradient is a sum over all pixels, of which single precision keeps 7 digits
        assert relative_error(a.numpy(), b.numpy()) < 3e-6


@needs_numba
@pytest.mark.parametrize('kernel, padding, dilation', [(3, 1, 1), (5, 2, 1), (7, 3, 1), (3, 2, 2), (5, 4, 2)])
@pytest.mark.parametrize('stride', [1, 2])
def test_the_compiled_depthwise_convolution_equals_paddles(kernel, padding, dilation, stride):
    """Odd and tiny images, several of which share a row."""
    paddle.seed(0)
    for height, width in ((32, 32), (8, 8), (7, 9), (2, 2), (1, 1), (5, 1), (12, 40), (13, 3), (9, 17)):
        for images in (1, 2, 5, 33):
            compare_convolution(paddle.nn.Conv2D(3, 3, kernel, stride, padding, dilation, groups=3, bias_attr=False),
                                paddle.randn([images, 3, height, width]))


@needs_numba
def test_infinite_pixels_stay_infinite():
    x = np.ones([1, 3, 8, 8], np.float32)
    x[0, 1, 4, 4] = -np.inf
    layer = paddle.nn.Conv2D(3, 3, 3, padding=1, groups=3, bias_attr=False)
    out, expected = compiled_convolution(paddle.to_tensor(x), layer).numpy(), layer(paddle.to_tensor(x)).numpy()
    assert np.isinf(expected).sum() == 9 and (np.isinf(out) == np.isinf(expected)).all()


@needs_numba
@pytest.mark.skipif(sys.platform != 'linux', reason='a setting of glibc')
def test_no_loop_reads_memory_that_is_free_again():
    subprocess.run([sys.executable, os.path.join(PROGRAMS, 'freed_memory.py'), ROOT], check=True,
                   env=dict(os.environ, MALLOC_PERTURB_='165'))


@needs_numba
@pytest.mark.parametrize('channels, filters', [(1, 3), (8, 8), (5, 13), (24, 16), (16, 64)])
@pytest.mark.parametrize('images, size', [(1, (32, 32)), (70, (3, 3)), (3, (7, 9))])
def test_the_compiled_pointwise_convolution_equals_paddles(channels, filters, images, size):
    paddle.seed(0)
    x = paddle.randn([images, channels, *size])
    compare_convolution(paddle.nn.Conv2D(channels, filters, 1, bias_attr=False), x)


@needs_numba
@pytest.mark.parametrize('arguments', [dict(kernel_size=(1, 7), padding=(0, 3)), dict(kernel_size=1, padding=1),
                                       dict(kernel_size=3, stride=(1, 2), padding=1), dict(kernel_size=2, stride=3)])
def test_depthwise_convolutions_of_other_geometries(arguments):
    compare_convolution(paddle.nn.Conv2D(4, 4, groups=4, bias_attr=False, **arguments), paddle.randn([5, 4, 8, 9]))


@pytest.mark.parametrize('arguments', [dict(padding_mode='reflect', bias_attr=False), dict()], ids=['reflect', 'bias'])
def test_other_convolutions_are_left_to_paddle(arguments):
    layer = paddle.nn.Conv2D(4, 4, 3, padding=1, groups=4, **arguments)
    assert compiled_convolution(paddle.randn([2, 4, 8, 8]), layer) is None


def outcome(function):
    """What a function returns, or the class of the error that it raises."""
    try:
        return function().numpy()
    except Exception as error:
        return type(error)


# Images and changes of a layer for 4 channels: most are refused by Paddle, some mean something else than they seem to.
INPUTS = [2, 3, 8, 8], [2, 8, 8, 8], [4, 8, 8], [2, 4, 8], [2, 4, 1, 1], [2, 4, 8, 8]
CHANGES = [dict(shape=shape) for shape in ([8, 1, 3, 3], [4, 2, 3, 3], [4, 1, 5, 5], [4, 1, 3, 1], [6, 4, 1, 1],
                                           [6, 3, 1, 1], [6, 8, 1, 1], [4, 1, 1, 1], [4, 1, 3], [4], [5, 1, 3, 3])]
CHANGES += [dict(_dilation=[0, 0]), dict(_dilation=[-1, -1]), dict(_stride=[3, 3]), dict(_groups=1), dict(_groups=2),
            dict(_groups=3), dict(_padding_algorithm='SAME'), dict(_padding_algorithm='VALID'),
            dict(_updated_padding=[1, 0]), dict(_data_format='NHWC'), dict(dtype='float64')]


@needs_numba
@pytest.mark.parametrize('kind', ['depthwise', 'pointwise'])
def test_what_paddle_refuses_is_refused(kind):
    """The loops must not read beyond their tensors, nor compute something else than the layer's settings say."""
    def layer(shape=None, dtype=None, **settings):
        paddle.seed(0)
        made = (paddle.nn.Conv2D(4, 4, 3, padding=1, groups=4, bias_attr=False) if kind == 'depthwise'
                else paddle.nn.Conv2D(4, 6, 1, bias_attr=False))
        if shape is not None:
            made.weight = paddle.create_parameter(shape, 'float32')
        made.to(dtype=dtype)
        for name, value in settings.items():
            setattr(made, name, value)
        return made

    def compare(made, x):
        fast = accelerate(copy.deepcopy(made))
        expected, found = outcome(lambda: made(x)), outcome(lambda: fast(x))
        if isinstance(expected, np.ndarray):
            assert relative_error(found, expected) < 1e-5
        else:
            assert found is expected
    for shape in INPUTS:
        compare(layer(), paddle.randn(shape))
    for change in CHANGES:
        compare(layer(**change), paddle.randn([2, 4, 8, 8]))
    for x in (paddle.randn([2, 8, 8, 4]).transpose([0, 3, 1, 2]), paddle.randn([2, 8, 8, 8])[:, ::2],
              paddle.randn([2, 4, 8, 8]).astype('float64')):
        compare(layer(), x)


@needs_numba
@pytest.mark.parametrize('stride', [1, 2])
def test_paddings_given_by_name(stride):
    for padding in ('SAME', 'VALID'):
        layer = paddle.nn.Conv2D(4, 4, 3, stride, padding, groups=4, bias_attr=False)
        x = paddle.randn([2, 4, 7, 8])
        assert relative_error(accelerate(copy.deepcopy(layer))(x).numpy(), layer(x).numpy()) < 1e-5


def test_empty_batches_are_left_to_paddle():
    for layer in (paddle.nn.Conv2D(4, 4, 3, padding=1, groups=4, bias_attr=False),
                  paddle.nn.Conv2D(4, 6, 1, bias_attr=False)):
        assert compiled_convolution(paddle.zeros([0, 4, 8, 8]), layer) is None


@needs_numba
@pytest.mark.parametrize('change', ['images', 'channels', 'precision', 'weights', 'paddings', 'small images',
                                    'statistics'])
def test_states_that_the_edges_do_not_cover(change):
    """An empty batch, other channels, double precision, operations that give other sizes, images smaller than the
    window, running statistics of another size."""
    paddle.seed(0)
    mixed = model_search.MixedOp(6, 1, DARTS())
    convolution = mixed._ops[4].op[1]
    shape = {'images': [0, 6, 8, 8], 'channels': [2, 5, 8, 8], 'small images': [2, 6, 1, 8]}.get(change, [2, 6, 8, 8])
    if change == 'paddings':
        convolution._updated_padding = [0, 0]
    if change == 'small images':
        for op in mixed._ops[4:6]:
            op.op[1]._updated_padding = [0, 0]
    if change == 'statistics':
        mixed._ops[5].op[3]._variance = paddle.create_parameter([3], 'float32')
    block = fused.OutgoingEdges([list(mixed._ops)], [0], fused.is_supported).compiled
    statistics = [value.numpy() for value in block.statistics]
    x = paddle.zeros(shape, 'float64' if change == 'precision' else 'float32')
    assert not block.applies([x], paddle.ones([1, 8], 'float64' if change == 'weights' else 'float32'))
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(statistics, block.statistics))


@needs_numba
def test_weights_without_gradient_get_none():
    layer = paddle.nn.Conv2D(4, 4, 3, 1, 1, groups=4, bias_attr=False)
    x = paddle.randn([1, 4, 5, 5])
    x.stop_gradient = False
    layer.weight.stop_gradient = True
    (compiled_convolution(x, layer) * 2).sum().backward()
    assert x.grad is not None and layer.weight.grad is None


def run_program(name, *arguments, **changes):
    """The words that a program of tests/programs prints; changes of the environment, None to unset."""
    environment = {key: value for key, value in {**os.environ, **changes}.items() if value is not None}
    result = subprocess.run([sys.executable, os.path.join(PROGRAMS, name), ROOT, *arguments], env=environment,
                            capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[-1].split()


def test_without_numba_paddle_computes():
    assert run_program('without_numba.py') == ['None', 'True', 'True']


@needs_numba
def test_paddle_2_imported_first_runs_without_numba():
    """There the two end in a segmentation fault."""
    version, used, _ = run_program('convolution_sum.py', 'paddle')
    assert used == str(not version.startswith('2.'))


@needs_numba
def test_numba_and_openmp_together():
    """Results are the same with OMP_NUM_THREADS set and unset, and on every run."""
    values = {run_program('convolution_sum.py', OMP_NUM_THREADS=threads)[2] for threads in (None, None, '1', '2')}
    assert len(values) == 1
    paddle.seed(0)
    layer = paddle.nn.Conv2D(8, 8, 5, 1, 2, groups=8, bias_attr=False)
    x = paddle.randn([4, 8, 9, 9])
    assert float(values.pop()) == pytest.approx(float(F.conv2d(x, layer.weight, None, 1, 2, 1, 8).sum()
                                                      + paddle.matmul(x, x).sum()), rel=1e-4)


@needs_numba
def test_the_cache_of_a_users_own_functions_stays_where_it_was():
    import numba

    from kernels import images

    @numba.njit(cache=True)
    def users_function(x):
        return x + 1
    assert 'loops-' not in users_function.stats.cache_path
    assert 'loops-' in images.fill.stats.cache_path
    assert np.isclose(users_function(1.0), 2.0)


@needs_numba
@pytest.mark.slow
def test_a_process_that_compiles_computes_the_bits_of_those_that_find_the_cache(tmp_path):
    digests = [run_program('edges_digest.py', NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2)]
    assert digests[0] == digests[1]
    assert list(tmp_path.glob('loops-*'))


@needs_numba
def test_the_first_compilation_of_a_loop_of_this_package_is_announced_once():
    import numba

    from kernels import compiled
    folders = []
    compiled.on_first_compilation(folders.append)

    def double(x):
        return 2 * x
    assert numba.njit(double)(2) == 4 and folders == []  # of someone else
    double.__module__ = 'kernels.a_module'
    assert numba.njit(double)(2) == 4 and numba.njit(double)(2.0) == 4 and len(folders) == 1
    assert 'loops-' in folders[0]


@needs_numba
@pytest.mark.parametrize('rows, columns, size', [(4, 4, 64), (5, 7, 65), (3, 9, 1), (8, 16, 63), (6, 3, 2100),
                                                 (1, 1, 130), (16, 18, 1040)])
def test_products_of_matrices_of_any_size(rows, columns, size):
    """Against numpy in double precision; nothing is written behind the results, and each run gives the same bits."""
    import numba

    from kernels import products
    multiply, multiply_weight = [numba.njit(function) for function in (
        lambda *arguments: products.multiply(*arguments), lambda *arguments: products.multiply_weight(*arguments))]
    rng = np.random.default_rng(0)
    weight, source, gradient = [rng.normal(size=shape).astype(np.float32)
                                for shape in ((rows, columns), (columns, size), (rows, size))]
    found, starts = [], np.arange(columns) * size
    for _ in range(2):
        out = np.full(rows * size + 256, 7, np.float32)
        multiply(out, size, weight.ravel(), source.ravel(), starts, rows, size)
        dweight = np.full(rows * columns + 256, 7, np.float32)
        multiply_weight(dweight, gradient.ravel(), size, source.ravel(), starts, rows, size)
        found.append(np.concatenate([out, dweight]))
    assert (out[rows * size:] == 7).all() and (dweight[rows * columns:] == 7).all()
    assert relative_error(out[:rows * size].reshape(rows, size), weight.astype(np.float64) @ source) < 1e-5
    expected = 7 + gradient.astype(np.float64) @ source.T
    assert relative_error(dweight[:rows * columns].reshape(rows, columns), expected) < 1e-5
    assert (found[0] == found[1]).all()
