"""The names of the search methods, the flags of their authors' recipes and those that belong to one method. No Paddle
import: `--help` answers at once."""

METHOD_NAMES = ['DARTS', 'PC-DARTS', 'GDAS', 'DrNAS', 'FairDARTS', 'DARTS-']  # the keys of nas.methods.METHODS

# What the authors' scripts use for a search on CIFAR-10 where it differs from the defaults of search.py, which are
# those of DARTS.
# DrNAS: the epochs are those of both stages together, half of them each; epochs_no_archopt counts in each stage.
RECIPES = {
    'DARTS': {},
    'PC-DARTS': dict(batch_size=256, learning_rate=0.1, arch_learning_rate=6e-4, epochs_no_archopt=15),
    'GDAS': dict(batch_size=256, weight_decay=5e-4, layers=6, epochs=250),
    'DrNAS': dict(learning_rate=0.1, arch_learning_rate=6e-4, init_channels=36, layers=20, epochs_no_archopt=10),
    'FairDARTS': dict(batch_size=128, learning_rate=0.005, arch_learning_rate=3e-3),
    'DARTS-': {},
}
EPOCHS = 50  # of the recipes without a number of their own
ENDS_AT_ZERO = ('PC-DARTS', 'DrNAS')
FIRST_ORDER_ONLY = ('GDAS',)
TWO_STAGES = ('DrNAS',)
# Flags without a meaning for --method=random, which trains nothing.
NOT_FOR_RANDOM = {'unrolled', 'epochs_no_archopt', 'partial_channels', 'eigenvalue_freq', 'early_stop', 'resume',
                  'use_vdl'}


def recipe(method, epochs=None):
    """{flag: value} of a method's recipe. epochs: a number that was given; the share of epochs without
    architecture updates stays."""
    flags = dict(RECIPES.get(method, {}))
    if epochs is not None and 'epochs_no_archopt' in flags:
        flags['epochs_no_archopt'] = flags['epochs_no_archopt'] * epochs // flags.get('epochs', EPOCHS)
    return flags


def final_learning_rate(method, learning_rate):
    """Where the cosine schedule of the weights ends: 0 for PC-DARTS, as its paper says (section 4.2; its authors' code
    ends at 1e-3 for CIFAR-10 and at 0 for ImageNet), and DrNAS, 1e-3 for the others, as in their authors' code."""
    return 0.0 if method in ENDS_AT_ZERO else min(1e-3, learning_rate)


def shortest_stage(method, epochs):
    """The epochs of the shortest stage of a search."""
    return epochs // 2 if method in TWO_STAGES and epochs > 1 else epochs


def recipe_line(method, given, arguments):
    """The line of the log that says which values come from the method's recipe and which were given."""
    own = [name for name in RECIPES.get(method, {}) if name not in given]
    instead = [name for name in RECIPES.get(method, {}) if name in given]
    if not own and not instead:
        return f'--method={method}: its recipe is the defaults'

    def listed(names):
        return ', '.join(f'{name} {arguments[name]:g}' for name in names) or 'nothing'
    return (f'--method={method}: {listed(own)} from its recipe'
            + (f'; given instead: {listed(instead)}' if instead else ''))


def check_method_flags(parser, args, given):
    """Refuse flags that have no meaning with the method."""
    if args.summary and args.method == 'random':
        parser.error('argument --summary: --method=random has no supernet to summarise; give another --method')
    for name in sorted(given.intersection(NOT_FOR_RANDOM if args.method == 'random' else ['samples'])):
        parser.error(f'argument --{name}: ' + ('has no meaning with --method=random, which trains nothing'
                                               if args.method == 'random' else 'goes with --method=random'))
    if args.unrolled and args.method in FIRST_ORDER_ONLY:
        parser.error(f'argument --unrolled: {args.method} has no second-order gradient; give --unrolled=False')
    for name, method in (('auxiliary_decay', 'DARTS-'), ('reg_type', 'DrNAS')):
        if getattr(args, name) is not None and args.method != method:
            parser.error(f'argument --{name}: goes with --method={method}, not with {args.method}')
