"""Random small networks, accelerated and plain in single precision, against the plain network in double precision.

    python tests/fuzz_acceleration.py --count=300

Draws methods, steps 1 to 7, layers 1 to 4, image sizes 4 to 19 (odd ones and oblong ones too), batches 1 to 5, channels
1 to 33, cells of model.py. Compared are the loss, the gradients of the image, the architecture and the weights, the
running statistics and the logits in evaluation mode. An error is the largest deviation from double precision, relative
to the largest value of its group. Where batch norms see few pixels, single precision itself is far off; so the
accelerated network passes if its error is at most 20 times that of the plain one, or below 1e-5, or of the size of what
double precision itself changes by if all weights move by a millionth: where a ReLU is almost at 0 or two pixels of a
max pooling are almost equal, gradients jump. Status 1 if a configuration fails.
"""
import argparse
import logging
import os
import random
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import kernels.compiled  # noqa: E402, F401  before Paddle, as the scripts do

# isort: split
import numpy as np  # noqa: E402
import paddle  # noqa: E402

from genotypes import PRIMITIVES, Genotype  # noqa: E402
from model import NetworkCIFAR  # noqa: E402
from model_search import Network  # noqa: E402
from nas.acceleration import accelerate  # noqa: E402
from nas.methods import METHODS  # noqa: E402
from runtime.log import quiet_warnings  # noqa: E402

GROUPS = 'loss', 'image', 'architecture', 'weights', 'statistics', 'logits'


