"""What --use_vdl logs for VisualDL (pip install visualdl; visualdl --logdir search_cifar/vdl): an epoch's figures as curves, the
architecture parameters as histograms, the cells as a picture.
"""
import os

import numpy as np

from genotypes import from_dict
from pictures import film as plots
from runtime.errors import UserError
from runtime.parallel import rank
from visualize import Epoch

GROUPS = {'train': 'train', 'valid': 'valid', 'lr': 'train', 'seconds': 'cost', 'reader': 'cost', 'batch': 'cost', 'images': 'cost',
          'peak': 'cost'}


class VisualLog:
    """Logs a run to the folder vdl/ in its own; call it with each epoch's line of metrics.jsonl.

    resume: whether the run goes on with an earlier one, whose log then stays. Raises UserError where VisualDL is not installed.
    """

    def __init__(self, folder, resume):
        try:
            from visualdl import LogWriter
        except ImportError:
            raise UserError('--use_vdl: VisualDL is not installed: pip install visualdl')
        self.folder = os.path.join(folder, 'vdl')
        if not resume and os.path.isdir(self.folder):
            for name in os.listdir(self.folder):
                if name.startswith('vdlrecords.'):
                    os.remove(os.path.join(self.folder, name))
        self.writer = LogWriter(self.folder)
        self.epochs, self.genotype = [], None

    def __call__(self, metrics):
        epoch = metrics['epoch']
        for name, value in metrics.items():
            if name != 'epoch' and isinstance(value, (int, float)):
                group = GROUPS.get(name.split('_')[0], 'search')
                self.writer.add_scalar(f'{group}/{name}', value, epoch)
        for name, values in zip(('alphas_normal', 'alphas_reduce', 'betas_normal', 'betas_reduce'), metrics.get('alphas', [])):
            self.writer.add_histogram('architecture/' + name, np.asarray(values).reshape(-1), epoch)
        if metrics['genotype'] != self.genotype:  # a film of what changed, not of every epoch
            self.genotype = metrics['genotype']
            self.epochs.append(Epoch(epoch, from_dict(self.genotype), metrics['train_acc'], metrics.get('valid_acc', float('nan')), None))
            self.writer.add_image('cells', plots.picture(self.epochs), epoch)


def visual_log(folder, *, resume):
    """A VisualLog for the output directory of a run, to be called after each epoch; None on ranks other than 0."""
    return VisualLog(folder, resume) if rank() == 0 else None
