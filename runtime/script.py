"""How a script starts and ends: log, device and seed; errors as one line and an exit status."""
import contextlib
import logging
import os
import signal
import sys

from runtime.errors import UserError
from runtime.log import logger, quiet_warnings, start_logging
from runtime.parallel import select_device, set_seed, world_size


def run_script(main):
    """Run a script's main() and turn a UserError into one line on standard error and its exit status.

    SIGTERM and SIGINT end it with a line, at once; while steps are run, resume.py saves first.
    """
    def stop(number, frame):  # an exception could be swallowed by whatever is running, such as an import
        print(f'{os.path.basename(sys.argv[0])}: error: stopped by {signal.Signals(number).name}', file=sys.stderr, flush=True)
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


def start_script(args, save_dir, given):
    """Make the folder, start the log, choose the device, seed everything. Returns the paddle place.

    save_dir: where train.log goes; None when the run leaves nothing there. given: the names of the flags that were given.
    """
    if save_dir is not None:
        prepare_folder(save_dir, '--model_save_dir')
    start_logging(save_dir, append=getattr(args, 'resume', False))
    logger.info('arguments: %s', ' '.join(f'--{name}={value}' for name, value in sorted(vars(args).items())))
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
    probe = os.path.join(folder, f'.{os.getpid()}.probe')
    try:
        os.makedirs(folder, exist_ok=True)
        with open(probe, 'w'):
            pass
        os.remove(probe)
    except (OSError, ValueError) as error:
        raise UserError('{}: {} is not a folder that can be written to: {}'.format(
            flag, folder, getattr(error, 'strerror', None) or error))
