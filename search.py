r"""Search a cell on CIFAR-10 with DARTS, PC-DARTS or one of their successors.

    python search.py                                          first-order DARTS, 50 epochs, on CIFAR-10
    python search.py --unrolled=True                          second-order DARTS
    python search.py --method='PC-DARTS' --batch_size=256 --learning_rate=0.1 \
        --arch_learning_rate=6e-4 --epochs_no_archopt=15
    python search.py --max_macs=600M --max_params=3.5M        a cell whose network stays within these limits
    python search.py --dataset=digits --layers=3 --method='PC-DARTS' --epochs=10 --batch_size=32 --learning_rate=0.1
    python search.py --dataset=imagenet --data_dir=dataset/ILSVRC2012 --method='PC-DARTS'      see docs/en/search.md
    python search.py --derive=search_cifar --by=perturbation      the cell of a search that has ended, by DARTS-PT
    python -m paddle.distributed.launch --selected_gpus=0,1,2,3 --log_dir ./mylog search.py --use_data_parallel 1

Output files in --model_save_dir: train.log, metrics.jsonl, genotype.json and, for each epoch, <epoch>/params.pdparams
and <epoch>/genotype.json. At the end it prints the genotype and the command that trains it.
"""
import argparse
import contextlib
import os
import sys

from nas import budget_flags, derivation
from nas.recipes import (
    METHOD_NAMES,
    check_method_flags,
    final_learning_rate,
    recipe,
    recipe_line,
    shortest_stage,
)
from nas.training_command import DATA_NAMES, train_command
from runtime.flags import (
    DEVICE_FLAGS,
    ArgumentParser,
    boolean,
    data_flags,
    given_flags,
    integer,
    number,
    path,
    positive,
    reader_flags,
    run_flags,
)
from runtime.log import logger
from runtime.parallel import rank
from runtime.script import run_script, start_script


def stop_rule(text):
    """An argument type: 'skip:2' or 'eigenvalue:1.3', as [kind, limit]."""
    kind, _, limit = text.partition(':')
    with contextlib.suppress(KeyError, argparse.ArgumentTypeError):
        return [kind, {'skip': integer(1), 'eigenvalue': positive()}[kind](limit)]
    raise argparse.ArgumentTypeError(f'{text!r:.80} is not allowed: give skip:NUMBER, a whole number of at least 1, or '
                                     'eigenvalue:RATIO, a number above 0')


NODES = 4  # of a cell; the outputs of all of them are concatenated

SEARCH_FLAGS = [
    ('method', METHOD_NAMES + ['random'], 'DARTS',
     'search method, a class of nas/methods.py; random draws --samples cells without training'),
    ('samples', integer(1, 100000), 1, 'number of cells that --method=random draws'),
    ('unrolled', boolean, False, 'use the second-order approximation of the architecture gradient'),
    ('epochs', integer(1), 50, 'number of search epochs'),
    ('epochs_no_archopt', integer(0), 0, 'number of first epochs in which only the weights are updated; less than '
                                         '--epochs'),
    ('partial_channels', integer(1, 4096), None,
     'pass 1/N of the channels through the operations (default: PC-DARTS 4; DrNAS 6, then 4; the others 1)'),
    ('auxiliary_decay', ['linear', 'cosine', 'slow_cosine', 'constant'], None,
     "DARTS-: how the weight of the auxiliary skip connection decreases (default: linear)"),
    ('reg_type', ['l2', 'kl'], None,
     "DrNAS: regularise by Adam's weight decay or by the Kullback-Leibler divergence (default: l2)"),
    ('init_channels', integer(1, 4096), 16, 'channels of the first cell; PC-DARTS: a multiple of 4, DrNAS: of 12'),
    ('layers', integer(1, 1000), 8, 'number of cells; the cells at 1/3 and 2/3 of the depth are reduction cells'),
]
COLLAPSE_FLAGS = [
    ('eigenvalue_freq', integer(0), 0, "epochs between two measurements of the Hessian's dominant eigenvalue; 0: none "
                                       '(with --early_stop=eigenvalue:…: every 2 epochs)'),
    ('early_stop', stop_rule, None,
     'skip:2 stops when the normal cell has two or more skip connections after an epoch with fewer, eigenvalue:1.3 '
     'when the mean of five eigenvalues exceeds 1.3 times the mean four measurements before; the result is the '
     'genotype of an earlier epoch'),
]
WEIGHT_FLAGS = [
    ('batch_size', integer(1), 64, 'batch size per GPU'),
    ('learning_rate', positive(), 0.025, 'initial learning rate of the weights; a cosine over all epochs'),
    ('learning_rate_min', number(0), None, 'final learning rate of the cosine (default: 1e-3; PC-DARTS and DrNAS 0)'),
    ('momentum', number(0, 1), 0.9, 'momentum of SGD'),
    ('weight_decay', number(0), 3e-4, 'L2 weight decay'),
    ('grad_clip', positive(), 5.0, "maximum global norm of the weights' gradient"),
]
ARCH_FLAGS = [
    ('arch_learning_rate', positive(), 3e-4, 'learning rate of Adam for the architecture parameters'),
    ('arch_weight_decay', number(0), 1e-3, 'L2 weight decay of the architecture parameters'),
]
SEARCH_DATA_FLAGS = [
    ('data', path, None, 'the CIFAR archive or the folder it unpacks to (default: dataset/ beside this script, '
                         'downloaded if necessary); with --dataset=folder, the folder'),
    ('class_num', integer(2, 10**6), 10, 'number of classes; without this flag that of the data'),
    ('train_portion', positive(0, 1), 0.5, 'fraction of the images used for weight training; the others train the '
                                           'architecture'),
    ('validate', boolean, True, 'evaluate on the validation half after every epoch'),
    ('cutout', boolean, False, 'mask a random square of every training image'),
]
SAVE_FLAGS = [
    ('save_params', boolean, True, "save each epoch's parameters, <epoch>/params.pdparams"),
]


