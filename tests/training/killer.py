"""A hook for configs of test_resume.py."""

import os
import resource
import signal
import sys
from pathlib import Path

from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.runner import Runner


@HOOKS.register_module()
class Killer(Hook):
    """Kills its process at the point that the variable KILL names, such as ``backward 2`` or ``half iter_4.pth.part``.

    HALF is the number of bytes after which a file is half-written.
    """

    def before_run(self, runner: Runner) -> None:
        self.point, self.at = os.environ['KILL'].split()
        if self.point in ('half', 'emptied', 'before', 'loading'):
            signal.signal(signal.SIGXFSZ, lambda *_: self.kill())
            sys.addaudithook(lambda event, details: self.opened(runner, *details) if event == 'open' else None)

    def kill(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def opened(self, runner: Runner, path: object, mode: str | None, _flags: int) -> None:
        name = Path(str(path)).name
        if self.point == 'loading':
            if name.endswith('.png') and runner.iter + 1 == int(self.at):
                self.kill()
        elif name == self.at and 'w' in (mode or ''):
            if self.point == 'before':
                self.kill()
            # The system writes up to the limit, and then sends SIGXFSZ.
            limit = int(os.environ['HALF']) if self.point == 'half' else 0
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        if self.point == 'backward' and runner.iter + 1 == int(self.at):
            middle = [parameter for parameter in runner.model.backbone.parameters() if parameter.requires_grad][20]
            middle.register_hook(lambda _: self.kill())

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: object = None) -> None:
        if self.point == 'evaluation' and runner.iter == int(self.at) and batch_idx == 1:
            self.kill()
