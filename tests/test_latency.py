"""The table of latencies: what is measured, kept and read again; limits in milliseconds. Times are given, not taken."""
import json
import random

import pytest

from genotypes import PRIMITIVES, random_genotype
from model import NetworkCIFAR
from nas import latency
from nas.budget_flags import shown
from nas.cost import COUNTS, count_costs
from runtime.errors import UserError

SHAPE = [3, 8, 8]


def network(genotype):
    return NetworkCIFAR(4, 10, 3, False, genotype)


class Clock:
    """A device on which each multiply-add takes a nanosecond. shapes: of the inputs, a list for each measurement."""

    def __init__(self):
        self.shapes = []

    def __call__(self, entries):
        self.shapes.append([shape for _, shape in entries.values()])
        return {name: COUNTS['macs'](layer, shape[1:], name) * shape[0] for name, (layer, shape) in entries.items()}


def costs(folder, clock, batch_size=1):
    return latency.latency_costs(network, SHAPE, primitives=PRIMITIVES, steps=4, size='C4 L3', batch_size=batch_size,
                                 path=str(folder / 'latency.json'), measure=clock)


def test_where_times_add_up_the_prediction_is_exact(tmp_path):
    found = costs(tmp_path, Clock())
    macs = count_costs(network, SHAPE, primitives=PRIMITIVES, steps=4)['macs']
    generator = random.Random(0)
    for _ in range(10):
        genotype = random_genotype(generator)
        assert found.of(genotype) == macs.of(genotype)


def test_the_table_is_measured_once_for_each_size(tmp_path):
    clock = Clock()
    first = costs(tmp_path, clock)
    table = json.loads((tmp_path / 'latency.json').read_text())
    (name, entries), = table.items()
    assert 'C4 L3' in name and '3x8x8' in name and 'batch size 1' in name
    # 8 operations at stride 2 and 1 in the three cells: 4, 8 and 16 channels, and the networks
    assert len(entries) == len(clock.shapes[0]) == 8 * 5 + 3 * latency.PROBES
    assert entries['sep_conv_3x3 on 8x4x4, stride 1'] > 0
    genotype = random_genotype(random.Random(0))
    assert costs(tmp_path, clock).of(genotype) == first.of(genotype) and len(clock.shapes) == 1
    del table[name]['sep_conv_3x3 on 8x4x4, stride 1']
    (tmp_path / 'latency.json').write_text(json.dumps(table))
    assert costs(tmp_path, clock).of(genotype) == first.of(genotype) and clock.shapes[1] == [[1, 8, 4, 4]]
    assert costs(tmp_path, clock, batch_size=2).of(genotype) == 2 * first.of(genotype)
    assert len(clock.shapes) == 3 and clock.shapes[2][0][0] == 2
    assert len(json.loads((tmp_path / 'latency.json').read_text())) == 2


@pytest.mark.parametrize('content', ['[]', '{"a": {"b": -1}}', '{"a": {"b": 1.5}}', 'x'])
def test_other_files_are_refused(tmp_path, content):
    clock = Clock()
    (tmp_path / 'latency.json').write_text(content)
    with pytest.raises(UserError, match='^--latency_table: .*latency.json cannot be read: '):
        costs(tmp_path, clock)
    assert (tmp_path / 'latency.json').read_text() == content and not clock.shapes


def test_a_measurement_is_a_number_of_nanoseconds():
    from operations import OPS
    entries = {name: (OPS[name](4, 1, True), [1, 4, 8, 8]) for name in ('skip_connect', 'sep_conv_5x5')}
    found = latency.measure(entries)
    assert set(found) == set(entries) and all(type(value) is int for value in found.values())
    assert 0 < found['skip_connect'] < found['sep_conv_5x5']


def test_costs_are_shown_in_the_unit_of_their_flag():
    assert shown('macs', 1234567) == '1,234,567' and shown('latency_ns', 12345678) == '12.346'
