"""mmdet's registries under this package's scope.

mmengine gives a config inherited as ``fca_mmdet::...`` the scope ``fca_mmdet``, and then looks for registries of that scope. Each of
these is empty, and has mmdet's as its parent.
"""

import mmdet.registry
from mmengine.registry import Registry

REGISTRIES = {
    name: Registry(parent.name, parent=parent, scope='fca_mmdet', locations=['fca_mmdet'])
    for name, parent in vars(mmdet.registry).items()
    if isinstance(parent, Registry)
}
