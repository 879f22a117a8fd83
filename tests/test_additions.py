"""What train.py and train_imagenet.py can add to the papers' recipe, each against a computation of its own."""
import json
import os
import shutil
import signal

import numpy as np
import paddle
import pytest
from conftest import arguments, run
from test_train import Batches, Probe, a_run, cross_entropy

import reader
from pipeline import transforms
from pipeline.loader import TRAIN, BatchLoader
from runtime.checkpoint import Checkpoints, load_model
from runtime.errors import UserError
from training.additions import Additions, Mixing, with_warmup
from training.engine import Precision, fit
from training.options import LossOptions


def some_batches(sizes, seed=0):
    rng = np.random.default_rng(seed)
    return Batches([(rng.normal(size=(n, 3, 2, 2)), rng.integers(0, 3, n)) for n in sizes])


def fitted(folder, batches, valid=None, epochs=1, report=lambda metrics: metrics, loss_options=LossOptions(),
           **additions):
    """Train a Probe in double precision with SGD of momentum -> (network, its Additions, the Run)."""
    paddle.seed(0)
    model = Probe()
    schedule = paddle.optimizer.lr.ExponentialDecay(0.3, 0.5)
    optimizer = paddle.optimizer.Momentum(schedule, 0.9, parameters=model.parameters(), weight_decay=1e-3,
                                          grad_clip=paddle.nn.ClipGradByGlobalNorm(1.0))
    additions = Additions(model, **additions)
    progress = a_run(folder, model, optimizer, schedule, batches)
    progress.tensors = additions.tensors
    progress.statistics = progress._values_of_rank()
    fit(model, batches, valid or batches[:1], optimizer=optimizer, schedule=schedule, epochs=epochs, report=report,
        precision=Precision(), run=progress, loss_options=loss_options, additions=additions)
    return model, additions, progress


def weights(model):
    return {name: value.numpy().copy() for name, value in model.state_dict().items()}


# ---------------------------------------------------------------------------------------------------------------------
# Nothing added, batches a step, the average of the weights, warm-up
# ---------------------------------------------------------------------------------------------------------------------


def test_without_a_recipe_a_step_is_the_plain_one_to_the_bit(float64, tmp_path):
    batches = some_batches([4, 4, 3])
    model, _, _ = fitted(tmp_path, batches)
    paddle.seed(0)
    plain = Probe()
    optimizer = paddle.optimizer.Momentum(0.3, 0.9, parameters=plain.parameters(), weight_decay=1e-3,
                                          grad_clip=paddle.nn.ClipGradByGlobalNorm(1.0))
    for image, label in batches:
        logits, auxiliary = plain(paddle.to_tensor(image))
        loss = paddle.nn.functional.cross_entropy(logits, paddle.to_tensor(label), label_smoothing=0.0)
        loss += 0.4 * paddle.nn.functional.cross_entropy(auxiliary, paddle.to_tensor(label), label_smoothing=0.0)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
    for name, value in weights(plain).items():
        assert value.tobytes() == weights(model)[name].tobytes()


def test_accumulated_batches_are_one_large_batch(float64, tmp_path):
    """Also where the last batches are smaller and fewer: 4 4 4 | 4 2 are 12 | 6."""
    seen = []
    parts = some_batches([4, 4, 4, 4, 2])
    image, label = [np.concatenate(arrays) for arrays in zip(*parts)]
    whole = Batches([(image[:12], label[:12]), (image[12:], label[12:])])
    for name, batches, accumulate in (('parts', parts, 3), ('whole', whole, 1), ('alone', parts, 1)):
        model, _, _ = fitted(tmp_path / name, batches, valid=whole, epochs=2, accumulate=accumulate,
                             report=lambda metrics: seen.append(metrics) or metrics)
        seen[-1]['weights'] = weights(model)
    by_parts, at_once, alone = seen[1::2]
    for name, value in at_once['weights'].items():
        assert np.allclose(by_parts['weights'][name], value, rtol=1e-11, atol=1e-13)
        assert np.abs(alone['weights'][name] - value).max() > 1e-3
    for figure in ('train_loss', 'train_acc', 'valid_loss'):
        assert by_parts[figure] == pytest.approx(at_once[figure], rel=1e-6)


