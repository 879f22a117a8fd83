r"""Seconds of a step, as the scripts run it and as the plain port would.

    python benchmarks/bench_search.py --layers=5 --init_channels=8 --batch_size=16 --compare=plain
    python benchmarks/bench_search.py --method=PC-DARTS --layers=8 --batch_size=64 --steps=3 --compare=plain
    python benchmarks/bench_search.py --network=cifar --layers=8 --batch_size=32 --compare=plain      a step of train.py
    python benchmarks/bench_search.py --network=nasbench201 --layers=5 --batch_size=64 --compare=plain   5 cells a stage
    python benchmarks/bench_search.py --network=cifar --arch=DARTS_V2 --evaluate --compare=plain     a batch of scoring
    python benchmarks/bench_search.py --layers=5 --launches --compare=plain       kernels of a forward and backward pass
    python benchmarks/bench_search.py --layers=8 --batch_size=64 --limit          what this machine could do at best
    python benchmarks/bench_search.py --method=PC-DARTS --layers=8 --batch_size=256 --estimate   hours of a whole search

Images are random. With --compare=plain two processes take steps in turn, so that both see the same machine. `plain`
computes every edge by itself, with Paddle's depthwise convolution on one core, the C library's memory settings, and
gradients of all parameters in every pass.
"""
import argparse
import collections
import concurrent.futures
import contextlib
import multiprocessing
import os
import statistics
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

DROP_PATH_PROB = {'cifar': 0.2, 'imagenet': 0.0}  # as in the last epoch of train.py and of train_imagenet.py


def make_step(args, plain, compiled_loops=True, adam_epsilon=1e-8):
    """(the network, a function that takes one step of the search or of training). adam_epsilon: of the architecture's
    optimizer."""
    import paddle

    from kernels import compiled  # before Paddle
    from nas import accelerate, architect, searcher
    from runtime.log import quiet_warnings
    from runtime.parallel import configure_cpu
    quiet_warnings()
    paddle.set_device('cpu')
    if plain or not compiled_loops:
        compiled.numba = None
    if plain:
        architect.frozen = searcher.frozen = contextlib.nullcontext
        searcher.accelerate = accelerate = lambda network: network
    else:
        configure_cpu()
    paddle.seed(0)
    batches = random_batches(args)
    if args.network in ('cifar', 'imagenet'):
        return make_training_step(args, batches[0], accelerate)
    if args.network == 'nasbench201':
        from examples.nasbench201 import Network
        model = Network(args.init_channels, 10, args.layers, args.method)
    else:
        from model_search import Network
        model = Network(args.init_channels, 10, args.layers, args.method)
    if args.evaluate:
        return model, make_scoring(accelerate(model), batches[0])
    search = searcher.DARTSearch(model, lambda: [], lambda: [], paddle.CPUPlace(), unrolled=args.unrolled)
    search.architect.optimizer._epsilon = adam_epsilon
    return model, lambda arch_step=True: search.train_step(*batches[0], *batches[1], arch_step=arch_step)


def random_batches(args):
    """Two batches (images, labels), the same ones in every process."""
    import numpy as np
    import paddle
    rng = np.random.default_rng(0)
    size = 224 if args.network == 'imagenet' else 32
    return [(paddle.to_tensor(rng.normal(size=(args.batch_size, 3, size, size)).astype('float32')),
             paddle.to_tensor(rng.integers(0, 10, (args.batch_size, 1)))) for _ in range(2)]


def make_training_step(args, batch, accelerate):
    """A step of train.py or train_imagenet.py, with auxiliary head."""
    import paddle
    import paddle.nn.functional as F

    import genotypes
    import model as networks
    network = {'cifar': networks.NetworkCIFAR, 'imagenet': networks.NetworkImageNet}[args.network]
    model = network(args.init_channels, 10, args.layers, True, getattr(genotypes, args.arch))
    model.set_drop_path_prob(DROP_PATH_PROB[args.network])
    accelerate(model)
    if args.evaluate:
        return model, make_scoring(model, batch)
    model.train()
    optimizer = paddle.optimizer.Momentum(0.025, 0.9, model.parameters(), weight_decay=3e-4,
                                          grad_clip=paddle.nn.ClipGradByGlobalNorm(5.0))

    def step():
        logits, logits_aux = model(batch[0])
        (F.cross_entropy(logits, batch[1]) + 0.4 * F.cross_entropy(logits_aux, batch[1])).backward()
        optimizer.step()
        optimizer.clear_grad()
    return model, step


def make_scoring(model, batch):
    """A function that computes the outputs for a batch in evaluation mode."""
    import paddle
    model.eval()

    def score():
        with paddle.no_grad():
            model(batch[0])
    return score


