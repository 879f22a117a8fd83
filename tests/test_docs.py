"""The commands in README and docs: their flags exist, their values are allowed, and both languages have the same."""
import glob
import importlib
import os
import re
import shlex

import pytest
from conftest import ROOT

PAIRS = [('README.md', 'README_en.md')] + [(f'docs/zh/{name}', f'docs/en/{name}') for name in sorted(
    os.path.basename(path) for path in glob.glob(os.path.join(ROOT, 'docs', 'en', '*.md')))]
SCRIPT = re.compile(r'(?:python|launch(?: --\S+(?: \./\S+)?)*) (search|train|train_imagenet)\.py\b(.*)')
# Of files that only a reader has.
ABSENT = r"does not exist|is not a folder|cannot be read|no such|holds no|genotype\.json' is neither"


def commands(name):
    """The commands of a page, without comments and with their continued lines."""
    with open(os.path.join(ROOT, name), encoding='utf-8') as file:
        text = re.sub(r'\\\n\s*', '', file.read())
    found = [line.strip() for line in text.splitlines() if line.startswith('    ')]
    return [line.split('  #')[0].split(' # ')[0].strip() for line in found if line.startswith(('python ', 'make '))]


@pytest.mark.parametrize('chinese, english', PAIRS)
def test_both_languages_have_the_same_commands(chinese, english):
    assert commands(chinese) == commands(english)


def test_there_are_commands_to_check():
    assert sum(bool(SCRIPT.search(line)) for _, english in PAIRS for line in commands(english)) > 40


@pytest.mark.parametrize('name', [english for _, english in PAIRS])
def test_the_flags_of_the_commands_are_known_and_their_values_allowed(name, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    for line in commands(name):
        match = SCRIPT.search(line)
        if match and '...' not in match[2]:
            monkeypatch.setattr('sys.argv', [match[1] + '.py'])
            try:
                importlib.import_module(match[1]).parse_arguments(shlex.split(match[2]))
            except SystemExit:
                assert re.search(ABSENT, capsys.readouterr().err), line
            except Exception as error:
                assert re.search(ABSENT, str(error)), line
