"""What users bring in place of (image, label): each is named at the first item or where it comes, in one line."""
import numpy as np
import paddle
import pytest
from conftest import arguments, read
from PIL import Image

import reader
from nas.readers import PairedLoader, as_loader
from nas.searcher import DARTSearch
from pipeline import loader
from pipeline.items import DatasetItems, images_and_labels
from runtime.errors import UserError

IMAGE = np.zeros((3, 8, 8), 'float32')


class Items(paddle.io.Dataset):
    """A Dataset of good items, of which number `place` is another one."""

    def __init__(self, item, place, count=6):
        self.items = [(IMAGE, i % 3) for i in range(count)]
        self.items[place] = item

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


WRONG = {  # item: what the line says of it
    'float label': ((IMAGE, 0.7), r'whose label is of type float64 and shape \[\], 0.7'),
    'one-hot': ((IMAGE, np.eye(3)[1]), r'label is of type float64 and shape \[3\]: give the number of the class'),
    'one-hot of integers': ((IMAGE, np.eye(3, dtype=int)[1]), r'of type int64 and shape \[3\]: give the number'),
    'boolean label': ((IMAGE, True), 'label is of type bool'),
    'text label': ((IMAGE, 'cat'), "label is of type <U3 .*'cat'"),
    'no label': ((IMAGE, None), 'label is of type object'),
    'integer pixels': ((IMAGE.astype('int64'), 1), 'first part is of type int64: convert and normalise the pixels'),
    'bytes': ((IMAGE.astype('uint8'), 1), 'first part is of type uint8: convert and normalise'),
    'PIL': ((Image.new('RGB', (8, 8)), 1), 'first part is of type uint8: convert and normalise'),
    'file name': (('a.png', 1), 'first part is of type <U5'),
    'HWC': ((IMAGE.transpose(1, 2, 0), 1), r'shape \[8, 8, 3\]: bring the channels to the front'),
    'one channel': ((IMAGE[:1], 1), r'shape \[1, 8, 8\]: give three channels'),
    'no channel': ((IMAGE[0], 1), r'shape \[8, 8\]: give three channels'),
    'row': ((np.zeros(784, 'float32'), 1), r'shape \[784\]'),
    'row of integers': ((np.zeros(784, 'int64'), 1), r'first part is of type int64'),
    'batch': ((IMAGE[None], 1), r'shape \[1, 3, 8, 8\]'),
    'dictionary': ({'image': IMAGE, 'label': 1}, 'a dict with the keys image, label'),
    'three': ((IMAGE, 1, 2), 'a tuple of 3 parts'),
    'image alone': (IMAGE, 'a ndarray'),
    'text': ('text', 'a str'),
    'nothing': (None, 'a NoneType'),
    'NaN': ((np.full_like(IMAGE, np.nan), 1), 'NaN or infinite values'),
}


