"""The search loop: paddleslim.nas.DARTSearch, mended.

A search that was written for PaddleSlim runs with ours by changing the import:

    from nas.searcher import DARTSearch                       # was: from paddleslim.nas import DARTSearch
    genotype = DARTSearch(model, train_reader, valid_reader, place, num_epochs=50).train()

Each step moves the architecture on a validation batch (architect.py) and then the weights on a training batch (DARTS,
algorithm 1).
"""
import os
from argparse import Namespace

import paddle
import paddleslim.nas
from paddle.io import DataLoader, Dataset, IterableDataset

import genotypes
from nas import collapse
from nas.architect import Architect, frozen, weight_parameters
from pipeline.loader import TRAIN, VALID, BatchLoader, DatasetImages
from runtime.checkpoint import remove_numbered, save_params, write_text
from runtime.errors import UserError
from runtime.log import AverageMeter, Progress, logger, peak_memory_mb
from runtime.parallel import average_over_ranks, broadcast, check_agreement, rank
from runtime.run import Run, set_epoch
from training.engine import accuracy, agree, check_finite, evaluate, mean_over_ranks, to_batch


class DARTSearch(paddleslim.nas.DARTSearch):
    """Searches an architecture with DARTS, first or second order, or PC-DARTS, by what the model is.

    model: a supernet that is callable on images [N, 3, H, W] and has `arch_parameters()` and `_loss(image, label)`; and either
        `genotype()` or the attributes PaddleSlim's documentation asks for (`alphas_normal`, `alphas_reduce`, `_steps`,
        `_multiplier`, `_primitives`).
    train_reader, valid_reader: the two halves of the data. Each is a paddle.io.Dataset of (image, label), batched and shuffled
        here; or an iterable of ready batches, such as a paddle.io.DataLoader or reader.py's loaders; or a function that
        returns such an iterable. The validation half starts anew when it ends before the training half.
    place: where to run, paddle.CPUPlace() or paddle.CUDAPlace(n).
    learning_rate, batchsize, arch_learning_rate, unrolled, num_epochs, epochs_no_archopt, save_dir, log_freq: as in PaddleSlim:
        of the weights, images a step (for a Dataset), of the architecture, second order, epochs, how many of the first
        ones leave the architecture alone, where files go, steps between two log lines.
    num_imgs: accepted for old calls; the readers say how much data there is.
    use_multiprocess: read a Dataset in a worker process.
    momentum, weight_decay, grad_clip: of the weight step; grad_clip is a global norm.
    arch_weight_decay: of the architecture's Adam.
    learning_rate_min: where the cosine schedule ends.
    eval_reader: what the accuracy at the end of an epoch is measured on, without augmentation; default: valid_reader.
    validate: False leaves that measurement out.
    search_info: a dict that goes into every genotype.json under "search"; its seed is that of a Dataset's order.
    resume, save_freq, keep: go on from the newest checkpoint in save_dir; steps between two checkpoints within an epoch; how many stay.
    save_params: False leaves <epoch>/params.pdparams out.
    on_epoch: called with the line of metrics.jsonl, a dict, of each epoch.
    eigenvalue_freq: epochs between two measurements of the Hessian's dominant eigenvalue; 0: none. early_stop: a collapse.EarlyStop.
    arguments: {name: value} of all that made the run; --resume refuses a checkpoint of other ones. Default: the figures above.
    """

    def __init__(self, model, train_reader, valid_reader, place, learning_rate=0.025, batchsize=64, num_imgs=50000,
                 arch_learning_rate=3e-4, unrolled=False, num_epochs=50, epochs_no_archopt=0, use_multiprocess=False,
                 save_dir='./', log_freq=50, momentum=0.9, weight_decay=3e-4, grad_clip=5.0, arch_weight_decay=1e-3,
                 learning_rate_min=1e-3, eval_reader=None, validate=True, search_info=None, resume=False, save_freq=0, keep=2,
                 save_params=True, arguments=None, on_epoch=None,
                 eigenvalue_freq=0, early_stop=None):
        super().__init__(model, train_reader, valid_reader, place, learning_rate, batchsize, num_imgs, arch_learning_rate,
                         unrolled, num_epochs, epochs_no_archopt, use_multiprocess, save_dir, log_freq)
        paddle.set_device(_device_name(place))
        self.validate, self.resume, self.save_params = validate, resume, save_params
        self.eigenvalue_freq, self.early_stop = eigenvalue_freq, early_stop
        self.search_info = dict(search_info or {})
        options = batchsize, use_multiprocess, self.search_info.get('seed', 0)
        self.train_loader = as_loader(train_reader, *options)
        self.valid_loader = as_loader(valid_reader, *options, stream=VALID)
        if isinstance(self.train_loader, BatchLoader) and isinstance(self.valid_loader, BatchLoader):
            self.train_loader.beside = [self.valid_loader]
        self.eval_loader = as_loader(valid_reader if eval_reader is None else eval_reader, *options, train=False)

        broadcast(list(model.parameters()) + list(model.arch_parameters()))
        self.weights = weight_parameters(model)
        # Stepped once an epoch, so that epoch e runs at min + (lr - min) * (1 + cos(pi * e / epochs)) / 2.
        self.schedule = paddle.optimizer.lr.CosineAnnealingDecay(learning_rate, num_epochs, learning_rate_min)
        self.optimizer = paddle.optimizer.Momentum(
            self.schedule, momentum, parameters=self.weights, weight_decay=weight_decay,
            grad_clip=paddle.nn.ClipGradByGlobalNorm(grad_clip) if grad_clip else None)
        self.architect = Architect(model, self.optimizer, arch_learning_rate, arch_weight_decay, unrolled, momentum,
                                   weight_decay)
        if arguments is None:
            arguments = dict(learning_rate=learning_rate, batchsize=batchsize, arch_learning_rate=arch_learning_rate,
                             unrolled=unrolled, epochs=num_epochs, epochs_no_archopt=epochs_no_archopt, momentum=momentum,
                             weight_decay=weight_decay, grad_clip=grad_clip, arch_weight_decay=arch_weight_decay,
                             learning_rate_min=learning_rate_min)
        self.run = Run(save_dir, model, [(self.optimizer, self.weights), (self.architect.optimizer, self.architect.arch_parameters)],
                       self.schedule, [self.train_loader, self.valid_loader], arguments, save_freq, keep, on_epoch=on_epoch)

    def train(self):
        """Search, and leave the parameters and the genotype of every epoch and the final genotype in save_dir.

        Returns the final genotype. Raises UserError (status 1) when the loss is not finite.
        """
        logger.info('param size = %.6fMB', sum(p.size for p in self.weights) / 1e6)
        self.run.start(self.resume)
        stopped = self.run.results.get('stopped')
        if stopped is not None:
            logger.info('nothing to do: --early_stop ended this search after epoch %d', stopped['epoch'])
        with self.run:
            for epoch in self.run.epochs(self.num_epochs) if stopped is None else ():
                if self.run.results.get('stopped') is None:
                    self._epoch(epoch)
        logger.info('genotype = %s', self.genotype())
        return self.genotype()

    def _epoch(self, epoch):
        if hasattr(self.model, 'set_progress'):
            self.model.set_progress(epoch / max(self.num_epochs - 1, 1))
        logger.info('Epoch %d, lr %.6f', epoch, self.optimizer.get_lr())
        logger.info('genotype = %s', self.genotype())
        metrics = self.train_one_epoch(self.train_loader, self.valid_loader, self.architect, self.optimizer, epoch)
        agree(self.model)
        check_agreement(self.architect.arch_parameters, 'the architecture parameters')
        logger.info('Epoch %d, train_acc %.6f', epoch, metrics['train_acc'])
        if self.validate:
            metrics.update(self.valid_one_epoch(self.eval_loader, epoch))
            best = self.run.results['best_valid_acc'] = max(self.run.results.get('best_valid_acc', 0.0), metrics['valid_acc'])
            logger.info('Epoch %d, valid_acc %.6f, best_valid_acc %.6f', epoch, metrics['valid_acc'], best)
        metrics.update(self._signs_of_collapse(epoch))
        metrics.update(peak_memory_mb=peak_memory_mb(), genotype=genotypes.to_json(self.genotype()),
                       alphas=[parameter.tolist() for parameter in self.model.arch_parameters()])
        self.schedule.step()
        good = self.early_stop and self.early_stop.verdict(self.run.metrics + [metrics], self.epochs_no_archopt)
        if good:
            self.run.results['stopped'] = {'epoch': epoch, 'genotype': good['genotype']}
            logger.info('stopped after epoch %d by --early_stop=%s:%g; the genotype is that of epoch %d, the last good one', epoch,
                        self.early_stop.kind, self.early_stop.limit, good['epoch'])
        if rank() == 0:
            self._save(metrics, good or metrics)
        self.run.end_epoch(metrics)

    def _signs_of_collapse(self, epoch):
        """The epoch's figures of collapse.py, logged."""
        strengths = [s.tolist() for s in self.model.strengths()] if hasattr(self.model, 'strengths') else []
        signs = collapse.signs(self._present_genotype(), strengths)
        if self.eigenvalue_freq and (epoch + 1) % self.eigenvalue_freq == 0:
            self.model.train()
            # The same batch and the same random numbers, whether or not the run was resumed since the epoch's last step.
            set_epoch(self.valid_loader, epoch)
            self.run.begin_step(epoch, self.run.step)
            image, label = to_batch(next(forever(self.valid_loader)))
            signs['eigenvalue'] = self.architect.dominant_eigenvalue(image, label)
        if signs:
            logger.info('Epoch %d, %s', epoch, ', '.join(f'{name} {value:.6g}' for name, value in signs.items()))
        return signs

    def train_one_epoch(self, train_loader, valid_loader, architect, optimizer, epoch):
        """One pass over the training half. Returns the epoch's figures for metrics.jsonl.

        The signature is PaddleSlim's; architect and optimizer are those of this object.
        """
        self.model.train()
        loss, top1, top5 = meters = AverageMeter(), AverageMeter(), AverageMeter()
        first = self.run.begin_epoch(epoch, meters)
        progress = Progress('Train', epoch, _length(train_loader), self.log_freq, first)
        for step, (train_batch, valid_batch) in progress.batches(self.run.batches(zip(train_loader, forever(valid_loader)))):
            self.run.begin_step(epoch, step)
            image, label = to_batch(train_batch)
            step_loss, logits = self.train_step(image, label, *to_batch(valid_batch),
                                                arch_step=epoch >= self.epochs_no_archopt)
            check_finite(step_loss, epoch, step, optimizer)
            n = image.shape[0]
            loss.update(step_loss, n)
            for meter, value in zip((top1, top5), accuracy(logits, label)):
                meter.update(value, n)
            progress.update(step, n, loss, top1, top5)
            self.run.end_step(step, meters)
        if not loss.count:
            raise UserError('the training half holds no batch')
        train_loss, train_acc, _ = mean_over_ranks(loss, top1, top5)
        return dict(progress.costs(), epoch=epoch, lr=optimizer.get_lr(), train_loss=train_loss, train_acc=train_acc)

    def train_step(self, train_image, train_label, valid_image, valid_label, arch_step=True):
        """One step of the search: architecture (unless it still rests), then weights.

        Returns the training loss, a float, and the logits [N, classes], both before the weights moved.
        """
        if arch_step:
            self.architect.step(train_image, train_label, valid_image, valid_label)
        with frozen(self.architect.arch_parameters):
            logits = self.model(train_image)
            loss = paddle.nn.functional.cross_entropy(logits, train_label)
            gradients = paddle.grad(loss, self.weights, allow_unused=True)
        average_over_ranks([gradient for gradient in gradients if gradient is not None], train_image.shape[0])
        for weight, gradient in zip(self.weights, gradients):
            if gradient is not None:
                weight.grad = gradient
        self.optimizer.step()
        self.optimizer.clear_grad()
        return float(loss), logits.detach()

    def valid_one_epoch(self, valid_loader, epoch):
        """Score the model in eval mode, without gradients. Returns the figures for metrics.jsonl."""
        valid_loss, top1, _ = evaluate(self.model, valid_loader, check=self.run.check)
        return {'valid_loss': valid_loss, 'valid_acc': top1}

    def genotype(self):
        """The genotype that the search has found so far: that of the architecture parameters, or the one an early stop went back to."""
        stopped = self.run.results.get('stopped')
        if stopped is None:
            return self._present_genotype()
        return genotypes.from_json(stopped['genotype'])

    def _present_genotype(self):
        if hasattr(self.model, 'genotype'):
            return self.model.genotype()
        return _genotype_of_attributes(self.model)

    def _save(self, metrics, result):
        """Write the epoch's parameters and genotype, and the genotype so far. Epochs from this one on that lie there are an earlier run's.

        metrics, result: lines of metrics.jsonl, of this epoch and of the one whose genotype the search has come to.
        """
        remove_numbered(self.save_dir, metrics['epoch'])
        folder = os.path.join(self.save_dir, str(metrics['epoch']))
        if self.save_params:
            save_params(os.path.join(folder, 'params.pdparams'), self.model.state_dict())
        for place, genotype, line in ((folder, self._present_genotype(), metrics), (self.save_dir, self.genotype(), result)):
            search = dict(self.search_info, epoch=line['epoch'], valid_acc=line.get('valid_acc'))
            write_text(os.path.join(place, 'genotype.json'), genotypes.genotype_json(genotype, search))


