"""Seconds of a step of this project and of PyTorch on the same networks, weights and images.

    python -m venv ../torchenv && ../torchenv/bin/pip install torch numpy              once; a CPU build is enough
    python benchmarks/bench_torch.py --torch_python=../torchenv/bin/python             all works, about 15 minutes
    python benchmarks/bench_torch.py --torch_python=../torchenv/bin/python --work=train --rounds=9

PyTorch runs torch_networks.py twice: with its default memory layout and with channels-last. Before anything is timed,
the outputs for a batch are compared, relative to the largest one: where they differ by more than TOLERANCES,
before or after a step (without drop path, which is random), and by more than three times what PyTorch's two layouts
differ, the benchmark stops. Each of the three is a
process of its own with as many threads as this one has cores; they take steps in turn. Prints the medians of seconds,
in brackets those of the processor, which two busy cores use twice as fast; and the medians, least and largest values of
the rounds' ratios of seconds. Run it on an idle machine.
"""
import os
import statistics
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from benchmarks.turns import Worker  # noqa: E402
from runtime.errors import UserError  # noqa: E402
from runtime.flags import ArgumentParser, integer, path  # noqa: E402

TOLERANCES = {'before': 1e-4, 'after': 1e-3}  # a step carries rounding on, most of all batch norms of few images


def work(title, network, init_channels, layers, batch_size, method='DARTS', arch='DARTS_V2', evaluate=False):
    """What is timed; the keys of 'size' are flags of bench_search.py."""
    size = {'network': network, 'init_channels': init_channels, 'layers': layers, 'batch_size': batch_size,
            'method': method, 'arch': arch, 'evaluate': evaluate}
    return {'title': title, 'size': size}


WORKS = {
    'search-16': work('search, DARTS', 'search', 16, 8, 16),
    'search-64': work('search, DARTS', 'search', 16, 8, 64),
    'search-pc': work('search, PC-DARTS', 'search', 16, 8, 64, method='PC-DARTS'),
    'train': work('train.py, DARTS_V2, auxiliary', 'cifar', 36, 20, 16),
    'train-imagenet': work('train_imagenet.py, DARTS_V2, auxiliary, 224x224', 'imagenet', 48, 14, 8),
    'score': work('scoring, DARTS_V2', 'cifar', 36, 20, 64, evaluate=True),
    'score-supernet': work('scoring the supernet, DARTS', 'search', 16, 8, 64, evaluate=True),
}
FLAGS = [
    ('work', ['all', *WORKS], 'all', 'what to time'),
    ('torch_python', path, sys.executable, 'a Python that has torch and numpy'),
    ('rounds', integer(1, 1000), 5, 'measured steps of each of the three'),
    ('warmup', integer(1, 1000), 1, 'steps of each before them, after the one of the check'),
    ('init_channels', integer(4, 4096), None, "channels of the first cell (default: the work's)"),
    ('layers', integer(3, 1000), None, "number of cells (default: the work's)"),
    ('batch_size', integer(2), None, "images of a step (default: the work's)"),
]


def check_torch(parser, python):
    """End with one line unless a Python has what torch_steps.py needs."""
    try:
        result = subprocess.run([python, '-c', 'import torch, numpy'], capture_output=True, text=True)
    except OSError as error:
        parser.error(f'argument --torch_python: {python} cannot be run: {error.strerror}')
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or [f'status {result.returncode}'])[-1]
        parser.error(f'argument --torch_python: {python} cannot import torch and numpy: {reason}')


def start_workers(item, args, folder):
    """{name: Worker} of the three, all ready. The first one writes the file by which the others check themselves."""
    common = {'size': item['size'], 'warmup': args.warmup, 'check': os.path.join(folder, 'check.npz')}
    script = os.path.join(ROOT, 'benchmarks', 'torch_steps.py')
    workers = {'ours': Worker(sys.executable, os.path.join(ROOT, 'benchmarks', 'paddle_steps.py'), common)}
    for name, channels_last in (('PyTorch', False), ('channels-last', True)):
        workers[name] = Worker(args.torch_python, script, dict(common, channels_last=channels_last))
        about = workers[name].about
        if about['threads'] != workers['ours'].about['threads']:
            raise UserError('{}: {} threads, ours {}'.format(name, about['threads'], workers['ours'].about['threads']),
                            status=1)
    check_outputs(item['title'], {name: workers[name].about for name in ('PyTorch', 'channels-last')})
    return workers


def check_outputs(title, about):
    """End the benchmark where PyTorch computes other outputs. about: what the two workers say of themselves.

    Untrained networks of many cells carry rounding on: of 20 cells with batch size 16, Paddle's own gradient in single
    precision is 3.8 % away from that in double precision. How far PyTorch's two layouts are apart shows it.
    """
    for name, found in about.items():
        if not all(found[time] <= max(limit, 3 * about['channels-last']['layouts'][time])
                   for time, limit in TOLERANCES.items()):
            raise UserError('{}: {} computes other outputs than this project: they differ by {:.1e} before a step and '
                            '{:.1e} after it'.format(title, name, found['before'], found['after']), status=1)


def measure(item, args):
    """({name: a list of (seconds, seconds of the processor)}, {name: what the worker says of itself})."""
    with tempfile.TemporaryDirectory() as folder:
        workers = start_workers(item, args, folder)
    steps = {name: [] for name in workers}
    for _ in range(args.rounds):
        for name, worker in workers.items():
            steps[name].append(worker.step())
    for worker in workers.values():
        worker.close()
    return steps, {name: worker.about for name, worker in workers.items()}


def row(item, steps):
    """A line of the table. steps: {name: a list of (seconds, seconds of the processor)}."""
    def medians(name):
        return '{:.3g} s ({:.3g})'.format(*map(statistics.median, zip(*steps[name])))

    def ratio(name):
        ratios = [ours / theirs for (ours, _), (theirs, _) in zip(steps['ours'], steps[name])]
        return f'{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})'
    size = item['size']
    title = '{}, C{} L{} batch {}'.format(item['title'], size['init_channels'], size['layers'], size['batch_size'])
    return '| ' + ' | '.join([title, *map(medians, steps), ratio('PyTorch'), ratio('channels-last')]) + ' |'


def main():
    parser = ArgumentParser(__doc__)
    parser.add_flags('steps of this project and of PyTorch', FLAGS)
    args = parser.parse_args()
    check_torch(parser, args.torch_python)
    for number, item in enumerate(WORKS.values() if args.work == 'all' else [WORKS[args.work]]):
        for name in ('init_channels', 'layers', 'batch_size'):
            item['size'][name] = getattr(args, name) or item['size'][name]
        load = os.getloadavg()[0] if hasattr(os, 'getloadavg') else float('nan')
        steps, about = measure(item, args)
        if number == 0:
            print('{}; {}; {} threads each\n'.format(about['ours']['version'], about['PyTorch']['version'],
                                                    about['ours']['threads']))
            print('| work | ours | PyTorch | channels-last | ours / PyTorch | ours / channels-last |\n'
                  '|---|---|---|---|---|---|')
        print(row(item, steps), flush=True)
        errors = [max(about[name][time] for name in ('PyTorch', 'channels-last')) for time in TOLERANCES]
        print('{}: load average before it {:.1f}; outputs differ by {:.1e}, after a step by {:.1e}'.format(
            item['title'], load, *errors), file=sys.stderr)


def run():
    try:
        main()
    except UserError as error:
        sys.exit(f'{os.path.basename(sys.argv[0])}: error: {error}')


if __name__ == '__main__':
    run()
