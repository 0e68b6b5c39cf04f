"""Turn results of tools/experiment.py into tables and figures.

    python tools/report.py RESULTS [RESULTS ...] [--out FOLDER] [--baseline RUN]

RESULTS is a folder that tools/experiment.py wrote: plan.yml, results.csv, and the runs' logs for curves. Several folders, such as those of
several machines, give one report. The command writes report.md, the numbers in report.json, and the figures that the results allow. Needs
the extra ``experiments``.
"""

import argparse
from pathlib import Path

from fca_mmdet.command import command
from fca_mmdet.lab.report import write_report


@command
def main() -> None:
    """Parse the command line, and write the report."""
    parser = argparse.ArgumentParser(description='Turn results of tools/experiment.py into tables and figures.')
    parser.add_argument('results', type=Path, nargs='+', help='a folder that tools/experiment.py wrote')
    parser.add_argument('--out', type=Path, help='a folder (default: the first of RESULTS)')
    parser.add_argument('--baseline', metavar='RUN', help="compare all others with this run (default: the plan's)")
    write_report(**vars(parser.parse_args()))


if __name__ == '__main__':
    main()
