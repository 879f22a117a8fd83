"""search.py --derive: the cell of a search that has ended, derived anew from the parameters it saved.

The flags of the search are those that its newest checkpoint keeps. No Paddle import before a folder is read.
"""
import os

from runtime.errors import UserError
from runtime.flags import IMAGENET_FLAGS, NOT_FOR_IMAGENET, integer, path

DERIVE_FLAGS = [
    ('derive', path, None, 'output directory of a search that has ended: derive its cell from the saved parameters, '
                           'with the flags of that search, instead of searching'),
    ('by', ['strength', 'perturbation'], 'strength',
     'how --derive chooses: by strength as the search does, or by what the removal of each operation costs (DARTS-PT), '
     'which writes to perturbation/ in the directory'),
    ('tune_epochs', integer(1), 5, 'epochs that --by=perturbation trains the weights between two decisions'),
]
# What may be given with --derive; all else is as in the search.
ALLOWED_WITH_DERIVE = {'derive', 'by', 'tune_epochs', 'resume', 'data', 'data_dir', 'use_gpu', 'use_data_parallel',
                       'num_workers', 'use_multiprocess', 'log_freq', 'save_freq', 'keep'}
# Flags of the search that the derivation does not take over.
NOT_TAKEN_FROM_SEARCH = {'derive', 'by', 'tune_epochs', 'resume', 'summary', 'save_freq', 'keep', 'use_vdl',
                         'model_save_dir', 'use_gpu', 'use_data_parallel', 'num_workers', 'use_multiprocess',
                         'log_freq', 'samples'}


def check_derive_flags(parser, args, given):
    """Refuse flags that do not go together."""
    for name in sorted(given - ALLOWED_WITH_DERIVE) if args.derive is not None else ():
        why = 'has no meaning with --derive' if name in NOT_TAKEN_FROM_SEARCH else '--derive takes it from the search'
        parser.error(f'argument --{name}: {why}')
    if args.derive is None:
        for name in ('by', 'tune_epochs'):
            if name in given:
                parser.error(f'argument --{name}: goes with --derive=DIR')
    elif 'tune_epochs' in given and args.by != 'perturbation':
        parser.error('argument --tune_epochs: goes with --by=perturbation')
    elif args.derive is not None and args.resume and args.by != 'perturbation':
        parser.error('argument --resume: goes with --by=perturbation; --by=strength takes a moment')


def flags_of_search(folder):
    """The command line of the search whose output a folder holds, ['--name=value'], as its newest checkpoint keeps it.

    Raises UserError.
    """
    from runtime.checkpoint import newest_info
    info = newest_info(folder)
    if info is None:
        raise UserError(f'--derive: {folder} holds no checkpoint of a search, which the flags are read from')
    if info['arguments'].get('method') == 'random' or not {'arch_learning_rate', 'layers'} <= info['arguments'].keys():
        raise UserError(f'--derive: {folder} is not the output directory of a search by search.py')
    result = result_of_search(folder)
    if info['epoch'] <= result['epoch'] or any(result.get(name) not in (None, info['arguments'].get(name))
                                               for name in ('method', 'seed', 'dataset')):
        raise UserError(f'--derive: {folder} holds files of two searches: its newest checkpoint is not of the search '
                        'that wrote its genotype.json')
    of_other_data = (NOT_FOR_IMAGENET if info['arguments'].get('dataset') == 'imagenet'
                     else [row[0] for row in IMAGENET_FLAGS])
    flags = {name: value for name, value in info['arguments'].items()
             if value is not None and name not in {*NOT_TAKEN_FROM_SEARCH, *of_other_data, 'processes'}}
    if isinstance(flags.get('early_stop'), list):
        flags['early_stop'] = ':'.join(map(str, flags['early_stop']))
    return [f'--{name}={value}' for name, value in flags.items()]


def result_of_search(folder):
    """What genotype.json of a folder says of its result, {'epoch': number, …}. Raises UserError."""
    from runtime.files import MAX_JSON_BYTES, UnreadableFile, read_json
    path = os.path.join(folder, 'genotype.json')
    try:
        found = read_json(path, MAX_JSON_BYTES)['search']
        if type(found['epoch']) is not int or type(found.get('stage', 1)) is not int:
            raise ValueError
        return found
    except UnreadableFile as error:
        raise UserError(f'--derive: {path} cannot be read: {error}')
    except (ValueError, TypeError, LookupError):
        raise UserError(f'--derive: {path} does not name the epoch of a search')


def begin_stage_of(method, stage):
    """Bring a method object to a later stage of a search, for a supernet with the shapes of that stage."""
    if not 1 <= stage <= 1 + len(method.later_stages):
        raise UserError(f'--derive: {method.name} has no stage {stage}')
    if stage > 1:
        method.partial, _ = method.later_stages[stage - 2]


def load_supernet(network, folder, epoch):
    """Load the parameters of an epoch into a supernet. Raises UserError."""
    from runtime.checkpoint import load_model, set_state
    path = os.path.join(folder, str(epoch), 'params.pdparams')
    if not os.path.isfile(path):
        raise UserError(f'--derive: there is no {path}; a search writes it with --save_params=True')
    state, _ = load_model(path, '--derive')
    set_state(network, state, f'--derive: {path}')
