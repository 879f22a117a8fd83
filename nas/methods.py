"""How differentiable search methods differ: how architecture parameters become weights, what is added to the loss,
the derived cell.

    DARTS      Liu, Simonyan, Yang: DARTS: Differentiable Architecture Search, ICLR 2019
    PC-DARTS   Xu et al.: PC-DARTS: Partial Channel Connections for Memory-Efficient Architecture Search, ICLR 2020
    GDAS       Dong, Yang: Searching for a Robust Neural Architecture in Four GPU Hours, CVPR 2019
    DrNAS      Chen et al.: DrNAS: Dirichlet Neural Architecture Search, ICLR 2021
    FairDARTS  Chu et al.: Fair DARTS: Eliminating Unfair Advantages in Differentiable Architecture Search, ECCV 2020
    DARTS-     Chu et al.: DARTS-: Robustly Stepping out of Performance Collapse Without Indicators, ICLR 2021

To add a method, subclass DARTS, override what differs and add the class to METHODS.
"""
import math

import numpy as np
import paddle
import paddle.nn.functional as F

from genotypes import PRIMITIVES, Genotype, derive_cell, edge_number
from runtime.errors import UserError

WITHOUT_NONE = [name for name in PRIMITIVES if name != 'none']
GDAS_ORDER = ['none', 'skip_connect', 'sep_conv_3x3', 'sep_conv_5x5', 'dil_conv_3x3', 'dil_conv_5x5', 'avg_pool_3x3',
              'max_pool_3x3']  # of its authors' code; operations of your own follow


class DARTS:
    """Softmax over the operations of an edge (DARTS, equation 2); every edge has the same weight.

    The supernet, the searcher and the architect ask an object of this class for everything in which methods differ.
    partial: 1/partial of the channels pass through the operations of an edge; default: the method's own number.
    """

    name = 'DARTS'
    # the candidate operations, keys of operations.OPS; column k of alphas belongs to primitives[k]
    primitives = PRIMITIVES
    partial = 1
    with_betas = False  # whether edges have architecture parameters too
    alpha_deviation = 1e-3  # standard deviation of the initial architecture parameters
    auxiliary_skip = False  # whether every edge has an additional skip connection, multiplied by skip_weight
    skip_weight = 0.0
    pool_norm = True  # whether a batch norm without trainable part follows the poolings
    final_norm = False  # whether a trainable batch norm and ReLU come before the global pooling
    pointwise_bias = False  # whether 1x1 convolutions have a bias (the first convolution of the stem is 3x3)
    arch_beta1 = 0.5  # of Adam for the architecture parameters
    nesterov = False  # of the weights' SGD
    weights_first = False  # whether a search step updates the weights before the architecture
    clip_arch_gradient = False  # whether the clipped norm includes the gradient of the architecture parameters
    # Whether weights that once had a gradient move by momentum and decay in steps that do not draw them.
    undrawn_weights_move = True
    second_order = True  # whether --unrolled has a meaning
    later_stages = ()  # of the search, as (partial, operations that each edge keeps), in equal shares of the epochs
    epoch, epochs = 0, 1  # set by the searcher before each epoch

    def __init__(self, *, partial=None):
        if partial is not None:
            self.partial = partial
            self.later_stages = tuple((partial, kept) for _, kept in self.later_stages)

    def set_epoch(self, epoch, epochs):
        """Set the epoch of the search, counted from 0, and the number of all epochs, for what changes during the
        search."""
        self.epoch, self.epochs = epoch, epochs

    def stage_at(self, epoch, epochs):
        """The number of the stage, from 1, that an epoch belongs to."""
        return 1 + epoch * (1 + len(self.later_stages)) // epochs

    def operation_weights(self, alphas):
        """alphas [edges, operations] -> the weights of the operations in the supernet, [edges, operations]."""
        return F.softmax(alphas, axis=-1)

    def active_operations(self, weights):
        """weights [edges, operations] -> for each edge the columns of the operations that are computed; None: all of
        them."""
        return None

    def strengths(self, alphas):
        """alphas [edges, operations] -> the scores that rank operations for the genotype, [edges, operations]."""
        return F.softmax(alphas, axis=-1)

    def edge_weights(self, betas, edge_counts):
        """betas [edges] or None -> the weights of the edges, [edges], or None where edges have none. edge_counts: how
        many edges enter each node, [2, 3, 4, 5] in a cell of DARTS."""
        return None

    def regularizer(self, alphas):
        """The term added to the cross-entropy, a scalar; alphas: a list of [edges, operations]."""
        return 0.0

    def derive(self, strengths, steps):
        """strengths [edges, operations], nested lists -> a cell as a list of (operation, source state), two per
        node."""
        return derive_cell(strengths, self.primitives, steps)

    def check_channels(self, channels, name, partials=None):
        """Raise UserError for a number of channels of which no 1/partial can be taken. name: of the number, for the
        message. partials: default: those of all stages."""
        partials = partials or [self.partial, *(partial for partial, _ in self.later_stages)]
        if channels % math.lcm(*partials):
            shares = ' and '.join(f'1/{partial}' for partial in partials)
            raise UserError(f'{name}: {channels} is not allowed: {self.name} passes {shares} of the channels through '
                            f'an edge, give a multiple of {math.lcm(*partials)}')


