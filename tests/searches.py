"""Outputs of searches, written without searching."""
import json
import random

import numpy as np

from genotypes import PRIMITIVES, Genotype, genotype_json, to_dict


def random_cell(generator, nodes=4, operations=tuple(PRIMITIVES[1:])):
    return [(generator.choice(operations), source) for node in range(nodes)
            for source in generator.sample(range(node + 2), 2)]


def random_search(folder, epochs, betas=False, validate=True, nodes=4, still=1.0, seed=0):
    """Write the output of a search as earlier versions did, without `weights`. The cells change with probability
    `still` in each epoch. Returns the objects of metrics.jsonl."""
    generator, values = random.Random(seed), np.random.RandomState(seed)
    edges, records, genotype = sum(range(2, nodes + 2)), [], None
    for epoch in range(epochs):
        if genotype is None or generator.random() < still:
            genotype = Genotype(random_cell(generator, nodes), range(2, nodes + 2),
                                random_cell(generator, nodes), range(2, nodes + 2))
        shapes = [(edges, 8)] * 2 + [(edges,)] * 2 * betas
        record = {'epoch': epoch, 'lr': 0.1, 'train_acc': generator.random(), 'genotype': to_dict(genotype),
                  'alphas': [values.randn(*shape).tolist() for shape in shapes]}
        if validate:
            record['valid_acc'] = generator.random()
        records.append(record)
        (folder / str(epoch)).mkdir(parents=True)
        (folder / str(epoch) / 'genotype.json').write_text(genotype_json(genotype))
    (folder / 'genotype.json').write_text(genotype_json(genotype))
    write_metrics(folder, records)
    return records


def write_metrics(folder, records):
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in records))


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file())


def own_search(folder, epochs, shape, operations=None, genotypes=None, cells=('only',), seed=0, **more):
    """Write a metrics.jsonl with `weights` [edges, operations] = shape for each of the cells. Returns its objects."""
    values, records = np.random.RandomState(seed), []
    for epoch in range(epochs):
        weights = [values.rand(*shape).tolist() for _ in cells]
        records.append(dict({'epoch': epoch, 'train_acc': 0.5, 'genotype': genotypes[epoch] if genotypes else '|a~0|',
                             'alphas': [[[0.0]]], 'weights': weights, 'cells': list(cells)}, **more))
        if operations:
            records[-1]['operations'] = operations
    folder.mkdir(parents=True, exist_ok=True)
    write_metrics(folder, records)
    return records
