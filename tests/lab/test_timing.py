import importlib
import os

import pytest

from fca_mmdet.errors import UserError
from fca_mmdet.lab.timing import Setting, in_turns, rounds, summary, workers


def test_ratios_are_taken_within_a_round():
    rows = summary({'ResNet': [1.0, 2.0, 4.0], 'other': [2.0, 2.0, 2.0]})
    assert rows['ResNet'] == {'median': 2.0, 'ratio': 1.0, 'quartiles': [1.0, 1.0]}
    assert rows['other']['median'] == 2.0
    assert rows['other']['ratio'] == pytest.approx(1.0)
    assert rows['other']['quartiles'] == pytest.approx([0.5, 2.0])


def test_the_first_round_is_not_counted(capsys):
    answers = iter(range(10))
    assert rounds(lambda: {'a': next(answers)}, 3, 'counting') == {'a': [1, 2, 3]}
    assert '\rcounting: round 3 of 3, 0.0 min left' in capsys.readouterr().out


def test_alternatives_take_turns():
    calls = []
    rows = in_turns({name: lambda name=name: calls.append(name) for name in 'ab'}, 2, 'cpu', '')
    assert calls == ['a', 'b'] * 3
    assert list(rows) == ['a', 'b']
    assert rows['a']['ratio'] == 1


SUBJECT = """
import os, signal

class Subject:
    def __init__(self, name, setting):
        self.name, self.setting = name, setting

    def describe(self):
        return self.name, self.setting.depth, os.getpid(), os.environ.get('MALLOC_MMAP_MAX_')

    def end(self):
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def subject(tmp_path, monkeypatch) -> type:
    """What workers make, in a module that they can import: known by its name and process."""
    (tmp_path / 'subject_of_workers.py').write_text(SUBJECT)
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module('subject_of_workers').Subject


def test_each_name_has_a_process_of_its_own(subject):
    with workers(['a', 'b'], Setting(depth=34, keep_pages=True), subject) as ask:
        found, again = ask('describe'), ask('describe')
    assert found == again
    assert {name: row[:2] for name, row in found.items()} == {'a': ('a', 34), 'b': ('b', 34)}
    assert len({os.getpid(), *(row[2] for row in found.values())}) == 3
    assert {row[3] for row in found.values()} == {'0'}
    assert 'MALLOC_MMAP_MAX_' not in os.environ


def test_a_process_that_has_ended(subject):
    with workers(['a'], Setting(), subject) as ask:
        assert ask('describe')['a'][3] is None  # pages are kept only if asked for
        with pytest.raises(UserError, match=r"^the process of 'a' has ended: see its traceback above$"):
            ask('end')
