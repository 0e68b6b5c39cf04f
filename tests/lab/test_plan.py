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
    for options in plan.get('recipes', {}).values():
        assert all(key == 'custom_hooks' or has(read(entry['config']), key) for key in options)


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
    'an unknown word': ({'runs': {'a': {'config': PLAIN}}, 'sedes': 2}, "plan.yml has the unknown key 'sedes': it may have runs, base, "),
    'an empty unknown word': ({'runs': {'a': {'config': PLAIN}}, 'sedes': None}, "has the unknown key 'sedes'"),
    'no config': ({'runs': {'a': {'frequencies': 'low2'}}}, 'the run a of .* has no config: name one, such as small/'),
    'an empty run': ({'runs': {'a': None}}, 'the run a of .* is None: it must be keys with values'),
    'an unknown word of a run': (
        {'runs': {'a': {'config': PLAIN, 'best_of': 2}}},
        "the run a of .* has the unknown key 'best_of': it may have ",
    ),
    'its own base': ({'base': 'plan.yml'}, 'plan.yml is its own base: name another one'),
    'no base': ({'base': 'none.yml'}, r'none.yml is not a plan: .*No such file'),
    'a selection by a run that waits': (
        {'runs': {'a': {'config': FCA}, 'b': {'config': FCA, 'selected_by': 'a'}, 'c': {'config': FCA, 'selected_by': 'b'}}},
        'the run c of .* is selected_by b, which itself waits for others: name a search',
    ),
    'a selection by itself': ({'runs': {'a': {'config': FCA, 'selected_by': 'a'}}}, 'is selected_by a, which itself waits for others'),
    'a single of another config': (
        {'runs': {'single-34': {'config': PLAIN}}, 'singles': {'config': FCA}},
        'has singles, which make the run single-34, and another run of that name: rename it',
    ),
    'frequencies of singles': (
        {'runs': {'a': {'config': PLAIN}}, 'singles': {'config': FCA, 'frequencies': 'low2'}},
        "singles of .* has the unknown key 'frequencies': it may have config, options, seeds, baseline$",
    ),
    'a misspelt published figure': (
        {'runs': {'a': {'config': FCA, 'published': {'bbox_map': 0.374}}}},
        "published of the run a of .* has the unknown key 'bbox_map': it may have source, bbox_mAP, ",
    ),
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
        'bbox_mAP of published of the run a of .* is 37.4: it must be a number from 0 to 1, as COCO gives it',
    ),
}


