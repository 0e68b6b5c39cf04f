"""Plans as they are read, checked and merged, and the frequencies that their runs take."""

import json
from functools import cache

import pytest
import yaml
from made_up_results import finish
from mmengine.config import Config

from fca_mmdet import FREQUENCY_SETS, config_path
from fca_mmdet.configs import CONFIGS
from fca_mmdet.errors import UserError
from fca_mmdet.lab.plan import choose_frequencies, merge_plans, rank_singles, read_plan, shorten, write_chosen

PLANS = sorted((CONFIGS / 'plans').glob('*.yml'))
PLAIN = 'small/mask-rcnn_r50-thin_fpn_small-heads.py'
FCA = 'small/mask-rcnn_fca-r50-thin_fpn_small-heads.py'


def has(config: Config, key: str) -> bool:
    """Whether a dotted key is in a config."""
    value = config
    for part in key.split('.'):
        if isinstance(value, list):
            part = int(part)
            if part >= len(value):
                return False
        elif part not in value:
            return False
        value = value[part]
    return True


@cache
def read(name: str) -> Config:
    """A config of this package."""
    return Config.fromfile(config_path(name))


@pytest.mark.parametrize('path', PLANS, ids=lambda path: path.stem)
def test_shipped_plans_change_what_their_configs_have(path):
    plan = read_plan(path)
    for entry in plan['runs'].values():
        config = read(entry['config'])
        backbone = 'model.backbone.'  # its arguments have defaults
        missing = [key for key in {**plan['options'], **entry.get('options', {})} if not key.startswith(backbone) and not has(config, key)]
        assert not missing
        if isinstance(entry.get('frequencies'), str):
            assert entry['frequencies'] in FREQUENCY_SETS


def test_the_coco_plan_changes_the_attention_alone():
    plan = read_plan(CONFIGS / 'plans' / 'coco.yml')
    assert len(plan['runs']) == 3 * 2 * 5
    for name, entry in plan['runs'].items():
        detector, attention = name.rsplit('_', 1)
        assert entry['baseline'] == f'{detector}_plain'
        plain = plan['runs'][entry['baseline']]['config']
        family, rest = plain.split('rcnn_')[0:-1], plain.split('rcnn_')[-1]
        assert entry['config'] == 'rcnn_'.join([*family, rest if attention == 'plain' else f'{attention}-{rest}'])


MISTAKES = {
    'no runs': ({'seeds': 2}, 'is not a plan: it needs runs, each a name with a config'),
    'an unknown word': ({'runs': {'a': {'config': PLAIN}}, 'sedes': 2}, 'has unknown keys, sedes: a plan may have baseline, data'),
    'no config': ({'runs': {'a': {'frequencies': 'low2'}}}, "the run a of .* is {'frequencies': 'low2'}: it needs a config"),
    'two choices': (
        {'runs': {'a': {'config': FCA, 'frequencies': 'low2', 'selected_by': 'b'}, 'b': {'config': FCA}}},
        'names its frequencies more than once',
    ),
    'no singles': ({'runs': {'a': {'config': FCA, 'best': 2}}}, 'takes the best 2 singles, but the plan has none: add singles'),
    'nobody selects': (
        {'runs': {'a': {'config': FCA, 'selected_by': 'b'}}},
        'the selected_by b of the run a of .* is not one of its runs: a',
    ),
    'no baseline': ({'runs': {'a': {'config': FCA}}, 'baseline': 'b'}, 'the baseline b of the run a of .* is not one of its runs: a'),
    'percent': (
        {'runs': {'a': {'config': FCA, 'published': {'bbox_mAP': 37.4, 'source': 'a page'}}}},
        'the published bbox_mAP of a in .* is 37.4: give it as COCO does, 0 to 1',
    ),
}


