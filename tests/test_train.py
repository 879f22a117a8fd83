"""train.py and train_imagenet.py as a user runs them, and the formulas of the training loop."""
import concurrent.futures
import json
import os
import pickle
import signal
import subprocess
import sys

import numpy as np
import paddle
import pytest
from conftest import ROOT, WAIT, check_refusal, shared_file
from PIL import Image
from test_reader import Hostile

from genotypes import PC_DARTS, genotype_json
from runtime.errors import UserError
from runtime.run import Run
from runtime.states import random_states
from training.engine import Precision, fit
from training.options import LossOptions

SMALL = ['--dataset=digits', '--auxiliary=False', '--init_channels=4', '--layers=2', '--trainset_num=256',
         '--log_freq=2']


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A network trained for two epochs on digits, from a genotype.json, and what the run said."""
    folder = tmp_path_factory.mktemp('trained')
    (folder / 'genotype.json').write_text(genotype_json(PC_DARTS))
    result = run(folder, 'train.py', *SMALL, '--arch=genotype.json', '--epochs=2', '--batch_size=32',
                 '--learning_rate=0.1')
    assert result.returncode == 0, result.stderr
    return folder, result


def run(folder, name, *arguments):
    return subprocess.run([sys.executable, os.path.join(ROOT, name)] + list(arguments), cwd=str(folder), text=True,
                          stdin=subprocess.DEVNULL, capture_output=True, timeout=WAIT)


def test_a_training_run_leaves_what_it_should(trained):
    folder, result = trained
    save = folder / 'eval_cifar'
    for line in ('Epoch 0, lr 0.100000', 'Epoch 1, lr 0.050000', 'Train Epoch 1, Step 2, loss ', 'Epoch 1, train_acc ',
                 'Epoch 1, valid_acc ', ', best_valid_acc ', 'param size = ', 'multiply-adds'):
        assert line in result.stderr, line
    assert (save / 'train.log').read_text() == result.stderr
    metrics = [json.loads(line) for line in (save / 'metrics.jsonl').read_text().splitlines()]
    assert [m['epoch'] for m in metrics] == [0, 1] and metrics[0]['lr'] == 0.1
    best = json.loads((save / 'best_model.json').read_text())
    assert best['valid_acc'] == max(m['valid_acc'] for m in metrics) > 0
    assert (best['init_channels'], best['layers'], best['class_num'], best['auxiliary']) == (4, 2, 10, False)
    assert sorted(path.name for path in save.iterdir()) == ['best_model.json', 'best_model.pdparams', 'checkpoints',
                                                            'metrics.jsonl',
                                                            'train.log']


def test_the_best_model_scores_the_same_in_a_new_process_without_repeating_an_argument(trained):
    folder, training = trained
    best = json.loads((folder / 'eval_cifar' / 'best_model.json').read_text())
    epochs = [json.loads(line) for line in (folder / 'eval_cifar' / 'metrics.jsonl').read_text().splitlines()]
    result = run(folder, 'train.py', '--eval_only', '--pretrained=eval_cifar/best_model.pdparams', '--batch_size=32')
    accuracies, loss = result.stdout.split(', valid_loss ')
    assert accuracies == 'valid_acc {:.6f}, valid_acc5 {:.6f}'.format(best['valid_acc'], best['valid_acc5'])
    assert loss.endswith(', 360 images\n')
    assert float(loss.split(',')[0]) == pytest.approx(epochs[best['epoch']]['valid_loss'], abs=1e-5)
    assert (folder / 'eval_cifar' / 'train.log').read_text() == training.stderr  # scoring leaves the run's files alone


READ_BACK = '''
import sys
import numpy as np, paddle
image = np.load('image.npy')
if sys.argv[1] == 'jit':
    print(repr(paddle.jit.load('inference/model')(paddle.to_tensor(image)).numpy().tolist()))
else:
    from paddle import inference
    suffix = '.json' if paddle.__version__ >= '3' else '.pdmodel'
    predictor = inference.create_predictor(inference.Config('inference/model' + suffix, 'inference/model.pdiparams'))
    predictor.get_input_handle(predictor.get_input_names()[0]).copy_from_cpu(image)
    predictor.run()
    print(repr(predictor.get_output_handle(predictor.get_output_names()[0]).copy_to_cpu().tolist()))
'''


@pytest.mark.parametrize('loader', ['jit', 'inference'])
def test_an_exported_model_gives_the_networks_logits_on_real_images(trained, loader):
    import reader
    from model import NetworkCIFAR
    from train import parse_arguments
    from training import evaluation
    folder, _ = trained
    result = run(folder, 'train.py', '--export=inference/model', '--pretrained=eval_cifar/best_model.pdparams')
    assert result.returncode == 0 and result.stdout == 'exported to inference/model.*\n', result.stderr
    args = parse_arguments(['--dataset=digits', '--use_multiprocess=False'])
    image = next(iter(reader.train_valid(40, False, False, args)))[0]
    np.save(str(folder / 'image.npy'), image.numpy())
    output = subprocess.run([sys.executable, '-W', 'ignore', '-c', READ_BACK, loader], cwd=str(folder), text=True,
                            capture_output=True)
    assert output.returncode == 0, output.stderr
    logits = np.asarray(json.loads(output.stdout.splitlines()[-1]))
    model, _ = evaluation.load(str(folder / 'eval_cifar' / 'best_model.pdparams'), NetworkCIFAR, {}, set())
    model.eval()
    expected = model(image)[0].numpy()
    assert logits.shape == (40, 10) and np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()


def test_what_contradicts_the_checkpoint_is_refused(trained):
    folder, _ = trained
    best = '--pretrained=eval_cifar/best_model.pdparams'
    for flag in ('--layers=3', '--arch=DARTS_V1', '--class_num=3', '--auxiliary'):
        check_refusal(run(folder, 'train.py', '--eval_only', best, flag),
                      flag.split('=')[0] + ': eval_cifar/best_model.pdparams was made with another value')
    check_refusal(run(folder, 'train_imagenet.py', '--eval_only', best), 'holds a NetworkCIFAR, this script takes a '
                                                                         'NetworkImageNet')


def test_a_network_trained_on_with_other_data_is_scored_on_that(trained, tmp_path):
    folder, _ = trained
    for i in range(20):
        path = tmp_path / 'images' / str(i % 10)
        path.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (12, 12), (12 * i, 0, 0)).save(str(path / f'{i}.png'))
    pretrained, data = '--pretrained={}'.format(folder / 'eval_cifar' / 'best_model.pdparams'), '--data=images'
    result = run(tmp_path, 'train.py', pretrained, data, '--dataset=folder', '--image_size=12', '--seed=3',
                 '--epochs=1', '--batch_size=4')
    assert result.returncode == 0, result.stderr
    best = json.loads((tmp_path / 'eval_cifar' / 'best_model.json').read_text())
    assert best['data'] == {'dataset': 'folder', 'image_size': 12, 'seed': 3} and best['image_shape'] == [3, 12, 12]
    result = run(tmp_path, 'train.py', '--eval_only', '--pretrained=eval_cifar/best_model.pdparams', data)
    assert result.stdout.startswith('valid_acc {:.6f}, '.format(best['valid_acc'])), result.stderr
    assert result.stdout.endswith(', 10 images\n')
    result = run(tmp_path, 'train.py', '--eval_only', '--pretrained=eval_cifar/best_model.pdparams')
    check_refusal(result, '--data: the network was trained with --dataset=folder: give the folder')


def test_training_goes_on_with_another_number_of_classes(trained, tmp_path):
    """The classifier starts untrained, everything else is kept."""
    folder, _ = trained
    for i in range(24):
        path = tmp_path / 'images' / str(i % 3)
        path.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (12, 12), (10 * i, 0, 0)).save(str(path / f'{i}.png'))
    result = run(tmp_path, 'train.py', f'--pretrained={folder}/eval_cifar/best_model.pdparams', '--dataset=folder',
                 '--data=images',
                 '--image_size=12', '--epochs=1', '--batch_size=4', '--learning_rate=1e-30', '--weight_decay=0')
    assert result.returncode == 0, result.stderr
    assert 'trained for 10 classes, now there are 3: the classifier starts untrained' in result.stderr
    before, after = [paddle.load(str(place / 'eval_cifar' / 'best_model.pdparams')) for place in (folder, tmp_path)]
    changed = [name for name, value in after.items() if '_mean' not in name and '_variance' not in name and (
        value.shape != before[name].shape or not np.array_equal(value.numpy(), before[name].numpy()))]
    assert sorted(changed) == ['classifier.bias', 'classifier.weight'] and after['classifier.bias'].shape == [3]
    check_refusal(run(tmp_path, 'train.py', '--eval_only', '--pretrained=eval_cifar/best_model.pdparams',
                      '--class_num=4'),
                  '--class_num: eval_cifar/best_model.pdparams was made with another value')


@pytest.mark.parametrize('changes, message', [
    (dict(layers=100000), 'it holds 2 cells, and the network has 100000 layers'),
    (dict(init_channels=4000), 'its init_channels is 4, not 4000'),
    (dict(class_num=10**9), 'its class_num is 10, not 1000000000'),
    (dict(layers='2'), "it holds 2 cells, and the network has '2' layers"),
    (dict(auxiliary='no'), 'auxiliary must be true or false'),
    (dict(init_channels=None), 'init_channels must be a whole number from 1 to 4096, it is None'),
    (dict(genotype=None), 'a genotype is an object with the keys'),
    (dict(genotype={}), 'the keys normal, normal_concat, reduce, reduce_concat are missing'),
    (dict(image_shape='huge'), 'image_shape must be [3, height, width]'),
    (dict(image_shape=[3, 10**9, 8]), 'image_shape must be [3, height, width]'),
    (dict(data=[]), 'data must be an object'),
    (dict(data={'seed': [1]}), 'seed: [1] is not allowed'),
    (dict(data={'seed': -1}), "seed: '-1' is not allowed: give a whole number from 0"),
    (dict(data={'image_size': 'x'}), "image_size: 'x' is not allowed"),
    (dict(data={'dataset': 'mnist'}), "dataset: 'mnist' is not allowed: give one of"),
])
def test_a_wrong_description_is_refused_before_anything_is_built(trained, tmp_path, monkeypatch, changes, message):
    import train
    folder, _ = trained
    for name in ('best_model.pdparams', 'best_model.json'):
        (tmp_path / name).write_bytes((folder / 'eval_cifar' / name).read_bytes())
    description = dict(json.loads((tmp_path / 'best_model.json').read_text()), **changes)
    (tmp_path / 'best_model.json').write_text(json.dumps(description))
    monkeypatch.setattr(sys, 'argv', ['train.py', f'--pretrained={tmp_path}/best_model.pdparams',
                                      f'--export={tmp_path}/out/model'])
    with pytest.raises(UserError) as error:
        train.main()
    assert message in str(error.value) and not (tmp_path / 'out').exists()


def test_an_export_never_overwrites_a_trained_network(trained):
    folder, _ = trained
    best = folder / 'eval_cifar' / 'best_model.json'
    before = best.read_bytes()
    check_refusal(run(folder, 'train.py', '--export=eval_cifar/best_model',
                      '--pretrained=eval_cifar/best_model.pdparams'),
                  '--export: eval_cifar/best_model.pdparams is a trained network')
    check_refusal(run(folder, 'train.py', '--export=eval_cifar', '--pretrained=eval_cifar/best_model.pdparams'),
                  'eval_cifar is a folder; give the beginning of the file names')
    assert best.read_bytes() == before


@pytest.mark.parametrize('name', ['DARTS_V1', 'DARTS_V2', 'PC_DARTS'])
def test_exported_networks_load_with_the_default_configuration(name, tmp_path):
    """Eight cells, mixed with activations, are what Paddle's inference passes failed on."""
    from genotypes import get_genotype
    from model import NetworkCIFAR
    from training.export import export
    paddle.seed(0)
    model = NetworkCIFAR(8, 10, 8, False, get_genotype(name))
    export(model, str(tmp_path / 'inference' / 'model'), [3, 32, 32])
    image = np.random.default_rng(0).normal(size=[2, 3, 32, 32]).astype('float32')
    np.save(str(tmp_path / 'image.npy'), image)
    output = subprocess.run([sys.executable, '-W', 'ignore', '-c', READ_BACK, 'inference'], cwd=str(tmp_path),
                            text=True,
                            capture_output=True)
    assert output.returncode == 0, output.stderr
    expected = model(paddle.to_tensor(image))[0].numpy()
    logits = np.asarray(json.loads(output.stdout.splitlines()[-1]))
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()