def parse_arguments(argv=None):
    parser = ArgumentParser(__doc__)
    for title, table in (('search', SEARCH_FLAGS), ('weight step', WEIGHT_FLAGS), ('architecture step', ARCH_FLAGS),
                         ('collapse', COLLAPSE_FLAGS), ('limits on the derived cell', budget_flags.BUDGET_FLAGS),
                         ('derivation after a search', derivation.DERIVE_FLAGS),
                         ('data', data_flags(imagenet=True) + SEARCH_DATA_FLAGS + reader_flags(num_workers=1)),
                         ('device', DEVICE_FLAGS),
                         ('run', run_flags(log_freq=50, model_save_dir='search_cifar') + SAVE_FLAGS)):
        parser.add_flags(title, table)
    argv = sys.argv[1:] if argv is None else argv
    given, without_recipe = given_flags(argv), parser.parse_args(argv)
    derivation.check_derive_flags(parser, without_recipe, given)
    if without_recipe.derive is not None:
        argv = [*derivation.flags_of_search(without_recipe.derive), *argv]
        given, without_recipe = given_flags(argv), parser.parse_args(argv)
    defaults = recipe(without_recipe.method, without_recipe.epochs if 'epochs' in given else None)
    if without_recipe.resume and 'epochs_no_archopt' in set(defaults) - given:  # stays also with another --epochs
        from runtime.checkpoint import newest_info
        saved = (newest_info(without_recipe.model_save_dir) or {'arguments': {}})['arguments'].get('epochs_no_archopt')
        if type(saved) is int and saved >= 0:
            defaults['epochs_no_archopt'] = saved
    parser.set_defaults(**defaults)
    args = parser.parse_data(argv)
    if args.dataset == 'imagenet' and 'class_num' not in given:
        args.class_num = 1000  # for --summary, which reads no data
    check_search_flags(parser, args, given)
    budget_flags.check_budget_flags(parser, args, given)
    return args


def check_search_flags(parser, args, given):
    """Set the defaults that depend on other flags, and refuse flags that do not go together. given: their names."""
    check_method_flags(parser, args, given)
    rule, _ = args.early_stop or (None, None)
    if rule == 'eigenvalue' and not args.eigenvalue_freq:
        args.eigenvalue_freq = 2  # epochs, as the authors of the rule measure
    if args.learning_rate_min is None:
        args.learning_rate_min = final_learning_rate(args.method, args.learning_rate)
    if args.learning_rate_min > args.learning_rate:
        parser.error(f'argument --learning_rate_min: {args.learning_rate_min:g} is not allowed: give at most '
                     f'--learning_rate, {args.learning_rate:g}')
    if shortest_stage(args.method, args.epochs) <= args.epochs_no_archopt and args.method != 'random':
        parser.error(f'argument --epochs: {args.epochs} is not allowed: the architecture is updated only after the '
                     f'first {args.epochs_no_archopt} epochs (--epochs_no_archopt)')


