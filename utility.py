"""What all scripts share: how they start and fail, the log and its meters, seeds, the device and the ranks.

Paddle takes seconds to import, so nothing here imports it before it is needed: `--help` and a wrong argument answer at once.
"""
import contextlib
import ctypes
import hashlib
import logging
import os
import random
import signal
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
    """Run a script's main() and turn a UserError into one line on standard error and its exit status.

    SIGTERM and SIGINT end it with a line, at once; while steps are run, resume.py saves first.
    """
    def stop(number, frame):  # an exception could be swallowed by whatever is running, such as an import
        print('{}: error: stopped by {}'.format(os.path.basename(sys.argv[0]), signal.Signals(number).name), file=sys.stderr, flush=True)
        os._exit(128 + number)

    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        main()
    except UserError as error:
        line = '{}: error: {}'.format(os.path.basename(sys.argv[0]), ' '.join(str(error).splitlines()))
        if any(isinstance(handler, logging.FileHandler) for handler in logger.handlers):
            logger.error(line)  # to the screen and to train.log
        else:
            print(line, file=sys.stderr)
        sys.exit(error.status)


# ---------------------------------------------------------------------------------------------------------------------
# Start of a script, log and meters
# ---------------------------------------------------------------------------------------------------------------------


def start_script(args, save_dir, given):
    """Make the folder, start the log, choose the device, seed everything. Returns the paddle place.

    save_dir: where train.log goes; None when the run leaves nothing there. given: the names of the flags that were given.
    """
    if save_dir is not None:
        prepare_folder(save_dir, '--model_save_dir')
    start_logging(save_dir, append=getattr(args, 'resume', False))
    logger.info('arguments: %s', ' '.join('--{}={}'.format(name, value) for name, value in sorted(vars(args).items())))
    quiet_warnings()
    with contextlib.suppress(ImportError):
        import numba  # noqa: F401  before Paddle, see compiled.py
    place = select_device(args.use_gpu, args.use_data_parallel)
    if world_size() > 1 and 'learning_rate' not in given:
        logger.info('%d processes read %d images a step: consider --learning_rate=%g, %d times the default, which is for one card',
                    world_size(), world_size() * args.batch_size, args.learning_rate * world_size(), world_size())
    set_seed(args.seed)
    return place


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
        self.head = '{} Epoch {}'.format(name, epoch)
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

    def costs(self):
        """The epoch's costs, for metrics.jsonl."""
        return {'seconds': self.seconds, 'reader_cost': self.reader_cost.avg, 'batch_cost': self.batch_cost.avg,
                'images_per_second': self.images_per_second}


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
    """Filter the warnings of paddle and paddleslim that mean nothing to a user: at import and at the first batch norm."""
    warnings.filterwarnings('ignore', message='No ccache found')
    warnings.filterwarnings('ignore', message='Setuptools is replacing distutils')
    warnings.filterwarnings('ignore', message='pkg_resources is deprecated as an API')
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
        use_the_cpu_well()
    elif use_data_parallel and world_size() > 1:
        card, cards = int(os.environ.get('FLAGS_selected_gpus', '0').split(',')[0]), paddle.device.cuda.device_count()
        if card >= cards:
            raise UserError('process {} is to run on card {}, and there are {} cards: start fewer processes'.format(rank(), card, cards))
        paddle.set_device('gpu:{}'.format(card))
    else:
        paddle.set_device('gpu')
    if use_data_parallel:
        if world_size() > 1:
            paddle.distributed.init_parallel_env()
        else:
            logger.info('--use_data_parallel=True: running on 1 process; python -m paddle.distributed.launch starts more%s',
                        '' if use_gpu else ': on a CPU --nproc_per_node says how many, --selected_gpus does not')
    elif world_size() > 1:
        raise UserError('started by paddle.distributed.launch as {} processes: add --use_data_parallel 1'.format(
            world_size()))
    logger.info('paddle %s on %s, %d process%s', paddle.__version__, paddle.get_device(), world_size(),
                '' if world_size() == 1 else 'es')
    return paddle.CUDAPlace(int(paddle.get_device().split(':')[1])) if use_gpu else paddle.CPUPlace()


def use_the_cpu_well():
    """Let Paddle run on all cores that this process may have, and keep freed memory for the next operation.

    Paddle uses one core unless told otherwise. glibc would map and unmap the memory of each large tensor, which costs more than many an operation.
    """
    import paddle
    paddle.set_flags({'FLAGS_paddle_num_threads': cpu_threads()})
    if sys.platform == 'linux' and hasattr(ctypes.CDLL(None), 'mallopt'):
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def cpu_threads():
    """The cores that this process may have, shared with the other ranks on the machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    return max(1, cores // int(os.environ.get('PADDLE_LOCAL_SIZE', world_size())))


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


def average_over_ranks(tensors, count=1):
    """Replace each tensor by its mean over the ranks, in place and in one message; with one rank, do nothing.

    count: the images a rank's tensors stand for. Ranks weigh by it, so gradients of batches of unequal size average to the gradient of
    all images together.
    """
    if world_size() == 1 or not tensors:
        return
    import paddle
    with paddle.no_grad():
        dtype = 'float64' if tensors[0].dtype == paddle.float64 else 'float32'  # float16 would lose what is added up
        flat = paddle.concat([tensor.reshape([-1]).astype(dtype) for tensor in tensors] + [paddle.ones([1], dtype)]) * count
        paddle.distributed.all_reduce(flat)
        parts = (flat[:-1] / flat[-1]).split([tensor.size for tensor in tensors])
        for tensor, part in zip(tensors, parts):
            paddle.assign(part.reshape(tensor.shape).astype(tensor.dtype), tensor)


def broadcast(tensors):
    """Give every rank rank 0's values, in place; with one rank, do nothing."""
    if world_size() > 1:
        import paddle
        for tensor in tensors:
            paddle.distributed.broadcast(tensor, src=0)


def check_agreement(tensors, what):
    """See that all ranks hold the same values to the last bit. Raises UserError (status 1), on every rank, where they don't.

    what: the name of these tensors, for the message.
    """
    if world_size() == 1:
        return
    import paddle
    digest = hashlib.sha256(b''.join(tensor.numpy().tobytes() for tensor in tensors)).digest()[:8]
    digests = []
    paddle.distributed.all_gather(digests, paddle.to_tensor([int.from_bytes(digest, 'little', signed=True)]))
    others = [other for other, value in enumerate(digests) if int(value) != int(digests[0])]
    if others:
        raise UserError('{} of rank {} differ from those of rank 0: the processes no longer compute the same thing'.format(
            what, ', '.join(map(str, others))), status=1)


@contextlib.contextmanager
def first_rank_first():
    """Let one process of each machine run the block before the others do: it downloads, they find the file."""
    if world_size() > 1:
        import paddle
    local_rank = int(os.environ.get('PADDLE_RANK_IN_NODE', rank()))
    if world_size() > 1 and local_rank:
        paddle.distributed.barrier()
    yield
    if world_size() > 1 and not local_rank:
        paddle.distributed.barrier()
