"""The search loop with a user's own network and readers, and a run of search.py as a user types it."""
import dataclasses
import hashlib
import json
import os

import numpy as np
import paddle
import paddleslim.nas
import pytest
from conftest import arguments, shared_file

import reader
from examples import own_space
from genotypes import get_genotype, read_genotype
from model_search import Network
from nas.collapse import EarlyStop
from nas.options import CheckpointOptions, MonitorOptions, WeightOptions
from nas.readers import as_loader, endless
from nas.searcher import DARTSearch
from runtime.checkpoint import Checkpoints
from runtime.errors import UserError


class UsersNetwork(paddle.nn.Layer):
    """A network as PaddleSlim's documentation asks for: no genotype(), but the attributes its search reads."""

    _steps, _multiplier, _method, _primitives = 1, 1, 'DARTS', ['none', 'skip_connect', 'double']

    def __init__(self):
        super().__init__()
        self.classifier = paddle.nn.Linear(3, 2)
        for kind in ('normal', 'reduce'):
            setattr(self, 'alphas_' + kind, self.create_parameter([2, 3],
                    default_initializer=paddle.nn.initializer.Constant(0)))

    def arch_parameters(self):
        return [self.alphas_normal, self.alphas_reduce]

    def forward(self, image):
        x = image.mean([2, 3])
        for alphas in self.arch_parameters():
            weights = paddle.nn.functional.softmax(alphas, axis=-1)
            x = sum(row[1] * x + row[2] * 2 * x for row in weights.unbind())
        return self.classifier(x)

    def _loss(self, image, label):
        return paddle.nn.functional.cross_entropy(self(image), label)


class Colours(paddle.io.Dataset):
    """Class 0 is bright in red, class 1 in blue."""

    def __len__(self):
        return 64

    def __getitem__(self, i):
        image = np.zeros((3, 4, 4), 'float32')
        image[2 * (i % 2)] = 1
        return image, i % 2


def ready_batches():
    """A reader of Paddle 1.x: it yields batches, as lists of samples."""
    data = Colours()
    for start in range(0, 64, 16):
        samples = [data[i] for i in range(start, start + 16)]
        yield [image for image, _ in samples], [[label] for _, label in samples]


READERS = {
    'Dataset': Colours,
    'DataLoader': lambda: paddle.io.DataLoader(Colours(), batch_size=16, shuffle=True),
    'function': lambda: ready_batches,
    'list of batches': lambda: list(ready_batches()),
}


@pytest.mark.parametrize('kind', sorted(READERS))
@pytest.mark.parametrize('unrolled', [False, True])
def test_the_documented_use_with_a_users_network(tmp_path, kind, unrolled):
    paddle.seed(0)
    np.random.seed(0)
    model = UsersNetwork()
    search = DARTSearch(model, READERS[kind](), READERS[kind](), paddle.CPUPlace(), learning_rate=0.1, batchsize=16,
                        num_imgs=128, arch_learning_rate=0.1, unrolled=unrolled, num_epochs=5, save_dir=str(tmp_path))
    assert isinstance(search, paddleslim.nas.DARTSearch)
    genotype = search.train()
    # Scaling up lowers the loss of a classifier that is right: every edge comes to prefer `double`.
    assert paddle.nn.functional.softmax(model.alphas_normal).numpy()[:, 2].min() > 0.45  # from 1/3
    assert sorted(genotype.normal) == [('double', 0), ('double', 1)] and genotype.normal_concat == range(2, 3)
    metrics = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    assert [m['epoch'] for m in metrics] == list(range(5))
    assert metrics[-1]['valid_acc'] == 1 and metrics[-1]['valid_loss'] < metrics[0]['valid_loss']
    assert np.allclose([m['lr'] for m in metrics], [1e-3 + 0.099 * (1 + np.cos(np.pi * e / 5)) / 2 for e in range(5)])
    state = paddle.load(str(tmp_path / '4' / 'params.pdparams'))
    assert (state['alphas_normal'].numpy() == model.alphas_normal.numpy()).all()


def test_betas_of_a_users_network_count():
    """PaddleSlim's get_genotype crashes on PC-DARTS."""
    model = UsersNetwork()
    model._steps = 2
    for kind in ('normal', 'reduce'):
        setattr(model, 'alphas_' + kind, model.create_parameter([5, 3],
                                                                default_initializer=paddle.nn.initializer.Assign(
            np.tile(np.array([[0, 0, 1.]], 'float32'), (5, 1)))))
        setattr(model, 'betas_' + kind, model.create_parameter([5], default_initializer=paddle.nn.initializer.Assign(
            np.array([0, 1, 3, 1, 2], 'float32'))))
    search = DARTSearch(model, ready_batches, ready_batches, paddle.CPUPlace())
    assert search.genotype().normal == [('double', 1), ('double', 0), ('double', 0), ('double', 2)]


