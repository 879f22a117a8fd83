"""The state of a run, its checkpoints, and resuming from them.

A checkpoint holds everything that the next step depends on: weights, architecture parameters and running statistics,
the state of the optimizers and of the learning rate schedule, the position in the data, the epoch's meters, the random
states of every rank, and the arguments of the run. Paddle's random state is not saved, since not every version of
Paddle gives access to it; it is set before every step from the seed, the epoch and the step. So on a CPU a run that was
killed and resumed gives bit-identical results.
"""
import contextlib
import itertools
import json
import os
import signal
import threading
import time

import numpy as np
import paddle

from runtime.checkpoint import Checkpoints, newest_info, set_state
from runtime.errors import UserError
from runtime.files import reason, refuse_to_overwrite, write_text
from runtime.lock import lock_folder, release_folder
from runtime.log import logger
from runtime.parallel import rank, world_size
from runtime.states import (
    optimizer_state,
    random_states,
    running_statistics,
    set_optimizer_state,
    set_random_states,
)

# Arguments that a resumed run may change: those that have no influence on the result, and `epochs`, which stretches
# the schedules.
MAY_CHANGE_ON_RESUME = {'epochs', 'log_freq', 'model_save_dir', 'resume', 'save_freq', 'keep', 'save_params',
                        'num_workers', 'use_multiprocess', 'use_gpu', 'use_vdl', 'summary', 'eval_only', 'export',
                        'format', 'predict', 'json', 'pretrained', 'max_bad_images'}

# What is compared on resume and is no flag, as messages name it.
NAMES_IN_MESSAGES = {'processes': 'number of processes', 'genotype': 'genotype (of --arch or --pretrained)'}