def test_checkpoints_that_cannot_be_loaded(script, tmp_path):
    (tmp_path / 'hostile.pdparams').write_bytes(pickle.dumps({'w': Hostile(str(tmp_path / 'made'))}))
    check_refusal(script('train.py', '--eval_only', '--pretrained=hostile.pdparams'),
                  'mkdir, which no file of this kind needs')
    assert not (tmp_path / 'made').exists()
    (tmp_path / 'text.pdparams').write_bytes(b'text')
    check_refusal(script('train.py', '--eval_only', '--pretrained=text.pdparams'), 'text.pdparams cannot be loaded')
    check_refusal(script('train.py', '--eval_only', '--pretrained=absent.pdparams'),
                  'absent.pdparams cannot be loaded: No such')
    paddle.save({'stem.0.weight': paddle.zeros([1, 2])}, str(tmp_path / 'other.pdparams'))
    check_refusal(script('train.py', '--eval_only', '--pretrained=other.pdparams', '--layers=1'),
                  'other.pdparams does not fit this network: it holds 0 cells, and the network has 1 layers')
    for flag in ('--eval_only', '--export=x'):
        check_refusal(script('train.py', flag), 'give the network with --pretrained')


def test_the_auxiliary_head_is_refused_on_images_too_small_for_it(script):
    check_refusal(script('train.py', '--dataset=digits', '--init_channels=4', '--layers=3'), 'give --auxiliary=False')


