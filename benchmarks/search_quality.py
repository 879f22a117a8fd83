r"""Is a search better than random cells? Three experiments on CIFAR-10 images, resumable; it takes hours.

    python benchmarks/search_quality.py --data=cifar-10.tar.gz --table=nasbench201.csv --output=quality
    python benchmarks/search_quality.py --data=cifar-10.tar.gz --table=nasbench201.csv --output=quality \
        --part=nasbench201 --seeds=1 --core=1                          one seed, beside another command with --core=0
    python benchmarks/search_quality.py --report                       prints the tables of all finished runs

nasbench201   every method searches NAS-Bench-201 with three seeds; the public table knows the true test accuracy of the
              cell of each epoch. Random cells are the table itself.
darts         PC-DARTS and DARTS search the space of DARTS with three seeds each; each cell found, a random cell with
              as many parameters, and two published cells are trained with the same flags.
whole         one PC-DARTS search with the paper's network, batch size and epochs, killed once and resumed.

The settings below were chosen before any of these runs and are not tuned. Every run is one of search.py, train.py or
examples/nasbench201.py, at the lowest priority. A run that was stopped goes on from its last epoch when the command is
repeated; a finished one is a line of benchmarks/results/<part>.jsonl and is not run again.
"""
import argparse
import datetime
import json
import os
import random
import subprocess
import sys
import time
from typing import NamedTuple

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from benchmarks import quality_tables  # noqa: E402
from genotypes import from_dict, genotype_json, get_genotype, random_genotype  # noqa: E402
from nas.recipes import METHOD_NAMES, recipe  # noqa: E402
from runtime.files import write_text  # noqa: E402

SEEDS = (0, 1, 2)

# NAS-Bench-201: the paper's network has 16 channels and 5 cells a stage, its searches 50 epochs on 50,000 images.
# Batch size, learning rate and Adam's weight decay are the benchmark's (section 3.3); the architecture's learning rate
# and the share of epochs without architecture updates are those of the method's recipe.
NASBENCH201 = dict(dataset='cifar10', C=8, N=1, epochs=30, batch_size=64, learning_rate=0.025, validate=False,
                   save_params=False)
EIGENVALUE_FREQ = 2  # epochs; for first-order DARTS, to see whether early stopping would have helped

# DARTS's space: 16 channels, 8 cells and 50 epochs are the paper's for searching; 36, 20 and 600 for training.
DARTS_SEARCH = dict(dataset='cifar10', init_channels=8, layers=5, epochs=25, batch_size=64, learning_rate=0.025,
                    validate=False, save_params=False)
DARTS_TRAINING = dict(dataset='cifar10', init_channels=16, layers=8, epochs=20, batch_size=64, learning_rate=0.025,
                      auxiliary=False, drop_path_prob=0.1)
SEARCHED_WITH = ('PC-DARTS', 'DARTS')
PUBLISHED = ('DARTS_V2', 'PC_DARTS')
PARAMETER_TOLERANCE = 0.02  # between a cell that was found and the random cell compared with it

WHOLE_SEARCH = dict(dataset='cifar10', method='PC-DARTS', save_params=False)  # and its recipe: batch 256, 50 epochs
KILLED_AT = 20  # epochs


class Run(NamedTuple):
    """A command to run once. name: of its folder and its result. flags: {flag: value}, all that decide the result."""

    part: str
    name: str
    script: str
    flags: dict


# ---------------------------------------------------------------------------------------------------------------------
# Which runs there are
# ---------------------------------------------------------------------------------------------------------------------


def nasbench201_runs(files, seeds, output):
    """The searches in NAS-Bench-201, one seed of every method before the next. files: the flags that name files."""
    methods = [(name, {}) for name in METHOD_NAMES]
    methods.insert(1, ('DARTS second order', {'unrolled': True}))
    for seed in seeds:
        for name, more in methods:
            method = name.split()[0]
            own = architecture_flags(method, NASBENCH201['epochs'])
            if name == 'DARTS':
                own['eigenvalue_freq'] = EIGENVALUE_FREQ
            flags = dict(NASBENCH201, **own, **more, method=method, seed=seed, **files)
            yield Run('nasbench201', f'{name}, seed {seed}', 'examples/nasbench201.py', flags)


