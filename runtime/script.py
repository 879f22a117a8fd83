"""The start and the end of a script: output folder, log, device and seed; errors as one line and an exit status."""
import contextlib
import logging
import os
import signal
import sys
import tempfile

from runtime.errors import UserError, printable
from runtime.files import remove_temporary_files
from runtime.lock import lock_folder, release_all
from runtime.log import logger, quiet_warnings, start_logging
from runtime.parallel import select_device, set_seed, world_size
from runtime.streams import standard_streams


def run_script(main):
    """Run a script's main(). A UserError becomes one line on standard error and the exit status, and so does a
    lack of memory.

    SIGTERM and SIGINT end the script at once with one line; while a runtime.run.Run is active, they write a checkpoint
    first. A result that standard output does not take is an error.
    """
    with standard_streams():
        try:
            end_on_signals()
            try:
                main()
            except SystemExit as end:
                if end.code:
                    raise
            sys.stdout.flush()
        except UserError as error:
            _report(error)
            sys.exit(error.status)
        except MemoryError:  # of Paddle, as seen on a CPU, or of numpy
            _report(UserError('out of memory: a smaller --batch_size, --init_channels or --layers needs less'))
            sys.exit(1)
        finally:
            release_all()


def end_on_signals():
    """Let SIGTERM and SIGINT end the program at once with one line, also before run_script: while Paddle is imported.
    """

    def stop(number, frame):  # an exception could be caught by whatever code is running, such as an import
        with contextlib.suppress(OSError, ValueError):
            print(f'{_program()}: error: stopped by {signal.Signals(number).name}', file=sys.stderr, flush=True)
        remove_temporary_files()
        os._exit(128 + number)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def _report(error):
    line = printable('{}: error: {}'.format(_program(), ' '.join(str(error).splitlines())))
    if any(isinstance(handler, logging.FileHandler) for handler in logger.handlers):
        logger.error('%s', line)  # to the screen and to train.log
    else:
        with contextlib.suppress(OSError, ValueError):
            print(line, file=sys.stderr)


def _program():
    return os.path.basename(sys.argv[0])


def start_script(save_dir, *, arguments, use_gpu, use_data_parallel, seed, batch_size=None,
                 default_learning_rate=None):
    """Create the output folder, keep other runs out of it, start the log, select the device and set the seed.

    Returns the paddle place.
    save_dir: the folder of train.log; None for a script that writes no files. arguments: {name: value} to log.
    batch_size, default_learning_rate: given when the user did not choose a learning rate; with several processes, the
    log then suggests one for the larger total batch.
    """
    removed = []
    if save_dir is not None:
        prepare_folder(save_dir, '--model_save_dir')
        removed = lock_folder(save_dir)
    start_logging(save_dir)
    for path in removed:
        logger.info('removed the temporary file %s of a killed run', path)
    logger.info('arguments: %s', ' '.join(f'--{name}={value}' for name, value in sorted(arguments.items())))
    quiet_warnings()
    with contextlib.suppress(ImportError):
        import numba  # noqa: F401  must be imported before Paddle 2, see kernels/compiled.py
    place = select_device(use_gpu, use_data_parallel)
    end_on_signals()  # Paddle's import put its own handler there, which prints a traceback
    if world_size() > 1 and default_learning_rate is not None:
        logger.info('%d processes read %d images per step: consider --learning_rate=%g, %d times the default, which is '
                    'for one GPU', world_size(), world_size() * batch_size, default_learning_rate * world_size(),
                    world_size())
    set_seed(seed)
    return place


def prepare_folder(folder, flag):
    """Create a folder if necessary and check that files can be written to it. Raises UserError that names the flag."""
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix='.probe-'):  # of a name that no other process has
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, 'strerror', None) or error
        raise UserError(f'{flag}: {folder} is not a folder that can be written to: {reason}')
