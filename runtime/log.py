"""The log of a run: where it goes, average meters, the progress of an epoch, peak memory."""
import logging
import os
import sys
import time
import warnings

from runtime.errors import UserError, printable
from runtime.parallel import rank

logger = logging.getLogger('darts')
# The level of the lines that report single steps. On a terminal a progress bar shows them, so they go to train.log
# only.
STEP = logging.DEBUG


class _OneLineFormatter(logging.Formatter):
    """Time and message on one line, without control characters that a message may have taken from a file or an
    argument."""

    def __init__(self):
        super().__init__('%(asctime)s %(message)s', '%Y-%m-%d %H:%M:%S')

    def formatMessage(self, record):
        return printable(super().formatMessage(record))


class _Screen(logging.StreamHandler):
    """Standard error; what it does not take is lost."""

    def handleError(self, record):
        pass


class _LogFile(logging.FileHandler):
    """train.log; a disk that is full ends it, with one line on the screen."""

    def handleError(self, record):
        logger.removeHandler(self)
        error = sys.exc_info()[1]
        logger.warning('%s is not continued: %s', self.baseFilename, getattr(error, 'strerror', None) or error)


def on_terminal():
    """Whether standard error is a terminal; False when it is closed."""
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError, OSError):
        return False


def start_logging(folder=None):
    """Log to standard error and, on rank 0, to train.log in `folder`, after what runs before wrote there.

    Raises UserError for a train.log that cannot be written.
    """
    logger.setLevel(logging.DEBUG)
    logger.propagate = False  # PaddleSlim configures the root logger: every line would appear twice
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    screen = _Screen(sys.stderr)
    screen.setLevel((logging.INFO if on_terminal() else STEP) if rank() == 0 else logging.WARNING)
    handlers = [screen]
    if folder is not None and rank() == 0:
        path = os.path.join(folder, 'train.log')
        try:
            if os.path.lexists(path) and not os.path.isfile(path):  # opening a FIFO would wait
                raise OSError(None, 'it is not a regular file')
            handlers.append(_LogFile(path, encoding='utf-8'))
        except OSError as error:
            raise UserError(f'--model_save_dir: {path} cannot be written: {error.strerror}')
    for handler in handlers:
        handler.setFormatter(_OneLineFormatter())
        logger.addHandler(handler)


class AverageMeter:
    """A weighted mean: update(value, n) adds n samples whose mean is `value`."""

    def __init__(self):
        self.sum, self.count = 0.0, 0

    def update(self, value, n=1):
        self.sum += float(value) * n
        self.count += n

    @property
    def avg(self):
        return self.sum / self.count if self.count else 0.0


class Progress:
    """Reports the progress of an epoch: a progress bar on a terminal, a line every `log_freq` steps in train.log or a
    pipe.

    It also measures the reader cost, the seconds a step waits for its batch, and the batch cost, the seconds of a whole
    step, both averaged over the epoch.

    name, epoch: the beginning of each line, such as 'Train' and 3. steps: the number of steps of an epoch, None if
    unknown. first: the number of the first step; not 0 when an epoch is resumed.
    """

    def __init__(self, name, epoch, steps, log_freq, first=0):
        self.head = f'{name} Epoch {epoch}'
        self.log_freq = log_freq
        self.reader_cost, self.batch_cost, self.images = AverageMeter(), AverageMeter(), 0
        self.first = first
        self.bar = None
        if on_terminal() and rank() == 0:
            from tqdm import tqdm  # installed with PaddleSlim
            self.bar = tqdm(total=steps, initial=first, desc=self.head, leave=False, dynamic_ncols=True)
        self.start = time.perf_counter()

    def batches(self, loader):
        """Yield (step, batch). The caller ends each step with update()."""
        iterator, step = iter(loader), self.first
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
        """Report a finished step of `images` images. loss, top1, top5: AverageMeters of the epoch so far."""
        self.images += images
        self.batch_cost.update(time.perf_counter() - self.step_begin)
        if self.bar is not None:
            self.bar.update()
        if step % self.log_freq:
            return
        text = f'loss {loss.avg:.6f}, acc_1 {top1.avg:.6f}, acc_5 {top5.avg:.6f}'
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

    def costs(self):
        """The timings of the epoch, for metrics.jsonl."""
        return {'seconds': self.seconds, 'reader_cost': self.reader_cost.avg, 'batch_cost': self.batch_cost.avg,
                'images_per_second': self.images_per_second}


def quiet_warnings():
    """Filter harmless warnings that Paddle and PaddleSlim give when imported and at the first batch norm."""
    warnings.filterwarnings('ignore', message='No ccache found')
    warnings.filterwarnings('ignore', message='Setuptools is replacing distutils')
    warnings.filterwarnings('ignore', message='pkg_resources is deprecated as an API')
    warnings.filterwarnings('ignore', message='There are some unused values in state_dict')  # of a LinearWarmup
    warnings.filterwarnings('ignore', message='When training, we now always track global mean and variance')


def peak_memory_mb():
    """The peak memory in MB: what Paddle allocated on the GPU, or the resident set size of this process on a CPU."""
    import paddle
    if paddle.get_device().startswith('gpu'):
        return paddle.device.cuda.max_memory_allocated() / 2**20
    try:
        import resource
    except ImportError:  # not on Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == 'darwin' else peak / 2**10  # bytes on macOS, kilobytes on Linux