def test_an_early_stop_of_a_users_network_gives_back_its_operations(tmp_path):
    class Stop(EarlyStop):
        def verdict(self, history, first):
            return history[0] if len(history) == 2 else None

    model = UsersNetwork()
    model.alphas_normal.set_value(np.array([[0, 0, 5.], [0, 0, 4]], 'float32'))
    genotype = DARTSearch(model, ready_batches, ready_batches, paddle.CPUPlace(), num_epochs=5, save_dir=str(tmp_path),
                          monitor=MonitorOptions(early_stop=Stop('skip', 1))).train()
    assert genotype.normal == [('double', 0), ('double', 1)] and genotype.normal_concat == range(2, 3)


def own_space_search(tmp_path, method, epochs=1, **options):
    data = own_space.Digits(0)
    data.items = data.items[:16]
    return DARTSearch(own_space.Network(12, 10, method), data, data, paddle.CPUPlace(), batchsize=8, num_epochs=epochs,
                      save_dir=str(tmp_path), **options)


def test_a_checkpoint_whose_statistics_have_another_type_is_refused(tmp_path):
    own_space_search(tmp_path, 'DARTS', monitor=MonitorOptions(validate=False)).train()
    checkpoints = Checkpoints(str(tmp_path / 'checkpoints'), 2)
    _, arrays, info = checkpoints.newest()
    assert arrays['rank0/0'].dtype == 'float32'
    checkpoints.save(info['epoch'], info['step'], dict(arrays, **{'rank0/0': arrays['rank0/0'].astype('float64')}),
                     info)
    with pytest.raises(UserError, match='--resume: .*npz is not a checkpoint of this run'):
        own_space_search(tmp_path, 'DARTS', epochs=2, checkpoint=CheckpointOptions(resume=True)).train()


def test_counting_skip_connections_of_an_own_space_needs_a_function(tmp_path):
    monitor = MonitorOptions(early_stop=EarlyStop('skip', 1), validate=False)
    with pytest.raises(UserError, match='--early_stop=skip: the number of skip connections'):
        own_space_search(tmp_path / 'unknown', 'DARTS', monitor=monitor).train()
    monitor = dataclasses.replace(monitor, cell_figures=lambda cell: {'skip_connects': cell.count('skip_connect')})
    own_space_search(tmp_path / 'known', 'DARTS', monitor=monitor).train()


def test_early_stopping_needs_its_figure(tmp_path):
    with pytest.raises(UserError, match='--early_stop=eigenvalue: the eigenvalue is not measured'):
        own_space_search(tmp_path, 'DARTS', monitor=MonitorOptions(early_stop=EarlyStop('eigenvalue', 1.3))).train()
    with pytest.raises(UserError, match="--early_stop: 'skips' is not allowed: give skip or eigenvalue"):
        EarlyStop('skips', 2)


def test_a_method_learns_the_epoch_without_a_hook_of_the_network(tmp_path):
    search = own_space_search(tmp_path, 'DARTS-', 2)
    search.train()
    assert (search.method.epoch, search.method.epochs) == (1, 2) and search.method.skip_weight == 0.5
    line = json.loads((tmp_path / 'metrics.jsonl').read_text().splitlines()[-1])
    assert line['cells'] == ['cell'] and line['operations'] == list(own_space.OPS)


def test_a_network_without_stages_stays_in_the_first_one_and_the_log_says_so(tmp_path, caplog):
    search = own_space_search(tmp_path, 'DrNAS')
    assert not search.staged and any('Network has no rebuild_edges: the search stays in the first stage of DrNAS' in
                                     record.getMessage() for record in caplog.records)


def test_the_architecture_rests_for_epochs_no_archopt(tmp_path):
    model = UsersNetwork()
    before = model.alphas_normal.numpy()
    DARTSearch(model, ready_batches, ready_batches, paddle.CPUPlace(), num_epochs=2, epochs_no_archopt=2,
               save_dir=str(tmp_path)).train()
    assert (model.alphas_normal.numpy() == before).all()


