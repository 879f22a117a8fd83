"""How differentiable search methods differ: how architecture parameters become weights, what is added to the loss, the derived cell.

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

from genotypes import PRIMITIVES, derive_cell


class DARTS:
    """Softmax over the operations of an edge (DARTS, equation 2); every edge has the same weight.

    The supernet and the searcher ask an object of this class for everything in which methods differ.
    """

    name = 'DARTS'
    primitives = PRIMITIVES  # the candidate operations, keys of operations.OPS; column k of alphas belongs to primitives[k]
    partial = 1  # 1/partial of the channels pass through the operations of an edge
    with_betas = False  # whether edges have architecture parameters too
    auxiliary_skip = False  # whether every edge has an additional skip connection, multiplied by skip_weight
    skip_weight = 0.0
    progress = 0.0  # of the search, from 0 in its first epoch to 1 in its last; set by the searcher

    def operation_weights(self, alphas):
        """alphas [edges, operations] -> the weights of the operations in the supernet, [edges, operations]."""
        return F.softmax(alphas, axis=-1)

    def active_operations(self, weights):
        """weights [edges, operations] -> for each edge the columns of the operations that are computed; None: all of them."""
        return None

    def strengths(self, alphas):
        """alphas [edges, operations] -> the scores that rank operations for the genotype, [edges, operations]."""
        return F.softmax(alphas, axis=-1)

    def edge_weights(self, betas, steps):
        """betas [edges] or None -> the weights of the edges, [edges], or None where edges have none."""
        return None

    def regularizer(self, alphas):
        """The term added to the cross-entropy, a scalar; alphas: a list of [edges, operations]."""
        return 0.0

    def derive(self, strengths, steps):
        """strengths [edges, operations], nested lists -> a cell as a list of (operation, source state), two a node."""
        return derive_cell(strengths, self.primitives, steps)


class PCDARTS(DARTS):
    """Partial channel connections (Xu et al. 2020, section 3.2) with edge normalisation (section 3.3, equation 3)."""

    name = 'PC-DARTS'
    partial = 4  # K = 4 for CIFAR-10 and ImageNet, section 4.1
    with_betas = True

    def edge_weights(self, betas, steps):
        """Softmax over the edges that enter a node; node i has i + 2 of them."""
        return softmax_by_node(betas, steps)


class GDAS(DARTS):
    """Gumbel-softmax with a hard sample (Dong, Yang: Searching for a Robust Neural Architecture in Four GPU Hours, CVPR 2019,
    equations 3 to 6).

    h = softmax((log softmax(alpha) + o) / tau) with o = -log(-log u), u uniform; forward, the largest h of an edge is 1 and the others are 0;
    backward, the gradient is h's. tau falls linearly from 10 to 0.1 (section 4.1).
    """

    name = 'GDAS'
    tau_max, tau_min = 10.0, 0.1

    def operation_weights(self, alphas):
        tau = self.tau_max - (self.tau_max - self.tau_min) * self.progress
        gumbel = -paddle.log(-paddle.log(paddle.uniform(alphas.shape, alphas.dtype, 1e-9, 1 - 1e-7)))
        soft = F.softmax((F.log_softmax(alphas, axis=-1) + gumbel) / tau, axis=-1)
        hard = F.one_hot(soft.argmax(-1), alphas.shape[-1]).astype(soft.dtype)
        return hard - soft.detach() + soft

    def active_operations(self, weights):
        return [[column] for column in weights.argmax(-1).tolist()]


class DrNAS(DARTS):
    """Weights drawn from a Dirichlet distribution (Chen et al.: DrNAS: Dirichlet Neural Architecture Search, ICLR 2021, section 3.1).

    theta ~ Dir(beta), beta = elu(alpha) + 1. A draw is g / sum(g) with g_k ~ Gamma(beta_k), taken as the inverse of Gamma's distribution function at
    a uniform number, so that its derivative by beta at that number is the pathwise gradient. Added to the loss: 0.001 times the Kullback-Leibler
    divergence from Dir(1), summed over the edges, mean over the cells.
    """

    name = 'DrNAS'
    regularization = 1e-3

    def concentration(self, alphas):
        return F.elu(alphas) + 1

    def operation_weights(self, alphas):
        from scipy.special import gammaincinv  # scipy comes with scikit-learn
        beta = self.concentration(alphas)
        b = np.maximum(beta.numpy().astype('float64'), 1e-3)
        u = paddle.uniform(alphas.shape, alphas.dtype, 1e-6, 1 - 1e-6).numpy().astype('float64')
        h = 1e-4 * b
        value, slope = gammaincinv(b, u) + 1e-12, (gammaincinv(b + h, u) - gammaincinv(b - h, u)) / (2 * h)
        draw = paddle.to_tensor(value, alphas.dtype) + paddle.to_tensor(slope, alphas.dtype) * (beta - beta.detach())
        return draw / draw.sum(-1, keepdim=True)

    def strengths(self, alphas):
        beta = self.concentration(alphas)
        return beta / beta.sum(-1, keepdim=True)

    def regularizer(self, alphas):
        """KL(Dir(beta) || Dir(1)) = lgamma(B) - sum lgamma(beta_k) - lgamma(K) + sum (beta_k - 1) (digamma(beta_k) - digamma(B))."""
        divergences = []
        for beta in map(self.concentration, alphas):
            total = beta.sum(-1, keepdim=True)
            divergences.append((paddle.lgamma(total).squeeze(-1) - paddle.lgamma(beta).sum(-1) - math.lgamma(beta.shape[-1])
                                + ((beta - 1) * (paddle.digamma(beta) - paddle.digamma(total))).sum(-1)).sum())
        return self.regularization * sum(divergences) / len(divergences)


class FairDARTS(DARTS):
    """Independent operations (Chu et al.: Fair DARTS, ECCV 2020): sigmoid in place of softmax (equation 2), and the zero-one loss
    -1/N sum (sigmoid(alpha) - 0.5)^2 over all N alphas, times 10 (equation 3, section 4.1).

    A node keeps its two strongest edges, but no operation below the threshold 0.85 (section 3.3): that edge is `none`. Where a node would have no
    input at all, its strongest edge stays.
    """

    name = 'FairDARTS'
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
            node, first = i // 2, i % 2 == 0  # the stronger edge of a node comes first
            strength = strengths[sum(range(2, 2 + node)) + state][self.primitives.index(operation)]
            if strength < self.threshold and not first:
                cell[i] = ('none', state)
        return cell


class DARTSMinus(DARTS):
    """An auxiliary skip connection beside every mixed operation (Chu et al.: DARTS-, ICLR 2021, equation 5): beta x + sum p_o o(x). beta falls
    from 1 to 0 along a cosine over the search; the genotype doesn't see it.
    """

    name = 'DARTS-'
    auxiliary_skip = True

    @property
    def skip_weight(self):
        return (1 + math.cos(math.pi * self.progress)) / 2


def softmax_by_node(betas, steps):
    """betas [edges] -> the softmax over the edges that enter each node, [edges]; node i has i + 2 of them."""
    return paddle.concat([F.softmax(node, axis=-1) for node in betas.split([node + 2 for node in range(steps)])])


METHODS = {method.name: method for method in (DARTS, PCDARTS, GDAS, DrNAS, FairDARTS, DARTSMinus)}
