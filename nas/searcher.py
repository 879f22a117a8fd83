"""The search loop: a drop-in replacement of paddleslim.nas.DARTSearch, whose version 2.6 does not run.

A search that was written for PaddleSlim runs with this class after a change of the import:

    from nas import DARTSearch                       # was: from paddleslim.nas import DARTSearch
    genotype = DARTSearch(model, train_reader, valid_reader, place, num_epochs=50).train()

Each step updates the architecture on a validation batch (architect.py) and then the weights on a training batch
(DARTS, algorithm 1).
"""
import dataclasses
import os

import numpy as np
import paddle
import paddleslim.nas

import genotypes
from nas import collapse
from nas.acceleration import accelerate
from nas.architect import Architect, frozen, weight_parameters
from nas.figures import named_strengths
from nas.methods import genotype_of_attributes, method_of
from nas.options import ArchOptions, CheckpointOptions, MonitorOptions, WeightOptions
from nas.readers import PairedLoader, as_loader, classes_of, endless
from nas.stages import begin_stage, copy_momentum
from pipeline.loader import STAGES, VALID
from runtime.errors import UserError
from runtime.files import refuse_to_overwrite, remove_numbered, save_params, write_text
from runtime.log import logger, peak_memory_mb
from runtime.parallel import average_over_ranks, broadcast, check_agreement, rank
from runtime.run import Run, set_epoch
from runtime.states import optimizer_state
from training.engine import evaluate, run_epoch, sync_ranks, to_batch


