"""Prepare a virtual environment with torch, one distribution of mmdet with compiled ops, and this package.

    python3 tools/environment/prepare.py [--stack onedl|openmmlab] [--torch VERSION] [--venv DIR]

mmcv's ops are compiled against the installed torch: about 8 minutes on two cores, once for each version of torch, since the wheel is
kept in the user's cache. A finished environment is recognised and left as it is. Needs the standard library alone.
"""

import argparse
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTED_TORCH = '2.13.0'
# mmcv's set-up imports pkg_resources, which setuptools 81 removed; psutil and ninja drive its parallel compilation.
BUILD_TOOLS = ['pip', 'setuptools<81', 'wheel', 'ninja', 'psutil']
# What each extra of setup.py leaves open is pinned here to what the tests ran with.
STACKS: dict[str, dict[str, list[str]]] = {
    'onedl': {
        'engine': ['onedl-mmengine==0.10.12'],
        'ops': ['onedl-mmcv==2.3.6'],
        'detection': ['onedl-mmdetection==3.5.1', 'imaug'],
        'classification': ['onedl-mmpretrain==1.3.6'],
        'segmentation': ['onedl-mmsegmentation==1.4.2'],
    },
    'openmmlab': {
        'engine': ['mmengine==0.10.7'],
        'ops': ['mmcv==2.1.0'],
        'detection': ['mmdet==3.3.0'],
        'classification': ['mmpretrain==1.2.0'],
        'segmentation': ['mmsegmentation==1.2.2', 'ftfy', 'regex'],  # it imports the last two, and does not require them
    },
}
# mmpretrain imports it and mmdet does not. Beside a CPU build of torch it cannot be imported, and then mmengine does not start: it gets a
# folder of its own, for who puts that on PYTHONPATH.
TORCHVISION_MINOR = 15  # torchvision 0.(minor + 15).patch is made for torch 2.minor.patch
OLDEST_PYTHON = (3, 10)
TESTED_PYTHON = (3, 11)
DISK_GIB, MEMORY_GIB_PER_JOB = 4, 2


def fail(sentence: str) -> None:
    """End with one sentence on what is missing and how to mend it."""
    sys.exit(f'environment: {sentence}')


def run(command: list[str], what: str, **options) -> None:
    """Run a command, saying what it does; its output appears only if it fails."""
    print(f'environment: {what} ...', flush=True)
    start = time.monotonic()
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace', **options)
    if result.returncode:
        print(result.stdout[-6000:])
        fail(f'{what} failed (the end of its output is above): {" ".join(command)}')
    print(f'environment: {what}: {time.monotonic() - start:.0f} s', flush=True)


def available_memory_gib() -> float:
    """Memory that a compiler could use now; infinite where the system does not tell."""
    try:
        return os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30
    except (ValueError, OSError, AttributeError):
        return float('inf')


def check_machine(venv: Path) -> None:
    """Fail early, in a sentence, where the set-up could not end well."""
    if sys.version_info < OLDEST_PYTHON:
        fail(
            f'Python {platform.python_version()} is too old: use {".".join(map(str, OLDEST_PYTHON))} or later '
            '(name it with: make PYTHON=python3.11 ...)'
        )
    if sys.version_info[:2] != TESTED_PYTHON:
        print(
            f'environment: Python {platform.python_version()} is untested; {".".join(map(str, TESTED_PYTHON))} is what the tests ran with'
        )
    venv.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(venv).free / 2**30
    if free < DISK_GIB:
        fail(f'{free:.1f} GiB are free where {venv} lies, and {DISK_GIB} are needed: free some, or name another place with --venv')


