"""The architecture gradient against brute force, and what an architecture step must leave alone."""
import numpy as np
import paddle
import pytest
from conftest import relative_error

from model_search import Network
from nas.architect import Architect, weight_parameters

ETA, MOMENTUM, DECAY = 0.3, 0.9, 0.05


class TinyNetwork(paddle.nn.Layer):
    """logits = (tanh(x w1) * softmax(a)) w2: small enough to differentiate by differences of the loss alone."""

    def __init__(self, w1, w2, alpha):
        super().__init__()
        self.w1, self.w2, self.alpha = [self.parameter(value) for value in (w1, w2, alpha)]

    def parameter(self, value):
        return self.create_parameter(list(value.shape), default_initializer=paddle.nn.initializer.Assign(value))

    def arch_parameters(self):
        return [self.alpha]

    def _loss(self, x, label):
        hidden = paddle.tanh(x @ self.w1) * paddle.nn.functional.softmax(self.alpha)
        return paddle.nn.functional.cross_entropy(hidden @ self.w2, label)


class SamplingNetwork(TinyNetwork):
    """The same with noise added to a, drawn anew in every pass, as GDAS and DrNAS draw; `draws` remembers it."""

    def __init__(self, *values):
        super().__init__(*values)
        self.draws = []

    def _loss(self, x, label):
        noise = paddle.randn([4], self.alpha.dtype)
        self.draws.append(noise.numpy())
        hidden = paddle.tanh(x @ self.w1) * paddle.nn.functional.softmax(self.alpha + noise)
        return paddle.nn.functional.cross_entropy(hidden @ self.w2, label)


def numpy_loss(w, alpha, x, label):
    """The same loss in numpy; w holds w1 and w2, flat."""
    w1, w2 = w[:12].reshape(3, 4), w[12:].reshape(4, 2)
    weights = np.exp(alpha) / np.exp(alpha).sum()
    logits = (np.tanh(x @ w1) * weights) @ w2
    return np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(len(label)), label])


def difference(function, at, h):
    """The gradient of a function of a vector by central differences."""
    gradient = np.zeros_like(at)
    for i in range(len(at)):
        e = np.zeros_like(at)
        e[i] = h
        gradient[i] = (function(at + e) - function(at - e)) / (2 * h)
    return gradient


@pytest.mark.parametrize('weight_steps', [0, 2])
def test_second_order_is_the_gradient_of_the_unrolled_loss(float64, weight_steps):
    """d/da L_valid(w'(a), a) with w' the next step of the optimizer, whose velocity is what earlier steps left."""
    rng = np.random.default_rng(0)
    w, alpha = rng.normal(size=20), rng.normal(size=4)
    (x, y), (xv, yv) = [(rng.normal(size=(6, 3)), rng.integers(0, 2, 6)) for _ in range(2)]
    model = TinyNetwork(w[:12].reshape(3, 4), w[12:].reshape(4, 2), alpha)
    optimizer = paddle.optimizer.Momentum(ETA, MOMENTUM, parameters=weight_parameters(model), weight_decay=DECAY)
    v = np.zeros(20)
    for _ in range(weight_steps):
        model._loss(paddle.to_tensor(x), paddle.to_tensor(y)).backward()
        optimizer.step()
        model.clear_gradients()
        v = MOMENTUM * v + difference(lambda w: numpy_loss(w, alpha, x, y), w, 1e-5) + DECAY * w
        w = w - ETA * v
    assert relative_error(model.w1.numpy().ravel(), w[:12]) < 1e-8

    def unrolled_loss(a):
        step = MOMENTUM * v + difference(lambda w: numpy_loss(w, a, x, y), w, 1e-5) + DECAY * w
        return numpy_loss(w - ETA * step, a, xv, yv)

    architect = Architect(model, optimizer, unrolled=True, momentum=MOMENTUM, weight_decay=DECAY)
    gradient, = architect.unrolled_gradient(*[paddle.to_tensor(value) for value in (x, y, xv, yv)])
    expected = difference(unrolled_loss, alpha, 1e-4)
    # the Hessian-vector product is a difference of finite width itself
    assert relative_error(gradient, expected) < 1e-4
    first_order = difference(lambda a: numpy_loss(w, a, xv, yv), alpha, 1e-5)
    assert relative_error(first_order, expected) > 0.01  # the test would tell one from the other


