"""The process in which bench_torch.py times PyTorch, with the weights and images that paddle_steps.py wrote.

Of the gradients only those are computed that a step uses, as this project does: less work than code that calls
`loss.backward()` for the weights and for the architecture.
"""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

import genotypes  # noqa: E402
from benchmarks.bench_search import DROP_PATH_PROB  # noqa: E402
from benchmarks.paddle_steps import ADAM_EPSILON  # noqa: E402
from benchmarks.torch_networks import SearchNetwork, TrainedNetwork  # noqa: E402
from benchmarks.turns import serve  # noqa: E402
from runtime.parallel import cpu_threads  # noqa: E402

PARTIAL = {'DARTS': 1, 'PC-DARTS': 4}


def prepare(work):
    """(figures of the check, the step of a work), after the check and some steps that warm up."""
    torch.set_num_threads(cpu_threads())
    size, arrays = work['size'], np.load(work['check'])
    layout = torch.channels_last if work['channels_last'] else torch.contiguous_format
    model = make_network(size)
    load_weights(model, arrays)
    model.to(memory_format=layout)
    batches = [(torch.from_numpy(arrays[f'image{number}']).contiguous(memory_format=layout),
                torch.from_numpy(arrays[f'label{number}'])) for number in range(2)]
    if size['evaluate']:
        step = make_scoring(model, batches[0])
    elif size['network'] == 'search':
        step = make_search_step(model, *batches)
    else:
        step = make_training_step(model, batches[0])
    found = {'before': outputs(model, batches[0][0])}
    step()
    found['after'] = outputs(model, batches[0][0])
    about = {time: difference(values, arrays['outputs_' + time]) for time, values in found.items()}
    layouts = work['check'] + '.layouts.npz'  # the default layout leaves its outputs there for channels-last
    if work['channels_last']:
        about['layouts'] = {time: difference(found[time], values) for time, values in np.load(layouts).items()}
    else:
        np.savez(layouts, **found)
    model.drop_path_prob = DROP_PATH_PROB.get(size['network'])
    for _ in range(work['warmup']):
        step()
    return {'version': f'PyTorch {torch.__version__}', 'threads': torch.get_num_threads(), **about}, step


def make_network(size):
    if size['network'] == 'search':
        return SearchNetwork(size['init_channels'], 10, size['layers'], PARTIAL[size['method']])
    return TrainedNetwork(size['init_channels'], 10, size['layers'], getattr(genotypes, size['arch']),
                          photos=size['network'] == 'imagenet')


def load_weights(model, arrays):
    """Load Paddle's weights. It names running statistics differently and has linear weights transposed."""
    state = {}
    for key in arrays.files:
        if key.startswith('weights/'):
            name = key[len('weights/'):].replace('._mean', '.running_mean').replace('._variance', '.running_var')
            value = torch.from_numpy(arrays[key])
            state[name] = value.t().contiguous() if name.endswith('classifier.weight') else value
    counters = {name: value for name, value in model.state_dict().items() if name.endswith('num_batches_tracked')}
    model.load_state_dict({**state, **counters})


def make_search_step(model, train, valid):
    """A step of the architecture, first order, then one of the weights; the options are the defaults of search.py but
    for Adam's epsilon."""
    arch = model.arch_parameters()
    known = set(map(id, arch))
    weights = [parameter for parameter in model.parameters() if id(parameter) not in known]
    arch_optimizer = torch.optim.Adam(arch, 3e-4, betas=(0.5, 0.999), eps=ADAM_EPSILON, weight_decay=1e-3)
    optimizer = torch.optim.SGD(weights, 0.025, momentum=0.9, weight_decay=3e-4)

    def step():
        arch_optimizer.zero_grad()
        F.cross_entropy(model(valid[0]), valid[1]).backward(inputs=arch)
        arch_optimizer.step()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(train[0]), train[1])
        loss.backward(inputs=weights)
        torch.nn.utils.clip_grad_norm_(weights, 5.0)
        optimizer.step()
        loss.item()
    return step


def make_training_step(model, batch):
    """A step of train.py or train_imagenet.py, as bench_search.make_training_step takes it."""
    optimizer = torch.optim.SGD(model.parameters(), 0.025, momentum=0.9, weight_decay=3e-4)

    def step():
        optimizer.zero_grad()
        logits, logits_aux = model(batch[0])
        (F.cross_entropy(logits, batch[1]) + 0.4 * F.cross_entropy(logits_aux, batch[1])).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    return step


def make_scoring(model, batch):
    model.eval()

    def score():
        with torch.inference_mode():
            model(batch[0])
    return score


def outputs(model, image):
    """As paddle_steps.outputs."""
    with torch.no_grad():
        logits = model(image)
    logits = logits if isinstance(logits, tuple) else [logits]
    return np.concatenate([value.numpy() for value in logits if value is not None])


def difference(values, reference):
    """The largest error, relative to the largest value of the reference."""
    return float(np.abs(values - reference).max() / np.abs(reference).max())


if __name__ == '__main__':
    serve(prepare)