def test_a_loss_that_is_not_finite_stops_the_run(script):
    result = script('train.py', *SMALL, '--epochs=1', '--learning_rate=1e30', '--batch_size=32')
    check_refusal(result, 'learning rate 1e+30: try a lower --learning_rate or --grad_clip', status=1)


def test_mixed_precision_is_not_ignored_silently(script):
    result = script('train.py', *SMALL, '--epochs=1', '--amp_level=O1')
    assert '--amp_level=O1: ignored, the CPU computes in float32' in result.stderr and result.returncode == 0


def test_the_defaults_of_the_contract():
    import train
    import train_imagenet
    both = dict(use_multiprocess=True, momentum=0.9, use_gpu=True, auxiliary=True, auxiliary_weight=0.4, grad_clip=5,
                arch='DARTS_V2', use_data_parallel=False)
    cifar = dict(both, data='dataset/cifar10', batch_size=96, learning_rate=0.025, weight_decay=3e-4, epochs=600,
                 init_channels=36,
                 layers=20, class_num=10, trainset_num=50000, model_save_dir='eval_cifar', cutout=True,
                 cutout_length=16,
                 drop_path_prob=0.2, log_freq=50)
    imagenet = dict(both, num_workers=4, data_dir='dataset/ILSVRC2012', batch_size=128, learning_rate=0.1,
                    decay_rate=0.97,
                    weight_decay=3e-5, epochs=250, init_channels=48, layers=14, class_num=1000, trainset_num=1281167,
                    model_save_dir='eval_imagenet', drop_path_prob=0.0, dropout=0.0, label_smooth=0.1, log_freq=100)
    assert vars(train.parse_arguments([])).items() >= cifar.items()
    assert vars(train_imagenet.parse_arguments([])).items() >= imagenet.items()