def test_weight_decay_momentum_and_clip_are_those_asked_for(tmp_path):
    """Two weight steps against the formulas in numpy: clip, add the decay, momentum, learning rate."""
    paddle.seed(0)
    model = UsersNetwork()
    search = DARTSearch(model, ready_batches, ready_batches, paddle.CPUPlace(), learning_rate=0.2, num_epochs=1,
                        save_dir=str(tmp_path),
                        weight=WeightOptions(momentum=0.5, weight_decay=0.1, grad_clip=0.01))
    w = [weight.numpy() for weight in search.weights]
    v = [np.zeros_like(value) for value in w]
    image, label = next(iter(ready_batches()))
    image, label = paddle.to_tensor(np.stack(image)), paddle.to_tensor(label)
    for _ in range(2):
        g = [gradient.numpy() for gradient in paddle.grad(model._loss(image, label), search.weights)]
        norm = np.sqrt(sum((gradient**2).sum() for gradient in g))
        assert norm > 0.01
        v = [0.5 * vi + gi * 0.01 / norm + 0.1 * wi for vi, gi, wi in zip(v, g, w)]
        w = [wi - 0.2 * vi for wi, vi in zip(w, v)]
        search.train_step(image, label, image, label, arch_step=False)
        for weight, expected in zip(search.weights, w):
            assert np.allclose(weight.numpy(), expected, atol=1e-6)


def test_the_validation_half_starts_anew_and_an_empty_one_is_refused():
    batches = endless(as_loader(lambda: iter([1, 2]), batch_size=1))
    assert [next(batches) for _ in range(5)] == [1, 2, 1, 2, 1]
    with pytest.raises(UserError, match='no batch'):
        next(endless(as_loader(lambda: [], batch_size=1)))
    with pytest.raises(UserError, match='a reader must be'):
        as_loader(3, batch_size=1)
    with pytest.raises(UserError, match='a reader must be'):
        as_loader(iter([]), batch_size=1)  # would be over after one epoch


def test_a_loss_that_is_not_finite_stops_the_search(tmp_path):
    def reader():
        yield np.full((2, 3, 4, 4), np.nan, 'float32'), [0, 1]

    search = DARTSearch(UsersNetwork(), reader, reader, paddle.CPUPlace(), save_dir=str(tmp_path))
    with pytest.raises(UserError, match='the loss is nan at epoch 0, step 0, learning rate 0.025') as error:
        search.train()
    assert error.value.status == 1


@pytest.mark.parametrize('method, message', [('SNAS', 'give one of DARTS, PC-DARTS'), ('PC-DARTS', 'multiple of 4')])
def test_networks_that_cannot_be_are_refused(method, message):
    with pytest.raises(UserError, match=message):
        Network(6, 10, 2, method)


def test_an_object_that_is_no_method_is_refused():
    class Other:
        primitives = ['skip_connect']
    with pytest.raises(TypeError, match='no object of a subclass of nas.methods.DARTS'):
        Network(8, 10, 2, Other())


@pytest.mark.parametrize('numbers, message', [
    (dict(batchsize=0), 'batchsize: 0 is not allowed: give at least 1'), (dict(num_epochs=0), 'num_epochs: 0 is not'),
    (dict(log_freq=0), 'log_freq: 0 is not'), (dict(epochs_no_archopt=-1), 'epochs_no_archopt: -1 is not')])
def test_numbers_that_make_no_search_are_refused_at_once(tmp_path, numbers, message):
    with pytest.raises(UserError, match=message):
        DARTSearch(UsersNetwork(), Colours(), Colours(), paddle.CPUPlace(), save_dir=str(tmp_path), **numbers)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------------------------
# search.py
# ---------------------------------------------------------------------------------------------------------------------

SMALL = ['--dataset=digits', '--layers=1', '--init_channels=4', '--trainset_num=96', '--batch_size=16', '--log_freq=2']


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def test_a_run_leaves_what_it_should_and_one_seed_gives_one_result(script, tmp_path):
    runs = {'a': [], 'b': ['--use_multiprocess=False'], 'other': ['--seed=1']}
    results = {}
    for name, extra in runs.items():
        results[name] = script('search.py', *SMALL, '--epochs=2', '--model_save_dir=' + name, *extra)
        assert results[name].returncode == 0, results[name].stderr
    out, log = results['a'].stdout, results['a'].stderr
    final = tmp_path / 'a' / 'genotype.json'
    assert out.splitlines() == [f'genotype = {read_genotype(str(final))}', out.splitlines()[1]]
    assert 'train.py --arch={} '.format(os.path.join('a', 'genotype.json')) in out
    for line in ('Epoch 0, lr 0.025000', 'Epoch 1, lr 0.013000', 'genotype = Genotype(normal=[(', 'running on the CPU',
                 'Train Epoch 1, Step 2, loss ', ', acc_1 ', ', acc_5 ', 'reader_cost', 'batch_cost', 'images/s',
                 'Epoch 1, train_acc ', 'Epoch 1, valid_acc ', ', best_valid_acc '):
        assert line in log, line
    assert log.count('genotype = ') == 3  # before each epoch and after the last
    assert (tmp_path / 'a' / 'train.log').read_text() == log
    assert 'Warning' not in log and 'Traceback' not in log
    assert json.loads(final.read_text())['search'].items() >= {
        'method': 'DARTS', 'seed': 0, 'epoch': 1, 'dataset': 'digits'}.items()
    for epoch in '01':
        assert get_genotype(str(tmp_path / 'a' / epoch / 'genotype.json'))
        params = [tmp_path / name / epoch / 'params.pdparams' for name in ('a', 'b', 'other')]
        assert md5(params[0]) == md5(params[1]) != md5(params[2])
    assert md5(final) == md5(tmp_path / 'b' / 'genotype.json') != md5(tmp_path / 'other' / 'genotype.json')
    assert sorted(path.name for path in (tmp_path / 'a').iterdir()) == [
        '0', '1', 'checkpoints', 'genotype.json', 'metrics.jsonl', 'train.log']