def sampling(rng):
    """A network that draws, its architect, its weights and alpha in numpy, and a train and a validation batch."""
    w, alpha = rng.normal(size=20), rng.normal(size=4)
    model = SamplingNetwork(w[:12].reshape(3, 4), w[12:].reshape(4, 2), alpha)
    optimizer = paddle.optimizer.Momentum(ETA, MOMENTUM, parameters=weight_parameters(model), weight_decay=DECAY)
    architect = Architect(model, optimizer, unrolled=True, momentum=MOMENTUM, weight_decay=DECAY)
    batches = [value for _ in range(2) for value in (rng.normal(size=(6, 3)), rng.integers(0, 2, 6))]
    return model, architect, w, alpha, batches


def test_second_order_of_a_method_that_draws_is_the_gradient_for_one_draw(float64):
    model, architect, w, alpha, (x, y, xv, yv) = sampling(np.random.default_rng(0))
    paddle.seed(0)
    gradient, = architect.unrolled_gradient(*map(paddle.to_tensor, (x, y, xv, yv)))
    train, valid, plus, minus = model.draws
    assert (train == plus).all() and (train == minus).all() and (train != valid).all()

    def unrolled_loss(a):
        step = difference(lambda w: numpy_loss(w, a + train, x, y), w, 1e-5) + DECAY * w
        return numpy_loss(w - ETA * step, a + valid, xv, yv)
    assert relative_error(gradient, difference(unrolled_loss, alpha, 1e-4)) < 1e-4
    architect.unrolled_gradient(*map(paddle.to_tensor, (x, y, xv, yv)))
    assert len({draw.tobytes() for draw in model.draws}) == 4  # the next step has draws of its own


def test_the_dominant_eigenvalue_of_a_method_that_draws_is_that_of_one_draw(float64):
    model, architect, w, alpha, (x, y, _, _) = sampling(np.random.default_rng(1))
    after = []
    for iterations in (100, 50):
        paddle.seed(0)
        value = architect.dominant_eigenvalue(paddle.to_tensor(x), paddle.to_tensor(y), iterations)
        after.append(float(paddle.rand([1])))
    assert len({draw.tobytes() for draw in model.draws}) == 1 and after[0] == after[1]
    hessian = [difference(lambda a: difference(lambda b: numpy_loss(w, b + model.draws[0], x, y), a, 1e-4)[i], alpha,
                          1e-4)
               for i in range(4)]
    values = np.linalg.eigvalsh((np.asarray(hessian) + np.transpose(hessian)) / 2)
    assert relative_error(value, values[np.abs(values).argmax()]) < 1e-3


@pytest.mark.parametrize('method', ['GDAS', 'DrNAS'])
def test_what_a_network_draws_is_the_same_on_both_sides(method):
    """With steps that are lost in the rounding, both sides are one point and give the same bits."""
    paddle.seed(2)
    model = Network(12, 10, 1, method)
    architect = Architect(model, paddle.optimizer.Momentum(0.1, parameters=weight_parameters(model)))
    image, label, sides = paddle.randn([4, 3, 8, 8]), paddle.randint(0, 10, [4]), []
    real = architect.gradient
    architect.gradient = lambda *batch: sides.append(real(*batch)) or sides[-1]
    architect.EPSILON = 1e-30
    architect.dominant_eigenvalue(image, label, iterations=1)
    for plus, minus in zip(*sides):
        assert (plus.numpy() == minus.numpy()).all()
    assert any(plus.numpy().any() for plus in sides[0])


