"""Prepare a virtual environment with torch, one distribution of mmdet with compiled ops, and this package.

    python3 tools/environment/prepare.py [--stack onedl|openmmlab] [--torch VERSION] [--wheels FOLDER_OR_ADDRESS] [--venv DIR]

mmcv's ops are compiled against the installed torch: about 8 minutes on two cores, once for each version of torch, since the wheel is
kept in the user's cache. ``--wheels`` takes a prebuilt wheel where one fits. A finished environment is left as it is. Needs the
standard library alone.
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
# mmpretrain imports torchvision and mmdet does not. The package index has it for CUDA only: beside a CPU build of torch it cannot be
# imported, and then mmengine does not start. So it gets a folder of its own, which a test puts on PYTHONPATH. timm lies there too.
TORCHVISION_MINOR = 15  # torchvision 0.(minor + 15).patch is made for torch 2.minor.patch
OLDEST_TORCH = (2, 6)
OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 13)  # the tests ran with each in between
PINNED_PYTHON = (3, 11)  # the versions in STACK.txt are for it and TESTED_TORCH; others may need others
DISK_GIB, MEMORY_GIB_PER_JOB = 4, 2


def fail(sentence: str) -> None:
    """End with one sentence on what is missing and how to mend it."""
    sys.exit(f'environment: {sentence}')


def say(sentence: str, end: str = '\n') -> None:
    """Print one sentence at once."""
    print(f'environment: {sentence}', end=end, flush=True)


def capture(command: list[str]) -> subprocess.CompletedProcess:
    """Run a command, and keep what it prints, errors included."""
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace')


def run(command: list[str], what: str) -> None:
    """Run a command, saying what it does; its output appears only if it fails."""
    say(f'{what} ...')
    start = time.monotonic()
    result = capture(command)
    if result.returncode:
        print(result.stdout[-6000:])
        fail(f'{what} failed (the end of its output is above): {" ".join(command)}')
    say(f'{what}: {time.monotonic() - start:.0f} s')


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
    if sys.version_info[:2] > NEWEST_PYTHON:
        say(f'Python {platform.python_version()} is untested; {".".join(map(str, NEWEST_PYTHON))} is the newest that the tests ran with')
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


def find_wheel(python: str, requirement: str, wheels: str, folder: str) -> Path | None:
    """Put a wheel that fits this Python, from a folder or an address, into ``folder``. Return None, and say why, if none fits."""
    source = ['--no-index', '--find-links', wheels, '--only-binary', ':all:', '--no-deps', '--retries', '1', '--timeout', '15']
    result = capture([python, '-m', 'pip', 'download', '-v', *source, '--dest', folder, requirement])
    if result.returncode == 0:
        return next(Path(folder).glob('*.whl'))
    unreadable = re.search(r"Location '.*' is ignored|connection broken|Could not fetch URL", result.stdout)
    lack = 'cannot be read' if unreadable else f'has no wheel of it for Python {platform.python_version()} on {platform.machine()}'
    say(f'compiling {requirement}: {wheels} {lack}')
    return None


def explain_ops(python: str) -> str | None:
    """Say why the ops of the installed mmcv cannot be imported; None if they can."""
    result = capture([python, '-c', 'import torch, mmcv._ext'])
    if result.returncode == 0:
        return None
    reason = (result.stdout.strip().splitlines() or ['no reason given'])[-1]
    if "'mmcv._ext'" not in reason:
        cause = 'mmcv was compiled for another torch than the installed one'
    elif any(Path(python).parents[1].glob('lib/python*/site-packages/mmcv/_ext.*')):
        cause = 'mmcv was compiled for another Python'
    else:
        cause = 'mmcv was built where torch was missing, and so without its ops'
    return f'{cause} ({reason})'


def install_ops(pip: list[str], requirement: str, tag: str, wheels: str | None) -> None:
    """Install mmcv from ``wheels`` if its ops run, else from the user's cache, else compile it; fail if its ops do not run."""
    python = pip[0]

    def install(wheel: Path) -> str | None:
        # Another build of the same version may be there; pip would leave it.
        capture([python, '-m', 'pip', 'uninstall', '--yes', requirement.split('==')[0]])
        run([*pip, str(wheel)], f'installing {wheel}')
        return explain_ops(python)

    with tempfile.TemporaryDirectory() as folder:
        if wheels and (found := find_wheel(python, requirement, wheels, folder)):
            if not (reason := install(found)):
                return
            say(f'compiling {requirement}: with {found.name} of {wheels}, {reason}')
    kept = build_ops(python, requirement, tag)
    if reason := install(kept):
        fail(f'{reason}: remove {kept} and start again, so that it is compiled for what is installed')