def test_a_start_in_the_folder_of_an_earlier_run_overwrites_it_with_its_first_epoch(script, tmp_path):
    run, small = tmp_path / 'search_cifar', [*SMALL, '--validate=False', '--use_multiprocess=False']
    assert script('search.py', *small, '--epochs=3').returncode == 0
    (run / '7').mkdir()
    (run / '7' / 'genotype.json').write_text('{"mine": true}')
    (run / '2' / 'notes.txt').write_text('mine')
    (run / '10').mkdir()
    (run / '10' / 'photo.jpeg').write_text('mine')
    names = ('metrics.jsonl', 'train.log', '2/genotype.json', 'genotype.json')
    before = {name: (run / name).read_text() for name in names}

    # in its first epoch: nothing to show for
    assert script('search.py', *small, '--epochs=3', '--learning_rate=1e30').returncode == 1
    log = (run / 'train.log').read_text()
    assert log.startswith(before.pop('train.log')) and log.count('arguments: ') == 2
    assert {name: (run / name).read_text() for name in before} == before
    assert len(list((run / 'checkpoints').glob('*.npz'))) == 2

    result = script('search.py', *small, '--epochs=2', '--seed=1', '--save_params=False')
    assert 'search_cifar holds an earlier run; this one overwrites it' in result.stderr
    assert (run / 'train.log').read_text() == log + result.stderr
    assert [json.loads(line)['epoch'] for line in (run / 'metrics.jsonl').read_text().splitlines()] == [0, 1]
    left = sorted(str(path.relative_to(run))
                  for path in run.rglob('*') if path.is_file() and path.parent.name.isdecimal())
    assert left == ['0/genotype.json', '1/genotype.json', '10/photo.jpeg', '2/notes.txt', '7/genotype.json']


def test_random_cells_overwrite_those_drawn_before_and_no_others(script, tmp_path):
    cells = tmp_path / 'search_cifar'
    (cells / '7').mkdir(parents=True)
    (cells / '7' / 'genotype.json').write_text('{"mine": true}')
    for samples, folders in ((1, ['0', '7']), (3, ['0', '1', '2', '7']), (1, ['0', '7'])):
        assert script('search.py', '--method=random', f'--samples={samples}').returncode == 0
        assert sorted(path.parent.name for path in cells.glob('*/genotype.json')) == folders


def test_a_search_on_real_cifar_images(script):
    archive = shared_file('data', 'cifar-10-subset.tar.gz')
    result = script('search.py', '--data=' + archive, '--method=PC-DARTS', '--layers=1', '--init_channels=4',
                    '--epochs=1',
                    '--trainset_num=32', '--batch_size=8', '--cutout=True', '--validate=False')
    assert result.returncode == 0, result.stderr
    assert 'is not the official cifar-10-python.tar.gz (another md5)' in result.stderr
    assert '32 images: 16 train the weights, 16 the architecture; padded by 4 and cropped, flipped' in result.stderr
    assert 'cutout of 16x16' in result.stderr
    assert f' --data={archive} ' in result.stdout + ' '


class Unsized:
    """A reader whose length nobody knows, as that of a DataLoader over an IterableDataset."""

    def __len__(self):
        raise TypeError('no length')

    def __iter__(self):
        return iter([(np.zeros((2, 3, 8, 8), 'float32'), np.zeros(2, 'int64'))])


def test_evaluation_reads_plain_images_in_order_unless_it_has_a_reader_of_its_own():
    train, valid = reader.train_search(8, 0.5, True, arguments(dataset='digits', cutout=True))

    def evaluated(**options):
        return DARTSearch(Network(4, 10, 1, 'DARTS'), train, valid, paddle.CPUPlace(),
                          monitor=MonitorOptions(**options)).eval_loader
    loader = evaluated()
    assert loader is not valid and valid.source is not loader.source
    images = [image for image, _ in loader]
    assert all((image == other).all() for image, (other, _) in zip(images, valid.without_augmentation()))
    assert loader.position() != valid.position()  # the search's own loader has not moved
    assert len(list(evaluated(eval_reader=Unsized()))) == 1
