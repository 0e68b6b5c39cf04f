"""Describe the machine and the versions that measured figures depend on."""

import os
import platform
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


def machine(device: str) -> dict[str, Any]:
    """Describe this machine, the GPU if ``device`` names one (``cuda:0``), and the versions of Python, torch and the detection stack."""
    cpu = next((line.split(':')[1].strip() for line in Path('/proc/cpuinfo').read_text().splitlines() if 'model name' in line), 'unknown')
    found: dict[str, Any] = {
        'cpu': f'{os.cpu_count()} cores {cpu}',
        'gpu': torch.cuda.get_device_name(device) if device.startswith('cuda') else None,
        'python': platform.python_version(),
        'torch': torch.__version__,
    }
    for name in ('mmdet', 'onedl-mmdetection', 'mmcv', 'onedl-mmcv'):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def origin(device: str) -> dict[str, Any]:
    """Describe the origin of measurements: this process's command line, and the machine."""
    return {'command': ' '.join(['python', *sys.argv]), 'machine': machine(device)}