class Run:
    """The progress of a run: `epoch` and `step` are the next ones, `meters` the state of the epoch's meters, `results`
    a dict of what was reached so far.

    folder: gets checkpoints/ and metrics.jsonl. model: a layer. optimizers: with their lists of parameters, as pairs.
    schedule: the learning rate's. loaders: those whose batches the steps take. arguments: {name: value}, what made the
    run.
    save_freq: steps between two checkpoints within an epoch; 0 writes at the ends of epochs alone. keep: how many stay.
    scaler: a paddle.amp.GradScaler or None. tensors: further ones that the next step depends on. same_on_all_ranks:
    whether the ranks draw the same random numbers in a step.
    prepare: called with the `results` of a checkpoint before its values are loaded, to give the network the shapes that
    it had when the checkpoint was written.
    on_epoch: called on rank 0 with each epoch's line of metrics.jsonl.
    Used as a context, it turns SIGTERM and SIGINT into a checkpoint and a UserError of status 143 or 130.
    """

    def __init__(self, folder, *, model, optimizers, schedule, loaders, arguments, seed, save_freq=0, keep=2,
                 scaler=None, tensors=(), same_on_all_ranks=True, on_epoch=None, prepare=None):
        self.folder, self.model, self.optimizers, self.schedule = folder, model, optimizers, schedule
        self.loaders, self.save_freq, self.scaler = loaders, save_freq, scaler
        self.metrics_path = os.path.join(folder, 'metrics.jsonl')
        self.arguments = dict(arguments, processes=world_size())
        self.checkpoints = Checkpoints(os.path.join(folder, 'checkpoints'), keep)
        self.tensors = list(tensors)
        self.statistics = self._values_of_rank()
        self.seed, self.stream = seed, 0 if same_on_all_ranks else rank()  # ranks of one stream draw the same numbers
        self.epoch, self.step, self.meters, self.results = 0, 0, None, {}
        self.metrics, self.random, self.loader_states = [], random_states(), None
        self.signal, self.on_epoch, self.prepare = None, on_epoch, prepare

    # -----------------------------------------------------------------------------------------------------------------
    # Starting and resuming
    # -----------------------------------------------------------------------------------------------------------------

    def start(self, resume):
        """Start the run or, with `resume`, continue from the newest intact checkpoint.

        Raises UserError for a folder that another run uses or that holds a run of another kind, for a checkpoint of
        other arguments or of another network, and for a metrics.jsonl that no run wrote.
        """
        path = arrays = info = None
        if rank() == 0:
            os.makedirs(self.folder, exist_ok=True)
            lock_folder(self.folder)
            earlier = self.checkpoints.paths()
            if resume:
                path, arrays, info = self.checkpoints.newest()
                if info is None:
                    logger.info('--resume: %s holds no checkpoint, the run starts from the beginning', self.folder)
            elif earlier or os.path.exists(self.metrics_path) and os.path.getsize(self.metrics_path):
                self._check_kind((newest_info(self.folder) or {'arguments': self.arguments})['arguments'])
                logger.info('%s holds an earlier run; this one overwrites it when its first epoch is complete%s',
                            self.folder, ' (--resume would go on from it)' if earlier else '')
            if info is None:
                refuse_to_overwrite(self.folder, ['metrics.jsonl'])
                self.checkpoints.begin()
        if world_size() > 1:
            shared = [(path, arrays, info)]
            paddle.distributed.broadcast_object_list(shared, src=0)
            path, arrays, info = shared[0]
        if info is not None:
            self._check_arguments(info['arguments'])
            try:
                self._restore(arrays, info)
            except (AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:  # Paddle raises all
                raise UserError(f'--resume: {path} is not a checkpoint of this run: {reason(error)}')
            logger.info('resumed at epoch %d, step %d', self.epoch, self.step)
        # metrics.jsonl of an earlier run stays until the first epoch is complete.
        if self.metrics or not os.path.exists(self.metrics_path):
            self._write_metrics()

    def replace_optimizer(self, number, optimizer, parameters):
        """Take a new optimizer in the place of one, after a change of the network's parameters."""
        self.optimizers[number] = optimizer, parameters
        self.statistics = self._values_of_rank()

    def _values_of_rank(self):
        """The values that may differ between the ranks."""
        return running_statistics(self.model) + self.tensors

    def _check_kind(self, saved):
        """Refuse a folder with a search for a training, and the other way round. Only a search has an architecture."""
        if ('arch_learning_rate' in saved) != ('arch_learning_rate' in self.arguments):
            other = 'search' if 'arch_learning_rate' in saved else 'training'
            raise UserError(f'--model_save_dir: {self.folder} is the output directory of a {other}: give another one')

    def _check_arguments(self, saved):
        self._check_kind(saved)
        other = [name for name in sorted(saved) if name not in MAY_CHANGE_ON_RESUME
                 and saved[name] != self.arguments.get(name, saved[name])]
        if other:
            before = ', '.join(f'{NAMES_IN_MESSAGES.get(name, "--" + name)}={saved[name]}' for name in other)
            now = ', '.join(str(self.arguments[name]) for name in other)
            raise UserError(f'--resume: the checkpoint was made with {before}; now it is {now}. Give the same, or '
                            'start anew without --resume')

    def _restore(self, arrays, info):
        if info['paddle'] != paddle.__version__:
            logger.info('the checkpoint was made with Paddle %s, this is %s: the bits may differ', info['paddle'],
                        paddle.__version__)
        if self.prepare is not None:
            self.prepare(info['results'])
        set_state(self.model, _part(arrays, 'model/'), '--resume: the checkpoint', exact=True)
        for i, value in enumerate(self.statistics):
            value.set_value(arrays[f'rank{rank()}/{i}'])
        self.epoch, self.step = info['epoch'], info['step']
        self.results, self.metrics, self.seed = info['results'], info['metrics'], info['seed']
        self.schedule.set_state_dict(info['schedule'])
        if self.scaler and info['scaler']:
            self.scaler.load_state_dict({name: np.asarray(value, 'float32') if name == 'scale' else value
                                         for name, value in info['scaler'].items()})
        if info['arguments'].get('epochs') != self.arguments.get('epochs'):
            self.schedule.step(self.epoch)  # the curve of the new number of epochs, at this epoch
        for i, (optimizer, parameters) in enumerate(self.optimizers):
            set_optimizer_state(optimizer, parameters, _part(arrays, f'optimizer{i}/'))
        own = info['ranks'][rank()]
        self.random, self.loader_states, self.meters = own['epoch_random'], own['loaders'], own['meters']
        set_random_states(own['random'])

    # -----------------------------------------------------------------------------------------------------------------
    # Within an epoch
    # -----------------------------------------------------------------------------------------------------------------

    def epochs(self, total):
        """The epochs that are left of `total`; where none are, the log says so."""
        if self.epoch >= total:
            logger.info('nothing to do: %d epochs are done and --epochs=%d; a larger --epochs goes on', self.epoch,
                        total)
        return range(self.epoch, total)

    def batches(self, batches):
        """What an epoch's steps take: `batches`, without those that were taken before the run was stopped.

        BatchLoaders were set to their place by begin_epoch. Other loaders are read again from the epoch's beginning,
        with the random states that it began with, and what was taken is passed over.
        """
        skip = self.step if self.loader_states is not None and None in self.loader_states else 0
        self.loader_states = None
        if not skip:
            return batches
        now = random_states()
        set_random_states(self.random)
        iterator = iter(batches)
        next(itertools.islice(iterator, skip - 1, skip), None)
        set_random_states(now)
        return iterator

    def begin_epoch(self, epoch, meters):
        """Set the loaders to an epoch, and the meters to where they were. Returns the number of the epoch's first
        step."""
        self.epoch = epoch
        if not self.step:
            self.loader_states, self.random = None, random_states()
        states = self.loader_states or []
        if None in states:  # `batches` passes over what was taken of all loaders
            states = []
        for loader, state in zip(self.loaders, states or [None] * len(self.loaders)):
            set_epoch(loader, epoch)
            if state is not None:
                loader.set_position(state)
        for meter, (total, count) in zip(meters, self.meters or []):
            meter.sum, meter.count = total, count
        return self.step

    def begin_step(self, epoch, step):
        """Set Paddle's random state to that of a step."""
        paddle.seed(int(np.random.SeedSequence([self.seed, self.stream, epoch, step]).generate_state(1)[0]))

    def end_step(self, step, meters):
        """Count a step as done, write a checkpoint if it is time, and stop if that was asked for."""
        self.step, self.meters = step + 1, [[meter.sum, meter.count] for meter in meters]
        if self.save_freq and self.step % self.save_freq == 0:
            self.save()
        self.stop_if_asked()

    def end_epoch(self, metrics):
        """Write the epoch's line of metrics.jsonl and a checkpoint."""
        self.metrics.append(metrics)
        self._write_metrics()
        if self.on_epoch is not None and rank() == 0:
            self.on_epoch(metrics)
        self.epoch, self.step, self.meters = self.epoch + 1, 0, None
        self.save()
        self.stop_if_asked()

    def check_finite(self):
        """To be called before results are written. Raises UserError (status 1) for weights or architecture parameters
        that are not finite; the results and checkpoints of earlier epochs stay as they are."""
        self._refuse_not_finite({name: value.numpy() for name, value in self.model.state_dict().items()})

    def _refuse_not_finite(self, arrays):
        wrong = next((name for name, value in arrays.items() if value.dtype.kind == 'f'
                      and not np.isfinite(value).all()), None)
        if wrong is None:
            return
        of_architecture = 'alphas' in wrong or 'betas' in wrong or wrong.startswith('optimizer1')
        flags = '--learning_rate or --arch_learning_rate' if of_architecture else '--learning_rate or --grad_clip'
        checkpoint = next(iter(self.checkpoints.paths()), None)
        last = f'the last checkpoint is {checkpoint}' if checkpoint else 'there is no checkpoint yet'
        raise UserError(f'{wrong} is not finite at epoch {self.epoch}, step {self.step}, learning rate '
                        f'{self.schedule.get_lr():g}: try a lower {flags}; {last}', status=1)

    def _write_metrics(self):
        if rank() == 0:
            write_text(self.metrics_path, ''.join(json.dumps(line) + '\n' for line in self.metrics))

    def save(self):
        """Write a checkpoint of the state before step `step` of epoch `epoch`. Returns its path.

        Raises UserError (status 1) for a disk that refuses and for values that are not finite; older checkpoints stay.
        """
        positions = [loader.position() if hasattr(loader, 'position') else None for loader in self.loaders]
        own = {'random': random_states(), 'epoch_random': self.random, 'loaders': positions, 'meters': self.meters}
        statistics = [value.numpy() for value in self.statistics]
        everyone = [(own, statistics)]
        if world_size() > 1:
            everyone = []
            paddle.distributed.all_gather_object(everyone, (own, statistics))
        if rank():
            return None
        arrays = {'model/' + name: value.numpy() for name, value in self.model.state_dict().items()}
        for i, (optimizer, parameters) in enumerate(self.optimizers):
            for name, value in optimizer_state(optimizer, parameters).items():
                arrays[f'optimizer{i}/{name}'] = value
        for number, (_, values) in enumerate(everyone):
            for i, value in enumerate(values):
                arrays[f'rank{number}/{i}'] = value
        self._refuse_not_finite(arrays)
        info = {'epoch': self.epoch, 'step': self.step, 'results': self.results, 'metrics': self.metrics,
                'seed': self.seed, 'schedule': self.schedule.state_dict(),
                'scaler': self.scaler and {name: np.asarray(value).tolist()
                                           for name, value in self.scaler.state_dict().items()},
                'ranks': [state for state, _ in everyone], 'arguments': self.arguments, 'paddle': paddle.__version__}
        return self.checkpoints.save(self.epoch, self.step, arrays, info)

    # -----------------------------------------------------------------------------------------------------------------
    # Being stopped
    # -----------------------------------------------------------------------------------------------------------------

    def __enter__(self):
        stopping = (signal.SIGTERM, signal.SIGINT)
        if threading.current_thread() is not threading.main_thread():
            stopping = ()  # Python lets the main thread alone handle signals
        self._handlers = {number: signal.signal(number, self._ask) for number in stopping}
        return self

    def __exit__(self, *_):
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        release_folder(self.folder)

    def _ask(self, number, frame):
        if self.signal is None:
            self.signal, self.asked = number, time.monotonic()
            line = f'{signal.Signals(number).name}: stopping after this step; a second signal ends the run at once\n'
            with contextlib.suppress(OSError):
                os.write(2, line.encode())  # not by logging: a signal may come while a line is being written
        # paddle.distributed.launch sends a signal three times, 0.2 s apart: among its processes those count as one.
        elif world_size() == 1 or time.monotonic() - self.asked > 2:
            os._exit(128 + number)  # a second one: at once

    def check(self):
        """To be called between the batches of an evaluation: one process can stop there; several stop together, after
        it."""
        if world_size() == 1:
            self.stop_if_asked()

    def stop_if_asked(self):
        """After a signal, on any rank, write a checkpoint and end the run on all of them. Raises UserError."""
        number = self.signal or 0
        if world_size() > 1:
            asked = paddle.to_tensor([number])
            paddle.distributed.all_reduce(asked, op=paddle.distributed.ReduceOp.MAX)
            number = int(asked)
        if number:
            path = self.save()
            raise UserError('stopped by {} before epoch {}, step {}; saved {}, --resume goes on from there'.format(
                signal.Signals(number).name, self.epoch, self.step, path or 'by rank 0'), status=128 + number)


# ---------------------------------------------------------------------------------------------------------------------
# Parts of the state
# ---------------------------------------------------------------------------------------------------------------------


def set_epoch(loader, epoch):
    """Tell a loader, or the sampler of a paddle.io.DataLoader, which epoch's order is wanted, if it asks for that."""
    for listener in (loader, getattr(loader, 'batch_sampler', None)):
        if hasattr(listener, 'set_epoch'):
            listener.set_epoch(epoch)


def _part(arrays, prefix):
    return {name[len(prefix):]: value for name, value in arrays.items() if name.startswith(prefix)}