@pytest.mark.parametrize('place', [0, 4])
@pytest.mark.parametrize('case', sorted(WRONG))
def test_an_item_of_a_dataset_that_is_something_else(case, place):
    """At the first item when the source is made, a later one with its batch, also in worker processes."""
    item, what = WRONG[case]
    with pytest.raises(UserError, match=f'item {place} of the data set is .*{what}.*; expected is a pair '
                                        r'\(float array \[3, H, W\], integer label\)') as error:
        source = reader.as_source(Items(item, place), ['cifar10', False, 16])
        read(loader.BatchLoader(source, 2, shuffle=False, stream=loader.TRAIN, workers=place // 4))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('place', [0, 4])
@pytest.mark.parametrize('label, what', [(-1, 'label -1; labels count from 0'), (12, 'label 12; .* is 10'),
                                         (2**40, 'label 1099511627776; ')])
def test_labels_beyond_class_num_are_named_in_all_parts(monkeypatch, place, label, what):
    monkeypatch.setattr(reader, 'cifar_archive', lambda name, data: 'none')
    monkeypatch.setattr(reader, 'cifar10_reader', lambda *_: Items((IMAGE, label), place))
    with pytest.raises(UserError, match=f'item {place} of the data set has the {what}'):
        halves = reader.train_search(2, 0.5, True, arguments(dataset='cifar10'))
        assert reader.class_count(halves[0], 10) == 10
        for half in halves:
            read(half)
    with pytest.raises(UserError, match=f'item {place} of the data set has the label {label}; '):
        if label != 12:
            reader.class_count(reader.train_search(2, 0.5, True, arguments(dataset='cifar10'))[0])
        test = reader.train_valid(2, False, False, arguments(dataset='cifar10'))
        test.source.check_labels(10)
        read(test)


def test_data_sets_that_are_none():
    class Endless(paddle.io.IterableDataset):
        def __iter__(self):
            return iter([])

    class Lengthless(paddle.io.Dataset):
        def __getitem__(self, i):
            return IMAGE, 0

    for data_set in (Endless(), Lengthless()):
        with pytest.raises(UserError, match='a (Endless|Lengthless), has no length'):
            reader.as_source(data_set, ['cifar10', False, 16])
    with pytest.raises(UserError, match='the data set is empty'):
        DatasetItems(Items((IMAGE, 0), 0, 1).items[:0])
    for number in ('ten', 0, True, 2.5):
        data_set = Items((IMAGE, 0), 0)
        data_set.num_classes = number
        with pytest.raises(UserError, match='num_classes of the data set is '):
            DatasetItems(data_set)


@pytest.mark.parametrize('pairs, what', [
    ([], 'the data holds no image'), (None, 'the data is a NoneType'), ({'x': 1}, 'item 0 of the data is a str'),
    ((np.zeros((5, 3, 8, 8), 'uint8'), np.arange(5)), 'a pair of 5 images and 5 labels; .*zip'),
    ((np.zeros((5, 784), 'uint8'), np.arange(5)), 'a pair of 5 images and 5 labels; .*zip'),
    (([IMAGE] * 4, [0, 1, 2, 3]), 'a pair of 4 images and 4 labels'),
    ([(IMAGE, 0), (IMAGE, 0.7)], 'item 1 of the data is a pair whose label is of type float64'),
    ([(IMAGE, 0), (IMAGE, 'cat')], "item 1 of the data is a pair whose label is of type <U3 .*'cat'"),
    ([(IMAGE, 0), (IMAGE.astype('uint8'), 1)], 'image 1 of the data is uint8, image 0 is float32'),
    ([(IMAGE, 0), (IMAGE.astype('int64'), 1)], 'image 1 of the data is of type int64'),
    ([(IMAGE, 0), (np.zeros(784, 'uint8'), 1)], r'image 1 of the data has the shape \(784,\)'),
    ([(IMAGE, 0), (np.zeros((8, 8, 4), 'uint8'), 1)], r'image 1 of the data has the shape \(8, 8, 4\)'),
    ([(IMAGE, 0), IMAGE[0]], 'item 1 of the data is a ndarray'),
    ([(IMAGE, 0), (IMAGE, 1, 2)], 'item 1 of the data is a tuple of 3 parts'),
    ([(IMAGE, 0), (IMAGE + np.nan, 1)], 'image 1 of the data holds NaN'),
    ([(IMAGE, 2**40)], 'item 0 of the data has the label 1099511627776'),
    ([(Image.new('I', (8, 8)), 0)], 'image 0 of the data cannot be used: signed integers do not say')])
def test_pairs_of_a_function_that_are_something_else(pairs, what):
    with pytest.raises(UserError, match=what):
        images_and_labels(pairs)


def test_lists_of_two_pairs_are_pairs():
    for pairs in ([(IMAGE, 0), (IMAGE, 1)], [[IMAGE, 0], [IMAGE, 1]], ([IMAGE[0].ravel()[:48], 0], [np.ones(48), 1])):
        assert images_and_labels(pairs)[1].tolist() == [0, 1]


# ---------------------------------------------------------------------------------------------------------------------
# The searcher
# ---------------------------------------------------------------------------------------------------------------------


class Sequences(paddle.io.Dataset):
    """Rows of numbers, of integers or sequences of vectors; the label can be told from them."""

    def __init__(self, shape, dtype='float32'):
        self.shape, self.dtype = shape, dtype

    def __len__(self):
        return 12

    def __getitem__(self, i):
        return np.full(self.shape, i % 2, self.dtype), i % 2


class Choice(paddle.nn.Layer):
    """A network of one's own on anything but images: alphas choose between two linear layers."""

    def __init__(self, features, words=None):
        super().__init__()
        self.alphas = self.create_parameter([1, 2])
        self.words = paddle.nn.Embedding(words, 1) if words else None
        self.operations = paddle.nn.LayerList([paddle.nn.Linear(features, 2) for _ in range(2)])

    def forward(self, x):
        x = (x if self.words is None else self.words(x)).flatten(1)
        weights = paddle.nn.functional.softmax(self.alphas)[0]
        return sum(weight * operation(x) for weight, operation in zip(weights, self.operations))

    def arch_parameters(self):
        return [self.alphas]

    def _loss(self, x, label):
        return paddle.nn.functional.cross_entropy(self(x), label)

    def genotype(self):
        return int(self.alphas.argmax())


@pytest.mark.parametrize('shape, dtype, words', [((7, 2), 'float32', None), ((14,), 'float64', None),
                                                 ((14,), 'int64', 2)])
@pytest.mark.parametrize('workers', [False, True])
def test_networks_on_sequences_and_tables(tmp_path, shape, dtype, words, workers):
    data = Sequences(shape, dtype)
    DARTSearch(Choice(14, words), data, data, paddle.CPUPlace(), batchsize=4, num_epochs=1, save_dir=str(tmp_path),
               use_multiprocess=workers).train()
    assert (tmp_path / 'genotype.json').exists()
    images, labels = read(as_loader(data, batch_size=5, workers=int(workers), train=False))
    assert images.shape == (12,) + shape and (images.reshape(12, -1)[:, 0] == labels).all()


def test_the_searcher_knows_what_our_network_takes(tmp_path):
    from model_search import Network

    def search(data):
        DARTSearch(Network(4, 3, 1, 'DARTS'), data, data, paddle.CPUPlace(), batchsize=6, save_dir=str(tmp_path))
    with pytest.raises(UserError, match=r'item 0 of the data set is .* \[8, 8, 3\]: bring the channels to the front'):
        search(Items((IMAGE.transpose(1, 2, 0), 0), 0))
    with pytest.raises(UserError, match='item 0 of the data set has the label 3; .* allows 0 to 2'):
        search(Items((IMAGE, 3), 0))
    with pytest.raises(UserError, match='a pair of 4 images and 4 labels'):
        search((np.zeros((4, 3, 8, 8)), np.arange(4)))
    with pytest.raises(UserError, match='a reader is empty'):
        search([])
    data = Items((IMAGE, 0), 0)
    data.num_classes = 5
    with pytest.raises(UserError, match=r'the data set has 5 classes \(num_classes\), the network 3'):
        search(data)


@pytest.mark.parametrize('batch, what', [
    ((np.zeros((2, 3)), [0, 5]), 'holds the label 5; .*the network has 3 classes'),
    ((np.zeros((2, 3)), [0, -1]), 'holds the label -1'),
    ((np.zeros((2, 3)), [0.0, 0.7]), 'holds 2 images and labels of type float64'),
    ((np.zeros((2, 3)), np.eye(3)[:2]), r'holds 2 images and labels of type float64 and shape \[2, 3\]'),
    ((np.zeros((2, 3)), [0]), 'holds 2 images and labels .* shape'), ({'x': 1}, 'is a dict'), (3, 'is a int'),
    ((np.zeros((2, 3)), [0, 1], 3), 'is a tuple of 3 parts'), ((3, 4), 'is not made of arrays')])
def test_batches_of_a_users_reader_that_are_something_else(batch, what):
    good = paddle.zeros([2, 3]), paddle.to_tensor([[0], [1]])
    assert len(list(PairedLoader([good, good], [good], 3))) == 2
    for name, loaders in (('training', ([good, batch], [good])), ('validation', ([good, good], [good, batch]))):
        with pytest.raises(UserError, match=f'batch 1 of the {name} data {what}'):
            list(PairedLoader(*loaders, 3))
