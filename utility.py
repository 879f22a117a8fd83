"""What all scripts share: arguments and their checks, the log and its meters, seeds, the device and the ranks.

Paddle takes seconds to import, so nothing here imports it before it is needed: `--help` and a wrong argument answer at once.
"""
import argparse
import difflib
import logging
import math
import os
import random
import sys
import time
import warnings

logger = logging.getLogger('darts')


class UserError(Exception):
    """A mistake the user can mend. The message is the sentence to read; `run_script` prints it without a traceback.

    status: the exit status, 2 for wrong usage or input, 1 for a failure while running.
    """

    def __init__(self, message, status=2):
        super().__init__(message)
        self.status = status


def run_script(main):
    """Run a script's main() and turn a UserError into one line on standard error and its exit status."""
    try:
        main()
    except UserError as error:
        line = '{}: error: {}'.format(os.path.basename(sys.argv[0]), error)
        if any(isinstance(handler, logging.FileHandler) for handler in logger.handlers):
            logger.error(line)  # to the screen and to train.log
        else:
            print(line, file=sys.stderr)
        sys.exit(error.status)


# ---------------------------------------------------------------------------------------------------------------------
# Arguments
# ---------------------------------------------------------------------------------------------------------------------


def boolean(text):
    """True, False, 1 or 0 (also yes/no, on/off), as the scripts have always taken them."""
    if text.lower() in ('true', '1', 'yes', 'y', 't', 'on'):
        return True
    if text.lower() in ('false', '0', 'no', 'n', 'f', 'off'):
        return False
    raise argparse.ArgumentTypeError('{!r:.80} is not allowed: give True, False, 1 or 0'.format(text))


def integer(minimum, maximum=None):
    """An argument type: a whole number from minimum to maximum."""
    return _bounded(int, 'a whole number', lambda value: value >= minimum and (maximum is None or value <= maximum),
                    'of at least {}'.format(minimum) if maximum is None else 'from {} to {}'.format(minimum, maximum))


def number(minimum, maximum=None):
    """An argument type: a finite number from minimum to maximum."""
    return _bounded(float, 'a number', lambda value: value >= minimum and (maximum is None or value <= maximum),
                    'of at least {:g}'.format(minimum) if maximum is None else 'from {:g} to {:g}'.format(minimum, maximum))


def positive(minimum_excluded=0.0, maximum_excluded=None):
    """An argument type: a finite number above minimum_excluded and, if given, below maximum_excluded."""
    return _bounded(
        float, 'a number', lambda value: value > minimum_excluded and (maximum_excluded is None or value < maximum_excluded),
        'above {:g}'.format(minimum_excluded) + (
            '' if maximum_excluded is None else ' and below {:g}'.format(maximum_excluded)))


def _one_of(words):
    def parse(text):
        if text in words:
            return text
        raise argparse.ArgumentTypeError('{!r:.80} is not allowed: give one of {}'.format(text, ', '.join(words)))
    return parse


def _bounded(cast, kind, inside, bounds):
    def parse(text):
        try:
            value = cast(text)
            if math.isfinite(value) and inside(value):
                return value
        except (ValueError, OverflowError):
            pass
        raise argparse.ArgumentTypeError('{!r:.80} is not allowed: give {} {}'.format(text, kind, bounds))
    return parse


class ArgumentParser(argparse.ArgumentParser):
    """argparse with one-line errors, no abbreviated flags, and every default in the help."""

    def __init__(self, doc):
        super().__init__(description=doc, allow_abbrev=False,
                         formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=32))

    def add_flags(self, title, table):
        """Add a group of flags. table: rows (name, type, default, help); a type may also be a list of allowed words."""
        group = self.add_argument_group(title)
        for name, kind, default, text in table:
            options = {'type': kind, 'metavar': 'TEXT' if kind is str else 'N'}
            if isinstance(kind, list):
                options = {'type': _one_of(kind), 'metavar': '{' + ','.join(kind) + '}'}
            elif kind is boolean:
                options.update(nargs='?', const=True, metavar='True|False')
            shown = '' if default is None else ' (default: {})'.format(default)
            group.add_argument('--' + name, default=default, help=text.replace('%', '%%') + shown, **options)

    def error(self, message):
        if message.startswith('unrecognized arguments: --'):
            word = message.split()[2].split('=')[0]
            near = difflib.get_close_matches(word, self._option_string_actions, 1)
            message = 'there is no flag {}'.format(word) + ('; did you mean {}?'.format(near[0]) if near else ', see --help')
        self.exit(2, '{}: error: {}\n'.format(self.prog, message.replace('\n', ' ')))


