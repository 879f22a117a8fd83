"""Derives a cell from a trained supernet by what the removal of each operation costs, in place of the strengths
(Wang et al.: Rethinking Architecture Selection in Differentiable NAS, ICLR 2021, algorithm 1).

Edge by edge, in an order drawn by the seed, each operation is removed in turn: its weight is set to 0, those of the
others stay. The operation without which the validation accuracy is lowest is kept: from then on the edge has it alone,
with weight 1, and the weights are trained for some epochs. When every edge has one operation, node by node each edge is
removed in turn, and the two edges without which the accuracy is lowest are kept. Equal accuracies are decided by the
loss.

As in the authors' code the accuracies are those with batch norm's statistics of the batch. That code differs in this:
it decides one edge of the normal and one of the reduction cell before it trains the weights, with a tenth of the
search's learning rate; it goes on updating the architecture; of more than two edges it removes one at a time.

Methods that draw weights (GDAS, DrNAS) draw the same ones for all operations of an edge.
"""
import json
import os

import numpy as np
import paddle

from genotypes import Genotype, edge_number, genotype_json, plain
from nas.options import CheckpointOptions, MonitorOptions, WeightOptions
from nas.searcher import DARTSearch
from pipeline.loader import DECISIONS
from runtime.files import refuse_to_overwrite, write_text
from runtime.log import logger
from runtime.parallel import check_agreement, rank
from training.engine import evaluate, sync_ranks

KINDS = ('normal', 'reduce')


class Projection:
    """Takes the place of model_search.Network._weights: the weights of a supernet that is discretised in part.

    operations: {(kind of cell, edge): column} of the edges that have one operation. removed: {(kind of cell, edge)} of
    the edges that are gone. without: (kind of cell, edge, column) of the operation, or with column None the edge, that
    is removed at present.
    """

    def __init__(self, model):
        self.model, self.original = model, model._weights
        self.operations, self.removed, self.without = {}, set(), None
        model._weights = self

    def __call__(self, alphas, betas, mask):
        kind = 'normal' if alphas is self.model.alphas_normal else 'reduce'
        weights, edge_weights, active = self.original(alphas, betas, mask)
        factor, alone, edges = np.ones(alphas.shape), np.zeros(alphas.shape), np.ones(alphas.shape[0])
        for (cell, edge), column in self.operations.items():
            if cell == kind:
                factor[edge], alone[edge, column] = 0, 1
        removed = set(self.removed)
        if self.without is not None:
            cell, edge, column = self.without
            if column is None:
                removed.add((cell, edge))
            elif cell == kind:
                factor[edge, column] = 0
        weights = weights * paddle.to_tensor(factor, weights.dtype) + paddle.to_tensor(alone, weights.dtype)
        gone = [edge for cell, edge in removed if cell == kind]
        if gone:
            edges[gone] = 0
            edges = paddle.to_tensor(edges, weights.dtype)
            edge_weights = edges if edge_weights is None else edge_weights * edges
        return weights, edge_weights, self.model.method.active_operations(weights)


