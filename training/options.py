"""The options of evaluation.train, in groups. The defaults are those of train.py."""
from dataclasses import dataclass
from typing import Callable, Optional


@dataclass(frozen=True)
class OptimizerOptions:
    """SGD with momentum, Nesterov's or the usual one, and L2 decay; gradients clipped to the global norm grad_clip."""

    momentum: float = 0.9
    weight_decay: float = 3e-4
    grad_clip: float = 5.0
    nesterov: bool = False


@dataclass(frozen=True)
class LossOptions:
    """auxiliary_weight: of the auxiliary classifier's cross-entropy. label_smooth: epsilon of label smoothing, in both
    terms (Szegedy et al. 2016, section 7)."""

    auxiliary_weight: float = 0.4
    label_smooth: float = 0.0


@dataclass(frozen=True)
class PrecisionOptions:
    """Automatic mixed precision. level: 'O0' float32, 'O1' 16 bits where Paddle considers it safe, 'O2' nearly
    everywhere, with float32 master weights. dtype: 'float16', which needs a gradient scaler, or 'bfloat16', which does
    not."""

    level: str = 'O0'
    dtype: str = 'float16'


@dataclass(frozen=True)
class AdditionOptions:
    """What additions.Additions adds: ema: decay of the average of the weights; mixup, cutmix: alpha of the beta
    distribution; None: without. accumulate: batches a step."""

    ema: Optional[float] = None
    mixup: Optional[float] = None
    cutmix: Optional[float] = None
    accumulate: int = 1


@dataclass(frozen=True)
class RunOptions:
    """arguments: {name: value} that a resumed run must repeat. resume: continue from the newest checkpoint. save_freq:
    steps between two checkpoints within an epoch; 0: only at the end of each epoch. keep: number of checkpoints to
    keep. on_epoch: called with the line of metrics.jsonl, a dict, of each epoch."""

    arguments: dict
    seed: int
    resume: bool = False
    save_freq: int = 0
    keep: int = 2
    on_epoch: Optional[Callable] = None
