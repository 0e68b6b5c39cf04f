"""The hook that lets mmdet's own commands begin with the check of ``preflight``."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from mmdet.registry import HOOKS
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from ..errors import UserError
from .preflight import check


@HOOKS.register_module()
class PreflightHook(Hook):
    """Check data and config before a training or test, in the first of its processes. What it refuses ends all of them.

    A config needs ``custom_hooks = [dict(type='PreflightHook')]`` for it. Under the commands of ``tools/``, which
    check by themselves, the hook does nothing.

    Args:
        decode: whether to decode every image.

    Raises:
        UserError: before training or testing, as ``preflight.check``.
    """

    enabled = True

    def __init__(self, decode: bool = False):
        self.decode = decode
        self.checked: set[Sequence[str]] = set()
        # mmengine calls hooks when it has loaded the data, which may fail without a sentence: find the runner that makes this hook.
        frame: Any = sys._getframe()
        while frame and not isinstance(frame.f_locals.get('self'), Runner):
            frame = frame.f_back
        runner = frame.f_locals['self'] if frame else None
        for name, splits in dict(train=('train', 'val'), test=('test',)).items() if runner else ():
            setattr(runner, name, partial(self._check_and_run, runner, splits, getattr(runner, name)))

    def _check_and_run(self, runner: Runner, splits: Sequence[str], run: Callable, *args: Any, **kwargs: Any) -> Any:
        self._check(runner, splits)
        return run(*args, **kwargs)

    def before_train(self, runner: Runner) -> None:
        """Check a training of a runner that did not make this hook."""
        self._check(runner, ('train', 'val'))

    def before_test(self, runner: Runner) -> None:
        """Check a test of a runner that did not make this hook."""
        self._check(runner, ('test',))

    def _check(self, runner: Runner, splits: Sequence[str]) -> None:
        if not self.enabled or splits in self.checked or runner.cfg.get('default_scope') != 'mmdet':
            return
        self.checked.add(splits)
        faults: list[UserError | None] = [None]
        if is_main_process():
            model = runner.model.module if is_model_wrapper(runner.model) else runner.model
            try:
                check(runner.cfg, splits, self.decode, runner.work_dir, model)
            except Exception as error:
                faults = [error if isinstance(error, UserError) else UserError(repr(error))]
        broadcast_object_list(faults)
        if faults[0]:
            raise faults[0]
