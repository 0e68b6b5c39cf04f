"""Keep the record of a benchmark: a JSON file that an interrupted run continues, and a page of tables and figures beside it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ..errors import UserError
from ..files import check_writable, write_whole
from .benchmark import COMPARED, RECORDED, Detector, Subject, measure_attention, measure_forms, measure_operators
from .cost import MODES, describe_setting, measure_table
from .deployed import measure_deployed
from .evaluation_speed import measure_evaluation
from .machine import machine, origin
from .plots import plt, write_figure
from .roofline import predict
from .timing import Setting

Found = dict[str, list[dict]]  # the measurements of each part
MEASURED: dict[str, Callable[[Setting, Sequence[str], int], list[dict]]] = {
    # The compiler chooses what compiled code keeps for backward.
    'backbones': lambda setting, names, repeats: [
        measure_table(setting, names, ['inference', 'training'], ['peak'] if setting.compile else ['peak', 'saved'], repeats, Subject)
    ],
    'operators': lambda setting, names, repeats: measure_operators(setting, names),
    'sizes': lambda setting, names, repeats: [
        measure_table(replace(setting, size=(side, side)), names, ['inference'], [], repeats, Subject)
        for side in (320, 480, 640, 800, 1120, 1600)
    ],
    'attention': lambda setting, names, repeats: measure_attention(setting, repeats),
    'forms': lambda setting, names, repeats: measure_forms(setting, repeats),
    'deployed': measure_deployed,
    'roofline': lambda setting, names, repeats: predict(setting, names),
    'detector': lambda setting, names, repeats: [measure_table(setting, names, ['training'], ['peak'], repeats, Detector)],
}
"""The measurement of each part of a record, given a setting, the names of backbones and a number of rounds."""


def record(base: Setting, repeats: int, found: Found, save: Callable[[Found], None]) -> None:
    """Measure what ``found``, saved by an interrupted run, does not hold, and call ``save`` after each part.

    On a CPU, backbones are measured in the modes that users choose; on a GPU, in float32 and under autocast.
    """
    readable, brief = ['ResNet', '+ FCA, readable', '+ FCA, folded'], ['ResNet', '+ FCA, folded']
    parts = {'sizes': ([base], readable, repeats), 'attention': ([base], [], 3 * repeats), 'forms': ([base], [], repeats)}
    if base.device == 'cpu':
        last, half, compiled, kept = dict(channels_last=True), dict(dtype='bfloat16'), dict(compile=True), dict(keep_pages=True)
        modes: list[tuple[dict, list[str]]] = [({}, RECORDED), (half | last, RECORDED), (last, COMPARED), (half, COMPARED)]
        modes += [(half | last | compiled, COMPARED), (last | compiled, COMPARED)]
        modes += [(mode, brief) for mode in (dict(batch=2), dict(depth=101), kept, last | kept)]
        settings = [(replace(base, **mode), names) for mode, names in modes]
        parts = {'deployed': ([base], COMPARED, repeats), **parts}
    else:
        settings = [
            (replace(base, depth=depth, batch=2, channels_last=last, dtype=dtype), RECORDED if depth == 50 else brief)
            for depth in (50, 101)
            for last in (False, True)
            for dtype in ('float32', 'float16', 'bfloat16')
        ]
        under = [replace(base, batch=2, dtype=dtype) for dtype in ('float32', 'float16')]
        parts['detector'] = under, COMPARED, repeats
    done = {json.dumps(row['setting']) for row in found.setdefault('backbones', [])}
    for setting, names in settings:
        if json.dumps(asdict(setting)) not in done:
            found['backbones'] += MEASURED['backbones'](setting, names, repeats)
            save(found)
    for part, (under, names, count) in parts.items():
        if not found.get(part):
            found[part] = [row for setting in under for row in MEASURED[part](setting, names, count)]
            save(found)


def _read(out: Path) -> dict:
    try:
        found = json.loads(out.read_text()) if out.exists() else {}
    except ValueError as error:
        raise UserError(f'{out} is not a record ({error}): name another file with --out') from error
    if found and not (isinstance(found, dict) and {'command', 'machine'} <= found.keys()):
        raise UserError(f'{out} is not a record: name another file with --out')
    return found


def read_record(out: Path, device: str) -> Found:
    """Read what an interrupted run has measured, if anything. A record of another machine or other versions is a ``UserError``."""
    found = _read(out)
    if found and found['machine'] != machine(device):
        raise UserError(f'{out} is of another machine or other versions, {found["machine"]}: name another file with --out, or delete it')
    return {key: value for key, value in found.items() if key not in ('command', 'machine')}


def markdown(result: dict) -> str:
    """Format the tables of a record as a page."""
    lines = [f'Made by `{result["command"]}`', '', *(f'- {key}: {value}' for key, value in result['machine'].items()), '']
    for measured in [*result['backbones'], *result.get('deployed', []), *result.get('detector', [])]:
        table = measured['table']
        lines += [f'### {describe_setting(measured["setting"])}', '', f'| | {" | ".join(table)} |', '|---|' + '---|' * len(table)]
        for name in next(iter(table.values())):
            cells = []
            for mode, rows in table.items():
                (scale, unit, _), row = MODES[mode], rows[name]
                low, high = row['quartiles']
                cells.append(f'{row["ratio"]:.2f}{f" ({low:.2f}-{high:.2f})" if high > low else ""}, {row["median"] * scale:.0f} {unit}')
            lines.append(f'| {name} | {" | ".join(cells)} |')
        lines.append('')
    return '\n'.join(lines)


def draw_costs(measurements: Sequence[dict], out: Path) -> None:
    """Draw each backbone's costs as bars, relative to the first one's: a row of panels for each setting."""
    modes = [mode for mode in MODES if any(mode in measured['table'] for measured in measurements)]
    size = (3.6 * len(modes) + 2, 0.5 + 1.9 * len(measurements))
    figure, axes = plt.subplots(len(measurements), len(modes), figsize=size, squeeze=False)
    for measured, row in zip(measurements, axes, strict=True):
        for mode, axis in zip(modes, row, strict=True):
            figures = measured['table'].get(mode)
            if figures is None:
                axis.axis('off')
                continue
            names = list(figures)[::-1]
            ratios = [figures[name]['ratio'] for name in names]
            spread = [[abs(figures[name]['quartiles'][side] - figures[name]['ratio']) for name in names] for side in (0, 1)]
            colors = ['tab:blue' if 'folded' in name else 'lightsteelblue' if 'FCA' in name else 'silver' for name in names]
            axis.barh(names, ratios, xerr=spread if any(map(any, spread)) else None, color=colors, error_kw=dict(lw=1))
            for position, ratio in enumerate(ratios):
                axis.text(0.02, position, f'{ratio:.2f}', va='center', fontsize=7)
            axis.axvline(1, color='black', lw=0.8)
            axis.tick_params(labelsize=7)
            axis.set_title(MODES[mode][2], fontsize=8)
            if mode != modes[0]:
                axis.set_yticklabels([])
        words = describe_setting(measured['setting']).replace(', ', '\n')
        row[0].set_ylabel(words, fontsize=7, rotation=0, ha='right', va='center', labelpad=8)
    write_figure(figure, out)


def draw_sizes(measurements: Sequence[dict], out: Path) -> None:
    """Draw inference against the size of square images: the time per megapixel, and its ratio to the first backbone's."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    settings = [measured['setting'] for measured in measurements]
    sides = [setting['size'][0] for setting in settings]
    megapixels = [np.prod(setting['size']) * setting['batch'] / 1e6 for setting in settings]
    for name in measurements[0]['table']['inference']:
        rows = [measured['table']['inference'][name] for measured in measurements]
        style = dict(marker='o', ms=4, lw=2.5 if 'folded' in name else 1.2, label=name)
        left.plot(sides, [1e3 * row['median'] / area for row, area in zip(rows, megapixels, strict=True)], **style)
        right.plot(sides, [row['ratio'] for row in rows], **style)
    left.set(ylabel='ms per megapixel', ylim=(0, None))
    right.set(ylabel='ratio to ResNet')
    for axis in (left, right):
        axis.set(xlabel='side of a square image, pixels', xticks=sides)
        axis.grid(alpha=0.3)
    left.legend(fontsize=8)
    figure.suptitle(f'inference, {describe_setting(settings[0] | {"size": ["side", "side"]})}', fontsize=10)
    write_figure(figure, out)