def given_flags(argv):
    """The names of the flags that stand on a command line, to tell a default from a value that was asked for."""
    return {word[2:].split('=')[0] for word in argv if word.startswith('--')}


def prepare_folder(folder, flag):
    """Make a folder and see that it can be written to. Raises UserError that names the flag."""
    probe = os.path.join(folder, '.{}.probe'.format(os.getpid()))
    try:
        os.makedirs(folder, exist_ok=True)
        with open(probe, 'w'):
            pass
        os.remove(probe)
    except (OSError, ValueError) as error:
        raise UserError('{}: {} is not a folder that can be written to: {}'.format(
            flag, folder, getattr(error, 'strerror', None) or error))


# ---------------------------------------------------------------------------------------------------------------------
# Log and meters
# ---------------------------------------------------------------------------------------------------------------------

# Lines of single steps. On a terminal the bar shows them, so there they go to train.log alone.
STEP = logging.DEBUG


def start_logging(folder=None):
    """Send the log to standard error and, on rank 0, to train.log in `folder`."""
    logger.setLevel(logging.DEBUG)
    logger.propagate = False  # paddleslim sets up the root logger: every line would come twice
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    screen = logging.StreamHandler(sys.stderr)
    screen.setLevel((logging.INFO if sys.stderr.isatty() else STEP) if rank() == 0 else logging.WARNING)
    handlers = [screen]
    if folder is not None and rank() == 0:
        handlers.append(logging.FileHandler(os.path.join(folder, 'train.log'), mode='w', encoding='utf-8'))
    for handler in handlers:
        handler.setFormatter(logging.Formatter('%(asctime)s %(message)s', '%Y-%m-%d %H:%M:%S'))
        logger.addHandler(handler)


def log_arguments(args):
    """One line with every argument in force: a log says by itself what was run."""
    logger.info('arguments: %s', ' '.join('--{}={}'.format(name, value) for name, value in sorted(vars(args).items())))


class AverageMeter:
    """A mean weighted by counts: update(value, n) says that n samples have the mean `value`."""

    def __init__(self):
        self.sum, self.count = 0.0, 0

    def update(self, value, n=1):
        self.sum += float(value) * n
        self.count += n

    @property
    def avg(self):
        return self.sum / self.count if self.count else 0.0


class Progress:
    """Shows how an epoch goes: a bar on a terminal, a line every log_freq steps in train.log and in a pipe.

    It also keeps the two costs Paddle's users know: reader cost, the seconds a step waits for its images, and batch cost,
    the seconds of the whole step.
    """

    def __init__(self, name, epoch, steps, log_freq):
        self.head = '{} Epoch {}'.format(name, epoch)
        self.log_freq = log_freq
        self.reader_cost, self.batch_cost, self.images = AverageMeter(), AverageMeter(), 0
        self.bar = None
        if sys.stderr.isatty() and rank() == 0:
            from tqdm import tqdm  # comes with paddleslim
            self.bar = tqdm(total=steps, desc=self.head, leave=False, dynamic_ncols=True)
        self.start = time.perf_counter()

    def batches(self, loader):
        """Yield (step, batch); each step is to end with a call of update()."""
        iterator, step = iter(loader), 0
        while True:
            begin = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                break
            self.reader_cost.update(time.perf_counter() - begin)
            self.step_begin = begin
            yield step, batch
            step += 1
        if self.bar is not None:
            self.bar.close()

    def update(self, step, images, loss, top1, top5):
        """Report a finished step of `images` images; the three meters hold the averages of the epoch so far."""
        self.images += images
        self.batch_cost.update(time.perf_counter() - self.step_begin)
        if self.bar is not None:
            self.bar.update()
        if step % self.log_freq:
            return
        text = 'loss {:.6f}, acc_1 {:.6f}, acc_5 {:.6f}'.format(loss.avg, top1.avg, top5.avg)
        logger.log(STEP, '%s, Step %d, %s, reader_cost %.4f s, batch_cost %.4f s, %.1f images/s', self.head, step, text,
                   self.reader_cost.avg, self.batch_cost.avg, self.images_per_second)
        if self.bar is not None:
            self.bar.set_postfix_str(text)

    @property
    def seconds(self):
        return time.perf_counter() - self.start

    @property
    def images_per_second(self):
        return self.images / max(self.seconds, 1e-9)