def as_loader(reader, batch_size, use_multiprocess=False, seed=0, stream=TRAIN, train=True):
    """Turn any reader that DARTSearch takes into an object that is iterated once an epoch and gives batches.

    A Dataset is shared out over the ranks: to train, shuffled and in equally many batches each; else each image once. Other readers
    must see to that themselves.
    """
    if isinstance(reader, IterableDataset):
        return DataLoader(reader, batch_size=batch_size, num_workers=int(use_multiprocess))
    if isinstance(reader, Dataset):
        options = Namespace(seed=seed, use_multiprocess=use_multiprocess)
        return BatchLoader(DatasetImages(reader), batch_size, train, stream, options, train)
    if hasattr(reader, '__iter__') and not hasattr(reader, '__next__'):
        return reader
    if callable(reader):
        return _FunctionLoader(reader)
    raise UserError('a reader must be a paddle.io.Dataset, an iterable that can be started anew, or a function that returns '
                    f'one, not a {type(reader).__name__}')


class _FunctionLoader:
    """A reader of Paddle 1.x: each call of the function starts a new pass over ready batches."""

    def __init__(self, function):
        self.function = function

    def __iter__(self):
        return iter(self.function())


def forever(loader):
    """Yield a loader's batches, pass after pass. Passes without a batch are a UserError, not a hang."""
    empty = 0
    while True:
        empty += 1
        for batch in loader:
            empty = 0
            yield batch
        if empty > 1:  # the first one may be the end of a pass that a resumed run goes on with
            raise UserError('the validation half holds no batch')


def _length(loader):
    """The number of batches of a loader, None where it can't tell."""
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None


def _device_name(place):
    """'cpu' or 'gpu:0' for a paddle place."""
    return f'gpu:{place.get_device_id()}' if isinstance(place, paddle.CUDAPlace) else 'cpu'


def _genotype_of_attributes(model):
    """The genotype of a network written for PaddleSlim's DARTSearch, by the attributes it must have; betas if it has them."""
    cells = []
    for kind in ('normal', 'reduce'):
        strengths = paddle.nn.functional.softmax(getattr(model, 'alphas_' + kind), axis=-1)
        betas = getattr(model, 'betas_' + kind, None)
        if betas is not None:
            nodes = betas.split([i + 2 for i in range(model._steps)])
            strengths *= paddle.concat([paddle.nn.functional.softmax(node, axis=-1) for node in nodes]).unsqueeze(-1)
        cells.append(genotypes.derive_cell(strengths.tolist(), model._primitives, model._steps))
    concat = range(2 + model._steps - model._multiplier, 2 + model._steps)
    return genotypes.Genotype(cells[0], concat, cells[1], concat)