class PerturbationDerivation(DARTSearch):
    """Derives the cell of a trained supernet, model_search.Network. Takes the arguments of DARTSearch; save_dir gets
    genotype.json, removals.jsonl with a line for each decision, and checkpoints.

    epoch, epochs: those that the supernet was trained for, as its method's set_epoch takes them. tune_epochs: epochs of
    the weights between two decisions.
    """

    def __init__(self, model, *args, epoch, epochs, tune_epochs, seed=0, **options):
        model.set_epoch(epoch, epochs)
        self.projection, self.tune_epochs = Projection(model), tune_epochs
        self.todo = decisions_to_make(model._steps, seed)
        super().__init__(model, *args, num_epochs=(len(self.todo) - 1) * tune_epochs, seed=seed, **options)

    def train(self):
        """Make all decisions. Returns the Genotype."""
        if rank() == 0:
            refuse_to_overwrite(self.save_dir, ['genotype.json', 'removals.jsonl'])
        self.run.start(self.checkpoint.resume)
        self._restore_stage(self.run.results)
        logger.info('%d decisions, after the evaluation of %d removals in all; %d epochs of the weights between them',
                    len(self.todo), sum(2 + node if edge is None else len(self._candidates(kind, edge))
                                        for kind, node, edge in self.todo), self.num_epochs)
        with self.run:
            for epoch in range(self.run.epoch, self.num_epochs):
                self._epoch(epoch)
            self.decide()
            genotype = plain(self.genotype())
            if rank() == 0:
                search = dict(self.monitor.search_info, derivation='perturbation', tune_epochs=self.tune_epochs)
                write_text(os.path.join(self.save_dir, 'genotype.json'), genotype_json(genotype, search))
        return genotype

    def _epoch(self, epoch):
        if self.run.step == 0 and epoch % self.tune_epochs == 0:
            self.decide()
        metrics = self.train_one_epoch(epoch)
        sync_ranks(self.model)
        self.run.check_finite()
        self.schedule.step()
        self.run.end_epoch(dict(metrics, decisions=len(self.decisions)))

    def _trains_weights_only(self, epoch):
        return True

    def _restore_stage(self, results):
        """Bring the projection to the decisions that a checkpoint holds."""
        for decision in results.setdefault('decisions', []):
            self._apply(decision)

    @property
    def decisions(self):
        return self.run.results['decisions']

    # -----------------------------------------------------------------------------------------------------------------
    # Decisions
    # -----------------------------------------------------------------------------------------------------------------

    def decide(self):
        """Make the next decision, unless the checkpoint that the run goes on from holds it."""
        number = min(self.run.epoch // self.tune_epochs, len(self.todo) - 1)
        if len(self.decisions) > number:
            return
        kind, node, edge = self.todo[number]
        decision = {'decision': number, 'cell': kind, 'node': node}
        decision['before'] = self._evaluate(None)
        if edge is not None:
            decision['source'] = edge - edge_number(node)
            decision['without'] = {self.method.primitives[column]: self._evaluate((kind, edge, column))
                                   for column in self._candidates(kind, edge)}
            decision['kept'] = ranked(decision['without'])[0]
        else:
            decision['without'] = {str(source): self._evaluate((kind, edge_number(node, source), None))
                                   for source in range(2 + node)}
            decision['kept'] = ranked(decision['without'])[:2]
        check_agreement([paddle.to_tensor(list(decision['without'].values()), 'float64')], 'the removals')
        self._apply(decision)
        self.decisions.append(decision)
        logger.info('decision %d of %d: %s', number + 1, len(self.todo), sentence(decision))
        if rank() == 0:
            write_text(os.path.join(self.save_dir, 'removals.jsonl'),
                       ''.join(json.dumps(line) + '\n' for line in self.decisions))

    def _candidates(self, kind, edge):
        """The columns of the operations that an edge may keep: all but `none` and those that an earlier stage of the
        search has dropped (DrNAS), whose removal would cost nothing."""
        mask = getattr(self.model, 'mask_' + kind, None)
        kept = [True] * len(self.method.primitives) if mask is None else mask[edge].tolist()
        return [column for column, name in enumerate(self.method.primitives) if name != 'none' and kept[column]]

    def _apply(self, decision):
        kind, node = decision['cell'], decision['node']
        if 'source' in decision:
            edge = edge_number(node, decision['source'])
            self.projection.operations[kind, edge] = self.method.primitives.index(decision['kept'])
        else:
            self.projection.removed |= {(kind, edge_number(node, source)) for source in range(2 + node)
                                        if str(source) not in decision['kept']}

    @paddle.no_grad()
    def _evaluate(self, without):
        """The validation accuracy and loss of the supernet without an operation or an edge, [accuracy, loss]."""
        self.run.begin_step(self.run.epoch, 0)
        statistics = [value.clone() for value in self.architect.statistics]
        self.projection.without = without
        loss, top1, _, _ = evaluate(self.model, self.eval_loader, batch_statistics=True)
        self.projection.without = None
        for value, before in zip(self.architect.statistics, statistics):
            paddle.assign(before, value)
        self.run.check()
        return [top1, loss]

    def genotype(self):
        """The Genotype of the decisions; the edge whose removal costs more comes first."""
        operations = {(d['cell'], d['node'], str(d['source'])): d['kept'] for d in self.decisions if 'source' in d}
        pairs = {(d['cell'], d['node']): d['kept'] for d in self.decisions if 'source' not in d}
        cells = [[(operations[kind, node, source], int(source)) for node in range(self.model._steps)
                  for source in pairs.get((kind, node), ['0', '1'])] for kind in KINDS]
        concat = range(2 + self.model._steps - self.model._multiplier, 2 + self.model._steps)
        return Genotype(cells[0], concat, cells[1], concat)


def decisions_to_make(steps, seed):
    """[(kind of cell, node, edge)] in order: all edges for their operation, then with edge None all nodes that have
    more than two edges."""
    generator = np.random.default_rng([seed, DECISIONS])
    edges = [(kind, node, edge_number(node, source)) for kind in KINDS for node in range(steps)
             for source in range(2 + node)]
    nodes = [(kind, node, None) for kind in KINDS for node in range(1, steps)]
    return [part[place] for part in (edges, nodes) for place in generator.permutation(len(part))]


def ranked(without):
    """The candidates, that without which the accuracy is lowest first; of equal ones that with the higher loss.

    without: {candidate: [accuracy, loss] without it}.
    """
    return sorted(without, key=lambda name: (without[name][0], -without[name][1]))


def sentence(decision):
    """A decision on a line of the log."""
    costs = ', '.join(f'{name} {100 * (decision["before"][0] - value[0]):+.2f}'
                      for name, value in decision['without'].items())
    place = f'{decision["cell"]} node {decision["node"]}'
    if 'source' in decision:
        kept = f'{place}, edge from {decision["source"]}: keeps {decision["kept"]}'
    else:
        kept = f'{place}: keeps the edges from {" and ".join(decision["kept"])}'
    return f'{kept}; each removal costs, in percentage points: {costs}'


def table(decisions, primitives):
    """What each removal cost, as a text: a row for each edge, a column for each operation, percentage points of
    accuracy; then a row for each node. * marks what was kept."""
    names = [name for name in primitives if name != 'none']
    width = max(map(len, names)) + 2
    lines = ['accuracy lost without it, percentage points; * is kept',
             f'{"":<24}' + ''.join(f'{name:>{width}}' for name in names)]

    def place(decision):  # the edges of a cell, then its nodes
        return decision['cell'], 'source' not in decision, decision['node'], decision.get('source', 0)
    for decision in sorted(decisions, key=place):
        lost = {name: 100 * (decision['before'][0] - value[0]) for name, value in decision['without'].items()}
        kept = [decision['kept']] if 'source' in decision else decision['kept']
        cells = {name: f'{value:.2f}{"*" if name in kept else " "}' for name, value in lost.items()}
        if 'source' in decision:
            title = f'{decision["cell"]} node {decision["node"]} from {decision["source"]}'
            lines.append(f'{title:<24}' + ''.join(f'{cells.get(name, ""):>{width}}' for name in names))
        else:
            title = f'{decision["cell"]} node {decision["node"]}, edges'
            lines.append(f'{title:<24}' + ''.join(f'{f"from {name}: {text}":>16}' for name, text in cells.items()))
    return '\n'.join(lines)


def derive_by_perturbation(network, train_loader, valid_loader, place, flags, result, budget=None):
    """Derive the Genotype of a trained supernet and log what each removal cost.

    flags: {name: value} of the search, with tune_epochs and resume; model_save_dir: the folder for the results. result:
    what the search's genotype.json says. budget: limits that the search had; the log says if the cell exceeds them.
    """
    search_info = {name: flags[name] for name in ('method', 'seed', 'dataset')}
    derivation = PerturbationDerivation(
        network, train_loader, valid_loader, place, epoch=result['epoch'], epochs=flags['epochs'],
        tune_epochs=flags['tune_epochs'], seed=flags['seed'], learning_rate=flags['learning_rate'],
        save_dir=flags['model_save_dir'], log_freq=flags['log_freq'],
        weight=WeightOptions(**{name: flags[name] for name in ('momentum', 'weight_decay', 'grad_clip',
                                                               'learning_rate_min')}),
        checkpoint=CheckpointOptions(
            resume=flags['resume'], save_freq=flags['save_freq'], keep=flags['keep'],
            arguments={name: value for name, value in flags.items() if name != 'derive'}),
        monitor=MonitorOptions(search_info=dict(search_info, epoch=result['epoch'])))
    genotype = derivation.train()
    for line in table(derivation.decisions, network.method.primitives).splitlines():
        logger.info('%s', line)
    if budget is not None and not budget.is_within(genotype):
        logger.warning('the cell exceeds the limits of the search: removals do not look at costs')
    return genotype
