"""--predict: the classes of image files, which are prepared and computed as the test images are."""
import json
import os
import pickle
import shutil

import numpy as np
import paddle
import pytest
from conftest import arguments, check_refusal, run, shared_file
from PIL import Image

import reader
from model import NetworkCIFAR, NetworkImageNet
from pipeline.archives import cifar_batches
from pipeline.folders import images_below
from pipeline.loader import VALID, BatchLoader
from runtime.checkpoint import save_model
from runtime.errors import UserError
from training import evaluation, prediction
from training.engine import logits_of
from training.options import PrecisionOptions

CIFAR_NAMES = ['airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck']
DIGITS = {'image_shape': [3, 8, 8], 'data': {'dataset': 'digits', 'seed': 0}}


def save_network(path, network_class=NetworkCIFAR, class_num=10, **description):
    """A network of random weights and running statistics, saved as training saves one -> the network."""
    paddle.seed(3)
    flags = dict(arch='PC_DARTS', init_channels=4, layers=2, auxiliary=False)
    described = evaluation.describe(network_class, flags, class_num)
    network = evaluation.build(network_class, described)
    for name, value in network.state_dict().items():
        if name.endswith(('_mean', '_variance')):
            value.set_value(paddle.rand(value.shape) + 0.5)
    save_model(str(path), network.state_dict(), dict(described, **description))
    network.eval()
    return network


def save_pngs(folder, pairs):
    """Write (image uint8 [3, H, W] or [H, W], label) pairs as 0000.png, ... in a new folder."""
    folder.mkdir()
    for i, (image, _) in enumerate(pairs):
        Image.fromarray(image if image.ndim == 2 else image.transpose(1, 2, 0)).save(str(folder / f'{i:04d}.png'))
    return str(folder)


def softmax(logits):
    exponentials = np.exp(np.asarray(logits, 'float64') - np.max(logits, 1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


# ---------------------------------------------------------------------------------------------------------------------
# The same images, the same numbers
# ---------------------------------------------------------------------------------------------------------------------


def scored_images(kind, folder):
    """The batches of 16 images of a data set that scoring reads, and the same images as files -> (loader, path, the
    arguments of predict_loader after the batch size)."""
    if kind == 'imagenet':
        data = shared_file('data', 'imagenet-sample')
        files = reader.imagenet_reader(data, 'val', 64)
        order = np.argsort(files.paths)
        return (BatchLoader(files.subset(order), 16, shuffle=False, stream=VALID, train=False),
                os.path.join(data, 'val'), ('imagenet', 64))
    if kind == 'folder':
        rng = np.random.default_rng(0)
        for number in range(30):
            path = folder / 'data' / ('train' if number % 2 else 'test') / f'class{number % 3}' / f'{number:02d}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (20 + number, 31, 3), 'uint8')).save(str(path))
        args = arguments(dataset='folder', data=str(folder / 'data'), image_size=12)
        return reader.train_valid(16, False, False, args), str(folder / 'data' / 'test'), ('folder', 12)
    data = None if kind == 'digits' else shared_file('data', 'cifar-10-subset.tar.gz')
    loader = reader.train_valid(16, False, False, arguments(dataset=kind, data=data))
    source = loader.source.subset(np.arange(40))
    loader = BatchLoader(source, 16, shuffle=False, stream=VALID, train=False)
    pngs = save_pngs(folder / 'pngs', [(source.images[i], 0) for i in source.indices])
    return loader, pngs, (kind, source.image_shape[1])


@pytest.mark.parametrize('kind', ['digits', 'cifar10', 'folder', 'imagenet'])
def test_image_files_give_the_logits_of_scoring_to_the_bit(kind, tmp_path):
    loader, path, (dataset, size) = scored_images(kind, tmp_path)
    files = reader.predict_loader(16, dataset, size, arguments(predict=path))
    assert len(files.source) == len(loader.source) > 10
    network = save_network(tmp_path / 'net.pdparams', NetworkImageNet if kind == 'imagenet' else NetworkCIFAR)
    numbers = []
    for (expected, _), (image, number) in zip(loader, files):
        assert image.numpy().tobytes() == expected.numpy().tobytes()
        assert logits_of(network, image).numpy().tobytes() == logits_of(network, expected).numpy().tobytes()
        numbers += number.tolist()
    assert numbers == list(range(len(loader.source)))


def test_the_printed_probabilities_are_the_softmax_of_the_networks_logits(script, tmp_path):
    """In a process that has neither data nor flags but the two; text and JSON say the same."""
    network = save_network(tmp_path / 'best.pdparams', **DIGITS)
    pairs = reader.digits_reader(False)[:20]
    save_pngs(tmp_path / 'images', pairs)
    images, _ = next(iter(reader.train_valid(20, False, False, arguments())))
    expected = softmax(network(images)[0].numpy())
    result = script('train.py', '--predict=images', '--pretrained=best.pdparams', '--json', '--batch_size=7')
    assert result.returncode == 0, result.stderr
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line['path'] for line in found] == [os.path.join('images', f'{i:04d}.png') for i in range(20)]
    for line, row in zip(found, expected):
        best = sorted(range(10), key=lambda label: -row[label])[:5]
        assert [item['label'] for item in line['predictions']] == best
        assert [item['class'] for item in line['predictions']] == [str(label) for label in best]
        assert [item['probability'] for item in line['predictions']] == pytest.approx([row[i] for i in best], rel=1e-5)
    text = script('train.py', '--predict=images/0003.png', '--pretrained=best.pdparams').stdout
    assert text == 'images/0003.png: ' + ', '.join(
        '{class} {probability:.4f}'.format(**item) for item in found[3]['predictions']) + '\n'


# ---------------------------------------------------------------------------------------------------------------------
# Names
# ---------------------------------------------------------------------------------------------------------------------


def test_a_run_keeps_the_names_of_a_folders_classes(script, tmp_path):
    """The data may be gone when they are needed; an odd name is made safe for a terminal."""
    for i, name in enumerate(['b\x1b[2J', 'a', 'c'] * 8):
        (tmp_path / 'data' / name).mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (20, 20), (10 * i, 0, 0)).save(str(tmp_path / 'data' / name / f'{i}.png'))
    result = script('train.py', '--dataset=folder', '--data=data', '--image_size=12', '--auxiliary=False', '--layers=1',
                    '--init_channels=4', '--epochs=1')
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / 'eval_cifar' / 'best_model.json').read_text())['class_names'] == ['a', 'b\x1b[2J',
                                                                                                  'c']
    shutil.move(str(tmp_path / 'data' / 'a' / '1.png'), str(tmp_path / 'photo.png'))
    shutil.rmtree(str(tmp_path / 'data'))
    result = script('train.py', '--predict=photo.png', '--pretrained=eval_cifar/best_model.pdparams')
    assert result.returncode == 0, result.stderr
    words = result.stdout.replace(',', '').split()
    assert words[0] == 'photo.png:' and sorted(words[1::2]) == ['a', 'b\\x1b[2J', 'c']
    assert sum(map(float, words[2::2])) == pytest.approx(1, abs=2e-4)


