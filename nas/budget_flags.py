"""The flags of a search within limits, and their checks. Does not import Paddle, which --help does not need."""
import math
from typing import NamedTuple, Optional

from runtime.flags import amount, integer, path, positive


class Evaluation(NamedTuple):
    """The network that a cell is trained in after a search: its class in model.py and its size. image_size: in pixels;
    None: that of the searched images."""

    network: str
    init_channels: int
    layers: int
    image_size: Optional[int] = None

    def __str__(self):
        return f'{self.network}, {self.init_channels} channels, {self.layers} cells'

    def size(self):
        """The size as keywords, and as flags of the training scripts."""
        return {'init_channels': self.init_channels, 'layers': self.layers}

    def image_shape(self, searched_shape):
        """The shape [3, H, W] of the images that it is trained on, after a search on images of another shape."""
        return list(searched_shape) if self.image_size is None else [3, self.image_size, self.image_size]


# The defaults of train.py and train_imagenet.py, for digits those of the command that search.py prints.
EVALUATION = {'digits': Evaluation('NetworkCIFAR', 16, 5), 'imagenet': Evaluation('NetworkImageNet', 48, 14, 224)}
CIFAR_EVALUATION = Evaluation('NetworkCIFAR', 36, 20)


class Limit(NamedTuple):
    """The flag of a limit, its unit in messages, and how many of the cost's unit are one of the flag's."""

    flag: str
    unit: str
    factor: int


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
SIZE_FLAGS = 'budget_channels', 'budget_layers'


def evaluation_of(dataset, budget_channels=None, budget_layers=None, image_size=None):
    """The Evaluation after a search on a data set; None: the default."""
    default = EVALUATION.get(dataset, CIFAR_EVALUATION)
    return default._replace(init_channels=budget_channels or default.init_channels,
                            layers=budget_layers or default.layers, image_size=image_size or default.image_size)


def limits_of(flags):
    """{name of a cost: limit} of those that are limited. flags: {name: value}, with None for no limit."""
    return {name: math.floor(flags[limit.flag] * limit.factor) for name, limit in LIMITS.items()
            if flags[limit.flag] is not None}


def shown(name, cost, rounding=round):
    """A cost as a text in the unit of its flag; of nanoseconds the milliseconds with three digits."""
    factor = LIMITS[name].factor
    if factor == 1:
        return f'{cost:,}'
    return f'{rounding(cost * 1000 / factor) / 1000:,}' if cost * 1000 >= factor else f'{cost / factor:g}'


def check_budget_flags(parser, args, names):
    """Refuse flags that do not go together. names: of the flags that were given."""
    given = [LIMITS[name].flag for name in limits_of(vars(args))]
    sizes = [name for name in SIZE_FLAGS if getattr(args, name) is not None]
    if given and args.method == 'random':
        parser.error(f'argument --{given[0]}: --method=random draws any cell; give another --method')
    if sizes and not given:
        parser.error(f'argument --{sizes[0]}: goes with a limit, such as --max_macs=600M')
    for name in ('latency_table', 'latency_batch_size'):
        # the flags that --derive takes from a search have them in any case
        if name in names and args.max_latency_ms is None and args.derive is None:
            parser.error(f'argument --{name}: goes with --max_latency_ms')