def small_step(unrolled):
    """A small supernet after one weight step, its architect, and a train and a validation batch."""
    paddle.seed(1)
    model = Network(4, 10, 1, 'DARTS')
    optimizer = paddle.optimizer.Momentum(0.1, 0.9, parameters=weight_parameters(model), weight_decay=3e-4)
    batches = [paddle.randn([4, 3, 8, 8]), paddle.randint(0, 10, [4]), paddle.randn([4, 3, 8, 8]),
               paddle.randint(0, 10, [4])]
    model._loss(*batches[:2]).backward()
    optimizer.step()
    optimizer.clear_grad()
    return model, Architect(model, optimizer, unrolled=unrolled), batches


@pytest.mark.parametrize('unrolled', [False, True])
def test_the_architecture_step_leaves_the_weights_alone(unrolled):
    model, architect, batches = small_step(unrolled)
    weights = weight_parameters(model)
    before = [weight.numpy() for weight in weights]
    alphas = model.alphas_normal.numpy()
    gradients = [None if weight.grad is None else weight.grad.numpy() for weight in weights]
    architect.step(*batches)
    assert (model.alphas_normal.numpy() != alphas).any()
    for weight, value, gradient in zip(weights, before, gradients):
        assert (weight.numpy() == value).all()
        assert weight.grad is None or (weight.grad.numpy() == gradient).all() and not gradient.any()


def test_the_validation_batch_does_not_reach_the_running_statistics_in_second_order(monkeypatch):
    """As in the authors' code, where it passes a copy of the network. Without the Hessian-vector product's two passes,
    one pass of the training batch remains."""
    model, architect, batches = small_step(True)
    monkeypatch.setattr(Architect, '_central_difference',
                        lambda self, *_: [paddle.zeros_like(p) for p in self.arch_parameters])
    running = [value for key, value in model.state_dict().items() if key.endswith(('_mean', '_variance'))]
    statistics = [value.numpy() for value in running]
    model(batches[0])
    expected = [value.numpy() for value in running]
    for value, before in zip(running, statistics):
        value.set_value(before)
    architect.step(*batches)
    assert len(expected) > 50
    for value, after in zip(running, expected):
        assert (value.numpy() == after).all()


def test_a_step_of_gdas_computes_no_gradient_of_weights_that_have_one(monkeypatch):
    """Its gradient is to the bit that of a pass which computes all of them, and the same weights have zeros after it,
    but those of the user's own frozen weights."""
    paddle.seed(1)
    model = Network(4, 10, 3, 'GDAS')
    model.stem[0].weight.stop_gradient = True
    weights = weight_parameters(model)
    architect = Architect(model, paddle.optimizer.Momentum(0.1, 0.9, parameters=weights))
    batch = paddle.randn([4, 3, 8, 8]), paddle.randint(0, 10, [4])
    asked, grad = [], paddle.grad

    def recorded(loss, tensors, **options):
        asked.append(len(tensors) - 2)
        return grad(loss, tensors, **options)
    reached, present = set(), []
    for seed in range(3):
        paddle.seed(seed)
        expected = grad(model._loss(*batch), architect.arch_parameters + weights, allow_unused=True)
        present.append(len(weights) - len(reached))
        reached |= {id(weight) for weight, gradient in zip(weights, expected[2:]) if gradient is not None}
        paddle.seed(seed)
        monkeypatch.setattr(paddle, 'grad', recorded)
        architect.step(None, None, *batch)
        monkeypatch.undo()
        assert all((ours.numpy() == theirs.numpy()).all() for ours, theirs in zip(architect.last_gradient, expected))
        assert {id(weight) for weight in weights if weight.grad is not None} == reached
        assert not any(weight.grad.numpy().any() for weight in weights if weight.grad is not None)
    assert asked == present and present[0] == len(weights) > present[1] > present[2]
    assert [weight for weight in weights if weight.stop_gradient] == [] and model.stem[0].weight.stop_gradient