# ---------------------------------------------------------------------------------------------------------------------
# ImageNet
# ---------------------------------------------------------------------------------------------------------------------


def test_imagenet_on_real_photos(script, tmp_path):
    """Two epochs on 75 photos, grey-scale ones among them, and the score of the best network again."""
    data = '--data_dir=' + shared_file('data', 'imagenet-sample')
    result = script('train_imagenet.py', data, '--class_num=100', '--init_channels=8', '--layers=3', '--epochs=2',
                    '--batch_size=25',
                    '--decay_rate=0.5', '--dropout=0.2', '--drop_path_prob=0.1', '--log_freq=1', '--num_workers=2')
    assert result.returncode == 0, result.stderr
    for line in ('Epoch 1, lr 0.050000', 'Epoch 1, train_top1 ', ', train_top5 ', 'Epoch 1, valid_top1 ',
                 ', valid_top5 ',
                 ', best_valid_top1 ', 'Train Epoch 1, Step 2, loss '):
        assert line in result.stderr, line
    best = json.loads((tmp_path / 'eval_imagenet' / 'best_model.json').read_text())
    assert best['image_shape'] == [3, 224, 224]
    again = script('train_imagenet.py', data, '--eval_only', '--pretrained=eval_imagenet/best_model.pdparams')
    expected = 'valid_acc {valid_acc:.6f}, valid_acc5 {valid_acc5:.6f}, '.format(**best)
    assert again.stdout.startswith(expected), again.stderr
    assert again.stdout.endswith(', 25 images\n')
    check_refusal(script('train_imagenet.py', data, '--class_num=50', '--layers=1', '--init_channels=4'),
                  'train_list.txt, line 38: label 50, 50 classes allow 0 to 49')


