"""benchmarks/bench_torch.py: that PyTorch computes what this project does, where PyTorch is installed."""
import importlib.util
import os
import re
import sys

import pytest
from conftest import check_refusal

from benchmarks.bench_torch import check_outputs
from runtime.errors import UserError

SCRIPT = os.path.join('benchmarks', 'bench_torch.py')


def test_a_python_without_torch_is_refused_in_one_line(script, tmp_path):
    fake = tmp_path / 'python'
    fake.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'torch'\" >&2\nexit 1\n")
    fake.chmod(0o755)
    check_refusal(script(SCRIPT, f'--torch_python={fake}'), "No module named 'torch'")
    check_refusal(script(SCRIPT, '--torch_python=absent'), 'absent cannot be run')


@pytest.mark.parametrize('layouts, after, agrees', [(1e-6, 9e-4, True), (1e-6, 2e-3, False), (0.1, 0.29, True),
                                                    (0.1, 0.31, False)])
def test_outputs_may_differ_as_far_as_the_two_layouts_of_pytorch_do(layouts, after, agrees):
    about = {'PyTorch': {'before': 1e-5, 'after': after},
             'channels-last': {'before': 1e-5, 'after': 0.0, 'layouts': {'before': 1e-6, 'after': layouts}}}
    if agrees:
        check_outputs('a work', about)
    else:
        with pytest.raises(UserError, match='PyTorch computes other outputs'):
            check_outputs('a work', about)


@pytest.mark.skipif(importlib.util.find_spec('torch') is None and 'TORCH_PYTHON' not in os.environ,
                    reason='needs PyTorch, here or in the Python that the variable TORCH_PYTHON names')
@pytest.mark.parametrize('work', ['search-16', 'train', 'score'])
def test_torch_computes_the_same_outputs(script, work):
    """The script itself compares them before it times anything, and stops where they differ."""
    run = script(SCRIPT, '--torch_python=' + os.environ.get('TORCH_PYTHON', sys.executable), f'--work={work}',
                 '--init_channels=4', '--layers=3', '--batch_size=4', '--rounds=1')
    assert run.returncode == 0, run.stderr
    assert re.search(r'\| [^|]*C4 L3 batch 4 \| [\d.]+ s \(', run.stdout)