def architecture_flags(method, epochs):
    """What a search keeps of its method's recipe."""
    flags = recipe(method, epochs)
    return {'arch_learning_rate': flags.get('arch_learning_rate', 3e-4),
            'epochs_no_archopt': flags.get('epochs_no_archopt', 0)}


def darts_runs(files, seeds, output):
    """Searches in DARTS's space and trainings; a training is made only when its cell has been found."""
    files = {'data': files['data']}
    for seed in seeds:
        for method in SEARCHED_WITH:
            own = architecture_flags(method, DARTS_SEARCH['epochs'])
            search = Run('darts', f'{method}, seed {seed}', 'search.py',
                         dict(DARTS_SEARCH, **own, method=method, seed=seed, **files))
            yield search
            found = os.path.join(output, 'darts', search.name, 'genotype.json')
            yield training(f'{method}, seed {seed}, trained', found, seed, files)
            matched = random_cell(found, seed=100 * SEARCHED_WITH.index(method) + seed)
            yield training(f'random cell like {method}, seed {seed}, trained', matched, seed, files)
    for name in PUBLISHED if SEEDS[0] in seeds else ():
        yield training(f'{name}, trained', name, 0, files)


def training(name, arch, seed, files):
    return Run('darts', name, 'train.py', dict(DARTS_TRAINING, arch=arch, seed=seed, **files))


def whole_runs(files, seeds, output):
    if SEEDS[0] in seeds:
        yield Run('whole', 'PC-DARTS, seed 0', 'search.py', dict(WHOLE_SEARCH, seed=0, data=files['data']))


PARTS = {'nasbench201': nasbench201_runs, 'darts': darts_runs, 'whole': whole_runs}


def random_cell(path, seed):
    """The first random genotype whose network has as many parameters as that of a genotype.json, as text."""
    from model import NetworkCIFAR
    from training.summary import count_parameters

    def parameters(genotype):
        return count_parameters(NetworkCIFAR(DARTS_TRAINING['init_channels'], 10, DARTS_TRAINING['layers'], False,
                                             genotype))
    wanted, generator = parameters(get_genotype(path)), random.Random(seed)
    while True:
        genotype = random_genotype(generator)
        if abs(parameters(genotype) / wanted - 1) < PARAMETER_TOLERANCE:
            return str(genotype)


# ---------------------------------------------------------------------------------------------------------------------
# Running them
# ---------------------------------------------------------------------------------------------------------------------


def execute(run, output, core):
    """Run a command to its end, from its last epoch if it was stopped before; returns its result, a dict."""
    folder = os.path.join(output, run.part, run.name)
    words = [f'--{name}={value}' for name, value in dict(run.flags, model_save_dir=folder, resume=True).items()]
    command = [sys.executable, os.path.join(ROOT, run.script), *words]
    if run.part == 'whole':
        kill_after(command, folder, KILLED_AT, core)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, 'output.txt'), 'ab') as log:
        if subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, preexec_fn=lambda: lower(core)).returncode:
            raise SystemExit(f'{run.name} failed: see {log.name}')
    epochs = quality_tables.read_lines(os.path.join(folder, 'metrics.jsonl'))
    return {'name': run.name, 'script': run.script, 'commit': commit(),
            'cores': os.cpu_count() if core is None else 1,
            'flags': {name: value for name, value in run.flags.items() if name not in ('data', 'table')},
            'seconds': round(sum(epoch['seconds'] for epoch in epochs)), 'wall_seconds': wall_seconds(folder),
            'killed': run.part == 'whole',
            'epochs': [kept_figures(epoch) for epoch in epochs], **size_of(run, folder)}


def kept_figures(epoch):
    """What a result keeps of a line of metrics.jsonl."""
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in epoch.items()
            if name.startswith(('test_acc', 'rank_')) or name in ('epoch', 'seconds', 'train_acc', 'valid_acc',
                                                                  'genotype', 'skip_connects', 'eigenvalue')}


