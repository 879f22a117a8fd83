"""The flags of a search within limits, and their checks. Does not import Paddle, which --help does not need."""
import collections
import math

from runtime.flags import amount, integer, path, positive

# The network that a cell is trained in after a search on a data set: the defaults of train.py, for digits those of the
# command that search.py prints. image_size: in pixels; None: that of the searched images.
EVALUATION = {
    'digits': dict(network='NetworkCIFAR', init_channels=16, layers=5, image_size=None),
    'imagenet': dict(network='NetworkImageNet', init_channels=48, layers=14, image_size=224),
}
CIFAR_EVALUATION = dict(network='NetworkCIFAR', init_channels=36, layers=20, image_size=None)

# flag: of the limit; unit: in messages; factor: how many of the cost's unit are one of the flag's
Limit = collections.namedtuple('Limit', 'flag unit factor')
LIMITS = {'macs': Limit('max_macs', 'multiply-adds', 1), 'params': Limit('max_params', 'parameters', 1),
          'latency_ns': Limit('max_latency_ms', 'ms', 10**6)}  # by the name of the cost
BUDGET_FLAGS = [
    ('max_macs', amount, None, 'limit on the multiply-adds for one image of the network that is trained after the '
                               'search; K, M and G stand for thousand, million and 10^9: 600M'),
    ('max_params', amount, None, 'limit on the parameters of that network without auxiliary classifier: 3.5M'),
    ('max_latency_ms', positive(), None, 'limit on the milliseconds of a forward pass of that network on this device, '
                                         'by the table of --latency_table'),
    ('latency_table', path, 'latency.json', 'JSON file of measured latencies; what it lacks is measured and added'),
    ('latency_batch_size', integer(1), 1, 'images of a forward pass for --max_latency_ms'),
    ('budget_channels', integer(2, 4096), None, 'channels of the first cell of that network (default: 36, as train.py; '
                                                'digits 16, imagenet 48)'),
    ('budget_layers', integer(1, 1000), None, 'number of cells of that network (default: 20, as train.py; digits 5, '
                                              'imagenet 14)'),
]
SIZE_FLAGS = {'budget_channels': 'init_channels', 'budget_layers': 'layers'}


def evaluation_of(dataset):
    """The row of EVALUATION for a data set."""
    return EVALUATION.get(dataset, CIFAR_EVALUATION)


def trained_shape(dataset, image_shape):
    """The shape [3, H, W] of the images that a cell is trained on. image_shape: that of the searched images."""
    size = evaluation_of(dataset)['image_size']
    return list(image_shape) if size is None else [3, size, size]


def limits_of(args):
    """{name of a cost: limit} of those that are limited."""
    values = {name: getattr(args, limit.flag) for name, limit in LIMITS.items()}
    return {name: math.floor(value * LIMITS[name].factor) for name, value in values.items() if value is not None}


def shown(name, cost, rounding=round):
    """A cost as a text in the unit of its flag; of nanoseconds the milliseconds with three digits."""
    factor = LIMITS[name].factor
    if factor == 1:
        return f'{cost:,}'
    return f'{rounding(cost * 1000 / factor) / 1000:,}' if cost * 1000 >= factor else f'{cost / factor:g}'


def evaluation_size(args):
    """{'init_channels': number, 'layers': number} of the network that a cell is trained in after the search."""
    row = evaluation_of(args.dataset)
    return {size: getattr(args, flag) or row[size] for flag, size in SIZE_FLAGS.items()}


def latency_options(args):
    """The keywords of nas.latency.latency_costs that flags decide."""
    size = evaluation_size(args)
    return dict(path=args.latency_table, batch_size=args.latency_batch_size,
                size=f'{evaluation_of(args.dataset)["network"]}, {size["init_channels"]} channels, {size["layers"]} '
                     'cells')


def check_budget_flags(parser, args, names):
    """Refuse flags that do not go together. names: of the flags that were given."""
    given = [LIMITS[name].flag for name in limits_of(args)]
    sizes = [name for name in SIZE_FLAGS if getattr(args, name) is not None]
    if given and args.method == 'random':
        parser.error(f'argument --{given[0]}: --method=random draws any cell; give another --method')
    if sizes and not given:
        parser.error(f'argument --{sizes[0]}: goes with a limit, such as --max_macs=600M')
    for name in ('latency_table', 'latency_batch_size'):
        # the flags that --derive takes from a search have them in any case
        if name in names and args.max_latency_ms is None and args.derive is None:
            parser.error(f'argument --{name}: goes with --max_latency_ms')
