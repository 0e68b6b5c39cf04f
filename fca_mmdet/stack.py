"""Check the versions of mmdet, mmengine and mmcv, and let torch load mmengine's checkpoints as data.

Two distributions provide the modules mmdet, mmengine and mmcv: OneDL's maintained forks and OpenMMLab's. They shadow each other, so
setup.py requires neither and offers each as an extra.
"""

import importlib
import importlib.util
import pickle
from typing import Any

import torch

VERSION_WINDOWS = {'mmengine': ('0.10.7', '1.0.0'), 'mmcv': ('2.1.0', '3.0.0'), 'mmdet': ('3.3.0', '4.0.0')}
"""For each module, in the order of import: the oldest version that was tested, and the first that is refused."""

INSTALL = (
    "install one of the two distributions, torch first: pip install --no-build-isolation 'fca_mmdet[onedl]' (maintained) "
    "or pip install --no-build-isolation 'fca_mmdet[openmmlab]' (last released in 2024)"
)


def is_missing() -> bool:
    """Check whether mmdet is absent. If it is there but cannot be imported, ``check_versions`` says so."""
    try:
        return importlib.util.find_spec('mmdet') is None
    except ImportError:
        return True


def check_versions() -> None:
    """Import mmengine, mmcv and mmdet, and compare their versions with ``VERSION_WINDOWS``.

    Raises:
        ImportError: a module is missing, refuses to be imported, or is outside its window; the message names the extras to install.
    """
    for name, (oldest, first_refused) in VERSION_WINDOWS.items():
        needed = f'fca_mmdet needs {name} >= {oldest}, < {first_refused}'
        try:
            found = importlib.import_module(name).__version__
        except (ImportError, AssertionError) as error:  # mmdet asserts the version of mmcv
            raise ImportError(f'{needed}, which cannot be imported ({error}); {INSTALL}') from error
        digit_version = importlib.import_module('mmengine.utils').digit_version
        if not digit_version(oldest) <= digit_version(found) < digit_version(first_refused):
            raise ImportError(f'{needed}, but found {found}; {INSTALL}')


def _history_buffer_method(owner: Any, name: str) -> Any:
    """Replace ``getattr`` in a checkpoint read as data: find the statistics of HistoryBuffer, and nothing else."""
    from mmengine.logging import HistoryBuffer

    if owner is not HistoryBuffer or name not in HistoryBuffer._statistics_methods:
        raise pickle.UnpicklingError(f'the checkpoint asks for attribute {name!r} of {owner!r}, which is not allowed')
    return HistoryBuffer._statistics_methods[name]


def allow_mmengine_checkpoints() -> None:
    """Let ``torch.load(weights_only=True)``, torch's default since 2.6, read the checkpoints that mmengine writes.

    They hold the training log: ``HistoryBuffer`` objects with numpy arrays, and references to that class's methods, which pickle writes as
    calls of ``getattr``. Only these are allowed. Without this, OpenMMLab's mmengine cannot load its own checkpoints, and OneDL's falls
    back to unpickling without a check.
    """
    import numpy as np
    from mmengine.logging import HistoryBuffer

    HistoryBuffer()  # fills the list of statistics of the class
    reconstruct: Any = np.zeros(0).__reduce__()[0]
    scalar: Any = np.float64(0).__reduce__()[0]
    classes = [HistoryBuffer, np.ndarray, np.dtype, *(type(np.dtype(name)) for name in ('float32', 'float64', 'int32', 'int64', 'bool'))]
    # With their names, since OneDL's mmengine removes the bare classes after each checkpoint that it loads.
    allowed: list = [(cls, f'{cls.__module__}.{cls.__qualname__}') for cls in classes]
    allowed.append((_history_buffer_method, 'builtins.getattr'))
    for function in (reconstruct, scalar):
        # The module moved in numpy 2; a checkpoint may have been written with either.
        allowed += [(function, f'{package}.multiarray.{function.__name__}') for package in ('numpy.core', 'numpy._core')]
    torch.serialization.add_safe_globals(allowed)