class PCDARTS(DARTS):
    """Partial channel connections (Xu et al. 2020, section 3.2) with edge normalisation (section 3.3, equation 3)."""

    name = 'PC-DARTS'
    partial = 4  # K = 4 for CIFAR-10, section 4.2; its authors take 2 for ImageNet: --partial_channels=2
    with_betas = True

    def edge_weights(self, betas, edge_counts):
        """Softmax over the edges that enter a node."""
        return softmax_by_node(betas, edge_counts)


class GDAS(DARTS):
    """Gumbel-softmax with a hard sample (GDAS, equations 3 to 6).

    h = softmax((log softmax(alpha) + o) / tau), o Gumbel noise. Only the operation with the largest h of an edge is
    computed; its weight is 1 with the gradient of h (straight-through). tau decreases linearly from 10 to 0.1 (section
    4.1).
    A node keeps its two strongest (operation, state) pairs, `none` excluded; both may lie on one edge.
    Order of the steps, batch norms, biases and clipping are those of the authors' code (AutoDL-Projects).
    """

    name = 'GDAS'
    primitives = sorted(PRIMITIVES, key=lambda name: GDAS_ORDER.index(name) if name in GDAS_ORDER else len(GDAS_ORDER))
    pool_norm = False
    final_norm = True
    pointwise_bias = True
    nesterov = True
    weights_first = True
    clip_arch_gradient = True
    second_order = False  # the sample has no second derivative
    tau_max, tau_min = 10.0, 0.1

    @property
    def tau(self):
        """The temperature at the present epoch: from tau_max in the first one to tau_min in the last one."""
        return self.tau_max - (self.tau_max - self.tau_min) * self.epoch / max(self.epochs - 1, 1)

    def draw_gumbel(self, alphas):
        """Standard Gumbel noise of the shape of alphas, drawn again until it is finite."""
        while True:
            noise = -paddle.log(-paddle.log(paddle.rand(alphas.shape, alphas.dtype)))
            if bool(paddle.isfinite(noise).all()):
                return noise

    def operation_weights(self, alphas):
        soft = F.softmax((F.log_softmax(alphas, axis=-1) + self.draw_gumbel(alphas)) / self.tau, axis=-1)
        hard = F.one_hot(soft.argmax(-1), alphas.shape[-1]).astype(soft.dtype)
        return hard - soft.detach() + soft

    def active_operations(self, weights):
        return [[column] for column in weights.argmax(-1).tolist()]

    def derive(self, strengths, steps):
        cell, start = [], 0
        for node in range(steps):
            rows = strengths[start:start + node + 2]
            pairs = [(score, self.primitives[column], state) for state, row in enumerate(rows)
                     for column, score in enumerate(row) if self.primitives[column] != 'none']
            start += node + 2
            cell += [(operation, state) for _, operation, state in sorted(pairs, key=lambda pair: -pair[0])[:2]]
        return cell


