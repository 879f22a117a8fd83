"""The architecture step: Adam on the gradient of the validation loss with respect to the architecture parameters.

First order takes the gradient at the present weights. Second order (`unrolled`, DARTS, section 2.3) takes it at the
weights w' after one weight step on the training batch, which takes into account how the weights depend on the
architecture:

    w'  = w - eta * (momentum * v + dL_train(w, a)/dw + weight_decay * w)
    d/da L_valid(w', a)  -  eta * d2L_train(w, a)/(da dw) * dL_valid(w', a)/dw'

v is the weight optimizer's own velocity and eta its present learning rate. The second derivative times a vector u is a
central difference (equation 8): (dL_train(w + R u, a)/da - dL_train(w - R u, a)/da) / 2R with R = 0.01 / |u|.

Where a method draws the operations' weights (GDAS, DrNAS), passes that are compared with each other draw the same
ones: the loss is that of one draw, and only w or a differ.

Gradients are computed by `paddle.grad` for the tensors concerned only. No gradient of the validation batch is written
to `.grad` of a weight, so none can reach the weight step (GDAS writes zeros, see _gradient_marking_used_weights).
"""
import contextlib

import paddle

from nas.methods import method_of
from runtime.parallel import average_over_ranks
from runtime.states import running_statistics


class Architect:
    """Steps the architecture parameters of `model`, a network with `arch_parameters()` and `_loss(image, label)`.

    optimizer: the Momentum optimizer of the weights; its velocity and learning rate are those of the unrolled step.
    momentum, weight_decay: the figures that optimizer was made with.
    arch_learning_rate, arch_weight_decay: Adam's; its beta1 is the method's (0.5 for DARTS, appendix A.1.1), beta2 is
    0.999.
    unrolled: True for second order.
    penalty: a function that returns a further term of the loss of the architecture, a scalar that depends on the
        architecture parameters alone, or None where there is none at present.
    """

    EPSILON = 1e-2  # of the central difference, before it is divided by |u|; from the paper's section 2.3

    def __init__(self, model, optimizer, *, arch_learning_rate=3e-4, arch_weight_decay=1e-3, unrolled=False,
                 momentum=0.9, weight_decay=3e-4, penalty=lambda: None):
        self.model = model
        self.penalty = penalty
        self.weight_optimizer = optimizer
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.unrolled = unrolled
        self.marks_used_weights = method_of(model).weights_first and method_of(model).undrawn_weights_move
        self.last_gradient = None  # of the last step, a tensor for each architecture parameter
        self.arch_parameters = list(model.arch_parameters())
        self.weights = weight_parameters(model)
        self.statistics = running_statistics(model)
        self.optimizer = paddle.optimizer.Adam(
            arch_learning_rate, beta1=method_of(model).arch_beta1, beta2=0.999, parameters=self.arch_parameters,
            weight_decay=paddle.regularizer.L2Decay(arch_weight_decay))

    def replace_weights(self, optimizer):
        """Take the model's present weights and their new optimizer, after a change of the network."""
        self.weight_optimizer = optimizer
        self.weights = weight_parameters(self.model)
        self.statistics = running_statistics(self.model)

    def step(self, input_train, target_train, input_valid, target_valid):
        """Move the architecture parameters by one step of Adam. Only second order looks at the training batch."""
        if self.unrolled:
            gradients = self.unrolled_gradient(input_train, target_train, input_valid, target_valid)
        elif self.marks_used_weights:
            gradients = self._gradient_marking_used_weights(input_valid, target_valid)
        else:
            gradients = self.gradient(input_valid, target_valid, self.arch_parameters)
        gradients = self._with_penalty(gradients)
        self.last_gradient = gradients
        for parameter, gradient in zip(self.arch_parameters, gradients):
            parameter.grad = gradient
        self.optimizer.step()
        self.optimizer.clear_grad()

    def _with_penalty(self, gradients):
        """The gradients plus that of the penalty, which is the same on all ranks, in first and in second order."""
        penalty = self.penalty()
        if penalty is None:
            return gradients
        more = paddle.grad(penalty, self.arch_parameters, allow_unused=True)
        return [gradient if extra is None else gradient + extra for gradient, extra in zip(gradients, more)]

    def _gradient_marking_used_weights(self, image, label):
        """The first-order gradient. The weights that this pass has reached get a gradient of zeros, so that they move
        by momentum and weight decay in the steps that do not draw their operation, as in the authors' code of GDAS.
        Gradients are computed of weights only that have none yet: once reached, a weight keeps its zeros."""
        unreached = [weight for weight in self.weights if weight.grad is None]
        with frozen([weight for weight in self.weights if weight.grad is not None]):
            loss = self.model._loss(image, label)
            gradients = paddle.grad(loss, self.arch_parameters + unreached, allow_unused=True)
        for weight, gradient in zip(unreached, gradients[len(self.arch_parameters):]):
            if gradient is not None:
                weight.grad = paddle.zeros_like(weight)
        gradients = [paddle.zeros_like(p) if g is None else g for p, g in zip(self.arch_parameters, gradients)]
        average_over_ranks(gradients, image.shape[0])
        return gradients

    def gradient(self, image, label, parameters):
        """The gradient of the loss on a batch with respect to `parameters`, averaged over the ranks."""
        with frozen(self.weights if parameters is self.arch_parameters else []):
            loss = self.model._loss(image, label)
            gradients = paddle.grad(loss, parameters, allow_unused=True)
        gradients = [paddle.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients)]
        average_over_ranks(gradients, image.shape[0])
        return gradients

    @paddle.no_grad()
    def unrolled_gradient(self, input_train, target_train, input_valid, target_valid):
        """The second-order gradient, a tensor for each architecture parameter.

        It works in the model itself, whose weights are set to w' and to w +- R u and then to a copy of what they were,
        so they come back to the last bit and no second supernet is held. Batch norm's running statistics see the
        training batch three times, as in the authors' code, where the validation batch passes a throw-away copy of the
        network.
        """
        eta = self.weight_optimizer.get_lr()
        weights = [weight.clone() for weight in self.weights]

        with same_draws() as rewind:
            rewind()
            _assign(self._unrolled_weights(eta, input_train, target_train), self.weights)
            statistics = [value.clone() for value in self.statistics]
            with paddle.enable_grad():
                gradients = self.gradient(input_valid, target_valid, self.arch_parameters + self.weights)
            _assign(statistics, self.statistics)
            arch_gradient, vector = gradients[:len(self.arch_parameters)], gradients[len(self.arch_parameters):]
            _assign(weights, self.weights)
            product = self._central_difference(self.weights, vector, self.EPSILON / _norm(vector), input_train,
                                               target_train, rewind)
        return [g - eta * p for g, p in zip(arch_gradient, product)]

    @paddle.no_grad()
    def dominant_eigenvalue(self, image, label, iterations=20):
        """The eigenvalue of largest size of the loss's Hessian with respect to the architecture, on one batch, at the
        present weights.

        Power iteration; the Hessian times a vector of length 1 is a central difference of gradients, 0.01 to both
        sides. A growing one announces a collapse (Zela et al.: Understanding and Robustifying Differentiable
        Architecture Search, ICLR 2020, section 4).
        """
        statistics = [value.clone() for value in self.statistics]
        vector = [1 + 0.1 * paddle.arange(p.size).reshape(p.shape).astype(p.dtype).sin() for p in self.arch_parameters]
        eigenvalue = 0.0
        with same_draws() as rewind:
            for _ in range(iterations):
                norm = _norm(vector)
                if float(norm) == 0:
                    break
                vector = [v / norm for v in vector]
                product = self._central_difference(self.arch_parameters, vector, self.EPSILON, image, label, rewind)
                eigenvalue = float(paddle.add_n([(v * p).sum() for v, p in zip(vector, product)]))
                vector = product
        _assign(statistics, self.statistics)
        return eigenvalue

    def _unrolled_weights(self, eta, image, label):
        """w', the weights after one step of the weight optimizer without clipping."""
        velocity = self.weight_optimizer.state_dict()  # a weight's entry appears with its first step
        with paddle.enable_grad(), frozen(self.arch_parameters):
            gradients = self.gradient(image, label, self.weights)
        unrolled = []
        for weight, gradient in zip(self.weights, gradients):
            step = gradient + self.weight_decay * weight
            v = velocity.get(weight.name + '_velocity_0')
            if v is not None:
                step += self.momentum * v
            unrolled.append(weight - eta * step)
        return unrolled

    def _central_difference(self, parameters, vector, r, image, label, rewind):
        """(dL/da at p + r u - dL/da at p - r u) / 2r for the loss on a batch, where u is `vector` and p the values of
        `parameters`, which are restored. A tensor for each architecture parameter. rewind: of same_draws."""
        values = [parameter.clone() for parameter in parameters]
        sides = []
        for sign in (1, -1):
            _assign([value + sign * r * u for value, u in zip(values, vector)], parameters)
            rewind()
            with paddle.enable_grad():
                sides.append(self.gradient(image, label, self.arch_parameters))
        _assign(values, parameters)
        return [(plus - minus) / (2 * r) for plus, minus in zip(*sides)]


def _norm(tensors):
    """The 2-norm of all elements of a list of tensors."""
    return paddle.add_n([tensor.square().sum() for tensor in tensors]).sqrt()


@contextlib.contextmanager
def frozen(parameters):
    """Set stop_gradient of parameters for a while, so that their gradients are not computed."""
    # The others were frozen by the user.
    trainable = [parameter for parameter in parameters if not parameter.stop_gradient]
    for parameter in trainable:
        parameter.stop_gradient = True
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.stop_gradient = False


@contextlib.contextmanager
def same_draws():
    """Give a function that sets Paddle's random numbers to one state, the same at every call.

    The state follows from the one before the block, and so does the one after it, whatever the block draws: a resumed
    run has it too, and later draws differ from those in the block.
    """
    inside, after = paddle.randint(0, 2**31 - 1, [2]).tolist()
    yield lambda: paddle.seed(inside)
    paddle.seed(after)


def weight_parameters(model):
    """The trainable parameters of a search network that are not its architecture."""
    arch = {id(parameter) for parameter in model.arch_parameters()}
    return [p for p in model.parameters() if p.trainable and id(p) not in arch]


def _assign(values, tensors):
    for value, tensor in zip(values, tensors):
        paddle.assign(value, tensor)