def test_the_names_that_come_with_cifar(tmp_path):
    archive = shared_file('data', 'cifar-10-subset.tar.gz')
    assert reader.cifar10_reader(archive, 'data_batch', True, arguments())[:5].class_names == CIFAR_NAMES
    fine = [f'fine{i}' for i in range(100)]
    (tmp_path / 'train').write_bytes(pickle.dumps({'data': np.zeros((1, 3072), 'uint8'), 'fine_labels': [7]}))

    def class_names(folder):
        names = []
        assert [name for name, _, _ in cifar_batches(str(folder), 'train', names)] == ['train']
        return names

    for content, expected in ((pickle.dumps({'fine_label_names': fine}), fine),
                              (pickle.dumps({b'fine_label_names': [name.encode() for name in fine]}), fine),
                              (pickle.dumps({'fine_label_names': fine[:99]}), None),
                              (pickle.dumps({'fine_label_names': list(range(100))}), None),
                              (pickle.dumps({}), None), (pickle.dumps(print), None), (b'', None)):
        (tmp_path / 'meta').write_bytes(content)
        assert class_names(tmp_path) == (expected or [])
    (tmp_path / 'meta').unlink()
    assert class_names(tmp_path) == []
    (tmp_path / 'meta').write_bytes(pickle.dumps({'fine_label_names': fine}))
    assert next(cifar_batches(str(tmp_path), 'train'))[0] == 'train'  # names are read for those who ask


def test_the_names_that_come_with_image_lists(tmp_path):
    (tmp_path / 'train_list.txt').write_text('a.png 0\nb.png 1\n')
    assert reader.imagenet_reader(str(tmp_path), 'train', 32).class_names is None
    (tmp_path / 'classes.txt').write_text('a dog\n\u732b\n', encoding='utf-8')
    images = reader.imagenet_reader(str(tmp_path), 'train', 32)
    assert images.class_names == images.subset([0]).class_names == images.plain().class_names == ['a dog', '\u732b']
    (tmp_path / 'classes.txt').write_text('a dog\n')
    assert reader.imagenet_reader(str(tmp_path), 'train', 32).class_names is None