def wall_seconds(folder):
    """Seconds from the start of each process of a run to the last line of its log, validation and kills included."""
    seconds, last = 0, None
    with open(os.path.join(folder, 'train.log'), encoding='utf-8') as log:
        for line in log:
            try:
                now = datetime.datetime.fromisoformat(line[:19])
            except ValueError:
                continue  # of a text with several lines
            if last is None or line[19:].startswith(' arguments: '):  # the first line of a process
                last = now
            seconds, last = seconds + (now - last).total_seconds(), now
    return round(seconds)


def size_of(run, folder):
    """{'parameters': …} of a trained network, from its log."""
    if run.script != 'train.py':
        return {}
    with open(os.path.join(folder, 'train.log'), encoding='utf-8') as log:
        return {'parameters': int(log.read().split('MB (')[1].split()[0])}


def kill_after(command, folder, epochs, core):
    """Start a run and kill it, without a chance to save anything, in the epoch after `epochs`, unless it has come that
    far before."""
    def far_enough():
        return len(quality_tables.read_lines(os.path.join(folder, 'metrics.jsonl'))) >= epochs

    if far_enough():
        return
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               preexec_fn=lambda: lower(core))
    while process.poll() is None and not far_enough():
        time.sleep(10)
    process.kill()
    process.wait()


def lower(core):
    """In the process of a run: the lowest priority, and only one core if one is given."""
    os.nice(19)
    if core is not None:
        os.sched_setaffinity(0, [core])


def restore_cells(results, output):
    """Write genotype.json of each finished search whose folder is not here, as on another machine, from its result."""
    for result in results:
        path = os.path.join(output, 'darts', result['name'], 'genotype.json')
        if result['script'] == 'search.py' and not os.path.exists(path):
            genotype = from_dict(result['epochs'][-1]['genotype'])
            write_text(path, genotype_json(genotype, {'method': result['flags']['method']}))


def commit():
    return subprocess.run(['git', '-C', ROOT, 'rev-parse', '--short', 'HEAD'], stdout=subprocess.PIPE,
                          text=True).stdout.strip()


def run_all(args):
    """Run what has no result yet, one run at a time."""
    files = {'data': os.path.abspath(args.data), 'table': os.path.abspath(args.table)}
    for part in [args.part] if args.part else PARTS:
        results = os.path.join(args.results, part + '.jsonl')
        if part == 'nasbench201':
            quality_tables.write_random_cells(args.table, results)
        if part == 'darts':
            restore_cells(quality_tables.read_lines(results), args.output)
        for run in PARTS[part](files, args.seeds, args.output):
            if run.name in {result['name'] for result in quality_tables.read_lines(results)}:
                continue
            print(f'{part}: {run.name}', flush=True)
            result = execute(run, args.output, args.core)
            with open(results, 'a', encoding='utf-8') as file:
                file.write(json.dumps(result, ensure_ascii=False) + '\n')
            print(quality_tables.tables(args.results, part), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', help='the CIFAR-10 archive; the published results are those of 10,000 of its images')
    parser.add_argument('--table', help='the table of NAS-Bench-201, see examples/nasbench201_table.py')
    parser.add_argument('--output', default='quality', help='folder of all runs (default: %(default)s)')
    parser.add_argument('--part', choices=list(PARTS), help='one of the experiments (default: all, one by one)')
    parser.add_argument('--seeds', type=lambda text: [int(word) for word in text.split(',')], default=SEEDS,
                        help='seeds of the runs (default: 0,1,2)')
    parser.add_argument('--core', type=int, help='run on this core alone; the result depends on the number of cores '
                                                 'in its last digits (default: all)')
    parser.add_argument('--results', default=os.path.join(ROOT, 'benchmarks', 'results'),
                        help='folder of the results (default: %(default)s)')
    parser.add_argument('--report', action='store_true', help='print the tables of the finished runs and exit')
    args = parser.parse_args()
    if args.report:
        for part in PARTS:
            print(quality_tables.tables(args.results, part))
        return
    if not args.data or not args.table:
        parser.error('give --data and --table, or --report')
    args.output = os.path.abspath(args.output)
    os.makedirs(args.results, exist_ok=True)
    run_all(args)


if __name__ == '__main__':
    main()