class DrNAS(DARTS):
    """Weights drawn from a Dirichlet distribution (DrNAS, section 3.1): theta ~ Dir(c), c = elu(alpha) + 1, a draw
    for each edge.

    The gradient of a draw is the implicit one through its Beta marginals, see `dirichlet_jacobian`. The search has two
    stages (section 3.3): 1/6 of the channels and all operations, then 1/4 and the four strongest operations of each
    edge. By default Adam's weight decay is the only regularizer; kl_weight = 1e-3 adds the Kullback-Leibler divergence
    of Dir(c) from Dir(1) instead, to be used without that weight decay.
    """

    name = 'DrNAS'
    primitives = WITHOUT_NONE
    partial = 6
    later_stages = ((4, 4),)

    def __init__(self, *, kl_weight=0.0, **options):
        super().__init__(**options)
        self.kl_weight = kl_weight

    def concentration(self, alphas):
        """The parameters of the Dirichlet distributions, above 0, of the shape of alphas (DrNAS, section 3.2)."""
        return F.elu(alphas) + 1

    def draw_theta(self, concentration):
        """numpy [edges, operations] -> draws of the Dirichlet distribution; the seed comes from Paddle's generator."""
        generator = np.random.default_rng(int(paddle.randint(0, 2**31 - 1, [1])))
        gamma = np.maximum(generator.standard_gamma(concentration), 1e-30)
        return gamma / gamma.sum(-1, keepdims=True)

    def operation_weights(self, alphas):
        concentration = self.concentration(alphas)
        values = np.maximum(concentration.numpy().astype('float64'), 1e-6)
        theta = np.clip(self.draw_theta(values), 1e-30, 1 - 1e-12)
        jacobian = paddle.to_tensor(dirichlet_jacobian(theta, values), alphas.dtype)
        theta = paddle.to_tensor(theta, alphas.dtype)
        change = jacobian * (concentration - concentration.detach())  # zero; its gradient is what counts
        return theta + change - theta * change.sum(-1, keepdim=True)

    def regularizer(self, alphas):
        """kl_weight times the sum over all edges of KL(Dir(c) || Dir(1)), where C = sum c_k of K operations:
        lgamma(C) - sum lgamma(c_k) - lgamma(K) + sum (c_k - 1) (digamma(c_k) - digamma(C))."""
        if not self.kl_weight:
            return 0.0
        divergence = 0.0
        for concentration in map(self.concentration, alphas):
            total = concentration.sum(-1, keepdim=True)
            score = (concentration - 1) * (paddle.digamma(concentration) - paddle.digamma(total))
            divergence += (paddle.lgamma(total).squeeze(-1) - paddle.lgamma(concentration).sum(-1)
                           - math.lgamma(concentration.shape[-1]) + score.sum(-1)).sum()
        return self.kl_weight * divergence


def dirichlet_jacobian(theta, concentration):
    """The implicit derivative J_j = -(dF/da)(theta_j) / f(theta_j) / (1 - theta_j) of Dirichlet draws, numpy float64
    [edges, operations].

    F and f are the distribution function and the density of Beta(a, b), a = c_j and b = sum c - c_j held fixed. The
    gradient of theta_i by c_j is J_j (delta_ij - theta_i) (Figurnov et al.: Implicit Reparameterization Gradients,
    NeurIPS 2018).
    """
    from scipy.special import betainc, betaln  # SciPy comes with scikit-learn
    a, b = concentration, concentration.sum(-1, keepdims=True) - concentration
    upper = betainc(a, b, theta) > 0.5  # the smaller tail keeps its digits

    def tail(a):
        return np.where(upper, -betainc(b, a, 1 - theta), betainc(a, b, theta))

    step = 1e-3 * a
    slope = (8 * (tail(a + step) - tail(a - step)) - tail(a + 2 * step) + tail(a - 2 * step)) / (12 * step)
    log_density = (a - 1) * np.log(theta) + (b - 1) * np.log1p(-theta) - betaln(a, b)
    return -slope * np.exp(-log_density) / (1 - theta)


