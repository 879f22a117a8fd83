"""The log of a run: its handlers, meters, the progress of an epoch, the process's peak memory."""
import logging
import os
import sys
import time
import warnings

from runtime.parallel import rank

logger = logging.getLogger('darts')
# Lines of single steps. On a terminal the bar shows them, so there they go to train.log alone.
STEP = logging.DEBUG


def start_logging(folder=None, append=False):
    """Send the log to standard error and, on rank 0, to train.log in `folder`: appended to, or begun anew beside that of
    an earlier run, which becomes train.log.old."""
    logger.setLevel(logging.DEBUG)
    logger.propagate = False  # paddleslim sets up the root logger: every line would come twice
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    screen = logging.StreamHandler(sys.stderr)
    screen.setLevel((logging.INFO if sys.stderr.isatty() else STEP) if rank() == 0 else logging.WARNING)
    handlers = [screen]
    if folder is not None and rank() == 0:
        path = os.path.join(folder, 'train.log')
        if not append and os.path.exists(path):
            os.replace(path, path + '.old')
        handlers.append(logging.FileHandler(path, encoding='utf-8'))
    for handler in handlers:
        handler.setFormatter(logging.Formatter('%(asctime)s %(message)s', '%Y-%m-%d %H:%M:%S'))
        logger.addHandler(handler)


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

    def __init__(self, name, epoch, steps, log_freq, first=0):
        self.head = f'{name} Epoch {epoch}'
        self.log_freq = log_freq
        self.reader_cost, self.batch_cost, self.images = AverageMeter(), AverageMeter(), 0
        self.first = first  # the number of the first step, where a resumed run goes on
        self.bar = None
        if sys.stderr.isatty() and rank() == 0:
            from tqdm import tqdm  # comes with paddleslim
            self.bar = tqdm(total=steps, initial=first, desc=self.head, leave=False, dynamic_ncols=True)
        self.start = time.perf_counter()

    def batches(self, loader):
        """Yield (step, batch); each step is to end with a call of update()."""
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
        """Report a finished step of `images` images; the three meters hold the averages of the epoch so far."""
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
        """The epoch's costs, for metrics.jsonl."""
        return {'seconds': self.seconds, 'reader_cost': self.reader_cost.avg, 'batch_cost': self.batch_cost.avg,
                'images_per_second': self.images_per_second}


def quiet_warnings():
    """Filter the warnings of paddle and paddleslim that mean nothing to a user: at import and at the first batch norm."""
    warnings.filterwarnings('ignore', message='No ccache found')
    warnings.filterwarnings('ignore', message='Setuptools is replacing distutils')
    warnings.filterwarnings('ignore', message='pkg_resources is deprecated as an API')
    warnings.filterwarnings('ignore', message='When training, we now always track global mean and variance')


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
