"""Run a plan of experiments: train and evaluate (COCO) each of its configs with each seed, in a process of its own.

    python tools/experiment.py PLAN [--out FOLDER] [--data FOLDER] [--seeds 5] [--jobs 2] [--devices 0 1] [--ray [ADDRESS]]

A plan is a YAML file. ``configs/plans`` has some, and its README lists all keys:

    seeds: 5
    baseline: plain                          # the run to compare with
    options: {train_cfg.max_iters: 400}      # for every run, as --cfg-options of tools/train.py
    runs:
      plain: {config: small/mask-rcnn_r50-thin_fpn_small-heads.py}
      low2: {config: small/mask-rcnn_fca-r50-thin_fpn_small-heads.py, frequencies: low2}

OUT/NAME/seed-N has the config, log and checkpoints of a run. Started again after an interruption, the command skips what is done and goes
on with what was begun; on a CPU the numbers are the same as without interruption. If a run fails, the others go on. OUT/results.csv and
results.json have a row for each finished run; tools/report.py turns them into tables and figures.

``--pilot HOURS`` first finds out how to train. It trains two runs of the plan under each of the plan's ``recipes`` with a few seeds in
OUT/pilot, and prints what the whole plan could tell in so many hours under each: how many seeds, and how small a difference.
"""

import argparse
import os
from pathlib import Path

import torch
from mmengine.config import DictAction

from fca_mmdet.command import command
from fca_mmdet.errors import UserError
from fca_mmdet.lab.experiment import run_plan, submit_here, submit_to_ray
from fca_mmdet.lab.pilot import run_pilot


@command
def main() -> None:
    """Parse the command line and run the plan."""
    parser = argparse.ArgumentParser(description='Run a plan of experiments.')
    parser.add_argument('plan', help="a YAML file, or the name of one in configs/plans, such as 'small'")
    parser.add_argument('--out', type=Path, help='(default: work_dirs/experiments/PLAN)')
    parser.add_argument('--data', type=Path, help="a COCO-format folder instead of the configs' data")
    parser.add_argument('--seeds', type=int, help="number of seeds of every run, instead of the plan's")
    parser.add_argument('--only', nargs='+', metavar='RUN', help='only these runs of the plan')
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='runs at a time on a CPU (default: its %(default)s cores)')
    first = ['0'] * torch.cuda.is_available()
    parser.add_argument('--devices', nargs='+', default=first, metavar='GPU', help='one run on each, as this process numbers them')
    parser.add_argument('--ray', nargs='?', const='local', metavar='ADDRESS', help='run on Ray: here, or on the cluster at ADDRESS')
    parser.add_argument('--gpus', type=float, default=float(torch.cuda.is_available()), help='GPUs per run on Ray (default: %(default)g)')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE', help='for every run, as in mmdet')
    parser.add_argument('--pilot', type=float, metavar='HOURS', help='compare the recipes of the plan for a budget of HOURS')
    args = parser.parse_args()
    if args.pilot is not None and args.ray:
        raise UserError('--pilot reckons with this machine, and not with a cluster: leave out --ray')
    submitting = submit_to_ray(args.ray, args.gpus) if args.ray else submit_here(args.jobs, args.devices)
    what = args.plan, submitting, args.out, args.data, args.seeds, args.only, args.cfg_options
    if args.pilot is None:
        run_plan(*what)
    else:
        run_pilot(*what, args.pilot, len(args.devices) or args.jobs)


if __name__ == '__main__':
    main()
