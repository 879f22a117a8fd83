"""Operations with a gradient of their own, for any number of tensors: how the compiled loops become a part of Paddle.

paddle.autograd.PyLayer serves such operations only if each of its arguments wants a gradient or has stop_gradient: with
paddle.grad(loss, some_parameters) Paddle demands None for the arguments that lead to none of them, and does not say
which these are. It does not ask that of a PyLayer with one argument. So all tensors go in as one list; in Paddle 2,
where a list carries the gradient of its last tensor only, a PyLayer of one argument stands before each of them.
"""
import paddle

LISTS_HAVE_GRADIENTS = not paddle.__version__.startswith('2.')


class Operation:
    """One application of an operation: operation(*tensors) gives what forward gives.

    A subclass defines forward(*tensors), which returns a tensor, and backward(gradient), which gets its gradient and
    returns a list with a gradient, or None, for each of the tensors. Both run without gradients of their own, so there
    are no second derivatives: asking for them raises an error that says so. Paddle does not notice when a tensor that
    backward reads is changed in place before it.

    wanted: for each tensor whether its gradient may be asked for; False for all under paddle.no_grad().
    """

    def __call__(self, *tensors):
        recording = paddle.is_grad_enabled()
        self.wanted = [recording and not tensor.stop_gradient for tensor in tensors]
        if not any(self.wanted):
            with paddle.no_grad():
                return self.forward(*tensors)
        if LISTS_HAVE_GRADIENTS:
            # With stop_gradient of the first tensor Paddle would want None in place of the whole list.
            first = paddle.zeros([1], 'float32')
            first.stop_gradient = False
            return _WholeList.apply([first, *tensors], self)
        slots = [_Slot.apply(tensor, self, i) for i, tensor in enumerate(tensors) if self.wanted[i]]
        return _AfterSlots.apply(paddle.add_n(slots), self, lambda: tensors)


class _WholeList(paddle.autograd.PyLayer):

    @staticmethod
    def forward(ctx, tensors, operation):
        return _run(ctx, operation, tensors[1:])

    @staticmethod
    def backward(ctx, gradient):
        return [None, *_differentiate(ctx, gradient)]


class _AfterSlots(paddle.autograd.PyLayer):
    """The operation itself, for a sum of slots, and a function that gives the tensors."""

    @staticmethod
    def forward(ctx, slots, operation, tensors):
        return _run(ctx, operation, tensors())

    @staticmethod
    def backward(ctx, gradient):
        ctx.operation.gradients = _differentiate(ctx, gradient)
        return paddle.zeros([1], 'float32')


class _Slot(paddle.autograd.PyLayer):
    """A zero that stands for tensor number i of an operation; its gradient is that of the tensor, which the operation
    has computed by then."""

    @staticmethod
    def forward(ctx, tensor, operation, i):
        ctx.operation, ctx.i = operation, i
        return paddle.zeros([1], 'float32')

    @staticmethod
    def backward(ctx, _):
        return ctx.operation.gradients[ctx.i]


def _run(ctx, operation, tensors):
    ctx.operation = operation
    return operation.forward(*tensors)


def _differentiate(ctx, gradient):
    if paddle.is_grad_enabled():  # Paddle enables them in a backward pass with create_graph=True only
        raise NotImplementedError(
            'the compiled loops have no second derivatives (create_graph=True): take differences of first ones, as '
            'nas/architect.py does, or a network without accelerate(), whose operations need to have them')
    return ctx.operation.backward(gradient)