def draw_configuration(draw):
    """A dict of what a network and its batch are made of."""
    kind = draw.choice([*METHODS, 'model.py', 'model.py'])
    steps = draw.choice([1, 2, 3, 4, 4, 5, 7])
    multiple = 12 if kind in ('PC-DARTS', 'DrNAS') else 1
    channels = draw.randint(1, 33) if steps < 4 else draw.randint(1, 12)
    channels = min(36, -(-channels // multiple) * multiple)
    if kind == 'PC-DARTS' and draw.random() < 0.5:
        channels = draw.choice([4, 8])
    if kind == 'model.py':
        steps, channels = draw.randint(1, 4), max(2, channels)
    return dict(kind=kind, steps=steps, multiplier=draw.randint(1, steps), channels=channels,
                layers=draw.randint(1, 4 if steps < 5 else 2), size=(draw.randint(4, 19), draw.randint(4, 19)),
                batch=draw.randint(1, 5), seed=draw.randint(0, 2 ** 31 - 1))


def build(configuration):
    """A network of the present default precision; the same weights for the same configuration."""
    c = argparse.Namespace(**configuration)
    paddle.seed(c.seed)
    if c.kind != 'model.py':
        method = METHODS[c.kind]()
        noise = np.random.default_rng(c.seed)
        fixed = -np.log(-np.log(noise.uniform(size=[40, 10])))
        method.draw_gumbel = lambda alphas: paddle.to_tensor(fixed[:alphas.shape[0], :alphas.shape[1]], alphas.dtype)
        method.draw_theta = lambda concentration: np.random.default_rng(c.seed).dirichlet(
            np.ones(concentration.shape[1]), concentration.shape[0])
        return Network(c.channels, 5, c.layers, method, steps=c.steps, multiplier=c.multiplier)
    draw = random.Random(c.seed)
    names = [name for name in PRIMITIVES if name != 'none'] + ['sep_conv_7x7', 'conv_7x1_1x7']
    cells = [[(draw.choice(names), draw.randint(0, 1 + i // 2)) for i in range(2 * c.steps)] for _ in range(2)]
    concat = list(range(2 + c.steps - c.multiplier, 2 + c.steps))
    return NetworkCIFAR(c.channels, 5, c.layers, False, Genotype(cells[0], concat, cells[1], concat))


def results(network, configuration):
    """The values of GROUPS, each a list of arrays."""
    rng = np.random.default_rng(configuration['seed'])
    shape = (configuration['batch'], 3, *configuration['size'])
    precision = paddle.get_default_dtype()
    image = paddle.to_tensor(rng.normal(size=shape).astype('float32')).astype(precision)
    label = paddle.to_tensor(rng.integers(0, 5, (configuration['batch'], 1)))
    image.stop_gradient = False
    architecture = network.arch_parameters() if hasattr(network, 'arch_parameters') else []
    for alphas in architecture:
        alphas.set_value(rng.normal(size=alphas.shape).astype('float32').astype(precision))
    weights = [p for p in network.parameters() if p.trainable and all(p is not alpha for alpha in architecture)]
    loss = (network._loss(image, label) if architecture
            else paddle.nn.functional.cross_entropy(network(image)[0], label))
    gradients = paddle.grad(loss, [image, *architecture, *weights], allow_unused=True)
    network.eval()
    with paddle.no_grad():
        logits = network(image)
    statistics = [p for p in network.parameters() if not p.trainable]
    groups = ([loss], gradients[:1], gradients[1:1 + len(architecture)], gradients[1 + len(architecture):], statistics,
              [logits if architecture else logits[0]])
    return [[None if value is None else value.numpy().astype('float64') for value in values] for values in groups]


def errors(found, expected):
    """For each of GROUPS the largest deviation, relative to its largest value (or, where that is nothing but rounding,
    to a millionth of the largest of all)."""
    answer = []
    least = 1e-6 * max(np.abs(value).max() for values in expected for value in values if value is not None)
    for ours, theirs in zip(found, expected):
        # Without a gradient is as good as zeros: of weights on whose operation nothing depends either may come.
        pairs = [(0 * b if a is None else a, 0 * a if b is None else b) for a, b in zip(ours, theirs)
                 if a is not None or b is not None]
        if not all(np.isfinite(a).all() for a, _ in pairs):
            answer.append(float('inf'))
            continue
        scale = max([np.abs(b).max() for _, b in pairs], default=least)
        answer.append(max([np.abs(a - b).max() for a, b in pairs], default=0) / max(scale, least))
    return answer


def check(configuration):
    """The errors of the accelerated and of the plain network, by GROUPS."""
    paddle.set_default_dtype('float32')
    plain, fast = build(configuration), accelerate(build(configuration))
    paddle.set_default_dtype('float64')
    exact = build(configuration)
    exact.set_state_dict({name: value.astype('float64') for name, value in plain.state_dict().items()})
    expected = results(exact, configuration)
    paddle.set_default_dtype('float32')
    fast.set_state_dict(plain.state_dict())
    return [errors(results(network, configuration), expected) for network in (fast, plain)]


def sensitivity(configuration, tries=8):
    """By GROUPS, the largest change of what the plain network computes in double precision if its weights move by a
    millionth."""
    paddle.set_default_dtype('float64')
    exact = build(configuration)
    state = {name: value.numpy() for name, value in exact.state_dict().items()}
    expected, rng, changes = results(exact, configuration), np.random.default_rng(0), []
    for _ in range(tries):
        exact.train()
        exact.set_state_dict({name: value * (1 + 1e-6 * rng.normal(size=value.shape)) for name, value in state.items()})
        changes.append(errors(results(exact, configuration), expected))
    paddle.set_default_dtype('float32')
    return np.max(changes, axis=0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--count', type=int, default=300, help='configurations (default: 300)')
    parser.add_argument('--seed', type=int, default=0, help='of the draws (default: 0)')
    arguments = parser.parse_args()
    quiet_warnings()
    logging.disable(logging.INFO)
    draw, failed, table = random.Random(arguments.seed), 0, []
    for number in range(arguments.count):
        configuration = draw_configuration(draw)
        fast, plain = check(configuration)
        table.append((fast, plain))
        suspicious = any(ours > max(20 * theirs, 1e-5) for ours, theirs in zip(fast, plain))
        if suspicious:
            changes = sensitivity(configuration)
            passed = all(ours <= max(20 * theirs, 1e-5, 2 * change)
                         for ours, theirs, change in zip(fast, plain, changes))
            failed += not passed
            print(f'{"ill-conditioned" if passed else "failed"}: {configuration}\n  ' + ', '.join(
                f'{name} {ours:.1e} (plain {theirs:.1e})' for name, ours, theirs in zip(GROUPS, fast, plain)))
        if number % 20 == 19:
            print(f'{number + 1} configurations, {failed} failed', flush=True)
    print(' ' * 20 + ''.join(f'{name:>14}' for name in GROUPS))
    for name, column in (('accelerated', 0), ('plain', 1)):
        for quantity, function in (('worst', np.max), ('median', np.median)):
            values = function([row[column] for row in table], axis=0)
            print(f'{name + ", " + quantity:20}' + ''.join(f'{value:14.1e}' for value in values))
    sys.exit(failed > 0)


if __name__ == '__main__':
    main()
