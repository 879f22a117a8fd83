"""Tables of the results of search_quality.py, benchmarks/results/*.jsonl: a line is a finished run."""
import json
import os
import statistics
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from examples.nasbench201_table import Table  # noqa: E402
from nas.collapse import EarlyStop  # noqa: E402

RANDOM = 'random cells'
STOP_RATIO = 1.3  # of --early_stop=eigenvalue
# Two-sided 95 % quantiles of Student's t distribution by degrees of freedom.
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def read_lines(path):
    """The objects of a file of JSON lines; none if there is no such file. A last line that was cut off is left out."""
    if not os.path.exists(path):
        return []
    with open(path, encoding='utf-8') as file:
        return [json.loads(line) for line in file if line.endswith('\n')]


def tables(folder, part):
    """The tables of a part, as Markdown."""
    results = read_lines(os.path.join(folder, part + '.jsonl'))
    if not results:
        return f'{part}: no run is finished'
    return {'nasbench201': nasbench201_tables, 'darts': darts_tables, 'whole': whole_table}[part](results)


def write_random_cells(table, path):
    """Add a line with the mean, the standard deviation and quantiles of all cells of the table of NAS-Bench-201."""
    if any(result['name'] == RANDOM for result in read_lines(path)):
        return
    accuracies = sorted(entry.accuracy['cifar10'] for entry in Table(table).entries.values())
    quartiles = statistics.quantiles(accuracies, n=4, method='inclusive')
    line = {'name': RANDOM, 'cells': len(accuracies), 'mean': statistics.mean(accuracies),
            'deviation': statistics.pstdev(accuracies), 'lowest': accuracies[0], 'quartiles': quartiles,
            'highest': accuracies[-1]}
    with open(path, 'a', encoding='utf-8') as file:
        file.write(json.dumps(line) + '\n')


def by_method(results):
    """{name without the seed: results}, in the order of their first lines."""
    groups = {}
    for result in results:
        groups.setdefault(result['name'].split(', seed')[0], []).append(result)
    return groups


def spread(values):
    """Mean ± standard deviation."""
    deviation = f' ± {statistics.stdev(values):.2f}' if len(values) > 1 else ''
    return f'{statistics.mean(values):.2f}{deviation}'


def nasbench201_tables(results):
    """True test accuracies on CIFAR-10 of the cells that the searches ended with, and what early stopping changes."""
    cells = next(result for result in results if result['name'] == RANDOM)
    median = cells['quartiles'][1]
    rows = [f'| all {cells["cells"]} cells | | {cells["mean"]:.2f} ± {cells["deviation"]:.2f}, median {median:.2f} | '
            f'{cells["lowest"]:.2f} to {cells["highest"]:.2f} | | | |']
    for method, runs in by_method([result for result in results if result['name'] != RANDOM]).items():
        last = [run['epochs'][-1] for run in runs]
        accuracies = [100 * epoch['test_acc_cifar10'] for epoch in last]
        extremes = f'{min(accuracies):.2f} to {max(accuracies):.2f}'
        rows.append(f'| {method} | {len(runs)} | {spread(accuracies)} | {extremes} | '
                    f'{sum(accuracy > median for accuracy in accuracies)} of {len(runs)} | '
                    f'{statistics.mean(epoch["skip_connects"] for epoch in last):.1f} | '
                    f'{statistics.mean(run["seconds"] for run in runs):.0f} |')
    header = ('| method | seeds | CIFAR-10 test accuracy, % | lowest to highest | above the median | '
              'skip connections | seconds |\n|---|---|---|---|---|---|---|\n')
    return header + '\n'.join(rows) + '\n\n' + early_stop_table(results)


def early_stop_table(results):
    """The runs in which eigenvalues were measured: when --early_stop=eigenvalue:1.3 stops, the true accuracy of the
    cell that it returns, and that at the end."""
    rows = []
    for result in results:
        epochs = result.get('epochs', [])
        if not any('eigenvalue' in epoch for epoch in epochs):
            continue
        rule, when = EarlyStop('eigenvalue', STOP_RATIO), 'never | | '
        for end in range(1, len(epochs) + 1):
            good = rule.verdict(epochs[:end])
            if good:
                when = f'{epochs[end - 1]["epoch"]} | {good["epoch"]} | {100 * good["test_acc_cifar10"]:.2f}'
                break
        rows.append(f'| {result["name"]} | {when} | {100 * epochs[-1]["test_acc_cifar10"]:.2f} |')
    return '\n'.join(['| run | stops after epoch | returns the cell of epoch | its accuracy, % | accuracy at the '
                      'end, % |', '|---|---|---|---|---|', *rows])


def darts_tables(results):
    """Test accuracies after the last epoch of training, and the paired differences to random cells."""
    trained = {result['name']: result for result in results if result['script'] == 'train.py'}
    if not trained:
        return f'darts: searched {", ".join(result["name"] for result in results)}; no network is trained'

    def accuracy(name):
        return 100 * trained[name]['epochs'][-1]['valid_acc']
    rows = [f'| {name.removesuffix(", trained")} | {result["parameters"]:,} | {accuracy(name):.2f} | '
            f'{result["seconds"]} |' for name, result in trained.items()]
    lines = ['| cell | parameters | test accuracy, % | seconds of training |', '|---|---|---|---|', *rows, '']
    for method in by_method([result for result in results if result['script'] == 'search.py']):
        pairs = [(name, f'random cell like {name}') for name in trained if name.startswith(method + ', seed')]
        differences = [accuracy(name) - accuracy(other) for name, other in pairs if other in trained]
        if len(differences) > 1:
            lines.append(f'{method}: {difference_line(differences)}')
    return '\n'.join(lines)


def difference_line(differences):
    """The mean of paired differences with its 95 % confidence interval by Student's t distribution."""
    mean = statistics.mean(differences)
    half = STUDENT[len(differences) - 1] * statistics.stdev(differences) / len(differences) ** 0.5
    verdict = 'not distinguishable from random cells' if abs(mean) <= half else 'different from random cells'
    return (f'{mean:+.2f} points against random cells with as many parameters, 95 % confidence interval '
            f'{mean - half:+.2f} to {mean + half:+.2f} of {len(differences)} pairs: {verdict}')


def whole_table(results):
    """Wall time of the whole search, and the cell that it found."""
    lines = []
    for result in results:
        killed = ', killed once and resumed' if result['killed'] else ''
        lines.append(f'{result["name"]}: {len(result["epochs"])} epochs in {result["wall_seconds"] / 3600:.2f} h on '
                     f'{result["cores"]} cores{killed}\n{result["epochs"][-1]["genotype"]}')
    return '\n'.join(lines)
