"""Signs of a collapse, what users of differentiable search complain of most: the cell fills up with skip connections.

    skip connections in the normal cell   Liang et al.: DARTS+, 2019: stop when there are two
    entropy of the architecture weights   how undecided the search still is
    dominant eigenvalue of the Hessian    Zela et al.: Understanding and Robustifying Differentiable Architecture
                                          Search, ICLR 2020
"""
import math

from genotypes import Genotype
from runtime.errors import UserError

# The rule of Zela et al., section 4.3: means of WINDOW measurements, each counted for the epoch in the middle of them;
# the newest one is compared with the one DISTANCE means before, whose epoch must be at least FIRST_EPOCH.
WINDOW, DISTANCE, FIRST_EPOCH = 5, 4, 10


def indicators(genotype, strengths):
    """What an epoch logs: {'skip_connects', 'alpha_entropy'}, without what a foreign space doesn't have.

    strengths: for each kind of cell [edges, operations], nested lists; the entropy is the mean over all edges, in nats.
    """
    found = {}
    if isinstance(genotype, Genotype):
        found['skip_connects'] = sum(operation == 'skip_connect' for operation, _ in genotype.normal)
    mean = entropy([row for cell in strengths for row in cell])
    if not math.isnan(mean):
        found['alpha_entropy'] = mean
    return found


def entropy(strengths):
    """The mean over all edges of the entropy of their operations, in nats: log(operations) while all are equal, 0 when
    one operation is left.

    strengths: [edges, operations], nested lists; a row is divided by its sum, so that sigmoids count as softmax does.
    NaN if there is no edge, or one whose strengths are negative or all zero.
    """
    if not strengths or any(min(row) < 0 or not sum(row) > 0 for row in strengths):
        return math.nan
    shares = [value / sum(row) for row in strengths for value in row]
    return sum(-share * math.log(share) for share in shares if share > 0) / len(strengths)


class EarlyStop:
    """When to stop: 'skip:2' at so many skip connections in the normal cell, 'eigenvalue:1.3' when the mean of five
    dominant eigenvalues is more than so many times the mean four measurements earlier.

    The genotype that counts is that of the last epoch below the limit ('skip'), or of the epoch in the middle of the
    earlier five measurements ('eigenvalue'). Epochs without architecture updates do not count.
    """

    def __init__(self, kind, limit):
        if kind not in ('skip', 'eigenvalue'):
            raise UserError(f"--early_stop: '{kind}' is not allowed: give skip or eigenvalue")
        self.kind, self.limit = kind, limit

    def check(self, figures, eigenvalue_freq):
        """Raise UserError if a search does not give what the rule reads. figures: those of an epoch, which indicators()
        and MonitorOptions.cell_figures give."""
        if self.kind == 'eigenvalue' and not eigenvalue_freq:
            raise UserError('--early_stop=eigenvalue: the eigenvalue is not measured; give MonitorOptions.'
                            'eigenvalue_freq, 2 for the rule of its authors')
        if self.kind == 'skip' and 'skip_connects' not in figures:
            raise UserError('--early_stop=skip: the number of skip connections in a cell of this search space is not '
                            'known; give MonitorOptions.cell_figures a function that returns skip_connects')

    def verdict(self, history, first=0):
        """None to go on, or the line of the last good epoch.

        history: the lines of metrics.jsonl so far. first: how many epochs at the beginning of each stage of the search
        do not update the architecture.
        """
        begins = {}  # of the stages
        for line in history:
            begins.setdefault(line.get('stage', 1), line['epoch'])
        history = [line for line in history if line['epoch'] - begins[line.get('stage', 1)] >= first]
        if self.kind == 'skip':
            good = [line for line in history if line['skip_connects'] < self.limit]
            return good[-1] if good and history[-1]['skip_connects'] >= self.limit else None
        measured = [line for line in history if 'eigenvalue' in line]
        if not history or 'eigenvalue' not in history[-1] or len(measured) < WINDOW + DISTANCE:
            return None
        values = [line['eigenvalue'] for line in measured]
        before, now = sum(values[-WINDOW - DISTANCE:-DISTANCE]) / WINDOW, sum(values[-WINDOW:]) / WINDOW
        earlier = measured[-DISTANCE - WINDOW // 2 - 1]
        return earlier if now > self.limit * before > 0 and earlier['epoch'] >= FIRST_EPOCH else None