def method_options(args):
    """The arguments of the method's class that the flags describe."""
    options = {'partial': args.partial_channels}
    if args.auxiliary_decay is not None:
        options['decay'] = args.auxiliary_decay
    if args.reg_type == 'kl':
        options['kl_weight'] = 1e-3
    return options


def main():
    args = parse_arguments()
    if args.derive is not None:
        derive(args)
        return
    given = given_flags(sys.argv[1:])
    place = start_script(None if args.summary else args.model_save_dir, arguments=vars(args), use_gpu=args.use_gpu,
                         use_data_parallel=args.use_data_parallel, seed=args.seed, batch_size=args.batch_size,
                         default_learning_rate=None if 'learning_rate' in given else args.learning_rate)
    if args.method == 'random':
        draw(args, given)
        return
    # Imported here: Paddle takes seconds to import, which --help and errors in arguments do not need.
    from nas.methods import make_method
    from reader import class_count, class_count_without_data, image_shape, train_search, usual_class_count
    from training.summary import summary

    logger.info('%s', recipe_line(args.method, given, vars(args)))
    method = make_method(args.method, **method_options(args))
    method.check_channels(args.init_channels, '--init_channels')
    if args.summary:
        network = supernet(args, class_count_without_data(args, given), method)
        print(summary(network, image_shape(args), args.batch_size))
        return
    expected, shape = args.class_num if 'class_num' in given else usual_class_count(args), image_shape(args)
    budget = None
    if expected is not None:  # impossible limits are refused before data is downloaded and read
        budget = budget_of(args, method, expected, shape)
    train_loader, valid_loader = train_search(args.batch_size, args.train_portion, True, args)
    class_num = class_count(train_loader, args.class_num if 'class_num' in given else None)
    network = supernet(args, class_num, method)
    read_shape = list(train_loader.source.image_shape)
    if (class_num, read_shape) != (expected, shape):
        shape, budget = read_shape, budget_of(args, method, class_num, read_shape)
    searcher = make_searcher(network, train_loader, valid_loader, place, dict(vars(args), class_num=class_num),
                             budget=budget)
    genotype = searcher.train()
    if rank() == 0:
        report(genotype, args, given, shape, class_num, budget)


def derive(args):
    """Derive the cell of a search that has ended from the parameters of the epoch of its result.

    args: those of the search, with the flags of the derivation.
    """
    result = derivation.result_of_search(args.derive)
    by_perturbation = args.by == 'perturbation'
    args.model_save_dir = os.path.join(args.derive, 'perturbation') if by_perturbation else args.derive
    place = start_script(args.model_save_dir if by_perturbation else None, arguments=vars(args), use_gpu=args.use_gpu,
                         use_data_parallel=args.use_data_parallel, seed=args.seed)
    from nas.methods import make_method
    from reader import image_shape, train_search

    method = make_method(args.method, **method_options(args))
    derivation.begin_stage_of(method, result.get('stage', 1))
    network = supernet(args, args.class_num, method)
    derivation.load_supernet(network, args.derive, result['epoch'])
    logger.info('%s: the parameters of epoch %d (counted from 0) of a search of %d', args.derive, result['epoch'],
                args.epochs)
    budget = budget_of(args, method, args.class_num, image_shape(args))
    if by_perturbation:
        from nas.perturbation import derive_by_perturbation
        loaders = train_search(args.batch_size, args.train_portion, True, args)
        genotype = derive_by_perturbation(network, *loaders, place, vars(args), result, budget)
    else:
        genotype = budget.genotype(network) if budget else network.genotype()
    if rank() == 0:
        defaults = parse_arguments([])  # for the training command; which flags the search was given is not kept
        given = {name for name in DATA_NAMES if getattr(args, name) != getattr(defaults, name)}
        report(genotype, args, given, image_shape(args), args.class_num, budget)


def supernet(args, class_num, method):
    """The supernet that the flags describe; method: an object of nas/methods.py."""
    from model_search import Network
    return Network(args.init_channels, class_num, args.layers, method, steps=NODES, multiplier=NODES,
                   stem='imagenet' if args.dataset == 'imagenet' else 'cifar')


def evaluation_of(args):
    """The network that is trained after the search, a budget_flags.Evaluation."""
    return budget_flags.evaluation_of(args.dataset, args.budget_channels, args.budget_layers, args.image_size)


def evaluation_class(evaluation):
    """The class of that network."""
    import model
    return getattr(model, evaluation.network)