def write_record(found: Found, device: str, out: Path) -> None:
    """Write the JSON file, and its tables and figures beside it."""
    result = {**origin(device), **found}
    write_whole(out, json.dumps(result, indent=1) + '\n')
    if found.get('backbones'):
        draw_costs(found['backbones'], out.with_suffix('.png'))
        write_whole(out.with_suffix('.md'), markdown(result))
    if found.get('sizes'):
        draw_sizes(found['sizes'], out.with_name(out.stem + '-sizes.png'))


def run_benchmark(what: str, setting: Setting, names: Sequence[str], repeats: int, images: int, out: Path | None) -> None:
    """Measure one part, or all parts of a ``record``; print it, and write it to ``out``. Only ``evaluation`` uses ``images``."""
    counts = dict(repeats=repeats, images=images, threads=setting.threads, batch=setting.batch, size=min(setting.size))
    if wrong := next((name for name, count in counts.items() if count < 1), None):
        raise UserError(f'--{wrong} {counts[wrong]}: give 1 or more')
    part = 'backbones' if what == 'backbone' else what
    if out:
        check_writable(out)
        if what != 'record' and (others := _read(out).keys() - {'command', 'machine', part}):
            raise UserError(f'{out} has {", ".join(sorted(others))} too, which would be lost: name another file with --out')
    torch.set_num_threads(setting.threads)
    save: Callable[[Found], None] = partial(write_record, device=setting.device, out=out) if out else lambda found: None
    if what == 'record':
        record(setting, repeats, read_record(out, setting.device) if out else {}, save)
    elif what == 'evaluation':
        save({what: measure_evaluation(images, repeats, setting.threads)})
    else:
        save({part: MEASURED[part](setting, names, repeats)})