def check_compiler() -> int:
    """Fail where mmcv's ops cannot be compiled; return how many compilers fit in memory side by side."""
    compiler = os.environ.get('CXX', 'c++').split()[0]
    if not shutil.which(compiler):
        fail(f'no C++ compiler ({compiler}): install one (Debian, Ubuntu: apt-get install g++), or name it in CXX')
    header = Path(sysconfig.get_path('include'), 'Python.h')
    if not header.exists():
        fail(f'no {header}: install the headers of this Python (Debian, Ubuntu: apt-get install python3-dev)')
    memory = available_memory_gib()
    if memory < MEMORY_GIB_PER_JOB:
        fail(f'{memory:.1f} GiB of memory are available and one compiler needs {MEMORY_GIB_PER_JOB}: close something, or add swap')
    return int(min(os.cpu_count() or 1, memory // MEMORY_GIB_PER_JOB))


def build_ops(python: str, requirement: str, tag: str) -> Path:
    """The wheel of mmcv with compiled ops, from the cache or compiled now with progress."""
    cache = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'fca_mmdet' / 'wheels' / tag
    name, version = requirement.split('==')
    pattern = f'{name.replace("-", "_")}-{version}-*.whl'
    if kept := sorted(cache.glob(pattern)):
        print(f'environment: {requirement} was compiled before: {kept[0]}')
        return kept[0]
    jobs = check_compiler()
    print(f'environment: compiling {requirement} with {jobs} jobs; on two cores this takes about 8 minutes', flush=True)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as built:
        log = Path(built, 'log')
        command = [python, '-m', 'pip', 'wheel', '-v', '--no-deps', '--no-build-isolation', '--no-cache-dir', '-w', built, requirement]
        # Debug symbols double the time and make the wheel 15 times larger.
        environment = {**os.environ, 'CFLAGS': '-g0', 'MAX_JOBS': str(jobs), 'MMCV_WITH_OPS': '1'}
        with log.open('w') as sink:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace', env=environment
            )
            assert process.stdout
            for line in process.stdout:
                sink.write(line)
                if unit := re.match(r'\s*\[(\d+)/(\d+)\]', line):
                    done, total = map(int, unit.groups())
                    seconds = time.monotonic() - start
                    left = seconds / done * (total - done)
                    end = '\r' if sys.stdout.isatty() else '\n'
                    print(f'environment: compiled {done} of {total} units, {left / 60:.1f} min left  ', end=end, flush=True)
        if process.wait():
            print(log.read_text()[-6000:])
            fail(f'{requirement} did not compile (the end of its output is above)')
        (wheel,) = Path(built).glob(pattern)
        cache.mkdir(parents=True, exist_ok=True)
        kept_wheel = cache / wheel.name
        shutil.copy(wheel, kept_wheel.with_suffix('.part'))
        kept_wheel.with_suffix('.part').replace(kept_wheel)
    print(f'environment: compiled in {(time.monotonic() - start) / 60:.1f} min, kept as {kept_wheel}')
    return kept_wheel


def prepare(stack: str, venv: Path, torch: str = TESTED_TORCH) -> None:
    """Create or complete ``venv`` with that version of torch; does nothing if it is complete."""
    pins = STACKS[stack]
    stamp = venv / 'prepared'
    constraints = Path(__file__).with_name(f'{stack}.txt')
    sources = [Path(__file__), constraints, ROOT / 'setup.py']
    wanted = hashlib.sha256(b''.join(path.read_bytes() for path in sources) + f'{ROOT} {torch}'.encode()).hexdigest()
    python = str(venv / ('Scripts/python.exe' if os.name == 'nt' else 'bin/python'))
    if stamp.exists() and stamp.read_text() == wanted:
        print(f'environment: {venv} is ready')
        return
    check_machine(venv)
    if not Path(python).exists():
        run([sys.executable, '-m', 'venv', str(venv)], f'creating {venv}')
    # The constraints are what the tests ran with; another Python may need other versions.
    pip = [python, '-m', 'pip', 'install', '--quiet', *(['-c', str(constraints)] if sys.version_info[:2] == TESTED_PYTHON else [])]
    run([*pip, '--upgrade', *BUILD_TOOLS], 'installing the build tools')
    run([*pip, f'torch=={torch}'], f'installing torch {torch} (200 MB without CUDA, some GB with it)')
    version = subprocess.run([python, '-c', 'import torch; print(torch.__version__)'], capture_output=True, text=True, check=True)
    run([*pip, *pins['engine']], f'installing {pins["engine"][0]}')
    tag = f'torch-{version.stdout.strip()}-{sys.implementation.cache_tag}-{platform.machine()}'
    wheel = build_ops(python, pins['ops'][0], tag)
    run([*pip, str(wheel), *pins['detection']], f'installing {pins["detection"][0]}')
    for purpose in ('classification', 'segmentation'):
        run([*pip, *pins[purpose]], f'installing {pins[purpose][0]}')
    beside = ['--no-deps', '--upgrade', '--target', str(venv / 'torchvision')]
    _, minor, patch = torch.split('.')
    torchvision = f'torchvision==0.{int(minor) + TORCHVISION_MINOR}.{patch}'
    run([python, '-m', 'pip', 'install', '--quiet', *beside, torchvision], f'installing {torchvision} beside the environment')
    run([*pip, '--no-build-isolation', '-e', f'{ROOT}[evaluation,experiments,onnx,ray,test]'], 'installing fca_mmdet and the test tools')
    stamp.write_text(wanted)
    print(f'environment: {venv} is ready')


def main() -> None:
    """Parse the command line and prepare the environment."""
    parser = argparse.ArgumentParser(description='Prepare a virtual environment for fca_mmdet.')
    parser.add_argument('--stack', choices=STACKS, default='onedl', help='the distribution of mmdet (default: %(default)s)')
    parser.add_argument('--torch', default=TESTED_TORCH, help='its version (default: %(default)s)')
    parser.add_argument('--venv', type=Path, help='where to put it (default: .venv/STACK in the checkout)')
    args = parser.parse_args()
    prepare(args.stack, (args.venv or ROOT / '.venv' / args.stack).absolute(), args.torch)


if __name__ == '__main__':
    main()
