"""Does a search beat random cells? Search with each method over several seeds, train each found cell and random cells
with the same settings, and print a table.

    python benchmarks/compare_methods.py --output=compare                  on digits: under an hour on 2 cores
    python benchmarks/compare_methods.py --dataset=cifar10 --data=ARCHIVE --trainset_num=2000 --output=compare_cifar

Everything is run by search.py and train.py themselves, into --output; what is there already is not run again, so that
a stopped comparison goes on. A method's accuracy is the mean over its seeds of the best test accuracy of its cells'
training, +- the standard deviation.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
METHODS = ['DARTS', 'DARTS second order', 'PC-DARTS', 'GDAS', 'DrNAS', 'FairDARTS', 'DARTS-']


def run(name, folder, flags):
    """Run a script into a folder, once. Returns the seconds it took."""
    done = os.path.join(folder, 'seconds.json')
    if not os.path.exists(done):
        start = time.time()
        result = subprocess.run([sys.executable, os.path.join(ROOT, name), '--model_save_dir=' + folder] + flags,
                                stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True)
        if result.returncode:
            sys.exit(f'{name} failed:\n{result.stdout}')
        with open(done, 'w') as f:
            json.dump(time.time() - start, f)
    with open(done) as f:
        return json.load(f)


def train(cell, folder, seed, args):
    """Train a genotype.json -> (test accuracy in per cent, parameters, skip connections in the normal cell)."""
    run('train.py', folder, data_flags(args) + [
        '--arch=' + cell, '--auxiliary=False', f'--seed={seed}', f'--init_channels={args.init_channels}',
        f'--layers={args.layers}', f'--epochs={args.train_epochs}', f'--batch_size={args.batch_size}',
        '--learning_rate=0.05', '--drop_path_prob=0.1', '--cutout=False'])
    with open(os.path.join(folder, 'metrics.jsonl')) as f:
        accuracy = max(json.loads(line)['valid_acc'] for line in f)
    with open(os.path.join(folder, 'train.log')) as f:
        parameters = int(f.read().split('MB (')[1].split()[0])
    with open(cell) as f:
        skips = sum(operation == 'skip_connect' for operation, _ in json.load(f)['normal'])
    return 100 * accuracy, parameters, skips


def data_flags(args):
    return ['--dataset=' + args.dataset, f'--trainset_num={args.trainset_num}', '--use_multiprocess=False'] + (
        ['--data=' + args.data] if args.data else [])


def search_flags(method, args):
    flags = ['--method=' + method.split()[0], '--unrolled={}'.format('second' in method),
             f'--init_channels={args.init_channels}',
             f'--layers={args.layers}', f'--epochs={args.search_epochs}', f'--batch_size={args.batch_size}',
             '--learning_rate=0.05', '--arch_learning_rate=6e-3', '--epochs_no_archopt=1', '--validate=False',
             '--save_params=False']
    return flags


def has_edges(cell):
    """Whether both cells of a genotype.json have an edge: those of FairDARTS have none before any weight reaches its
    threshold, and can't be trained."""
    with open(cell) as f:
        genotype = json.load(f)
    return all(any(operation != 'none' for operation, _ in genotype[kind]) for kind in ('normal', 'reduce'))


def row(name, results, seconds):
    if not results:
        return f'| {name} | 0 | no cell with edges | | | {statistics.mean(seconds):.0f} |'
    accuracies, parameters, skips = zip(*results)
    deviation = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
    return '| {} | {} | {:.2f} ± {:.2f} | {:.0f} k | {:.1f} | {} |'.format(
        name, len(results), statistics.mean(accuracies), deviation, statistics.mean(parameters) / 1e3,
        statistics.mean(skips),
        f'{statistics.mean(seconds):.0f}' if seconds else '0')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default, text in (
            ('output', 'compare', 'folder for all runs'),
            ('dataset', 'digits', 'digits, cifar10, …'),
            ('data', None, 'for train.py and search.py'),
            ('trainset_num', 50000, 'maximum number of training images'),
            ('seeds', 3, 'searches of each method'),
            ('samples', 6, 'random cells'),
            ('search_epochs', 8, 'epochs of a search'),
            ('train_epochs', 8, 'epochs of a training'),
            ('init_channels', 12, 'channels of the first cell; DrNAS needs a multiple of 12'),
            ('layers', 3, 'number of cells'),
            ('batch_size', 32, 'batch size'),
            ('methods', ','.join(METHODS), 'methods to compare')):
        parser.add_argument('--' + name, type=str if default is None else type(default), default=default,
                            help=text + ' (default: %(default)s)')
    args = parser.parse_args()
    args.output = os.path.abspath(args.output)
    rows, begin = [], time.time()
    for method in args.methods.split(','):
        results, seconds = [], []
        for seed in range(args.seeds):
            folder = os.path.join(args.output, f'{method} seed {seed}')
            seconds.append(run('search.py', folder, data_flags(args) + search_flags(method, args) + [f'--seed={seed}']))
            cell = os.path.join(folder, 'genotype.json')
            if has_edges(cell):
                results.append(train(cell, folder + ' trained', seed, args))
        rows.append(row(method, results, seconds))
        print(rows[-1], file=sys.stderr, flush=True)
    folder = os.path.join(args.output, 'random')
    run('search.py', folder, ['--method=random', f'--samples={args.samples}', '--dataset=' + args.dataset])
    results = [train(os.path.join(folder, str(k), 'genotype.json'), os.path.join(args.output, f'random {k} trained'),
                     k % args.seeds, args)
               for k in range(args.samples)]
    rows.append(row('random cells', results, []))
    print(f'{args.dataset}: search of {args.search_epochs} epochs, training of {args.train_epochs} epochs, '
          f'C{args.init_channels} L{args.layers}, batch {args.batch_size}; {(time.time() - begin) / 60:.0f} minutes')
    print('| method | cells | test accuracy, % | parameters | skip connections | seconds a search '
          '|\n|---|---|---|---|---|---|')
    print('\n'.join(rows))


if __name__ == '__main__':
    main()
