"""The process in which bench_torch.py times this project. It writes the weights, the images and the outputs, by which
torch_steps.py checks that it computes the same."""
import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from benchmarks.bench_search import DROP_PATH_PROB, make_step, random_batches  # noqa: E402
from benchmarks.turns import serve  # noqa: E402

# With its default epsilon, 1e-8, the first step of Adam moves each parameter by the learning rate, however small its
# gradient is and whichever sign rounding gives it: outputs after it could not be compared.
ADAM_EPSILON = 1e-3


def prepare(work):
    """(versions, the step of a work), after the check's file is written and some steps have warmed up."""
    args = argparse.Namespace(unrolled=False, **work['size'])
    model, step = make_step(args, plain=False, adam_epsilon=ADAM_EPSILON)
    import numba
    import numpy as np
    import paddle

    from runtime.parallel import cpu_threads
    batches = random_batches(args)
    if args.evaluate:
        take_statistics(model, batches[0][0][:8])
    arrays = {f'weights/{name}': value.numpy() for name, value in model.state_dict().items()}
    for number, (image, label) in enumerate(batches):
        arrays.update({f'image{number}': image.numpy(), f'label{number}': label.numpy().reshape(-1)})
    set_drop_path(model, 0.0)  # it is random
    arrays['outputs_before'] = outputs(model, batches[0][0])
    step()
    arrays['outputs_after'] = outputs(model, batches[0][0])
    set_drop_path(model, DROP_PATH_PROB.get(args.network))
    np.savez(work['check'], **arrays)
    for _ in range(work['warmup']):
        step()
    return {'version': f'Paddle {paddle.__version__}, numba {numba.__version__}', 'threads': cpu_threads()}, step


def take_statistics(model, image):
    """Make batch norm's running statistics those of some images. With the initial ones the values would shrink from
    layer to layer, in the end to numbers so small that processors compute them slowly."""
    import paddle
    norms = [layer for layer in model.sublayers() if isinstance(layer, paddle.nn.BatchNorm2D)]
    momenta = [layer._momentum for layer in norms]
    for layer in norms:
        layer._momentum = 0.0
    model.train()
    with paddle.no_grad():
        model(image)
    model.eval()
    for layer, momentum in zip(norms, momenta):
        layer._momentum = momentum


def set_drop_path(model, prob):
    if hasattr(model, 'set_drop_path_prob'):
        model.set_drop_path_prob(prob)


def outputs(model, image):
    """The logits, and those of the auxiliary head where there are some: [N, classes] or [2 N, classes]."""
    import numpy as np
    import paddle
    with paddle.no_grad():
        logits = model(image)
    logits = logits if isinstance(logits, (tuple, list)) else [logits]
    return np.concatenate([value.numpy() for value in logits if value is not None])


if __name__ == '__main__':
    serve(prepare)
