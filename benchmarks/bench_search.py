r"""Seconds of a search step (architecture and weights), as search.py runs it and as the plain port would.

    python benchmarks/bench_search.py --layers=5 --init_channels=8 --batch_size=16 --compare=plain
    python benchmarks/bench_search.py --method=PC-DARTS --layers=8 --batch_size=64 --steps=3 --compare=plain
    python benchmarks/bench_search.py --layers=5 --init_channels=8 --batch_size=16 --launches       kernels of a forward and backward pass

Images are random, 32x32. With --compare=plain two processes take steps in turn, so that both see the same machine. `plain` computes every edge by
itself, with Paddle's depthwise convolution on one core, the C library's memory settings, and gradients of all parameters in every pass.
"""
import argparse
import contextlib
import multiprocessing
import os
import statistics
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def make_step(args, plain):
    """A function that takes one step of the search."""
    import compiled  # before Paddle
    import numpy as np
    import paddle

    import architect
    import searcher
    from model_search import Network
    from utility import quiet_warnings, use_the_cpu_well
    quiet_warnings()
    paddle.set_device('cpu')
    if plain:
        compiled.numba = None
        architect.frozen = searcher.frozen = contextlib.nullcontext
    else:
        use_the_cpu_well()
    paddle.seed(0)
    model = Network(args.init_channels, 10, args.layers, args.method, allow_fast=not plain)
    search = searcher.DARTSearch(model, lambda: [], lambda: [], paddle.CPUPlace(), unrolled=args.unrolled)
    rng = np.random.default_rng(0)
    batches = [(paddle.to_tensor(rng.normal(size=(args.batch_size, 3, 32, 32)).astype('float32')),
                paddle.to_tensor(rng.integers(0, 10, (args.batch_size, 1)))) for _ in range(2)]
    return model, lambda: search.train_step(*batches[0], *batches[1])


def worker(args, plain, pipe):
    """Take a step whenever the parent asks; answer (seconds, peak memory in MB)."""
    from utility import peak_memory_mb
    _, step = make_step(args, plain)
    for _ in range(args.warmup):
        step()
    pipe.send('ready')
    while pipe.recv():
        start = time.perf_counter()
        step()
        pipe.send((time.perf_counter() - start, peak_memory_mb()))


def launches(args, plain):
    """The kernels that a forward and backward pass of the loss over all parameters starts, by paddle.profiler's count."""
    import paddle
    import paddle.profiler as profiler
    model, _ = make_step(args, plain)
    image, label = paddle.randn([2, 3, 32, 32]), paddle.zeros([2, 1], 'int64')
    model._loss(image, label).backward()
    with profiler.Profiler(targets=[profiler.ProfilerTarget.CPU], on_trace_ready=lambda _: None) as p:
        model._loss(image, label).backward()

    def count(node):
        return ('kernel launch' in node.name) + sum(count(child) for child in node.children_node)
    return sum(count(root) for root in p.profiler_result.get_data().values())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--method', default='DARTS', help='(default: DARTS)')
    parser.add_argument('--unrolled', action='store_true', help='second order')
    parser.add_argument('--batch_size', type=int, default=16, help='(default: 16)')
    parser.add_argument('--layers', type=int, default=5, help='(default: 5)')
    parser.add_argument('--init_channels', type=int, default=16, help='(default: 16)')
    parser.add_argument('--steps', type=int, default=5, help='measured steps of each variant (default: 5)')
    parser.add_argument('--warmup', type=int, default=1, help='steps before them (default: 1)')
    parser.add_argument('--compare', choices=['plain'], help='measure the plain port in turn')
    parser.add_argument('--launches', action='store_true', help='count kernels instead')
    args = parser.parse_args()
    variants = ['fast'] + (['plain'] if args.compare else [])
    head = '{}{} C{} L{} batch {}, {} cores'.format(args.method, ' second order' if args.unrolled else '', args.init_channels, args.layers,
                                                    args.batch_size, os.cpu_count())
    if args.launches:
        for name in variants:
            print('{}: {}: {} kernel launches'.format(head, name, launches(args, name == 'plain')))
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
        print('{}: {}: {:.3f} s a step ({:.3f} to {:.3f}), {:.1f} images/s, peak memory {:.0f} MB'.format(
            head, name, statistics.median(seconds), min(seconds), max(seconds), args.batch_size / statistics.median(seconds),
            results[name][-1][1]))
    if args.compare:
        ratios = [plain / fast for (plain, _), (fast, _) in zip(results['plain'], results['fast'])]
        print('{}: plain takes {:.2f} times as long ({:.2f} to {:.2f})'.format(head, statistics.median(ratios), min(ratios), max(ratios)))
    for pipe, process in zip(pipes.values(), processes):
        pipe.send(False)
        process.join()


if __name__ == '__main__':
    main()
