"""The documents against the repository: links, commands and their options, the index, messages and config lines."""

import re
from pathlib import Path

import mmdet
import pytest
import torch
from helpers import ROOT, TINY, TOOLS
from mmdet.registry import DATA_SAMPLERS, HOOKS
from mmengine.config import Config

from fca_mmdet import MultiSpectralAttention
from fca_mmdet.checkpoint import read_checkpoint
from fca_mmdet.lab.shapes import make_shapes
from fca_mmdet.training import preflight

DOCS = ROOT / 'docs'
PAGES = sorted([*ROOT.glob('*.md'), *(page for folder in ('configs', 'docs', 'tests') for page in (ROOT / folder).rglob('*.md'))])
BLOCK = re.compile(r'^ *```(\w*)\n(.*?)^ *```$', re.MULTILINE | re.DOTALL)
each_page = pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def links(page: Path) -> list[tuple[Path, str]]:
    """The file and the anchor of each link of a page into the repository."""
    targets = re.findall(r'\]\(([^)\s]+)\)', BLOCK.sub('', page.read_text()))
    parts = [target.partition('#') for target in targets if '://' not in target]
    return [((page.parent / path).resolve() if path else page, anchor) for path, _, anchor in parts]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r'^#+ (.*)$', BLOCK.sub('', page.read_text()), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


@each_page
def test_links(page):
    for path, anchor in links(page):
        assert path.exists(), path
        assert path.is_relative_to(ROOT)
        assert not anchor or anchor in anchors(path), anchor


def test_the_index_has_every_page():
    pages = {*DOCS.glob('*.md'), *DOCS.glob('faults/*.md'), *DOCS.glob('*/README.md'), *(ROOT / 'configs').glob('*/README.md')}
    assert pages - {path for path, _ in links(DOCS / 'README.md')} == {DOCS / 'README.md'}


@each_page
def test_commands_and_their_options(page):
    text = page.read_text()
    lines = [line for _, block in BLOCK.findall(text) for line in block.splitlines()]
    lines += [span.replace('\n', ' ') for span in re.findall(r'`([^`]+)`', BLOCK.sub('', text))]
    mmdets = Path(mmdet.__file__).parent / '.mim' / 'tools'
    # What mmdet's train.py and test.py take, ours take too, and the scripts hand it on to them.
    of_mmdet = ''.join((mmdets / name).read_text() for name in ('train.py', 'test.py'))
    for line in lines:
        for name, arguments in re.findall(r'(?<![\w$/])tools/(\w+\.(?:py|sh))([^;]*)', line):
            assert (TOOLS / name).exists(), name
            known = of_mmdet if re.search('train|test', name) else (TOOLS / name).read_text()
            if name == 'train_detectron2.py':  # Detectron2's own, which may not be installed
                known = (TOOLS / name).read_text() + "'--config-file' '--resume' '--eval-only' '--num-gpus'"
            for option in re.findall(r'(?<![\w-])--\w[\w-]*', arguments):
                assert f"'{option}'" in known, f'{name} {option}'


@pytest.fixture
def wrong(tmp_path, monkeypatch) -> Path:
    """A folder of files that are not as they should be."""
    monkeypatch.chdir(tmp_path)
    make_shapes(Path('data'), train=3, val=2)
    Path('data/images/train_0000.png').unlink()
    Path('page.pth').write_text('<html>404</html>')
    Path('config.py').write_text(f'_base_ = {str(TINY)!r}\n')
    return tmp_path


def test_the_messages_of_bad_input(wrong):
    """In the order of the page."""
    mistakes = [
        lambda: MultiSpectralAttention(64, reduction=0),
        lambda: MultiSpectralAttention(64)(torch.ones(1, 64, 3, 3, dtype=torch.int8)),
        lambda: MultiSpectralAttention(64).load_state_dict(MultiSpectralAttention(64, 7, 'low16', basis='learned_dct').state_dict()),
        lambda: read_checkpoint('page.pth'),
        lambda: preflight.check(Config.fromfile('config.py')),
        lambda: preflight.check(Config.fromfile('config.py'), work_dir='page.pth/work'),
    ]
    said = []
    for mistake in mistakes:
        with pytest.raises((ValueError, TypeError)) as caught:
            mistake()
        said.append(str(caught.value))
    assert said == re.findall(r'\| `([^`]+)` \|$', (DOCS / 'faults' / 'bad_input.md').read_text(), re.MULTILINE)


def test_the_config_lines_of_faults():
    ((_, lines),) = (found for found in BLOCK.findall((DOCS / 'faults' / 'README.md').read_text()) if found[0] == 'python')
    cfg = Config.fromstring(lines, '.py')
    assert HOOKS.get(cfg.default_hooks.checkpoint.type)
    assert DATA_SAMPLERS.get(cfg.train_dataloader.sampler.type)
    assert cfg.randomness.seed == 0
