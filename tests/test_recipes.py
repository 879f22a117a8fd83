"""`search.py --method=X` alone is the authors' recipe; flags that are given win."""
import pytest

from nas import methods, recipes
from search import parse_arguments

COLUMNS = ('batch_size', 'learning_rate', 'learning_rate_min', 'weight_decay', 'arch_learning_rate',
           'arch_weight_decay',
           'init_channels', 'layers', 'epochs', 'epochs_no_archopt')
AUTHORS = {
    'DARTS': (64, 0.025, 0.001, 3e-4, 3e-4, 1e-3, 16, 8, 50, 0),
    'PC-DARTS': (256, 0.1, 0.0, 3e-4, 6e-4, 1e-3, 16, 8, 50, 15),
    'GDAS': (256, 0.025, 0.001, 5e-4, 3e-4, 1e-3, 16, 6, 250, 0),
    'DrNAS': (64, 0.1, 0.0, 3e-4, 6e-4, 1e-3, 36, 20, 50, 10),
    'FairDARTS': (128, 0.005, 0.001, 3e-4, 3e-3, 1e-3, 16, 8, 50, 0),
    'DARTS-': (64, 0.025, 0.001, 3e-4, 3e-4, 1e-3, 16, 8, 50, 0),
}


@pytest.mark.parametrize('method', recipes.METHOD_NAMES)
def test_the_method_alone_is_the_recipe(method):
    args = parse_arguments(['--method=' + method])
    assert tuple(getattr(args, name) for name in COLUMNS) == AUTHORS[method]


def test_given_flags_win():
    args = parse_arguments(['--method=PC-DARTS', '--batch_size=32', '--epochs=10'])
    assert (args.batch_size, args.learning_rate, args.epochs_no_archopt) == (32, 0.1, 3)
    line = recipes.recipe_line('PC-DARTS', {'method', 'batch_size', 'epochs'}, vars(args))
    assert line == ('--method=PC-DARTS: learning_rate 0.1, arch_learning_rate 0.0006, epochs_no_archopt 3 from its '
                    'recipe; '
                    'given instead: batch_size 32')


@pytest.mark.parametrize('flags, words', [
    (['--method=GDAS', '--unrolled'], 'GDAS has no second-order gradient'),
    (['--method=DARTS', '--auxiliary_decay=cosine'], 'goes with --method=DARTS-'),
    (['--method=DARTS', '--reg_type=kl'], 'goes with --method=DrNAS'),
    (['--method=DrNAS', '--epochs=20', '--epochs_no_archopt=10'], '--epochs: 20 is not allowed')])
def test_what_has_no_meaning_is_refused_by_name(flags, words, capsys):
    with pytest.raises(SystemExit) as error:
        parse_arguments(flags)
    assert error.value.code == 2 and words in capsys.readouterr().err


def test_names_agree_with_the_classes():
    assert list(methods.METHODS) == recipes.METHOD_NAMES == list(recipes.RECIPES)
    assert [name for name, kind in methods.METHODS.items() if kind.later_stages] == list(recipes.TWO_STAGES)
    assert [name for name, kind in methods.METHODS.items() if not kind.second_order] == list(recipes.FIRST_ORDER_ONLY)
