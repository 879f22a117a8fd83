"""nas/precompile.py compiles all loops of a search, half of them in a process of its own."""
import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT, needs_numba

from runtime.parallel import cpu_threads


@needs_numba
@pytest.mark.skipif(cpu_threads() == 1, reason='needs two cores')
@pytest.mark.parametrize('method', ['DARTS', 'PC-DARTS'])
def test_the_first_step_finds_all_loops_compiled(tmp_path, method):
    def first_step():
        program = os.path.join(ROOT, 'tests', 'programs', 'first_step.py')
        result = subprocess.run([sys.executable, program, ROOT, method], capture_output=True, text=True,
                                env=dict(os.environ, NUMBA_CACHE_DIR=str(tmp_path)))
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout.splitlines()[-1])
    cold, warm = first_step(), first_step()
    assert cold['step'] == [] and cold['same_numbers']
    assert 'kernels.backward.backward_pass' in cold['accelerating']
    assert 'kernels.forward.forward_pass' not in cold['accelerating']
    assert warm == {'accelerating': [], 'step': [], 'same_numbers': True}
