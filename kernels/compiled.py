"""How the loops of this folder are compiled, by numba, an optional package, and how they reach the memory of tensors.

Without numba, on a GPU, in double precision and under to_static Paddle's operations run instead.
"""
import contextlib
import functools
import pathlib
import sys
import zlib

numba, why_not = None, 'numba is not installed (pip install numba)'
if 'llvmlite' not in sys.modules and getattr(sys.modules.get('paddle'), '__version__', '').startswith('2.'):
    why_not = 'Paddle 2 contains a zlib that makes numba end in a segmentation fault unless numba is imported first'
else:
    with contextlib.suppress(ImportError):
        import numba
        import numba.extending

import numpy as np  # noqa: E402
import paddle  # noqa: E402

from runtime.parallel import cpu_threads  # noqa: E402


def available(x):
    """Whether the compiled loops cover a tensor: single precision on a CPU, outside of to_static, and numba is
    installed."""
    return numba is not None and paddle.in_dynamic_mode() and x.dtype == paddle.float32 and x.place.is_cpu_place()


CPU = paddle.CPUPlace()


def new_tensor(shape):
    """A tensor in single precision on the CPU, still without values. paddle.empty does the same and takes two to three
    times as long, hundreds of times a step."""
    return paddle._C_ops.empty(list(shape), paddle.float32, CPU)


def addresses(tensors):
    return np.array([tensor.data_ptr() for tensor in tensors], np.int64)


ROW = 1024  # about how many pixels a row of a tile has


@functools.lru_cache(None)
def chunk_size(images, most):
    """How many images make a chunk: at most `most`, and few enough that all cores have about as much to do."""
    def images_per_core(size):
        return size * -(-images // (size * cpu_threads()))
    sizes = range(1, max(1, min(most, images)) + 1)
    fewest = min(map(images_per_core, sizes))
    return max(size for size in sizes if images_per_core(size) <= 1.05 * fewest)


IN_ORDER = {'contract', 'nsz'}  # products and sums may become one instruction; NaN stays NaN
REORDER = IN_ORDER | {'reassoc', 'arcp'}  # sums may be reordered, which vector registers need


@functools.lru_cache(None)
def cache_folder():
    """Where numba keeps what it compiled of this package: a folder named after the state of all its sources, since
    numba itself looks at the age of a function's own file only, and a compiled function contains those that it
    calls. The folders of former states stay there and may be deleted."""
    here = pathlib.Path(__file__).parent
    state = zlib.crc32(b''.join(path.read_bytes() for path in sorted(here.glob('*.py'))))
    return str(pathlib.Path(numba.config.CACHE_DIR or here / '__pycache__') / f'loops-{state:08x}')


def jit(function, fastmath=REORDER, **options):
    """Compile a function when it is first called; it runs without Python's lock."""
    if numba is None:
        return function
    folder, numba.config.CACHE_DIR = numba.config.CACHE_DIR, cache_folder()  # read when the function is decorated
    try:
        return numba.njit(nogil=True, fastmath=fastmath, error_model='numpy', cache=True, no_cfunc_wrapper=True,
                          **options)(function)
    finally:
        numba.config.CACHE_DIR = folder


def inlined(function):
    """As jit, for a short function that only compiled ones call, in which it is inlined. What Python needs to call it
    is left out, which takes longer to compile than a short loop."""
    return jit(function, no_cpython_wrapper=True, forceinline=True)


def not_inlined(function):
    """As jit, for a long function that only compiled ones call: compiled once, not in each of them.

    Its own sums keep the order in which they are written: a process that compiles runs the machine code of the
    function itself, and one that finds its caller in the cache a copy that was optimised with the caller. Long sums are
    therefore those of vectors.py.
    """
    return jit(function, IN_ORDER, no_cpython_wrapper=True)


def pasted(function):
    """For a long function that is called at one place: it becomes a part of its caller before anything is compiled."""
    return jit(function, IN_ORDER, inline='always', no_cpython_wrapper=True)


def is_cached(function):
    """Whether numba's cache, wherever it could make one, has a function that `jit` has decorated."""
    name = f'{function.__module__.rpartition(".")[2]}.{function.__name__}'
    return any(pathlib.Path(function.stats.cache_path).glob(f'{name}-*.nbi'))


@functools.lru_cache(None)
def on_first_compilation(say):
    """Call say(folder) when numba compiles a function of this package, rather than finding it in that folder, for the
    first time in this process."""
    from numba.core import event

    class Listener(event.Listener):

        def on_start(self, event):
            if event.data['dispatcher'].py_func.__module__.split('.')[0] == __package__ and not said:
                said.append(True)
                say(cache_folder())

        def on_end(self, event):
            pass
    said = []
    event.register('numba:compile', Listener())


floats = None
if numba is not None:
    from numba.core import cgutils, types

    @numba.extending.intrinsic
    def _pointer(context, address):
        """An integer as a pointer: a tensor's memory, without the 20 microseconds that wrapping it in a numpy array
        takes."""
        def generate(context, builder, signature, arguments):
            return builder.inttoptr(arguments[0], cgutils.voidptr_t)
        return types.voidptr(address), generate

    @numba.njit(inline='always')
    def floats(address, size):
        """The memory at an address as an array."""
        return numba.carray(_pointer(address), (size,), np.float32)