@pytest.mark.parametrize(('plan', 'message'), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_in_a_plan(plan, message, write_plan):
    with pytest.raises(UserError, match=message):
        read_plan(write_plan(**plan))


WRONG = {
    'runs': [['a'], {}, 'a', 3],
    'base': [['a'], 3],
    'options': [['a'], 'a=1', {5: 1}],
    'seeds': ['three', 0, -1, 2.5, True, [0, 1]],
    'baseline': [['a'], 1],
    'data': ['shape', '/data/coco', True],
    'singles': [True, ['a'], 'a'],
    'recipes': [['a'], 'short', {'short': 200}, {'short': {5: 1}}],
    'metric': ['bbox_map', ['bbox_mAP'], 'mAP', 1],
}
WRONG_OF_A_RUN = {
    'config': [5, ['a'], {}],
    'frequencies': [3, {'u': 1}],
    'best': ['two', 0, 50, 1.5, [1]],
    'selected_by': [['a'], 1],
    'published': [0.3, 'a page', [0.3]],
    **{key: WRONG[key] for key in ('options', 'seeds', 'baseline')},
}


@pytest.mark.parametrize(('key', 'value'), [(key, value) for key, values in WRONG.items() for value in values])
def test_a_value_of_another_kind(key, value, write_plan):
    with pytest.raises(UserError, match=rf'^{key} of .*plan.yml is .*: it must be '):
        read_plan(write_plan(**{'runs': {'a': {'config': PLAIN}}, key: value}))


@pytest.mark.parametrize(('key', 'value'), [(key, value) for key, values in WRONG_OF_A_RUN.items() for value in values])
def test_a_value_of_another_kind_in_a_run(key, value, write_plan):
    with pytest.raises(UserError, match=rf'^{key} of the run a of .*plan.yml is .*: it must be '):
        read_plan(write_plan(runs={'a': {'config': PLAIN, key: value}}))


@pytest.mark.parametrize('name', [1, 'a/b', '..', '', None, 'shapes', 'a b'])
def test_a_name_that_is_no_folder(name, write_plan):
    with pytest.raises(UserError, match=r"has a run named .*: use letters, digits \(in quotes\), '_', '.', '\+' and '-', and not shapes$"):
        read_plan(write_plan(runs={name: {'config': PLAIN}}))
    with pytest.raises(UserError, match=r'has a recipe named .*: use letters, digits'):
        read_plan(write_plan(runs={'a': {'config': PLAIN}}, recipes={name: {}}))


def test_empty_keys_are_left_out(write_plan):
    empty = dict(base=None, options=None, seeds=None, baseline=None, data=None, singles=None, metric=None)
    plan = read_plan(write_plan(runs={'a': {'config': PLAIN, 'options': None, 'published': None}}, **empty))
    assert plan == dict(options={}, runs={'a': {'config': PLAIN}}, baseline='a')


def test_a_name_that_begins_like_a_single(write_plan, tmp_path):
    plan = read_plan(write_plan(singles={'config': FCA}, runs={'single-stage': {'config': PLAIN}}))
    for name in plan['runs']:
        finish(tmp_path, name, 0.5 if name == 'single-63' else 0.3)
    ranking = rank_singles(plan, tmp_path)
    assert ranking[0] == [6, 3]
    assert len(ranking) == 49


def test_numbers_are_read_as_options_of_a_command_are(tmp_path):
    (tmp_path / 'plan.yml').write_text(f'options: {{lr: 1e-3, decay: 2E4, size: 1.5e+2, text: e3}}\nruns: {{a: {{config: {PLAIN}}}}}')
    assert read_plan(tmp_path / 'plan.yml')['options'] == dict(lr=0.001, decay=20000, size=150, text='e3')


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', r'plan.yml is None: it must be keys with values'),
        ('- a', r"plan.yml is \['a'\]: it must be keys with values"),
        ('runs: [', r'plan.yml is not a plan: while parsing'),
        ('[' * 5000, r'plan.yml is not a plan: maximum recursion depth'),
        ('runs:\n  a: {config: a.py}\n  a: {config: b.py}', r'plan.yml is not a plan: a occurs twice, in line 3 too'),
        ('!!python/object/apply:os.system ["touch pwned"]', r'plan.yml is not a plan: could not determine a constructor'),
    ],
)
def test_what_is_no_plan_runs_nothing(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'plan.yml').write_text(text)
    with pytest.raises(UserError, match=message):
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
    with pytest.raises(UserError, match=r'singles cannot be ranked without single-34: run it, or see its output.log, and start again'):
        rank_singles(plan, tmp_path)


def test_a_learned_list_is_taken_from_the_run_that_learned_it(write_plan, tmp_path):
    plan = read_plan(write_plan(runs={'search': {'config': FCA}, 'learned': {'config': FCA, 'selected_by': 'search'}}))
    with pytest.raises(UserError, match=r'the run search has not written .*frequencies.json: run it, or see its output.log'):
        choose_frequencies(plan['runs']['learned'], plan, tmp_path)
    (tmp_path / 'search' / 'seed-0').mkdir(parents=True)
    (tmp_path / 'search' / 'seed-0' / 'frequencies.json').write_text('{"frequencies": [[0, 0], [3, 4]]}')
    assert choose_frequencies(plan['runs']['learned'], plan, tmp_path) == [[0, 0], [3, 4]]