def network_maker(evaluation, class_num):
    """A function that builds that network for a genotype, without auxiliary classifier."""
    network = evaluation_class(evaluation)
    return lambda genotype: network(evaluation.init_channels, class_num, evaluation.layers, False, genotype)


def latency_options(args):
    """The keywords of nas.latency.latency_costs that flags decide."""
    return dict(path=args.latency_table, batch_size=args.latency_batch_size, size=str(evaluation_of(args)))


def budget_of(args, method, class_num, image_shape):
    """The Budget of --max_macs and the other limits, None without one. image_shape: [3, H, W] of the searched images.
    """
    from nas.budget import make_budget
    evaluation = evaluation_of(args)
    return make_budget(method, network_maker(evaluation, class_num), limits=budget_flags.limits_of(vars(args)),
                       image_shape=evaluation.image_shape(image_shape), nodes=NODES,
                       latency_options=latency_options(args))


def make_searcher(network, train_loader, valid_loader, place, flags, cell_figures=None, budget=None):
    """The searcher for a network, a loader of each half of the data and a Paddle place.

    flags: {name: value} of all flags; a resumed run must repeat those that decide the result. cell_figures: as in
    nas.options.MonitorOptions. budget: a nas.budget.Budget or None.
    """
    from nas import DARTSearch
    from nas.collapse import EarlyStop
    from nas.options import ArchOptions, CheckpointOptions, MonitorOptions, WeightOptions
    from pictures.vdl import visual_log
    return DARTSearch(
        network,
        train_loader,
        valid_loader,
        place,
        learning_rate=flags['learning_rate'],
        batchsize=flags['batch_size'],
        arch_learning_rate=flags['arch_learning_rate'],
        unrolled=flags['unrolled'],
        num_epochs=flags['epochs'],
        epochs_no_archopt=flags['epochs_no_archopt'],
        save_dir=flags['model_save_dir'],
        log_freq=flags['log_freq'],
        seed=flags['seed'],
        weight=WeightOptions(**{name: flags[name] for name in ('momentum', 'weight_decay', 'grad_clip',
                                                               'learning_rate_min')}),
        arch=ArchOptions(weight_decay=0.0 if flags['reg_type'] == 'kl' else flags['arch_weight_decay'], budget=budget),
        checkpoint=CheckpointOptions(arguments=flags, **{name: flags[name] for name in ('resume', 'save_freq', 'keep',
                                                                                        'save_params')}),
        monitor=MonitorOptions(validate=flags['validate'],
                               search_info={name: flags[name] for name in ('method', 'seed', 'dataset')},
                               eigenvalue_freq=flags['eigenvalue_freq'],
                               early_stop=flags['early_stop'] and EarlyStop(*flags['early_stop']),
                               on_epoch=visual_log(flags['model_save_dir']) if flags['use_vdl'] else None,
                               cell_figures=cell_figures))


def draw(args, given):
    """Write --samples random genotypes and report the first one."""
    from nas.random_cells import write_random_cells
    from reader import class_count_without_data, image_shape
    if rank() == 0:
        genotype = write_random_cells(args.model_save_dir, args.samples, nodes=NODES, seed=args.seed,
                                      dataset=args.dataset)
        report(genotype, args, given, image_shape(args), class_count_without_data(args, given))


def report(genotype, args, given, image_shape, class_num, budget=None):
    """Log how large the network of the result is, on images of image_shape [3, H, W], and print the result and the
    command that trains it on standard output."""
    from nas.budget import has_network, size_line
    evaluation = evaluation_of(args)
    shape = evaluation.image_shape(image_shape)
    logger.info('%s', size_line(genotype, network_maker(evaluation, class_num), budget=budget, size=evaluation.size(),
                                image_shape=shape, latency_options=latency_options(args)))
    genotype_path = os.path.join(args.model_save_dir, 'genotype.json')
    if args.derive is None or args.by != 'strength':
        logger.info('written: %s', genotype_path)
    print(f'genotype = {genotype}')
    if has_network(genotype):
        smallest = evaluation_class(evaluation).smallest_image(evaluation.layers)
        names = {*given, 'data_dir'} if args.dataset == 'imagenet' else given
        named_size = args.dataset == 'digits' or budget_flags.limits_of(vars(args))  # else it is the script's default
        command = train_command(genotype_path, {name: getattr(args, name) for name in names}, dataset=args.dataset,
                                auxiliary=min(shape[1:]) >= smallest, size=evaluation.size() if named_size else None)
        print(f'To train it: {command}')


if __name__ == '__main__':
    run_script(main)
