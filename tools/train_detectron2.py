"""Train or score a detector of Detectron2, with this package's backbones in its registry.

    python tools/train_detectron2.py --config-file CONFIG [--data FOLDER] [--resume] [--eval-only] [--num-gpus N] [KEY VALUE ...]

The arguments are those of Detectron2's tools/train_net.py, and ``--data``. Checkpoints are read as data.
"""

from argparse import Namespace

import torch
from detectron2.config import get_cfg
from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.utils import comm
from torch import distributed as dist

from fca_mmdet.command import command
from fca_mmdet.detectron2 import FcaCheckpointer, FcaTrainer, add_fca_config, use_folder


def run(args: Namespace) -> dict:
    """Train, or score with ``--eval-only``, in each process; end its process group, whose threads may else abort it as it exits."""
    scores = train_or_score(args)
    if dist.is_initialized():
        comm.synchronize()
        dist.destroy_process_group()
    return scores


def train_or_score(args: Namespace) -> dict:
    """Train a config's detector, or score it with ``--eval-only``."""
    cfg = get_cfg()
    add_fca_config(cfg)
    cfg.MODEL.DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
    cfg.merge_from_file(args.config_file)
    if args.data:
        use_folder(cfg, args.data)
    cfg.merge_from_list(args.opts)
    default_setup(cfg, args)
    if args.eval_only:
        model = FcaTrainer.build_model(cfg)
        FcaCheckpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        return FcaTrainer.test(cfg, model)
    trainer = FcaTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


@command
def main() -> None:
    """Parse the command line, and start the processes."""
    parser = default_argument_parser()
    parser.add_argument('--data', help='a COCO-format folder: annotations/train.json, annotations/val.json, images/')
    args = parser.parse_args()
    launch(run, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, args=(args,))


if __name__ == '__main__':
    main()