def test_what_is_kept_of_the_images():
    source = reader.as_source([(np.zeros((8, 8), 'uint8'), 1)], ['cifar10', False, 0])
    description = prediction.with_images({'class_num': 3, 'class_names': ['of', 'other', 'data']}, source)
    assert description == {'class_num': 3, 'image_shape': [3, 8, 8], 'normalised': True}
    assert prediction.class_names(description) == ['0', '1', '2']  # also of a best_model.json from before
    source.class_names = ['x', 'y']
    assert prediction.class_names(prediction.with_images(description, source)) == ['x', 'y', '2']
    source.class_names = ['\u732b' * 100] * 2000  # 1.2 MB, more than is read of a best_model.json
    assert 'class_names' not in prediction.with_images(description, source)
    floats = reader.as_source([(np.zeros((3, 8, 8), 'float32'), 1)], ['cifar10', False, 0])
    with pytest.raises(UserError, match='trained on arrays that were used as they are'):
        prediction.square_side(prediction.with_images({}, floats), [3, 8, 8])
    with pytest.raises(UserError, match='images of 8x9 pixels; image files are brought to squares'):
        prediction.square_side(description, [3, 8, 9])
    for wrong in (['a'] * 4, [1], 'abc', None):
        with pytest.raises(UserError, match='class_names must be a list of at most 3 texts'):
            prediction.class_names(dict(description, class_names=wrong))


# ---------------------------------------------------------------------------------------------------------------------
# What cannot be read
# ---------------------------------------------------------------------------------------------------------------------


def test_the_images_of_a_folder(tmp_path):
    for name in ('b.JPG', 'a/2.png', 'a/.hidden.png', '.thumbnails/3.png', 'notes.txt', '@eaDir/4.png'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert images_below(str(tmp_path), '--predict') == [str(tmp_path / 'b.JPG'), str(tmp_path / 'a' / '2.png')]


def test_unreadable_images_are_those_of_every_reader(script, tmp_path):
    save_network(tmp_path / 'best.pdparams', **DIGITS)
    save_pngs(tmp_path / 'images', reader.digits_reader(False)[:3])
    (tmp_path / 'images' / '0001.png').write_bytes(b'text')
    check_refusal(script('train.py', '--predict=images', '--pretrained=best.pdparams'),
                  'images/0001.png cannot be read as an image: ', status=1)
    result = script('train.py', '--predict=images', '--pretrained=best.pdparams', '--max_bad_images=1')
    assert [line.split(':')[0] for line in result.stdout.splitlines()] == ['images/0000.png', 'images/0002.png']
    assert result.returncode == 0 and 'skipped: images/0001.png cannot be read' in result.stderr
    os.mkfifo(str(tmp_path / 'pipe'))
    check_refusal(script('train.py', '--predict=pipe', '--pretrained=best.pdparams'),
                  'pipe cannot be read as an image: it is not a regular file', status=1)
    (tmp_path / 'empty').mkdir()
    check_refusal(script('train.py', '--predict=empty', '--pretrained=best.pdparams'),
                  '--predict: empty holds no image file')


def test_a_network_that_gives_no_numbers(tmp_path):
    network = save_network(tmp_path / 'best.pdparams', **DIGITS)
    network.classifier.bias.set_value(paddle.full([10], float('nan')))
    path = save_pngs(tmp_path / 'images', reader.digits_reader(False)[:1])
    loader = reader.predict_loader(1, 'digits', 8, arguments(predict=path))
    with pytest.raises(UserError, match='gives values that are not finite'):
        prediction.predict(network, loader, list('0123456789'), precision_options=PrecisionOptions(), as_json=True)


@pytest.mark.parametrize('name', ['train.py', 'train_imagenet.py'])
@pytest.mark.parametrize('flags, message', [
    (['--predict=.'], 'argument --predict: give the network with --pretrained'),
    (['--predict=absent.png', '--pretrained=x'], 'argument --predict: absent.png does not exist'),
    (['--predict=', '--pretrained=x'], 'argument --predict: an empty value is not allowed'),
    (['--json'], 'argument --json: goes with --predict'),
    *[(['--predict=.', '--pretrained=x', '--' + flag], f'argument --predict: does not go together with --{flag}')
      for flag in ('eval_only', 'export=y', 'summary', 'resume', 'use_data_parallel')],
])
def test_wrong_flags(name, flags, message, capsys):
    module = __import__(name.removesuffix('.py'))
    with pytest.raises(SystemExit) as end:
        module.parse_arguments(flags)
    captured = capsys.readouterr()
    assert end.value.code == 2 and captured.out == '' and len(captured.err.splitlines()) == 1
    assert message.split('=')[0] in captured.err


def test_imagenet_photos_of_any_size(script, tmp_path):
    save_network(tmp_path / 'best.pdparams', NetworkImageNet, class_num=3, image_shape=[3, 64, 64],
                 class_names=['cat', 'dog'])
    (tmp_path / 'photos').mkdir()
    Image.new('L', (300, 20)).save(str(tmp_path / 'photos' / 'wide.jpg'))
    Image.new('CMYK', (9, 300)).save(str(tmp_path / 'photos' / 'high.jpg'))
    result = script('train_imagenet.py', '--predict=photos', '--pretrained=best.pdparams', '--num_workers=2')
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.split(':')[0] for line in lines] == ['photos/high.jpg', 'photos/wide.jpg']
    assert sorted(lines[0].replace(',', '').split()[1::2]) == ['2', 'cat', 'dog']
    assert run(tmp_path, 'train.py', '--predict=photos', '--pretrained=best.pdparams').returncode == 2
