"""Logs a run for VisualDL (pip install visualdl; visualdl --logdir search_cifar/vdl): the figures of each epoch as
curves, the architecture parameters as histograms, the cells as pictures.

VisualDL shows one log file of a folder, that of the latest name. A run therefore writes one file with all its epochs: a
resumed run writes those before it again, from metrics.jsonl.
"""
import json
import os
import re
import secrets
import time

import numpy as np

from genotypes import Genotype, from_json
from pictures.film import picture
from pictures.history import Epoch
from runtime.errors import UserError
from runtime.files import MAX_JSON_BYTES, UnreadableFile, read_json, write_text
from runtime.parallel import rank

# The group of a figure by its first word; others are 'search'.
GROUPS = {'train': 'train', 'valid': 'valid', 'lr': 'train', 'seconds': 'cost', 'reader': 'cost', 'batch': 'cost',
          'images': 'cost', 'peak': 'cost'}
ARCHITECTURE = ('alphas_normal', 'alphas_reduce', 'betas_normal', 'betas_reduce')

# The names of the log files that VisualLog wrote to a folder are listed in a file there, and only they are ever
# removed. The random part keeps them apart from files that something else wrote.
LIST = 'darts-files.json'
LOG_NAME = r'vdlrecords\.\d{10,}\.darts-[0-9a-f]{16}\.log'


def visual_log(folder):
    """A VisualLog for the output folder of a run, to be called after each epoch; None on ranks other than 0.

    Raises UserError where VisualDL is not installed.
    """
    return VisualLog(folder) if rank() == 0 else None


class VisualLog:
    """Logs a run to vdl/ in its output folder. Call it with each line of metrics.jsonl after that was written.

    Nothing is written or removed before the first epoch is complete.
    """

    def __init__(self, folder):
        try:
            import visualdl  # noqa: F401
        except ImportError:
            raise UserError('--use_vdl: VisualDL is not installed: pip install visualdl')
        self.metrics_path, self.folder = os.path.join(folder, 'metrics.jsonl'), os.path.join(folder, 'vdl')
        self.writer = None
        self.epochs, self.genotype = [], None

    def __call__(self, metrics):
        if self.writer is None:
            try:
                self._begin()
            except OSError as error:
                raise UserError(f'--use_vdl: cannot write to {self.folder}: {error.strerror or error}', status=1)
            with open(self.metrics_path, encoding='utf-8') as f:
                for line in map(json.loads, f):
                    if line['epoch'] < metrics['epoch']:
                        self._log(line)
        self._log(metrics)
        self.writer.flush()

    def _begin(self):
        """Start a log file and remove those that runs before wrote."""
        from visualdl import LogWriter
        os.makedirs(self.folder, exist_ok=True)
        list_path = os.path.join(self.folder, LIST)
        name, earlier = f'vdlrecords.{int(time.time()):010d}.darts-{secrets.token_hex(8)}.log', own_files(self.folder)
        write_text(list_path, json.dumps([*earlier, name]) + '\n')
        self.writer = LogWriter(self.folder, file_name=name)
        for other in earlier:
            os.remove(os.path.join(self.folder, other))
        write_text(list_path, json.dumps([name]) + '\n')

    def _log(self, metrics):
        epoch = metrics['epoch']
        for name, value in metrics.items():
            if name != 'epoch' and isinstance(value, (int, float)):
                self.writer.add_scalar(f'{GROUPS.get(name.split("_")[0], "search")}/{name}', value, epoch)
        alphas = metrics.get('alphas', [])
        names = ARCHITECTURE if len(alphas) in (2, 4) else [f'parameter_{i}' for i in range(len(alphas))]
        for name, values in zip(names, alphas):
            self.writer.add_histogram('architecture/' + name, np.asarray(values).reshape(-1), epoch)
        self._log_genotype(metrics, epoch)

    def _log_genotype(self, metrics, epoch):
        """A picture of the cells, or the text of the result of another search space, when it has changed."""
        genotype = from_json(metrics.get('genotype'))
        if genotype is None or genotype == self.genotype:
            return
        self.genotype = genotype
        if not isinstance(genotype, Genotype):
            self.writer.add_text('genotype', str(genotype), epoch)
            return
        accuracies = [metrics.get(key, float('nan')) for key in ('train_acc', 'valid_acc')]
        self.epochs.append(Epoch(epoch, genotype, *accuracies, None))
        self.writer.add_image('cells', picture(self.epochs), epoch)


def own_files(folder):
    """The names of the log files in a folder that VisualLog wrote."""
    try:
        names = read_json(os.path.join(folder, LIST), MAX_JSON_BYTES)
    except UnreadableFile:
        return []
    return [name for name in names if isinstance(name, str) and re.fullmatch(LOG_NAME, name)
            and os.path.isfile(os.path.join(folder, name))] if isinstance(names, list) else []
