"""The options of nas.DARTSearch beyond those of PaddleSlim, in groups."""
from dataclasses import dataclass, field
from typing import Any, Callable, Optional


@dataclass(frozen=True)
class WeightOptions:
    """The weight step: SGD with momentum and L2 decay, gradients clipped to the global norm grad_clip (0: not
    clipped). The learning rate decreases along a cosine to learning_rate_min."""

    momentum: float = 0.9
    weight_decay: float = 3e-4
    grad_clip: float = 5.0
    learning_rate_min: float = 1e-3


@dataclass(frozen=True)
class ArchOptions:
    """The architecture step. weight_decay: Adam's L2 penalty (its learning rate is a PaddleSlim argument). budget: a
    nas.budget.Budget, for a network whose result is a Genotype; None: no limits."""

    weight_decay: float = 1e-3
    budget: Any = None


@dataclass(frozen=True)
class CheckpointOptions:
    """resume: continue from the newest checkpoint in save_dir. save_freq: steps between two checkpoints within an
    epoch; 0: only at the end of each epoch. keep: number of checkpoints to keep. save_params: write
    <epoch>/params.pdparams. arguments: {name: value} that a resumed run must repeat; default: the options of the
    search."""

    resume: bool = False
    save_freq: int = 0
    keep: int = 2
    save_params: bool = True
    arguments: Optional[dict] = None


@dataclass(frozen=True)
class MonitorOptions:
    """What is measured and logged after an epoch.

    eval_reader: the data on which the validation accuracy is measured; default: valid_reader, one of reader.py without
    its augmentation. validate: False skips that. search_info: a dict that every genotype.json holds under "search".
    eigenvalue_freq: epochs between two measurements of the dominant eigenvalue of the Hessian; 0: none. early_stop: a
    nas.collapse.EarlyStop. on_epoch: called with the line of metrics.jsonl, a dict, of each epoch. cell_figures: called
    with the genotype after each epoch, returns {name: number} for the log and metrics.jsonl; for 'skip_connects' and
    whatever is known of the cells of a space."""

    eval_reader: Any = None
    validate: bool = True
    search_info: dict = field(default_factory=dict)
    eigenvalue_freq: int = 0
    early_stop: Any = None
    on_epoch: Optional[Callable] = None
    cell_figures: Optional[Callable] = None
