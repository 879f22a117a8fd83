"""How long the network of a genotype takes on this device, from a table that is measured once.

The table has the times of the operations, one by one at the shapes that occur, and of networks of random cells, from
which nas/cost.py takes what the rest of a network costs. Times are medians of forward passes in evaluation mode, as
train.py --eval_only runs it (nas.accelerate); the fastest passes of the parts of a network take less time together
than its own fastest pass. A pass of each entry follows a pass of every other one, so that the caches hold as little
of it as they do within a network, and a load of the machine does not fall on one entry alone.

A JSON file keeps the tables: {what was measured on which device: {entry: nanoseconds}}.
"""
import json
import os
import platform
import statistics
import time

import paddle
import paddle.nn as nn

from nas.acceleration import accelerate
from nas.cost import count_costs
from runtime.errors import UserError
from runtime.files import MAX_JSON_BYTES, UnreadableFile, read_json, write_text
from runtime.log import logger
from runtime.parallel import broadcast, cpu_threads, first_rank_first, world_size

ROUNDS = 50  # passes of each entry
PROBES = 4  # random cells whose networks are measured


@paddle.no_grad()
def measure(entries):
    """{name: nanoseconds} of layers on inputs of zeros. entries: {name: (layer, shape of its input)}."""
    runs = {}
    for name, (layer, shape) in entries.items():
        layer = accelerate(nn.Sequential(layer), quiet=True)
        layer.eval()
        image = paddle.zeros(shape)
        _time(layer, image)  # compiles and allocates
        runs[name] = layer, image
    times = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            times[name].append(_time(*run))
    return {name: round(statistics.median(found)) for name, found in times.items()}


def _time(layer, image):
    """The time of a forward pass, in nanoseconds."""
    _wait()
    start = time.perf_counter_ns()
    layer(image)
    _wait()
    return time.perf_counter_ns() - start


def _wait():
    if paddle.get_device().startswith('gpu'):
        paddle.device.cuda.synchronize()


def latency_costs(make_network, image_shape, *, primitives, steps, size, path, batch_size=1, measure=measure):
    """The CellCosts of a network's latency in nanoseconds, for a batch [batch_size, 3, H, W].

    size: a text that names the network's size, for the table. path: the JSON file with the tables; what it does not
    have is measured, by measure(entries), and added to it; of several processes, each machine's first one measures, and
    all of them use what rank 0 found. The other arguments are those of nas.cost.count_costs.
    Raises UserError for a file that holds something else.
    """
    name = f'{device_name()}; {size}, images {"x".join(map(str, image_shape))}, batch size {batch_size}'

    table, entries = dict(_read(path).get(name, {})), {}

    def look_up(layer, shape, entry):
        entries.setdefault(entry, (layer, [batch_size, *shape]))
        return table.get(entry, 0)

    def costs():
        return count_costs(make_network, image_shape, primitives=primitives, steps=steps,
                           measures={'latency_ns': look_up}, probes=PROBES)['latency_ns']
    found = costs()
    if world_size() == 1 and entries.keys() <= table.keys():
        return found
    with first_rank_first():
        table = _measured(path, name, entries, measure)
    values = paddle.to_tensor([table[entry] for entry in entries], 'int64')
    broadcast([values])
    table.update(zip(entries, values.tolist()))
    return costs()


def _measured(path, name, entries, measure):
    """{entry: nanoseconds} of a file's table of that name, once it has all entries."""
    tables = _read(path)
    table = tables.setdefault(name, {})
    missing = {entry: value for entry, value in entries.items() if entry not in table}
    if missing:
        logger.info('measuring %d latencies on %s, for %s', len(missing), name, path)
        table.update(measure(missing))
        write_text(path, json.dumps(tables, indent=1) + '\n')
    return table


def _read(path):
    if not os.path.lexists(path):
        return {}
    try:
        tables = read_json(path, MAX_JSON_BYTES)
        if not isinstance(tables, dict) or not all(
                isinstance(table, dict) and all(type(value) is int and value >= 0 for value in table.values())
                for table in tables.values()):
            raise UnreadableFile('it is not a table of latencies')
        return tables
    except UnreadableFile as error:
        raise UserError(f'--latency_table: {path} cannot be read: {error}; give another name, or delete the file to '
                        'measure again')


def device_name():
    """The device and what else decides how fast a network runs on it."""
    device = paddle.get_device()
    if device.startswith('gpu'):
        device = paddle.device.cuda.get_device_properties().name
    else:
        device = f'{_processor()}, {cpu_threads()} threads'
    return f'{device}, Paddle {paddle.__version__}'


def _processor():
    try:
        with open('/proc/cpuinfo', encoding='utf-8') as f:
            return next(line.split(':', 1)[1].strip() for line in f if line.startswith('model name'))
    except (OSError, StopIteration, UnicodeDecodeError):
        return platform.processor() or platform.machine()
