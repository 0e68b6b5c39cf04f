"""How a command ends: on a user's mistake with one line and 1, on anything else as Python does."""

import subprocess
import sys

import pytest

from fca_mmdet import UserError
from fca_mmdet.command import command

SCRIPT = """
from fca_mmdet.command import command

@command
def main():
    open('none')

if __name__ == '__main__':
    main()
"""


def raiser(error: BaseException):
    @command
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ('error', 'said'),
    [
        (UserError('name another file'), 'test_command: name another file'),
        (OSError(28, 'No space left on device', 'a.png'), "test_command: [Errno 28] No space left on device: 'a.png'"),
        (FileNotFoundError('there is no a.pth'), 'test_command: there is no a.pth'),
    ],
)
def test_a_users_mistake_is_a_sentence_in_the_name_of_the_script(error, said):
    with pytest.raises(SystemExit) as ended:
        raiser(error)()
    assert ended.value.code == said


@pytest.mark.parametrize('error', [ValueError('a fault of the code'), KeyError('key'), KeyboardInterrupt(), SystemExit(2)])
def test_anything_else_is_left_alone(error):
    with pytest.raises(type(error)) as ended:
        raiser(error)()
    assert ended.value is error


def test_the_result_is_returned_and_the_name_stays():
    @command
    def main() -> int:
        """Do it."""
        return 7

    assert main() == 7
    assert (main.__name__, main.__doc__) == ('main', 'Do it.')


def test_a_script_ends_with_one_and_no_traceback(tmp_path):
    (tmp_path / 'measure.py').write_text(SCRIPT)
    done = subprocess.run([sys.executable, tmp_path / 'measure.py'], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "measure: [Errno 2] No such file or directory: 'none'"
    assert 'Traceback' not in done.stderr