def peak_memory_mb():
    """The most memory this process has held, in MB: on a GPU what Paddle allocated there, else the resident set."""
    import paddle
    if paddle.get_device().startswith('gpu'):
        return paddle.device.cuda.max_memory_allocated() / 2**20
    try:
        import resource
    except ImportError:  # Windows has no such figure in the standard library
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == 'darwin' else peak / 2**10  # macOS counts bytes, Linux kilobytes


# ---------------------------------------------------------------------------------------------------------------------
# Seeds, device, ranks
# ---------------------------------------------------------------------------------------------------------------------


def quiet_warnings():
    """Filter the warnings of paddle and paddleslim that mean nothing to a user: two at import, one at the first batch norm."""
    warnings.filterwarnings('ignore', message='No ccache found')
    warnings.filterwarnings('ignore', message='Setuptools is replacing distutils')
    warnings.filterwarnings('ignore', message='When training, we now always track global mean and variance')


def set_seed(seed):
    """Seed Python, numpy and Paddle. On a CPU one seed gives one result, to the last bit."""
    import numpy as np
    import paddle
    random.seed(seed)
    np.random.seed(seed)
    paddle.seed(seed)
    logger.info('seed %d: on a CPU the same seed, arguments and versions give the same run to the last bit', seed)


def select_device(use_gpu, use_data_parallel):
    """Choose the device, join the other ranks if there are any, and say in a line what it became.

    Returns the paddle place.
    """
    import paddle
    if use_gpu and not (paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0):
        logger.info('--use_gpu=True: %s, running on the CPU', 'no GPU was found' if paddle.is_compiled_with_cuda()
                    else 'this Paddle is a CPU build')
        use_gpu = False
    if not use_gpu:
        paddle.set_device('cpu')
    elif use_data_parallel and world_size() > 1:
        paddle.set_device('gpu:{}'.format(os.environ.get('FLAGS_selected_gpus', '0').split(',')[0]))
    else:
        paddle.set_device('gpu')
    if use_data_parallel:
        if world_size() > 1:
            paddle.distributed.init_parallel_env()
        else:
            logger.info('--use_data_parallel=True: running on 1 process; python -m paddle.distributed.launch starts more')
    elif world_size() > 1:
        raise UserError('started by paddle.distributed.launch as {} processes: add --use_data_parallel 1'.format(
            world_size()))
    logger.info('paddle %s on %s, %d process%s', paddle.__version__, paddle.get_device(), world_size(),
                '' if world_size() == 1 else 'es')
    return paddle.CUDAPlace(int(paddle.get_device().split(':')[1])) if use_gpu else paddle.CPUPlace()


def rank():
    """This process's number among those that paddle.distributed.launch started, 0 without it."""
    return int(os.environ.get('PADDLE_TRAINER_ID', '0'))


def world_size():
    """The number of processes that paddle.distributed.launch started, 1 without it."""
    return int(os.environ.get('PADDLE_TRAINERS_NUM', '1'))


def sum_over_ranks(values):
    """Sum a list of Python numbers over the ranks; with one rank, return them as they are."""
    if world_size() == 1:
        return list(values)
    import paddle
    total = paddle.to_tensor(list(values), dtype='float64')
    paddle.distributed.all_reduce(total)
    return total.tolist()


def average_over_ranks(tensors):
    """Replace each tensor by its mean over the ranks, in place and in one message; with one rank, do nothing."""
    if world_size() == 1 or not tensors:
        return
    import paddle
    with paddle.no_grad():
        flat = paddle.concat([tensor.reshape([-1]) for tensor in tensors])
        paddle.distributed.all_reduce(flat)
        flat /= world_size()
        for tensor, part in zip(tensors, flat.split([tensor.size for tensor in tensors])):
            paddle.assign(part.reshape(tensor.shape), tensor)
