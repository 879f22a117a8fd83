"""Inference models of trained networks, images [N, 3, H, W] in, logits [N, classes] out: --export of train.py and
train_imagenet.py.

    paddle    PATH.*, as paddle.jit.save writes it; paddle.jit.load and paddle.inference read it
    onnx      PATH.onnx, made of the former by the package paddle2onnx (https://github.com/PaddlePaddle/Paddle2ONNX)
"""
import importlib.metadata
import os
import subprocess
import sys
import tempfile

import paddle

from runtime.errors import UserError, printable
from runtime.files import UnreadableFile, atomic_write, read_json

# paddle2onnx by the major version of Paddle: 2 links against libraries of Paddle 3, and 1 does not know its files.
PADDLE2ONNX = {'2': '1.3.1', '3': '2.1.0'}
MAX_PROGRAM_BYTES = 256 << 20  # of an exported network's .json, which takes 1 to 5 MB
OPSET = 13  # of ONNX: its operators as ONNX 1.8 defines them
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CONVERT = 'import sys; sys.path.insert(0, sys.argv[1]); from training.export import convert; convert(*sys.argv[2:])'


class _LogitsOnly(paddle.nn.Layer):
    """A network without its auxiliary output, as an inference model has it."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, image):
        return self.network(image)[0]


def export(model, path, image_shape, kind='paddle'):
    """Write an inference model for images [3, H, W] in batches of any size.

    path: the common beginning of the files' names, as in paddle.jit.save. kind: 'paddle' or 'onnx'. Raises UserError
    for a path that belongs to a trained network, whose description Paddle would overwrite, and (status 1) for one that
    cannot be written and for a network that paddle2onnx does not convert.
    """
    if kind == 'onnx':
        path = path.removesuffix('.onnx') + '.onnx'
        export_onnx(model, path, image_shape)
        print(printable(f'exported to {path}'))
        return
    for name, what in ((path + '.pdparams', 'a trained network'), (path + '.json', 'no exported network')):
        if os.path.exists(name) and not (name.endswith('.json') and _is_exported(name)):
            raise UserError(f'--export: {name} is {what} and would be overwritten: give another name, such as '
                            f'{path}_inference')
    folder, name = os.path.split(os.path.abspath(path))
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix='.export-') as temporary:
            save_inference(model, os.path.join(temporary, name), image_shape)
            for file in sorted(os.listdir(temporary)):
                os.replace(os.path.join(temporary, file), os.path.join(folder, file))
    except (OSError, ValueError) as error:
        reason = (getattr(error, 'strerror', None) or str(error)).splitlines()[0]
        raise UserError(f'--export: cannot write {path}: {reason}', status=1)
    print(printable(f'exported to {path}.*'))


def _is_exported(path):
    """Whether a .json file is the program of a network that Paddle 3 has exported."""
    try:
        return 'program' in read_json(path, MAX_PROGRAM_BYTES)
    except (UnreadableFile, TypeError):
        return False


def save_inference(model, path, image_shape):
    """Write path.* with paddle.jit.save."""
    model.eval()
    inference = _LogitsOnly(model)
    inference.eval()
    # Passes of Paddle's inference engine fail where nothing stands between two operations that they would fuse.
    # Paddle 3.3, conv_concat_activation_mkldnn_fuse_pass: the concatenation that ends a cell and the ReLU of the next
    # one. Paddle 2.6, batch_norm_act_fuse_pass: the batch norm of a FactorizedReduce and several ReLUs behind it.
    parts = [layer for cell in model.cells for layer in (cell, cell.preprocess0, cell.preprocess1, *cell._ops)]
    hooks = [layer.register_forward_post_hook(lambda layer, inputs, output: paddle.assign(output)) for layer in parts]
    try:
        paddle.jit.save(inference, path, input_spec=[paddle.static.InputSpec([None] + list(image_shape), name='image')])
    finally:
        for hook in hooks:
            hook.remove()


# ---------------------------------------------------------------------------------------------------------------------
# ONNX
# ---------------------------------------------------------------------------------------------------------------------


def export_onnx(model, path, image_shape):
    """Write a network as an ONNX model. Raises UserError as `export`, and where paddle2onnx is missing or of a version
    that does not go with this Paddle."""
    check_paddle2onnx()
    with tempfile.TemporaryDirectory() as folder, atomic_write(path) as temporary:
        save_inference(model, os.path.join(folder, 'model'), image_shape)
        # In a process of its own: paddle2onnx ends its process for an operation that it does not know, and prints to
        # standard output.
        result = subprocess.run([sys.executable, '-c', CONVERT, ROOT, os.path.join(folder, 'model'), temporary],
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                errors='replace')
        if result.returncode or not os.path.isfile(temporary):
            lines = result.stdout.strip().splitlines() or [f'its process ended with status {result.returncode}']
            raise UserError(f'--format: paddle2onnx did not convert the network: {lines[-1]}', status=1)


def check_paddle2onnx():
    """Raise UserError that says what to install where paddle2onnx is missing or does not go with this Paddle."""
    wanted = PADDLE2ONNX.get(paddle.__version__.split('.')[0], PADDLE2ONNX['3'])
    install = f'python -m pip install paddle2onnx=={wanted}'
    try:
        found = importlib.metadata.version('paddle2onnx')
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f'--format: onnx needs the package paddle2onnx, which is not installed: {install}')
    if found.split('.')[0] != wanted.split('.')[0]:
        raise UserError(f'--format: paddle2onnx {found} does not go with Paddle {paddle.__version__}: {install}')


def convert(path, onnx_path):
    """Convert what save_inference wrote to path.* into an ONNX model."""
    import paddle2onnx
    program = path + ('.json' if os.path.exists(path + '.json') else '.pdmodel')
    # Given a file to write, paddle2onnx 2 would let another package rewrite the model and install what that lacks.
    content = paddle2onnx.export(program, path + '.pdiparams', opset_version=OPSET, verbose=False)
    with open(onnx_path, 'wb') as f:
        f.write(content)