def worker(args, plain, pipe):
    """Take a step whenever the parent asks; answer (seconds, peak memory in MB)."""
    from runtime.log import peak_memory_mb
    _, step = make_step(args, plain)
    for _ in range(args.warmup):
        step()
    pipe.send('ready')
    while pipe.recv():
        start = time.perf_counter()
        step()
        pipe.send((time.perf_counter() - start, peak_memory_mb()))


def launches(args, *variant):
    """The kernels that a forward and backward pass of the loss over all parameters starts, by paddle.profiler's
    count."""
    import paddle
    import paddle.profiler as profiler
    model, _ = make_step(args, *variant)
    image, label = paddle.randn([2, 3, 32, 32]), paddle.zeros([2, 1], 'int64')
    model._loss(image, label).backward()
    with profiler.Profiler(targets=[profiler.ProfilerTarget.CPU], on_trace_ready=lambda _: None) as p:
        model._loss(image, label).backward()

    def count(node):
        return ('kernel launch' in node.name) + sum(count(child) for child in node.children_node)
    return sum(count(root) for root in p.profiler_result.get_data().values())


def limit(args):
    """Print what a step must compute and move, and how fast this machine multiplies and copies."""
    model, step = make_step(args, plain=False)
    import numpy as np
    import paddle

    from kernels import blocks
    from training.summary import count_macs
    moved, with_barrier = collections.Counter(), blocks.with_barrier

    def count(function, threads, call, *others):
        moved[function.__name__] += bytes_moved(call, *others)
        return with_barrier(function, threads, call, *others)
    blocks.with_barrier = count
    step()
    moved.clear()
    start = time.perf_counter()
    step()
    seconds = time.perf_counter() - start
    x = paddle.randn([2048, 2048])
    y = x.numpy()
    gemm = 2048 ** 3 / min(fastest(lambda: paddle.matmul(x, x)), fastest(lambda: y @ y))
    sources = [np.ones(2 ** 25, np.float32) for _ in range(os.cpu_count())]
    targets = [np.empty_like(source) for source in sources]
    with concurrent.futures.ThreadPoolExecutor(len(sources)) as pool:
        bandwidth = 2 * sum(source.nbytes for source in sources) / fastest(lambda: list(pool.map(np.copyto, targets,
                                                                                                 sources)))
    # two forward passes, two backward to the inputs, one to the weights; second order has three more of both and one
    # to the weights
    passes = 13 if args.unrolled else 5
    macs, traffic = passes * args.batch_size * count_macs(model, (3, 32, 32)), sum(moved.values())
    print(f'a step: {seconds:.2f} s')
    print(f'multiply-adds: {macs / 1e9:.1f} G, of which matrix products of 2048x2048 do {gemm / 1e9:.1f} G/s: '
          f'{macs / gemm:.2f} s')
    print('memory that the compiled passes read and write: {:.2f} GB ({}), copied at {:.1f} GB/s: {:.2f} s'.format(
        traffic / 1e9, ', '.join(f'{name} {value / 1e9:.2f}' for name, value in moved.most_common()), bandwidth / 1e9,
        traffic / bandwidth))


def estimate(args):
    """Print the hours that a search of the method's recipe takes over CIFAR-10, 25,000 images in each half, with these
    sizes: from measured steps with and without a step of the architecture, and batches of validation."""
    from nas.recipes import EPOCHS, recipe
    flags = recipe(args.method)
    epochs, without = flags.get('epochs', EPOCHS), flags.get('epochs_no_archopt', 0)
    model, step = make_step(args, plain=False)
    import paddle
    arch, weights = (statistics.median(timed(lambda: step(arch_step), args.steps)) for arch_step in (True, False))
    score = make_scoring(model, [paddle.randn([args.batch_size, 3, 32, 32])])
    scoring = statistics.median(timed(score, args.steps))
    batches = 25000 / args.batch_size
    training = batches * ((epochs - without) * arch + without * weights) / 3600
    validation = batches * epochs * scoring / 3600  # as search.py validates; the authors of PC-DARTS: the last epoch
    print(f'{args.method} C{args.init_channels} L{args.layers} batch {args.batch_size}, {os.cpu_count()} cores: a step '
          f'{arch:.2f} s, without the architecture {weights:.2f} s, a batch of validation {scoring:.2f} s')
    print(f'{epochs} epochs, the first {without} without the architecture, {batches:.0f} steps an epoch: '
          f'{training + validation:.1f} h, of which validation after every epoch {validation:.1f} h (--validate=False)')