class DARTSearch(paddleslim.nas.DARTSearch):
    """Searches an architecture by gradient descent, with first- or second-order approximation.

    model: a supernet that is callable on a batch and has `arch_parameters()` and `_loss(image, label)`; and either
        `genotype()` or the attributes of PaddleSlim's documentation (`alphas_normal`, `alphas_reduce`, `_steps`,
        `_multiplier`, `_primitives`).
    train_reader, valid_reader: the two halves of the data. Each is a paddle.io.Dataset of (image, label), which is
        batched and shuffled here; or an iterable of batches, such as a paddle.io.DataLoader or the loaders of
        reader.py; or a function that returns such an iterable. The validation data starts again when it ends before
        the training data.
    place: the device, paddle.CPUPlace() or paddle.CUDAPlace(n).
    learning_rate, batchsize, arch_learning_rate, unrolled, num_epochs, epochs_no_archopt, use_multiprocess, save_dir,
        log_freq: as in PaddleSlim: of the weights, images per batch (for a Dataset), of the architecture, second
        order, epochs, number of first epochs without architecture steps, read a Dataset in a worker process, output
        folder, steps between two log lines.
    num_imgs: accepted for PaddleSlim's signature; the readers say how much data there is.
    seed: of the order of a Dataset and of all random numbers that are drawn in a step.
    weight, arch, checkpoint, monitor: the option groups of nas/options.py.

    Raises UserError for numbers that are not allowed and for `unrolled` with a method of the first order.
    """

    def __init__(self, model, train_reader, valid_reader, place, learning_rate=0.025, batchsize=64, num_imgs=50000,
                 arch_learning_rate=3e-4, unrolled=False, num_epochs=50, epochs_no_archopt=0, use_multiprocess=False,
                 save_dir='./', log_freq=50, *, seed=0, weight=WeightOptions(), arch=ArchOptions(),
                 checkpoint=CheckpointOptions(), monitor=MonitorOptions()):
        for name, value, least in (('batchsize', batchsize, 1), ('num_epochs', num_epochs, 1),
                                   ('epochs_no_archopt', epochs_no_archopt, 0), ('log_freq', log_freq, 1)):
            if not value >= least:
                raise UserError(f'{name}: {value} is not allowed: give at least {least}')
        # Sets self.model, num_epochs, epochs_no_archopt, save_dir and log_freq.
        super().__init__(model, train_reader, valid_reader, place, learning_rate, batchsize, num_imgs,
                         arch_learning_rate, unrolled, num_epochs, epochs_no_archopt, use_multiprocess, save_dir,
                         log_freq)
        paddle.set_device(_device_name(place))
        self.checkpoint, self.monitor, self.budget = checkpoint, monitor, arch.budget
        options = dict(batch_size=batchsize, workers=int(use_multiprocess), seed=seed, model=model)
        self.train_loader = as_loader(train_reader, **options)
        self.valid_loader = as_loader(valid_reader, stream=VALID, **options)
        # A BatchLoader of the search augments its images and has a position in them.
        plain, reader = getattr(valid_reader, 'without_augmentation', lambda: valid_reader), monitor.eval_reader
        self.eval_loader = as_loader(plain() if reader is None else reader, train=False, **options)

        broadcast(list(model.parameters()) + list(model.arch_parameters()))
        accelerate(model)
        self.weights = weight_parameters(model)
        self.method, self.grad_clip = method_of(model), weight.grad_clip
        self.staged = bool(self.method.later_stages) and hasattr(model, 'rebuild_edges')
        if self.method.later_stages and not self.staged:
            logger.info('%s has no rebuild_edges: the search stays in the first stage of %s', type(model).__name__,
                        self.method.name)
        if unrolled and not self.method.second_order:
            raise UserError(f'--unrolled: {self.method.name} has no second-order gradient; give --unrolled=False')
        # Stepped once an epoch: epoch e has the learning rate min + (lr - min) * (1 + cos(pi * e / epochs)) / 2.
        self.schedule = paddle.optimizer.lr.CosineAnnealingDecay(learning_rate, num_epochs, weight.learning_rate_min)
        self.weight_options = weight
        self.optimizer = self._new_optimizer()
        self.architect = Architect(model, self.optimizer, arch_learning_rate=arch_learning_rate,
                                   arch_weight_decay=arch.weight_decay, unrolled=unrolled,
                                   momentum=weight.momentum, weight_decay=weight.weight_decay,
                                   penalty=self._penalty)
        arguments = checkpoint.arguments
        if arguments is None:
            arguments = dict(learning_rate=learning_rate, batchsize=batchsize, arch_learning_rate=arch_learning_rate,
                             unrolled=unrolled, epochs=num_epochs, epochs_no_archopt=epochs_no_archopt,
                             arch_weight_decay=arch.weight_decay, **dataclasses.asdict(weight))
        optimizers = [(self.optimizer, self.weights), (self.architect.optimizer, self.architect.arch_parameters)]
        self.run = Run(save_dir, model=model, optimizers=optimizers, schedule=self.schedule, arguments=arguments,
                       seed=seed, loaders=[self.train_loader, self.valid_loader], save_freq=checkpoint.save_freq,
                       keep=checkpoint.keep, on_epoch=monitor.on_epoch, prepare=self._restore_stage)

    def _new_optimizer(self):
        options = self.weight_options
        clip = options.grad_clip and not self.method.clip_arch_gradient  # else weight_step clips
        return paddle.optimizer.Momentum(
            self.schedule, options.momentum, parameters=self.weights, weight_decay=options.weight_decay,
            grad_clip=paddle.nn.ClipGradByGlobalNorm(options.grad_clip) if clip else None,
            use_nesterov=self.method.nesterov)

    def _begin_stage(self, stage, epoch):
        """Bring the network, the weights' optimizer and its momentum into a later stage of the method, which begins
        with an epoch."""
        partial, kept = self.method.later_stages[stage - 2]
        generator = np.random.default_rng([self.run.seed, STAGES, stage])
        velocities = optimizer_state(self.optimizer, self.weights)
        widenings = begin_stage(self.model, partial, kept,
                                lambda name, axis, size, count: generator.integers(0, size, count))
        widened = [widenings.get(id(weight)) for weight in self.weights]
        for name, value in velocities.items():
            new = widened[int(name.split('/')[0])]
            velocities[name] = value if new is None else new.apply(value)
        self.weights = [weight if new is None else new.parameter for weight, new in zip(self.weights, widened)]
        self.optimizer = self._new_optimizer()
        if velocities:
            copy_momentum(self.optimizer, self.weights, velocities)
        self.architect.replace_weights(self.optimizer)
        self.run.replace_optimizer(0, self.optimizer, self.weights)
        accelerate(self.model)
        self.run.results['stage'] = {'number': stage, 'epoch': epoch}
        logger.info('stage %d begins with epoch %d: 1/%d of the channels, %d operations on each edge', stage, epoch,
                    partial, kept)

    def _restore_stage(self, results):
        """Give the network the shapes that a checkpoint was written with; its values are loaded afterwards."""
        reached = results.get('stage')
        for stage in range(2, reached['number'] + 1 if reached else 2):
            self._begin_stage(stage, reached['epoch'])

    def _trains_weights_only(self, epoch):
        """Whether an epoch is one of the first epochs_no_archopt of its stage, in which only the weights are
        updated."""
        return epoch - self.run.results.get('stage', {'epoch': 0})['epoch'] < self.epochs_no_archopt

    def train(self):
        """Run the search. Writes the parameters and the genotype of every epoch and the final genotype to save_dir.

        Returns the final genotype. Raises UserError (status 1) when the loss, a weight or an architecture parameter is
        not finite.
        """
        if self.monitor.early_stop:
            self.monitor.early_stop.check(self._cell_figures(self._current_genotype()), self.monitor.eigenvalue_freq)
        size = sum(p.size for p in self.weights)
        logger.info('param size = %.6fMB (%d parameters)', size / 1e6, size)
        if rank() == 0:
            numbered = [os.path.join(str(epoch), name) for epoch in range(self.num_epochs)
                        for name in ('genotype.json', 'params.pdparams')[:1 + self.checkpoint.save_params]]
            refuse_to_overwrite(self.save_dir, ['genotype.json', *numbered])
        self.run.start(self.checkpoint.resume)
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
        (self.model if hasattr(self.model, 'set_epoch') else self.method).set_epoch(epoch, self.num_epochs)
        stage = self.method.stage_at(epoch, self.num_epochs)
        if self.staged and stage > self.run.results.get('stage', {'number': 1})['number']:
            self._begin_stage(stage, epoch)
        logger.info('Epoch %d, lr %.6f', epoch, self.optimizer.get_lr())
        logger.info('genotype = %s', self.genotype())
        metrics = self.train_one_epoch(epoch)
        sync_ranks(self.model)
        check_agreement(self.architect.arch_parameters, 'the architecture parameters')
        self.run.check_finite()
        logger.info('Epoch %d, train_acc %.6f', epoch, metrics['train_acc'])
        if self.monitor.validate:
            self.run.begin_step(epoch, self.run.step)  # methods that draw: the same draws after a resume
            metrics.update(self.valid_one_epoch())
            best = self.run.results['best_valid_acc'] = max(self.run.results.get('best_valid_acc', 0.0),
                                                            metrics['valid_acc'])
            logger.info('Epoch %d, valid_acc %.6f, best_valid_acc %.6f', epoch, metrics['valid_acc'], best)
        metrics.update(self._collapse_indicators(epoch), peak_memory_mb=peak_memory_mb(),
                       genotype=genotypes.to_json(self.genotype()),
                       alphas=[parameter.tolist() for parameter in self.model.arch_parameters()],
                       **named_strengths(self.model))
        if self.staged:
            metrics['stage'] = self.run.results.get('stage', {'number': 1})['number']
        self.schedule.step()
        good = self._check_early_stop(epoch, metrics)
        if rank() == 0:
            self._save(metrics, good or metrics)
        self.run.end_epoch(metrics)

    def _cell_figures(self, genotype, strengths=()):
        own = self.monitor.cell_figures
        return dict(collapse.indicators(genotype, strengths), **(own(genotype) if own else {}))

    def _collapse_indicators(self, epoch):
        """The figures of collapse.py and of monitor.cell_figures for the epoch; they are logged too."""
        strengths = [s.tolist() for s in self.model.strengths()] if hasattr(self.model, 'strengths') else []
        genotype = self._current_genotype()
        indicators = self._cell_figures(genotype, strengths)
        if self.budget is not None:
            indicators.update(self.budget.figures(genotype, self.model, self._multipliers()))
        if self.monitor.eigenvalue_freq and (epoch + 1) % self.monitor.eigenvalue_freq == 0:
            self.model.train()
            # The same batch and the same random numbers, whether or not the run was resumed since the last step of the
            # epoch.
            set_epoch(self.valid_loader, epoch)
            self.run.begin_step(epoch, self.run.step)
            image, label = to_batch(next(endless(self.valid_loader)))
            indicators['eigenvalue'] = self.architect.dominant_eigenvalue(image, label)
        if indicators:
            logger.info('Epoch %d, %s', epoch, ', '.join(f'{name} {value:{"," if isinstance(value, int) else ".6g"}}'
                                                         for name, value in indicators.items()))
        return indicators

    def _check_early_stop(self, epoch, metrics):
        """The line of metrics.jsonl of the last good epoch if the search is to stop now, else None."""
        rule = self.monitor.early_stop
        good = rule and rule.verdict(self.run.metrics + [metrics], self.epochs_no_archopt)
        if good:
            self.run.results['stopped'] = {'epoch': epoch, 'genotype': good['genotype']}
            logger.info('stopped after epoch %d by --early_stop=%s:%g; the result is the genotype of epoch %d, the '
                        'last good one', epoch, rule.kind, rule.limit, good['epoch'])
        return good or None

    def train_one_epoch(self, epoch):
        """One pass over the training data. Returns the figures of the epoch for metrics.jsonl."""
        def train_step(batch):
            image, label = to_batch(batch[0])
            loss, logits = self.train_step(image, label, *to_batch(batch[1]),
                                           arch_step=not self._trains_weights_only(epoch))
            return loss, logits, label

        self.model.train()
        pairs = PairedLoader(self.train_loader, self.valid_loader, classes_of(self.model))
        return run_epoch(pairs, train_step, run=self.run, epoch=epoch, log_freq=self.log_freq, optimizer=self.optimizer)

    def train_step(self, train_image, train_label, valid_image, valid_label, arch_step=True):
        """One step of the search: the architecture (if arch_step), then the weights.

        Returns the training loss, a float, and the logits [N, classes], both before the step of the weights.
        """
        batches = train_image, train_label, valid_image, valid_label
        if arch_step and not self.method.weights_first:
            self.arch_step(*batches)
        result = self.weight_step(train_image, train_label)
        if arch_step and self.method.weights_first:
            self.arch_step(*batches)
        return result

    def arch_step(self, train_image, train_label, valid_image, valid_label):
        """One step of the architecture."""
        self.architect.step(train_image, train_label, valid_image, valid_label)
        if self.method.clip_arch_gradient:
            self.run.results['arch_gradient'] = [gradient.tolist() for gradient in self.architect.last_gradient]
        if self.budget is not None:
            self.run.results['multipliers'] = self.budget.adjusted(self._multipliers(), self.model.genotype(),
                                                                   self.architect.optimizer.get_lr())

    def _penalty(self):
        return None if self.budget is None else self.budget.penalty(self.model, self._multipliers())

    def _multipliers(self):
        return self.run.results.get('multipliers', {})

    def weight_step(self, image, label):
        """One step of the weights. Returns the loss, a float, and the logits [N, classes], both before the step."""
        with_arch = self.method.clip_arch_gradient
        with frozen([] if with_arch else self.architect.arch_parameters):
            logits = self.model(image)
            loss = paddle.nn.functional.cross_entropy(logits, label)
            gradients = paddle.grad(loss, self.weights + (self.architect.arch_parameters if with_arch else []),
                                    allow_unused=True)
        average_over_ranks([gradient for gradient in gradients if gradient is not None], image.shape[0])
        gradients, arch_gradients = gradients[:len(self.weights)], gradients[len(self.weights):]
        if with_arch and self.grad_clip:
            gradients = self._clip_with_arch(gradients, arch_gradients)
        for weight, gradient in zip(self.weights, gradients):
            if gradient is not None:
                weight.grad = gradient
        self.optimizer.step()
        # Gradients of zeros let a weight that once had one move by momentum and decay.
        self.optimizer.clear_grad(set_to_zero=self.method.undrawn_weights_move)
        return float(loss), logits.detach()

    def _clip_with_arch(self, gradients, arch_gradients):
        """Clip the weights' gradients by the global norm of weights and architecture parameters. The latter's part is
        the gradient of this step plus that of the previous architecture step, which the authors' code of GDAS does not
        clear in between."""
        previous = self.run.results.get('arch_gradient') or [0.0] * len(arch_gradients)
        arch_gradients = [(0.0 if gradient is None else gradient) + paddle.to_tensor(before, parameter.dtype)
                          for gradient, before, parameter
                          in zip(arch_gradients, previous, self.architect.arch_parameters)]
        present = [gradient for gradient in gradients if gradient is not None]
        self.clip_norm = float(sum(gradient.square().sum() for gradient in present + arch_gradients).sqrt())
        scale = min(1.0, self.grad_clip / max(self.clip_norm, 1e-12))
        return [None if gradient is None else gradient * scale for gradient in gradients]

    def valid_one_epoch(self):
        """Evaluate the supernet on the validation data. Returns the figures of the epoch for metrics.jsonl."""
        valid_loss, top1, _, _ = evaluate(self.model, self.eval_loader, after_batch=self.run.check)
        return {'valid_loss': valid_loss, 'valid_acc': top1}

    def genotype(self):
        """The result so far: the genotype of the architecture parameters, or the one that early stopping returned
        to."""
        stopped = self.run.results.get('stopped')
        return self._current_genotype() if stopped is None else genotypes.from_json(stopped['genotype'])

    def _current_genotype(self):
        if self.budget is not None:
            return genotypes.plain(self.budget.genotype(self.model))
        genotype = self.model.genotype() if hasattr(self.model, 'genotype') else genotype_of_attributes(self.model)
        return genotypes.plain(genotype)

    def _save(self, metrics, result):
        """Write the epoch's parameters and genotype, and the result so far. Later epochs of an earlier run in the
        folder are removed.

        metrics, result: lines of metrics.jsonl, of this epoch and of the one whose genotype is the result.
        """
        remove_numbered(self.save_dir, metrics['epoch'])
        epoch_folder = os.path.join(self.save_dir, str(metrics['epoch']))
        for folder, genotype, line in ((epoch_folder, self._current_genotype(), metrics),
                                       (self.save_dir, self.genotype(), result)):
            search = dict(self.monitor.search_info, epoch=line['epoch'], valid_acc=line.get('valid_acc'))
            if 'stage' in line:
                search['stage'] = line['stage']
            write_text(os.path.join(folder, 'genotype.json'), genotypes.genotype_json(genotype, search))
        if self.checkpoint.save_params:  # after the file that says who wrote it
            save_params(os.path.join(epoch_folder, 'params.pdparams'), self.model.state_dict())


def _device_name(place):
    """'cpu' or 'gpu:0' for a paddle place."""
    return f'gpu:{place.get_device_id()}' if isinstance(place, paddle.CUDAPlace) else 'cpu'
