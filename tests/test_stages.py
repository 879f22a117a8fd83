"""Searches whose methods carry state from step to step: DrNAS with two stages, GDAS with gradients that are kept. A
stopped and resumed run must end with the same bits."""
import json

import numpy as np
import paddle
import pytest

from model_search import Network
from nas.options import CheckpointOptions
from nas.searcher import DARTSearch


class Stopped(Exception):
    pass


def search(folder, method, resume=False, stop_before=None):
    """A small search of 4 epochs of 2 steps, ended by an exception before the step of that number. Returns the
    searcher."""
    paddle.seed(0)
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(4, 3, 8, 8)).astype('float32'), np.arange(4)) for _ in range(2)]
    searcher = DARTSearch(Network(12, 4, 1, method, steps=2, multiplier=2), lambda: batches, lambda: batches,
                          paddle.CPUPlace(),
                          num_epochs=4, epochs_no_archopt=1, arch_learning_rate=0.1, save_dir=str(folder),
                          checkpoint=CheckpointOptions(resume=resume, save_freq=1))
    step, done = searcher.train_step, [0]

    def counted(*batch, **options):
        if done[0] == stop_before:
            raise Stopped
        done[0] += 1
        return step(*batch, **options)
    searcher.train_step = counted
    searcher.train()
    return searcher


def values(searcher):
    state = dict(searcher.model.state_dict())
    return {name: value.numpy() for name, value in state.items()}


@pytest.mark.parametrize('method', ['DrNAS', 'GDAS'])
def test_a_resumed_run_has_the_same_bits(tmp_path, method):
    """Stopped within both stages and just before the second one begins."""
    whole = search(tmp_path / 'whole', method)
    expected = values(whole)
    for stop in (3, 4, 5):
        folder = tmp_path / str(stop)
        with pytest.raises(Stopped):
            search(folder, method, stop_before=stop)
        resumed = search(folder, method, resume=True)
        found = values(resumed)
        assert sorted(found) == sorted(expected)
        for name, value in expected.items():
            assert (found[name] == value).all(), (stop, name)
        lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
        whole_lines = [json.loads(line) for line in (tmp_path / 'whole' / 'metrics.jsonl').read_text().splitlines()]
        for key in ('train_loss', 'valid_loss', 'alphas', 'genotype'):
            assert [line[key] for line in lines] == [line[key] for line in whole_lines], (stop, key)


def test_the_second_stage_of_drnas(tmp_path):
    searcher = search(tmp_path, 'DrNAS')
    assert searcher.method.partial == 4
    lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    assert [line['stage'] for line in lines] == [1, 1, 2, 2]
    assert json.loads((tmp_path / 'genotype.json').read_text())['search']['stage'] == 2
    first, second = lines[0]['alphas'], lines[2]['alphas']  # the architecture rests in the first epoch of each stage
    assert first != lines[1]['alphas'] and second != lines[3]['alphas']
    for before, after in zip(lines[1]['alphas'], second):
        kept = np.asarray(after) != 0
        assert (kept.sum(-1) == 4).all() and (np.asarray(after)[kept] == np.asarray(before)[kept]).all()
    assert sorted({p.shape[0] for name, p in searcher.model.named_parameters() if '.op.1.weight' in name
                   and '_ops.0._ops' in name}) == [6]  # 24 channels of the reduction cell, by 4
