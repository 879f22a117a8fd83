"""What tests/test_parallel.py runs in one process and in several: a few steps of the search, batches split among ranks.

    python parallel_worker.py OUT METHOD UNROLLED          writes OUT.rankN.npz
    python parallel_worker.py OUT disagree                 check_agreement with other alphas on rank 1
    python parallel_worker.py OUT derive all|split         a cell by removals: OUT.rankN.json; all: images not split
    python parallel_worker.py OUT latency                  a table whose times differ on the ranks: OUT.rankN.json
"""
import hashlib
import json
import os
import sys

import numpy as np
import paddle

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from genotypes import PRIMITIVES  # noqa: E402
from model import NetworkCIFAR  # noqa: E402
from model_search import Network  # noqa: E402
from nas.latency import latency_costs  # noqa: E402
from nas.perturbation import PerturbationDerivation  # noqa: E402
from nas.searcher import DARTSearch  # noqa: E402
from runtime.log import quiet_warnings, start_logging  # noqa: E402
from runtime.parallel import check_agreement, rank, select_device, world_size  # noqa: E402
from runtime.script import run_script  # noqa: E402
from training.engine import evaluate  # noqa: E402

BATCH = 8


def share(batch):
    """This rank's images of a batch: of 8 the first 3 or the last 5, so that their means weigh differently."""
    if world_size() == 1:
        return batch
    return [part[:3] if rank() == 0 else part[3:] for part in batch]


def derive(out, place, images, labels, is_split):
    """Derive a cell of two nodes and write the decisions and a digest of the weights."""
    model = Network(4, 3, 1, 'DARTS', steps=2, multiplier=2)
    batches = [share(batch) if is_split else list(batch) for batch in zip(images, labels)]
    derivation = PerturbationDerivation(model, lambda: batches, lambda: batches, place, epoch=0, epochs=1,
                                        tune_epochs=1, save_dir=out, learning_rate=0.05)
    genotype = derivation.train()
    weights = hashlib.sha256(b''.join(weight.numpy().tobytes() for weight in derivation.weights)).hexdigest()
    with open(f'{out}.rank{rank()}.json', 'w') as file:
        json.dump({'decisions': derivation.decisions, 'genotype': str(genotype), 'weights': weights}, file)


def latencies(out):
    """Write the costs by a table that each rank would measure differently, and how often this rank measured."""
    measured = []

    def measure(entries):
        measured.append(len(entries))
        return {name: 100 * rank() + place for place, name in enumerate(entries)}
    costs = latency_costs(lambda genotype: NetworkCIFAR(2, 3, 3, False, genotype), [3, 8, 8], primitives=PRIMITIVES,
                          steps=2, size='', path=out + '.latencies', measure=measure)
    operation = {kind: values.tolist() for kind, values in costs.operation.items()}
    with open(f'{out}.rank{rank()}.json', 'w') as file:
        json.dump({'measured': len(measured), 'costs': [costs.fixed, costs.node, operation]}, file, default=int)


def main():
    out, method = sys.argv[1:3]
    start_logging()
    quiet_warnings()
    place = select_device(False, world_size() > 1)
    paddle.set_default_dtype('float64')
    paddle.seed(0)
    if method == 'derive':
        random = np.random.default_rng(0)
        derive(out, place, random.normal(size=(3, BATCH, 3, 8, 8)), random.integers(0, 3, (3, BATCH)),
               sys.argv[3] == 'split')
        return
    if method == 'latency':
        latencies(out)
        return
    model = Network(4, 10, 3, 'DARTS' if method == 'disagree' else method)
    if method == 'disagree':
        if rank() == 1:
            model.alphas_normal.set_value(model.alphas_normal + 1e-15)
        check_agreement(model.arch_parameters(), 'the alphas')
        return
    paddle.seed(rank())  # what is random from here on differs; the searcher must bring the ranks together
    if rank() == 1:
        model.alphas_reduce.set_value(model.alphas_reduce + 1)
    random = np.random.default_rng(0)
    images, labels = random.normal(size=(6, BATCH, 3, 8, 8)), random.integers(0, 10, (6, BATCH))
    batches = [[paddle.to_tensor(part) for part in share(batch)] for batch in zip(images, labels)]
    search = DARTSearch(model, lambda: [], lambda: [], place, unrolled=sys.argv[3] == 'True', arch_learning_rate=3e-3)
    model.eval()  # batch norm is frozen: it must not see which images share a process
    gradient = search.architect.gradient(*batches[1], search.architect.arch_parameters)
    for train, valid in zip(batches[0::2], batches[1::2]):
        search.train_step(*train, *valid)
    second = search.architect.unrolled_gradient(*batches[0], *batches[1])
    np.savez(f'{out}.rank{rank()}.npz', score=evaluate(model, batches),
             **{f'{name}{i}': value.numpy() for name, values in (
                 ('gradient', gradient), ('second', second), ('alphas', model.arch_parameters()),
                 ('weights', search.weights))
                for i, value in enumerate(values)})


if __name__ == '__main__':
    run_script(main)
