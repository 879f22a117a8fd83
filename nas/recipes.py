"""The names of the search methods and the defaults in which they differ. No Paddle import: `--help` answers at once."""

METHOD_NAMES = ['DARTS', 'PC-DARTS', 'GDAS', 'DrNAS', 'FairDARTS', 'DARTS-']  # the keys of nas.methods.METHODS


def final_learning_rate(method, learning_rate):
    """Where the cosine schedule of the weights ends: 0 for PC-DARTS, 1e-3 for the others, as in the authors' code."""
    return 0.0 if method == 'PC-DARTS' else min(1e-3, learning_rate)