def test_image_lists_that_are_wrong(script, tmp_path):
    data = tmp_path / 'data'
    data.mkdir()
    small = ['train_imagenet.py', '--data_dir=data', '--init_channels=4', '--layers=1', '--class_num=2']
    check_refusal(script(*small), os.path.join('data', 'val_list.txt') + ' cannot be read: No such file')
    (data / 'val_list.txt').write_text('a.jpg 0\nb.jpg\n')
    check_refusal(script(*small), "val_list.txt, line 2: 'b.jpg' is not \"relative/path label\"")
    (data / 'val_list.txt').write_text('\n')
    check_refusal(script(*small), 'val_list.txt names no image')
    for name in ('val_list.txt', 'train_list.txt'):
        (data / name).write_text('a photo.jpg 1\n')
    (data / 'a photo.jpg').write_bytes(b'text')
    result = script(*small, '--auxiliary=False')
    check_refusal(result, 'train_list.txt, line 1: {} cannot be read as an image'.format(os.path.join('data',
                                                                                                      'a photo.jpg')),
                                                                                                      status=1)


# ---------------------------------------------------------------------------------------------------------------------
# Formulas of the loop
# ---------------------------------------------------------------------------------------------------------------------


class Probe(paddle.nn.Layer):
    """Two linear classifiers on the image itself, the second one as the auxiliary head."""

    def __init__(self):
        super().__init__()
        self.main, self.auxiliary = paddle.nn.Linear(12, 3), paddle.nn.Linear(12, 3)

    def set_drop_path_prob(self, prob):
        self.drop_path_prob = prob

    def forward(self, image):
        x = image.flatten(1)
        return self.main(x), self.auxiliary(x) if self.training else None


class Batches(list):
    def set_epoch(self, epoch):
        self.epoch = epoch


def cross_entropy(logits, label, epsilon):
    """Label smoothing as in the paper, Szegedy et al. 2016, section 7: the target is (1 - e) onehot + e / classes."""
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    target = np.full(logits.shape, epsilon / logits.shape[1])
    target[np.arange(len(label)), label] += 1 - epsilon
    return -(target * log_p).sum(1).mean()


def a_run(folder, model, optimizer, schedule, loader):
    run = Run(str(folder), model=model, optimizers=[(optimizer, model.parameters())], schedule=schedule,
              loaders=[loader],
              arguments={}, seed=0)
    run.start(False)
    return run


class Numbers:
    """A loader of 0, 1, 2, … with a position, as BatchLoader has."""

    taken = 0

    def set_position(self, position):
        self.taken = position

    def __iter__(self):
        return iter(range(self.taken, 10))