def build_ops(python: str, requirement: str, tag: str) -> Path:
    """Take the wheel of mmcv with compiled ops from the cache, or compile it now and show progress."""
    cache = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'fca_mmdet' / 'wheels' / tag
    name, version = requirement.split('==')
    pattern = f'{name.replace("-", "_")}-{version}-*.whl'
    if kept := sorted(cache.glob(pattern)):
        say(f'{requirement} was compiled before: {kept[0]}')
        return kept[0]
    jobs = check_compiler()
    say(f'compiling {requirement} with {jobs} jobs; on two cores this takes about 8 minutes')
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
                    say(f'compiled {done} of {total} units, {left / 60:.1f} min left  ', end)
        if process.wait():
            print(log.read_text()[-6000:])
            fail(f'{requirement} did not compile (the end of its output is above)')
        (wheel,) = Path(built).glob(pattern)
        cache.mkdir(parents=True, exist_ok=True)
        kept_wheel = cache / wheel.name
        shutil.copy(wheel, kept_wheel.with_suffix('.part'))
        kept_wheel.with_suffix('.part').replace(kept_wheel)
    say(f'compiled in {(time.monotonic() - start) / 60:.1f} min, kept as {kept_wheel}')
    return kept_wheel


def check_torch(version: str) -> None:
    """Fail early where ``--torch`` is not a version that this package takes."""
    oldest = '.'.join(map(str, OLDEST_TORCH))
    if not re.fullmatch(r'2\.\d+(\.\d+)?', version) or tuple(map(int, version.split('.')[:2])) < OLDEST_TORCH:
        fail(f'torch {version!r} cannot be installed: name a version from {oldest} on, as in TORCH={TESTED_TORCH}')


def prepare(stack: str, venv: Path, torch: str = TESTED_TORCH, wheels: str | None = None) -> None:
    """Create or complete ``venv`` with that version of torch; does nothing if it is complete."""
    check_torch(torch)
    pins = STACKS[stack]
    stamp = venv / 'prepared'
    constraints = Path(__file__).with_name(f'{stack}.txt')
    sources = [Path(__file__), constraints, ROOT / 'setup.py']
    wanted = hashlib.sha256(b''.join(path.read_bytes() for path in sources) + f'{ROOT} {torch}'.encode()).hexdigest()
    python = str(venv / ('Scripts/python.exe' if os.name == 'nt' else 'bin/python'))
    if stamp.exists() and stamp.read_text() == wanted:
        say(f'{venv} is ready')
        return
    check_machine(venv)
    if not Path(python).exists():
        run([sys.executable, '-m', 'venv', str(venv)], f'creating {venv}')
    pinned = torch == TESTED_TORCH and sys.version_info[:2] == PINNED_PYTHON
    pip = [python, '-m', 'pip', 'install', '--quiet', *(['-c', str(constraints)] if pinned else [])]
    run([*pip, '--upgrade', *BUILD_TOOLS], 'installing the build tools')
    run([*pip, f'torch=={torch}'], f'installing torch {torch} (200 MB without CUDA, some GB with it)')
    installed = capture([python, '-c', 'import torch; print(torch.__version__)']).stdout.split()[-1]
    run([*pip, *pins['engine']], f'installing {pins["engine"][0]}')
    tag = f'torch-{installed}-{sys.implementation.cache_tag}-{platform.machine()}'
    install_ops(pip, pins['ops'][0], tag, wheels)
    for purpose in ('detection', 'classification', 'segmentation'):
        run([*pip, *pins[purpose]], f'installing {pins[purpose][0]}')
    beside = ['--no-deps', '--upgrade', '--target', str(venv / 'torchvision')]
    _, minor, patch = re.findall(r'\d+', installed)[:3]
    torchvision = f'torchvision==0.{int(minor) + TORCHVISION_MINOR}.{patch}'
    run([python, '-m', 'pip', 'install', '--quiet', *beside, torchvision, 'timm==1.0.31'], f'installing {torchvision} and timm')
    run(
        [*pip, '--no-build-isolation', '-e', f'{ROOT}[evaluation,experiments,int8,onnx,ray,test]'],
        'installing fca_mmdet and the test tools',
    )
    stamp.write_text(wanted)
    say(f'{venv} is ready')


def main() -> None:
    """Parse the command line and prepare the environment."""
    parser = argparse.ArgumentParser(description='Prepare a virtual environment for fca_mmdet.')
    parser.add_argument('--stack', choices=STACKS, default='onedl', help='the distribution of mmdet (default: %(default)s)')
    parser.add_argument('--torch', default=TESTED_TORCH, help='its version (default: %(default)s)')
    parser.add_argument('--wheels', help='a folder or an address with prebuilt wheels of mmcv; without one that fits, mmcv is compiled')
    parser.add_argument('--venv', type=Path, help='where to put it (default: .venv/STACK in the checkout)')
    args = parser.parse_args()
    wheels = str(Path(args.wheels).absolute()) if args.wheels and '://' not in args.wheels else args.wheels
    prepare(args.stack, (args.venv or ROOT / '.venv' / args.stack).absolute(), args.torch, wheels)


if __name__ == '__main__':
    main()