def timed(function, times):
    """Seconds of each of several calls, after one that warms up."""
    seconds = []
    for _ in range(times + 1):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def bytes_moved(call, gradients=None):
    """Bytes that a pass of kernels/forward.py, or with gradients of kernels/backward.py, must read and write if each
    step reads and writes each tensor once, and those of a level that read one tensor read it together."""
    sizes = 4 * call.plan.images * call.values['channels'] * call.values['pixels']
    levels = [call.steps[begin:end] for begin, end in zip(call.plan.levels, call.plan.levels[1:])]
    pixels = 4 * call.plan.images * call.values['pixels']
    sources = sum(channels * pixels[source] for steps in levels
                  for source, _, channels in set(map(tuple, steps[['source', 'from_channel', 'channels']].tolist())))
    results = sum(sizes[list(set(steps['result']))].sum() for steps in levels)
    terms = sizes[list(set(call.norms['value'][call.terms['norm']]))].sum()
    nodes = sizes[call.plan.nodes['value']].sum()
    if gradients is None:
        return sources + results + terms + nodes
    # the sums, then the steps: f and its gradient once each, the sources and their gradients
    return (terms + nodes) + (2 * results + 2 * sources)


def fastest(function, times=5):
    """Seconds of the fastest of several calls."""
    return min(timed(function, times))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--method', default='DARTS', help='(default: DARTS)')
    parser.add_argument('--network', default='search', choices=['search', 'nasbench201', 'cifar', 'imagenet'],
                        help='a supernet, or a network of model.py (default: search)')
    parser.add_argument('--arch', default='PC_DARTS', help='genotype of the networks of model.py (default: PC_DARTS)')
    parser.add_argument('--evaluate', action='store_true', help='score a batch in evaluation mode instead')
    parser.add_argument('--unrolled', action='store_true', help='second order')
    parser.add_argument('--batch_size', type=int, default=16, help='(default: 16)')
    parser.add_argument('--layers', type=int, default=5, help='(default: 5)')
    parser.add_argument('--init_channels', type=int, default=16, help='(default: 16)')
    parser.add_argument('--steps', type=int, default=5, help='measured steps of each variant (default: 5)')
    parser.add_argument('--warmup', type=int, default=1, help='steps before them (default: 1)')
    parser.add_argument('--compare', choices=['plain'], help='measure the plain port in turn')
    parser.add_argument('--launches', action='store_true', help='count kernels instead')
    parser.add_argument('--limit', action='store_true', help='compare a step with how fast the machine multiplies and '
                                                             'copies')
    parser.add_argument('--estimate', action='store_true', help="estimate the hours of a whole search by the method's "
                                                                'recipe from measured steps')
    args = parser.parse_args()
    variants = ['fast'] + (['plain'] if args.compare else [])
    if args.limit:
        return limit(args)
    if args.estimate:
        return estimate(args)
    name = {'search': args.method, 'nasbench201': f'NAS-Bench-201 {args.method}'}.get(args.network,
                                                                                     f'{args.network} {args.arch}')
    mode = ' scoring' if args.evaluate else ' second order' if args.unrolled else ''
    head = (f'{name}{mode} C{args.init_channels} L{args.layers} batch {args.batch_size}, '
            f'{os.cpu_count()} cores')
    if args.launches:
        for name in variants:
            print('{}: {}: {} kernels'.format(head, name, launches(args, name == 'plain')))
        # last, because it cannot be undone: what a GPU would run
        print(f'{head}: fast, without compiled loops: {launches(args, False, False)} kernels')
        return
    context, pipes, processes = multiprocessing.get_context('spawn'), {}, []
    for name in variants:
        pipes[name], theirs = context.Pipe()
        processes.append(context.Process(target=worker, args=(args, name == 'plain', theirs)))
        processes[-1].start()
        pipes[name].recv()
    results = {name: [] for name in variants}
    for _ in range(args.steps):
        for name in variants:
            pipes[name].send(True)
            results[name].append(pipes[name].recv())
    for name in variants:
        seconds = [s for s, _ in results[name]]
        print(f'{head}: {name}: {statistics.median(seconds):.3f} s a step ({min(seconds):.3f} to {max(seconds):.3f}), '
              f'{args.batch_size / statistics.median(seconds):.1f} images/s, peak memory {results[name][-1][1]:.0f} MB')
    if args.compare:
        ratios = [plain / fast for (plain, _), (fast, _) in zip(results['plain'], results['fast'])]
        print(f'{head}: plain takes {statistics.median(ratios):.2f} times as long ({min(ratios):.2f} to '
              f'{max(ratios):.2f})')
    for pipe, process in zip(pipes.values(), processes):
        pipe.send(False)
        process.join()


if __name__ == '__main__':
    main()