class FairDARTS(DARTS):
    """Independent operations (Fair DARTS, equation 2): sigmoid(alpha) in place of the softmax. The loss has the
    additional term -10 / N * sum (sigmoid(alpha) - 0.5)^2 over all N alphas, which drives weights to 0 or 1 (equation
    3, section 4.1).

    A node keeps its two strongest edges, of which those below the threshold 0.85 become `none` (section 3.3): a node
    may have two edges, one or none.
    """

    name = 'FairDARTS'
    primitives = WITHOUT_NONE
    alpha_deviation = 0.0
    arch_beta1 = 0.9
    threshold, zero_one_weight = 0.85, 10.0

    def operation_weights(self, alphas):
        return F.sigmoid(alphas)

    strengths = operation_weights

    def regularizer(self, alphas):
        count = sum(alpha.size for alpha in alphas)
        return -self.zero_one_weight * sum((F.sigmoid(alpha) - 0.5).square().sum() for alpha in alphas) / count

    def derive(self, strengths, steps):
        cell = super().derive(strengths, steps)
        for i, (operation, state) in enumerate(cell):
            if strengths[edge_number(i // 2, state)][self.primitives.index(operation)] < self.threshold:
                cell[i] = ('none', state)
        return cell


class DARTSMinus(DARTS):
    """An auxiliary skip connection beside every mixed operation (DARTS-, equation 5): beta * x + sum p_o o(x). The
    genotype ignores it.

    decay: how beta depends on the epoch, see skip_weight; 'linear' is the authors' default.
    """

    name = 'DARTS-'
    auxiliary_skip = True

    def __init__(self, *, decay='linear', **options):
        super().__init__(**options)
        self.decay = decay

    @property
    def skip_weight(self):
        """beta at the present epoch: 1 in the first one, and not quite 0 in the last one."""
        x = self.epoch / self.epochs
        return {'linear': 1 - x, 'cosine': (1 + math.cos(math.pi * x)) / 2, 'slow_cosine': math.cos(math.pi / 2 * x),
                'constant': 1.0}[self.decay]


def softmax_by_node(betas, edge_counts):
    """betas [edges] -> the softmax over the edges that enter each node, [edges]."""
    return paddle.concat([F.softmax(node, axis=-1) for node in betas.split(list(edge_counts))])


def method_of(model):
    """The method object of a network; that of DARTS for a network that has none, such as one in PaddleSlim's form."""
    method = getattr(model, 'method', None)
    return method if isinstance(method, DARTS) else DARTS()


def genotype_of_attributes(model):
    """The genotype of a network written for PaddleSlim's DARTSearch, from its attributes; with betas if it has them."""
    cells = []
    for kind in ('normal', 'reduce'):
        strengths = F.softmax(getattr(model, 'alphas_' + kind), axis=-1)
        betas = getattr(model, 'betas_' + kind, None)
        if betas is not None:
            strengths *= softmax_by_node(betas, range(2, 2 + model._steps)).unsqueeze(-1)
        cells.append(derive_cell(strengths.tolist(), model._primitives, model._steps))
    concat = range(2 + model._steps - model._multiplier, 2 + model._steps)
    return Genotype(cells[0], concat, cells[1], concat)


METHODS = {method.name: method for method in (DARTS, PCDARTS, GDAS, DrNAS, FairDARTS, DARTSMinus)}


def make_method(name, **options):
    """An object of the method with this name; options: of its class. Raises UserError for a name that METHODS lacks."""
    if name not in METHODS:
        raise UserError(f"--method: '{name}' is not allowed: give one of {', '.join(METHODS)}, which METHODS of "
                        'nas/methods.py has')
    return METHODS[name](**options)
