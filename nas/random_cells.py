"""Random cells, which search.py --method=random writes: what a search is compared with. No Paddle import."""
import os
import random

from genotypes import genotype_json, random_genotype
from runtime.errors import UserError
from runtime.files import refuse_to_overwrite, remove_numbered, write_text


def write_random_cells(folder, samples, *, nodes, seed, dataset):
    """Write random genotypes of so many nodes to a folder, <number>/genotype.json; the first one is genotype.json too.
    dataset: a word to keep with them. Returns the first Genotype.

    Raises UserError for a folder that holds a search or files that this program did not write.
    """
    for name in ('metrics.jsonl', 'checkpoints'):
        if os.path.exists(os.path.join(folder, name)):
            raise UserError(f'--model_save_dir: {folder} holds a search; give another folder')
    names = [os.path.join(str(sample), 'genotype.json') for sample in range(samples)]
    refuse_to_overwrite(folder, ['genotype.json', *names])
    remove_numbered(folder, 0, ['sample'])
    generator = random.Random(seed)
    genotypes = [random_genotype(generator, nodes) for _ in range(samples)]
    texts = [genotype_json(genotype, {'method': 'random', 'seed': seed, 'sample': sample, 'dataset': dataset})
             for sample, genotype in enumerate(genotypes)]
    for name, text in zip(['genotype.json', *names], [texts[0], *texts]):
        write_text(os.path.join(folder, name), text)
    return genotypes[0]
