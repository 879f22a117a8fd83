"""Devices, random seeds, and collective operations over the processes that paddle.distributed.launch started."""
import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import random
import sys

from runtime.errors import UserError

logger = logging.getLogger('darts')  # runtime.log, which imports this module, sets it up


def set_seed(seed):
    """Seed Python, numpy and Paddle. On a CPU a seed determines a run bit for bit."""
    import numpy as np
    import paddle
    random.seed(seed)
    np.random.seed(seed)
    paddle.seed(seed)
    logger.info('seed %d: on a CPU, the same seed, arguments and versions give bit-identical results', seed)


def select_device(use_gpu, use_data_parallel):
    """Select the device, join the process group if there is one, and log both. Returns the paddle place.

    Raises UserError for more processes than GPUs, and for several processes without use_data_parallel.
    """
    import paddle
    if use_gpu and not (paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0):
        reason = 'found' if paddle.is_compiled_with_cuda() else 'used: this Paddle is a CPU build'
        logger.info('no GPU %s; running on the CPU', reason)
        use_gpu = False
    if not use_gpu:
        paddle.set_device('cpu')
        configure_cpu()
    elif use_data_parallel and world_size() > 1:
        gpu, gpus = int(os.environ.get('FLAGS_selected_gpus', '0').split(',')[0]), paddle.device.cuda.device_count()
        if gpu >= gpus:
            raise UserError(f'process {rank()} needs GPU {gpu}, but this machine has {gpus}: start fewer processes')
        paddle.set_device(f'gpu:{gpu}')
    else:
        paddle.set_device('gpu')
    if use_data_parallel and world_size() > 1:
        paddle.distributed.init_parallel_env()
    elif use_data_parallel:
        hint = '' if use_gpu else '; on a CPU, set their number with --nproc_per_node instead of --selected_gpus'
        logger.info('--use_data_parallel=True: running on 1 process; start more with python -m '
                    'paddle.distributed.launch%s',
                    hint)
    elif world_size() > 1:
        raise UserError(f'started by paddle.distributed.launch as {world_size()} processes: add --use_data_parallel 1')
    logger.info('paddle %s on %s, %d process%s', paddle.__version__, paddle.get_device(), world_size(),
                '' if world_size() == 1 else 'es')
    return paddle.CUDAPlace(int(paddle.get_device().split(':')[1])) if use_gpu else paddle.CPUPlace()


def configure_cpu():
    """Let Paddle use all cores available to this process, and let glibc keep freed memory for the next operation.

    Paddle uses one core by default. By default, glibc maps and unmaps the memory of each large tensor, which can take
    longer than the operation itself.
    """
    import paddle
    paddle.set_flags({'FLAGS_paddle_num_threads': cpu_threads()})
    if sys.platform == 'linux' and hasattr(ctypes.CDLL(None), 'mallopt'):
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


@functools.lru_cache(None)
def cpu_threads():
    """The number of cores available to this process: its CPU affinity, divided among the ranks on this machine. Found
    once: threads and chunks of images are made for it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    return max(1, cores // int(os.environ.get('PADDLE_LOCAL_SIZE', world_size())))


def rank():
    """The rank of this process, set by paddle.distributed.launch; 0 without it."""
    return int(os.environ.get('PADDLE_TRAINER_ID', '0'))


def world_size():
    """The number of processes, set by paddle.distributed.launch; 1 without it."""
    return int(os.environ.get('PADDLE_TRAINERS_NUM', '1'))


def sum_over_ranks(values):
    """Sum a list of Python numbers elementwise over the ranks. Returns a list."""
    if world_size() == 1:
        return list(values)
    import paddle
    total = paddle.to_tensor(list(values), dtype='float64')
    paddle.distributed.all_reduce(total)
    return total.tolist()


def average_over_ranks(tensors, count=1):
    """Replace each tensor, in place, by its weighted mean over the ranks.

    count: the weight of this rank, the number of images its tensors were computed from. Gradients of batches of
    different sizes then average to the gradient over all images.
    """
    if world_size() == 1 or not tensors:
        return
    import paddle
    with paddle.no_grad():
        dtype = 'float64' if tensors[0].dtype == paddle.float64 else 'float32'  # a sum in float16 would lose precision
        parts = [tensor.reshape([-1]).astype(dtype) for tensor in tensors] + [paddle.ones([1], dtype)]
        flat = paddle.concat(parts) * count  # one message for all tensors
        paddle.distributed.all_reduce(flat)
        means = (flat[:-1] / flat[-1]).split([tensor.size for tensor in tensors])
        for tensor, mean in zip(tensors, means):
            paddle.assign(mean.reshape(tensor.shape).astype(tensor.dtype), tensor)


def broadcast(tensors):
    """Copy the values of rank 0 to all ranks, in place."""
    if world_size() > 1:
        import paddle
        for tensor in tensors:
            paddle.distributed.broadcast(tensor, src=0)


def check_agreement(tensors, what):
    """Check that all ranks hold bit-identical values.

    what: the name of the tensors, for the message. Raises UserError (status 1) on every rank if they differ.
    """
    if world_size() == 1:
        return
    import paddle
    digest = hashlib.sha256(b''.join(tensor.numpy().tobytes() for tensor in tensors)).digest()[:8]
    digests = []
    paddle.distributed.all_gather(digests, paddle.to_tensor([int.from_bytes(digest, 'little', signed=True)]))
    different = [other for other, value in enumerate(digests) if int(value) != int(digests[0])]
    if different:
        ranks = ', '.join(map(str, different))
        raise UserError(f'{what} of rank {ranks} differ from those of rank 0: the processes have diverged', status=1)


@contextlib.contextmanager
def first_rank_first():
    """Run the block on one process of each machine first, then on the others, which find the file it downloaded."""
    if world_size() > 1:
        import paddle
    local_rank = int(os.environ.get('PADDLE_RANK_IN_NODE', rank()))
    if world_size() > 1 and local_rank:
        paddle.distributed.barrier()
    yield
    if world_size() > 1 and not local_rank:
        paddle.distributed.barrier()