@pytest.mark.parametrize(('plan', 'message'), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_in_a_plan(plan, message, write_plan):
    with pytest.raises(UserError, match=message):
        read_plan(write_plan(**plan))


@pytest.mark.parametrize('text', ['runs: [', '- a', '!!python/object/apply:os.system ["touch pwned"]'])
def test_what_is_no_plan_runs_nothing(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'plan.yml').write_text(text)
    with pytest.raises(UserError, match=r'plan.yml is not a plan'):
        read_plan(tmp_path / 'plan.yml')
    assert not (tmp_path / 'pwned').exists()


def test_a_plan_adds_to_its_base(write_plan, tmp_path):
    (tmp_path / 'base.yml').write_text(yaml.safe_dump(dict(seeds=4, options={'a': 1, 'b': 2}, runs={'old': {'config': PLAIN}})))
    plan = read_plan(write_plan(base='base.yml', options={'b': 3}, runs={'new': {'config': FCA}}))
    assert plan == dict(seeds=4, options={'a': 1, 'b': 3}, runs={'new': {'config': FCA}}, baseline='new')


def test_plans_of_several_folders_are_one(tmp_path):
    plans = {
        'first': dict(seeds=3, baseline='plain', runs={'plain': {'config': PLAIN}, 'se': {'config': PLAIN, 'seeds': 1}}),
        'second': dict(seeds=5, metric='segm_mAP', runs={'gc': {'config': FCA}, 'plain': {'config': FCA}}),
    }
    for name, plan in plans.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / 'plan.yml').write_text(yaml.safe_dump(plan, sort_keys=False))
    merged = merge_plans([tmp_path / name for name in plans])
    assert {key: merged[key] for key in ('seeds', 'baseline', 'metric')} == dict(seeds=3, baseline='plain', metric='segm_mAP')
    assert list(merged['runs'].items()) == [
        ('plain', {'baseline': 'plain', 'config': PLAIN}),
        ('se', {'baseline': 'plain', 'config': PLAIN, 'seeds': 1}),
        ('gc', {'baseline': 'gc', 'config': FCA}),
    ]


def test_many_names_are_cut_short():
    assert shorten(['plain', 'se', 'eca', 'gc']) == 'plain, se, eca, gc'
    assert shorten(['plain', 'se', 'eca', 'gc', 'low2', 'low4']) == 'plain, se, eca, gc, 2 more'


def test_two_step_selection(write_plan, tmp_path):
    entries = {f'best-{k}': {'config': FCA, 'best': k} for k in (1, 2, 4)}
    plan = read_plan(write_plan(singles={'config': FCA, 'seeds': 2}, runs=entries))
    assert len(plan['runs']) == 52
    for u in range(7):
        for v in range(7):  # the mean over seeds grows with v, then with u; a seed alone says otherwise
            for seed in (0, 1):
                finish(tmp_path, f'single-{u}{v}', (7 * v + u) / 100 + (0.5 if seed else -0.5) * (u == 3), seed)
    ranking = rank_singles(plan, tmp_path)
    assert ranking[:3] == [[6, 6], [5, 6], [4, 6]]
    assert ranking == sorted(ranking, key=lambda pair: (-pair[1], -pair[0]))
    assert choose_frequencies(entries['best-4'], plan, tmp_path) == ranking[:4]
    for name, figure in {'best-1': 0.2, 'best-2': 0.4, 'best-4': 0.3}.items():
        finish(tmp_path, name, figure)
    write_chosen(plan, tmp_path)
    written = json.loads((tmp_path / 'frequencies.json').read_text())
    assert written == dict(metric='bbox_mAP', ranking=ranking, frequencies=ranking[:2])
    (tmp_path / 'single-34' / 'seed-0' / 'result.json').unlink()
    (tmp_path / 'single-34' / 'seed-1' / 'result.json').unlink()
    with pytest.raises(UserError, match=r'singles cannot be ranked without single-34: its output.log says why'):
        rank_singles(plan, tmp_path)


def test_a_learned_list_is_taken_from_the_run_that_learned_it(write_plan, tmp_path):
    plan = read_plan(write_plan(runs={'search': {'config': FCA}, 'learned': {'config': FCA, 'selected_by': 'search'}}))
    with pytest.raises(UserError, match=r'the run search has not written .*frequencies.json'):
        choose_frequencies(plan['runs']['learned'], plan, tmp_path)
    (tmp_path / 'search' / 'seed-0').mkdir(parents=True)
    (tmp_path / 'search' / 'seed-0' / 'frequencies.json').write_text('{"frequencies": [[0, 0], [3, 4]]}')
    assert choose_frequencies(plan['runs']['learned'], plan, tmp_path) == [[0, 0], [3, 4]]
