"""Latencies of random cells: what the table of nas/latency.py predicts beside what is measured.

    python benchmarks/bench_latency.py                                                   CIFAR-10, 36 channels, 20 cells
    python benchmarks/bench_latency.py --init_channels=16 --layers=5 --image_size=8      the network for digits
    python benchmarks/bench_latency.py --table=latency.json --batch_size=8

Measures the table and --cells random networks in turn, one pass of each after the other, since the speed of a machine
changes within minutes; with a --table that is complete, only the networks. Prints what is predicted and measured for
each cell, and the relative errors. Run it on an idle machine.
"""
import os
import random
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from runtime.flags import ArgumentParser, integer, path  # noqa: E402
from runtime.script import run_script, start_script  # noqa: E402

FLAGS = [
    ('cells', integer(1, 1000), 30, 'number of random cells'),
    ('init_channels', integer(2, 4096), 36, 'channels of the first cell'),
    ('layers', integer(1, 1000), 20, 'number of cells of the network'),
    ('image_size', integer(8, 1024), 32, 'height and width of the images in pixels'),
    ('batch_size', integer(1), 1, 'images of a forward pass'),
    ('table', path, None, 'JSON file with the table; without it the table is measured and not kept'),
    ('seed', integer(0), 0, 'seed of the cells'),
]


def main():
    parser = ArgumentParser(__doc__)
    parser.add_flags('latency', FLAGS)
    args = parser.parse_args()
    start_script(None, arguments=vars(args), use_gpu=True, use_data_parallel=False, seed=args.seed)
    from genotypes import PRIMITIVES, random_genotype
    from model import NetworkCIFAR
    from nas import latency

    def network(genotype):
        return NetworkCIFAR(args.init_channels, 10, args.layers, False, genotype)
    shape = [3, args.image_size, args.image_size]
    generator = random.Random(args.seed)
    genotypes = [random_genotype(generator) for _ in range(args.cells)]
    networks = {number: (network(genotype), [args.batch_size, *shape]) for number, genotype in enumerate(genotypes)}
    measured = {}

    def measure(entries):
        measured.update(latency.measure({**entries, **networks}))
        return {entry: measured[entry] for entry in entries}
    with tempfile.TemporaryDirectory() as folder:
        costs = latency.latency_costs(network, shape, primitives=PRIMITIVES, steps=4, batch_size=args.batch_size,
                                      size=f'NetworkCIFAR, {args.init_channels} channels, {args.layers} cells',
                                      path=args.table or os.path.join(folder, 'latency.json'), measure=measure)
    if not measured:
        measure({})
    errors = []
    for number, genotype in enumerate(genotypes):
        predicted = costs.of(genotype)
        errors.append(predicted / measured[number] - 1)
        print(f'cell {number:>3}: predicted {predicted / 1e6:8.2f} ms, measured {measured[number] / 1e6:8.2f} ms, '
              f'error {100 * errors[-1]:+6.1f} %')
    within = sum(abs(error) <= 0.1 for error in errors)
    print(f'{within} of {len(errors)} within 10 %; mean error {100 * sum(map(abs, errors)) / len(errors):.1f} %, '
          f'largest {100 * max(map(abs, errors)):.1f} %')


if __name__ == '__main__':
    run_script(main)
