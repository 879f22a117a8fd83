"""Steps of a search a second, in one process and in two, at the same global batch, on this machine's CPU.

    python benchmarks/bench_parallel.py                  PC-DARTS, 16 channels, 3 layers, global batch 64, digits
    python benchmarks/bench_parallel.py --method=DARTS --layers=5

Both run search.py itself, in turn, `--rounds` times; the rate is that of the second epoch, by its metrics.jsonl, so
start and warm-up are left out. Two processes share the same cores: what is gained is what one process left idle, what
is lost is the averaging.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def steps_per_second(processes, args):
    """The steps a second of the second epoch of a search on digits."""
    launcher = [] if processes == 1 else ['-m', 'paddle.distributed.launch', '--nproc_per_node', str(processes),
                                          '--log_dir', 'log']
    flags = ['--dataset=digits', '--epochs=2', '--validate=False', '--use_gpu=False', '--learning_rate=0.025',
             f'--use_data_parallel={processes > 1}', f'--batch_size={args.batch_size // processes}']
    flags += [f'--{name}={getattr(args, name)}' for name in ('method', 'init_channels', 'layers', 'trainset_num')]
    with tempfile.TemporaryDirectory() as folder:
        result = subprocess.run([sys.executable] + launcher + [os.path.join(ROOT, 'search.py')] + flags, cwd=folder,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if result.returncode:
            sys.exit(result.stdout)
        with open(os.path.join(folder, 'search_cifar', 'metrics.jsonl')) as f:
            return 1 / json.loads(f.read().splitlines()[1])['batch_cost']


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--method', default='PC-DARTS', help='(default: PC-DARTS)')
    parser.add_argument('--init_channels', type=int, default=16, help='(default: 16)')
    parser.add_argument('--layers', type=int, default=3, help='(default: 3)')
    parser.add_argument('--batch_size', type=int, default=64, help='images of all processes in a step (default: 64)')
    parser.add_argument('--trainset_num', type=int, default=1280, help='images (default: 1280, half of them a pass)')
    parser.add_argument('--rounds', type=int, default=3, help='(default: 3)')
    args = parser.parse_args()
    rates = [(steps_per_second(1, args), steps_per_second(2, args)) for _ in range(args.rounds)]
    one, two = map(statistics.median, zip(*rates))
    ratios = [b / a for a, b in rates]
    print(f'{args.method} C{args.init_channels} L{args.layers}, global batch {args.batch_size}, {os.cpu_count()} '
          f'cores: 1 process {one:.3f} steps/s, 2 processes {two:.3f} steps/s, ratio {statistics.median(ratios):.2f} '
          f'({min(ratios):.2f} to {max(ratios):.2f})')


if __name__ == '__main__':
    main()