def test_the_average_of_the_weights_is_evaluated_and_handed_on(float64, tmp_path):
    """Against the recursion in numpy, from the weights after every step."""
    batches, decay, found = some_batches([4, 4, 4]), 0.7, []
    steps = []

    class Recorded(Additions):
        """Records the weights after every step, before the average follows."""

        def __init__(self, model, **options):
            super().__init__(model, **options)
            steps.append(weights(model))
            update = self.average.update
            self.average.update = lambda: (steps.append(weights(model)), update())

    def report(metrics):
        found.append((metrics, weights(models[0])))
        return metrics

    models = []
    original = Probe.__init__

    def record(self):
        original(self)
        models.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Probe, '__init__', record)
        patch.setattr('test_additions.Additions', Recorded)
        model, additions, _ = fitted(tmp_path, batches, epochs=2, report=report, ema=decay)
    assert len(steps) == 7
    average = steps[0]
    for number, step in enumerate(steps[1:], 1):
        average = {name: decay * average[name] + (1 - decay) * step[name] for name in step}
        if number % 3:
            continue
        metrics, handed_on = found[number // 3 - 1]
        for name, value in average.items():
            assert np.allclose(handed_on[name], value, rtol=1e-12, atol=0)
        image, label = batches[0]
        logits = image.reshape(4, 12) @ average['main.weight'] + average['main.bias']
        assert metrics['valid_loss'] == pytest.approx(cross_entropy(logits, label, 0), rel=1e-6)
    for name, value in weights(model).items():
        assert value.tobytes() == steps[-1][name].tobytes()  # the trained ones are back in their place
    assert all(np.allclose(tensor.numpy(), average[name]) for tensor, name in zip(additions.tensors, average))


def test_a_signal_during_evaluation_saves_the_trained_weights(float64, tmp_path):
    trained, averages = [], []

    class Evaluated(list):
        """Batches; the signal comes with the second one."""

        def __iter__(self):
            for batch in list.__iter__(self):
                yield batch
                os.kill(os.getpid(), signal.SIGTERM)

    for valid in (None, Evaluated(some_batches([2, 2, 2]))):
        folder = tmp_path / str(len(trained))
        try:
            model, additions, _ = fitted(folder, some_batches([4, 4]), valid=valid, ema=0.5)
            trained, averages = weights(model), [tensor.numpy() for tensor in additions.tensors]
        except UserError as error:
            assert error.status == 143
            _, arrays, info = Checkpoints(str(folder / 'checkpoints'), 2).newest()
    assert (info['epoch'], info['step']) == (0, 2)
    for name, value in trained.items():
        assert arrays['model/' + name].tobytes() == value.tobytes()
    assert [arrays[f'rank0/{i}'].tobytes() for i in range(4)] == [value.tobytes() for value in averages]


def test_the_learning_rate_of_the_warm_up():
    """Three epochs up to 0.1, then seven of the cosine to 0; also set to any epoch, as resuming does."""
    schedule = with_warmup(paddle.optimizer.lr.CosineAnnealingDecay(0.1, 7), 3)
    expected = [0.025, 0.05, 0.075] + [0.05 * (1 + np.cos(np.pi * epoch / 7)) for epoch in range(7)]
    found, states = [], []
    for _ in range(10):
        found.append(schedule.get_lr())
        states.append(json.loads(json.dumps(schedule.state_dict())))
        schedule.step()
    assert found == pytest.approx(expected, rel=1e-12)
    for epoch in (1, 3, 5):
        other = with_warmup(paddle.optimizer.lr.CosineAnnealingDecay(0.1, 7), 3)
        other.set_state_dict(states[epoch])
        for later in range(epoch, 10):
            assert other.get_lr() == found[later]
            other.step()
    plain = paddle.optimizer.lr.ExponentialDecay(0.1, 0.5)
    assert with_warmup(plain, 0) is plain


# ---------------------------------------------------------------------------------------------------------------------
# Mixup and cutmix
# ---------------------------------------------------------------------------------------------------------------------


def mixed(mixing, key, n=6, size=8):
    """A batch of distinct images, mixed -> (own [N, 3, H, W], mixed, own labels, other labels, the own share)."""
    rng = np.random.default_rng(5)
    image, label = rng.normal(size=(n, 3, size, size)), np.arange(n).reshape(n, 1)
    result, ((own, share), (other, rest)) = mixing(paddle.to_tensor(image), paddle.to_tensor(label), key)
    assert (own.numpy() == label).all() and share + rest == pytest.approx(1)
    return image, result.numpy(), label[:, 0], other.numpy()[:, 0], share


def test_mixup_mixes_each_image_with_another_one():
    shares = []
    for step in range(200):
        image, result, _, other, share = mixed(Mixing(mixup=0.4), [0, 3, 0, 0, step, 0])
        assert sorted(other) == list(range(6)) and 0 <= share <= 1
        assert np.allclose(result, share * image + (1 - share) * image[other], rtol=1e-12, atol=1e-12)
        shares.append(share)
    # Beta(0.4, 0.4) has the mean 1/2 and the variance 1 / (4 (2 * 0.4 + 1)); 200 draws, three standard deviations.
    assert abs(np.mean(shares) - 0.5) < 3 * np.sqrt(0.1389 / 200) and abs(np.var(shares) - 0.1389) < 0.03


def test_cutmix_puts_a_rectangle_of_another_image_in():
    boxes = []
    for step in range(200):
        image, result, _, other, share = mixed(Mixing(cutmix=1.0), [0, 3, 0, 0, step, 0])
        taken = (result == image[other]).all(axis=1)
        kept = (result == image).all(axis=1)
        alone = np.flatnonzero(other != np.arange(6))  # not those that got their own image
        assert (taken | kept).all()
        rows, columns = np.nonzero(~kept[alone[0]])
        area = 0 if not len(rows) else np.ptp(rows) + 1
        area *= 0 if not len(rows) else np.ptp(columns) + 1
        assert area == len(rows) and share == pytest.approx(1 - area / 64)
        assert all((kept[i] == kept[alone[0]]).all() for i in alone)
        boxes.append(area)
    assert min(boxes) == 0 and max(boxes) > 32 and len(set(boxes)) > 10


def test_mixing_follows_from_the_key_alone_and_takes_turns():
    both = Mixing(mixup=1.0, cutmix=1.0)
    key = [0, 3, 0, 1, 2, 0]
    first, again = mixed(both, key)[1], mixed(both, key)[1]
    assert first.tobytes() == again.tobytes()
    for i in range(len(key)):
        other = list(key)
        other[i] += 1
        assert mixed(both, other)[1].tobytes() != first.tobytes()
    cut = 0
    for step in range(100):
        image, result, _, other, _ = mixed(both, [0, 3, 0, 0, step, 0])
        cut += ((result == image) | (result == image[other])).all()  # no value is mixed
    assert 35 < cut < 65  # three standard deviations
    image = paddle.ones([2, 3, 4, 4])
    assert Mixing()(image, paddle.zeros([2, 1]), key)[0] is image


def test_the_loss_of_mixed_images_is_that_of_soft_targets(float64, tmp_path):
    """Of the first step, by numpy: the target of an image is share * onehot + (1 - share) * onehot of the other."""
    seen = []
    image, label = some_batches([6])[0]
    for options in (dict(mixup=1.0), dict(cutmix=1.0)):
        fitted(tmp_path / str(len(seen)), Batches([(image, label)]), report=lambda metrics: seen.append(metrics) or {},
               loss_options=LossOptions(auxiliary_weight=0.7, label_smooth=0.2), **options)
        paddle.seed(0)
        start = weights(Probe())
        result, targets = Mixing(**options)(paddle.to_tensor(image), paddle.to_tensor(label.reshape(6, 1)),
                                            [0, 3, 0, 0, 0, 0])
        soft = sum(share * np.eye(3)[target.numpy()[:, 0]] for target, share in targets) * 0.8 + 0.2 / 3
        expected = 0
        for part, factor in (('main', 1), ('auxiliary', 0.7)):
            logits = result.numpy().reshape(6, 12) @ start[f'{part}.weight'] + start[f'{part}.bias']
            expected -= factor * (soft * (logits - np.log(np.exp(logits).sum(1, keepdims=True)))).sum(1).mean()
        assert seen[-1]['train_loss'] == pytest.approx(expected, rel=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# The scripts
# ---------------------------------------------------------------------------------------------------------------------

ALL = ['--ema=0.8', '--mixup=0.3', '--cutmix=1', '--augment=trivial', '--warmup_epochs=1', '--accumulate=3']
FLAGS = ['--dataset=digits', '--init_channels=4', '--layers=2', '--trainset_num=80', '--batch_size=8', '--log_freq=1',
         '--auxiliary=False', '--drop_path_prob=0.3', '--epochs=2', '--save_freq=1', '--keep=50']


@pytest.mark.slow
def test_a_run_with_everything_resumes_to_the_same_bits(tmp_path):
    """10 batches, 4 steps an epoch. Resumed in the middle of the second one from the checkpoint that was there then."""
    result = run(tmp_path, 'train.py', *FLAGS, *ALL, '--model_save_dir=whole')
    assert result.returncode == 0, result.stderr
    assert 'TrivialAugment' in result.stderr and 'Train Epoch 1, Step 3' in result.stderr
    metrics = [json.loads(line) for line in (tmp_path / 'whole' / 'metrics.jsonl').read_text().splitlines()]
    assert [line['lr'] for line in metrics] == [0.0125, 0.025]
    for name in ('epoch-0000-step-000003.npz', 'epoch-0001-step-000002.npz'):
        part = tmp_path / name
        (part / 'checkpoints').mkdir(parents=True)
        shutil.copy(str(tmp_path / 'whole' / 'checkpoints' / name), str(part / 'checkpoints'))
        (part / 'checkpoints' / 'darts-files.json').write_text(json.dumps({'files': [name], 'earlier': []}))
        resumed = run(tmp_path, 'train.py', *FLAGS, *ALL, f'--model_save_dir={name}', '--resume')
        assert resumed.returncode == 0 and 'resumed at epoch' in resumed.stderr, resumed.stderr
        mine, expected = [Checkpoints(str(folder / 'checkpoints'), 50).newest()[1]
                          for folder in (part, tmp_path / 'whole')]
        assert mine.keys() == expected.keys()
        assert [key for key in mine if mine[key].tobytes() != expected[key].tobytes()] == []
    # What was saved is the average, which the last checkpoint of its epoch holds beside the trained weights.
    best, description = load_model(str(tmp_path / 'whole' / 'best_model.pdparams'))
    last = f'epoch-{description["epoch"] + 1:04d}-step-000000.npz'
    (tmp_path / 'best' / 'checkpoints').mkdir(parents=True)
    shutil.copy(str(tmp_path / 'whole' / 'checkpoints' / last), str(tmp_path / 'best' / 'checkpoints'))
    _, arrays, _ = Checkpoints(str(tmp_path / 'best' / 'checkpoints'), 1).newest()
    averages = [value for key, value in sorted(arrays.items()) if key.startswith('rank0/')]
    assert sum(best['classifier.bias'].tobytes() == value.tobytes() for value in averages) == 1
    assert best['classifier.bias'].tobytes() != arrays['model/classifier.bias'].tobytes()
    without = run(tmp_path, 'train.py', *FLAGS, *ALL[1:], '--model_save_dir=whole', '--resume')
    assert without.returncode == 2 and '--ema=0.8' in without.stderr


@pytest.mark.parametrize('name', ['train', 'train_imagenet'])
@pytest.mark.parametrize('flags, message', [
    (['--ema=1'], "argument --ema: '1' is not allowed: give a number above 0 and below 1"),
    (['--ema=0'], "argument --ema: '0' is not allowed"),
    (['--mixup=-1'], "argument --mixup: '-1' is not allowed: give a number above 0"),
    (['--cutmix=nan'], "argument --cutmix: 'nan' is not allowed"),
    (['--mixup=0.2', '--batch_size=1'], 'argument --mixup: mixes the images of a batch; --batch_size must be'),
    (['--augment=rand'], "argument --augment: 'rand' is not allowed: give one of none, trivial"),
    (['--warmup_epochs=5', '--epochs=5'], 'argument --warmup_epochs: 5 is not allowed: it must be less than the 5'),
    (['--accumulate=0'], "argument --accumulate: '0' is not allowed: give a whole number of at least 1")])
def test_wrong_flags(name, flags, message, capsys):
    with pytest.raises(SystemExit) as end:
        __import__(name).parse_arguments(flags)
    captured = capsys.readouterr()
    assert end.value.code == 2 and len(captured.err.splitlines()) == 1 and message in captured.err


def test_augment_reaches_the_training_images_alone(tmp_path, monkeypatch):
    args = arguments(augment='trivial')
    train, test = reader.train_valid(8, True, True, args), reader.train_valid(8, False, False, args)
    assert str(train.source.transform.policy) == 'TrivialAugment' and test.source.transform.policy is None
    assert reader.train_valid(8, True, True, arguments()).source.draws == 5 == train.source.draws - 3
    (tmp_path / 'train_list.txt').write_text('a 0\n')
    (tmp_path / 'val_list.txt').write_text('a 0\n')
    images = reader.imagenet_reader(str(tmp_path), 'train', 32, 'trivial')
    assert images.draws == transforms.RandomResizedCrop.draws + 8
    assert images.plain().transform.policy is None
    assert reader.imagenet_reader(str(tmp_path), 'val', 32, 'trivial').transform.policy is None
    loader = BatchLoader(train.source, 8, shuffle=True, stream=TRAIN, seed=3)
    first = [image.numpy().tobytes() for image, _ in loader]
    loader.set_epoch(0)
    assert [image.numpy().tobytes() for image, _ in loader] == first
    monkeypatch.setattr(reader, 'digits_reader', lambda is_train: [(np.zeros((3, 8, 8), 'float32'), 0)])
    with pytest.raises(UserError, match='--augment: trivial works on uint8 images'):
        reader.train_valid(8, True, True, args)
