"""Prepare a virtual environment with torch, torchvision, Detectron2 and this package, without mmdet.

    python3 tools/environment/prepare_detectron2.py [--detectron2 FOLDER_OR_ADDRESS] [--torch VERSION] [--venv DIR]

No package index has Detectron2. It is compiled from its source, a folder or an address that pip takes, in a minute on two cores. A finished
environment is left as it is. Needs the standard library alone.
"""

import argparse
import hashlib
import os
import re
import sys
from pathlib import Path

from prepare import BUILD_TOOLS, ROOT, TESTED_TORCH, TORCHVISION_MINOR, capture, check_compiler, check_machine, check_torch, fail, run, say

ADDRESS = 'git+https://github.com/facebookresearch/detectron2'


def prepare(detectron2: str, venv: Path, torch: str = TESTED_TORCH) -> None:
    """Create or complete ``venv``; does nothing if it is complete."""
    check_torch(torch)
    stamp, python = venv / 'prepared', str(venv / 'bin' / 'python')
    sources = [Path(__file__), ROOT / 'setup.py']
    wanted = hashlib.sha256(b''.join(path.read_bytes() for path in sources) + f'{ROOT} {torch} {detectron2}'.encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        say(f'{venv} is ready')
        return
    if '://' not in detectron2:
        detectron2 = str(Path(detectron2).absolute())  # a bare name would be a package of an index
    if '://' not in detectron2 and not Path(detectron2, 'setup.py').is_file():
        fail(f'{detectron2} is not the source of Detectron2: name a folder with its setup.py, or an address such as {ADDRESS}')
    check_machine(venv)
    os.environ.update(MAX_JOBS=str(check_compiler()), CFLAGS='-g0')  # without debug symbols, which take time and disk space
    run([sys.executable, '-m', 'venv', str(venv)], f'creating {venv}')
    pip = [python, '-m', 'pip', 'install', '--quiet']
    run([*pip, '--upgrade', *BUILD_TOOLS], 'installing the build tools')
    _, minor, patch = re.findall(r'\d+', f'{torch}.0')[:3]
    pair = {'torch': torch, 'torchvision': f'0.{int(minor) + TORCHVISION_MINOR}.{patch}'}
    run([*pip, *(f'{name}=={version}' for name, version in pair.items())], f'installing torch {torch} and torchvision')
    if capture([python, '-c', 'import torchvision']).returncode:
        # An index may offer one of them for CUDA and the other for CPUs: '===' takes neither of the marked builds.
        run([*pip, *(f'{name}==={version}' for name, version in pair.items())], 'installing the builds of torch and torchvision that fit')
    run([*pip, '--no-build-isolation', detectron2], f'compiling Detectron2 from {detectron2}')
    run([*pip, '--no-build-isolation', '-e', str(ROOT), 'pytest'], 'installing fca_mmdet and pytest')
    stamp.write_text(wanted)
    say(f'{venv} is ready')


def main() -> None:
    """Parse the command line and prepare the environment."""
    parser = argparse.ArgumentParser(description='Prepare a virtual environment with Detectron2 for fca_mmdet.')
    parser.add_argument('--detectron2', default=ADDRESS, help='a folder or an address of its source (default: %(default)s)')
    parser.add_argument('--torch', default=TESTED_TORCH, help='its version (default: %(default)s)')
    parser.add_argument('--venv', type=Path, default=ROOT / '.venv' / 'detectron2', help='where to put it (default: %(default)s)')
    args = parser.parse_args()
    prepare(args.detectron2, args.venv.absolute(), args.torch)


if __name__ == '__main__':
    main()
