"""The device, the seeds and the ranks (the processes that paddle.distributed.launch started)."""
import contextlib
import ctypes
import hashlib
import logging
import os
import random
import sys

from runtime.errors import UserError

logger = logging.getLogger('darts')


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
            raise UserError(f'process {rank()} is to run on card {card}, and there are {cards} cards: start fewer processes')
        paddle.set_device(f'gpu:{card}')
    else:
        paddle.set_device('gpu')
    if use_data_parallel:
        if world_size() > 1:
            paddle.distributed.init_parallel_env()
        else:
            logger.info('--use_data_parallel=True: running on 1 process; python -m paddle.distributed.launch starts more%s',
                        '' if use_gpu else ': on a CPU --nproc_per_node says how many, --selected_gpus does not')
    elif world_size() > 1:
        raise UserError(f'started by paddle.distributed.launch as {world_size()} processes: add --use_data_parallel 1')
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