@pytest.mark.parametrize('kinds', [(True, True), (True, False), (False, True), (False, False)])
def test_a_resumed_epoch_passes_over_each_batch_once(tmp_path, kinds):
    """Whether the loaders have a position (True) or not."""
    model = Probe()
    optimizer = paddle.optimizer.SGD(1e-9, parameters=model.parameters())
    loaders = [Numbers() if has_position else list(range(10)) for has_position in kinds]
    run = a_run(tmp_path, model, optimizer, paddle.optimizer.lr.ExponentialDecay(1e-9, 0.5), loaders[0])
    run.loaders, run.step, run.random = loaders, 3, random_states()
    run.loader_states = [3 if has_position else None for has_position in kinds]
    assert run.begin_epoch(0, []) == 3
    assert next(iter(run.batches(zip(*loaders)))) == (3, 3)


def test_a_run_outside_the_main_thread_leaves_signals_alone(tmp_path):
    """There Python refuses to set handlers."""
    model = Probe()
    optimizer = paddle.optimizer.SGD(1e-9, parameters=model.parameters())
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]

    def work():
        with a_run(tmp_path, model, optimizer, paddle.optimizer.lr.ExponentialDecay(1e-9, 0.5), list(range(3))):
            return [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result() == handlers


def test_the_loss_is_smoothed_and_has_the_auxiliary_heads_part(tmp_path):
    model, rng = Probe(), np.random.default_rng(0)
    image, label = rng.normal(size=(6, 3, 2, 2)).astype('float32'), rng.integers(0, 3, 6)
    logits, logits_aux = [output.numpy() for output in model(paddle.to_tensor(image))]
    schedule = paddle.optimizer.lr.ExponentialDecay(1e-9, 0.5)
    optimizer = paddle.optimizer.SGD(schedule, parameters=model.parameters())
    lines = []
    fit(model, [(image, label)], [(image, label)], optimizer=optimizer, schedule=schedule, epochs=1,
        report=lambda metrics: lines.append(metrics) or metrics, precision=Precision(model=model),
        run=a_run(tmp_path, model, optimizer, schedule, [(image, label)]),
        loss_options=LossOptions(auxiliary_weight=0.7, label_smooth=0.2))
    metrics = lines[0]
    assert metrics['train_loss'] == pytest.approx(
        cross_entropy(logits, label, 0.2) + 0.7 * cross_entropy(logits_aux, label, 0.2), rel=1e-5)
    assert metrics['train_acc'] == pytest.approx((logits.argmax(1) == label).mean())
    assert metrics['train_acc5'] == 1  # of three classes


def test_drop_path_rises_linearly_and_the_validation_loss_is_not_smoothed(tmp_path):
    model, rng = Probe(), np.random.default_rng(0)
    batches = Batches([(rng.normal(size=(4, 3, 2, 2)).astype('float32'), rng.integers(0, 3, 4)) for _ in range(2)])
    schedule = paddle.optimizer.lr.ExponentialDecay(1e-9, 0.5)
    optimizer = paddle.optimizer.SGD(schedule, parameters=model.parameters())
    seen = []

    def report(metrics):
        seen.append((model.drop_path_prob, batches.epoch, metrics))
        return metrics

    fit(model, batches, batches[:1], optimizer=optimizer, schedule=schedule, epochs=4, report=report,
        precision=Precision(model=model), run=a_run(tmp_path, model, optimizer, schedule, batches),
        loss_options=LossOptions(label_smooth=0.3), drop_path_prob=0.2)
    assert [(prob, epoch) for prob, epoch, _ in seen] == [(0.0, 0), (0.05, 1), (0.1, 2), (0.15000000000000002, 3)]
    assert [m['lr'] for _, _, m in seen] == [1e-9 * 0.5**epoch for epoch in range(4)]
    image, label = batches[0]
    logits = model(paddle.to_tensor(image))[0].numpy()
    assert seen[-1][2]['valid_loss'] == pytest.approx(cross_entropy(logits, label, 0), rel=1e-4)
