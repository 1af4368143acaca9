"""The engine of synthetic sets, with items that are a few bytes."""

from types import SimpleNamespace

import pytest

from tfmammo.data.runners import HERE
from tfmammo.errors import DataError
from tfmammo.mammogram import Skipped
from tfmammo.synthesis import sets
from tfmammo.synthesis.config import PatchSynthesisConfig
from tfmammo.synthesis.recipe import PatchRecipe

NAMES = [f"mass/{number:06d}" for number in range(5)]
CONFIG = PatchSynthesisConfig(name="set", generators={"mass": "x"})


@pytest.fixture
def engine():
    """What opens networks, the items that were drawn, and what drawing one of them raises."""
    drawn = []
    errors = {}

    def open_networks(job):
        def draw(recipe):
            drawn.append(recipe.name)
            if recipe.name in errors:
                raise errors[recipe.name]
            content = f"{recipe.name} of {job.mammogram.image_id}".encode()
            return recipe, {f"images/{recipe.name}.png": sets.bytes_writer(content)}

        return draw

    return open_networks, drawn, errors


@pytest.fixture
def job(engine, tmp_path):
    """Three items of one mammogram."""
    first = sets.make_first(PatchRecipe, {}, CONFIG, {}, target="mass")
    recipes = tuple(first.model_copy(update={"number": number}) for number in range(3))
    return sets.Job(tmp_path, SimpleNamespace(image_id="m"), recipes, engine[0], None)


@pytest.mark.parametrize("error", [OSError("no disk"), DataError("no tissue")])
def test_what_can_not_be_made_is_left_out_and_costs_no_other_item(engine, job, error):
    _, drawn, errors = engine
    errors[NAMES[1]] = error
    recipes = sets.complete([job], HERE)
    assert [recipe.name for recipe in recipes] == NAMES[:3] == drawn
    assert [bool(recipe.left_out) for recipe in recipes] == [False, True, False]
    assert str(error) in recipes[1].left_out and not recipes[1].files
    assert (job.folder / "images" / f"{NAMES[2]}.png").read_text() == f"{NAMES[2]} of m"


def test_only_missing_items_are_made_and_those_left_out_on_demand(engine, job):
    _, drawn, errors = engine
    errors[NAMES[0]] = DataError("no tissue")
    first = sets.complete([job], HERE)
    drawn.clear()
    assert sets.complete([job], HERE) == first and not drawn
    (job.folder / "images" / f"{NAMES[2]}.png").write_bytes(b"")
    assert sets.complete([job], HERE) == first and drawn == [NAMES[2]]
    drawn.clear()
    errors.clear()
    again = sets.complete([job], HERE, retry=True)
    assert drawn == [NAMES[0]] and not any(recipe.left_out for recipe in again)


def test_a_bug_stops_the_work(engine, job):
    _, drawn, errors = engine
    errors[NAMES[1]] = TypeError("of ours")
    with pytest.raises(DataError, match="m: TypeError: of ours"):
        sets.complete([job], HERE)
    assert drawn == NAMES[:2]


@pytest.mark.parametrize("grouped", [False, True])
def test_others_replace_what_can_not_be_made(engine, grouped, tmp_path):
    """Of two mammograms in turn: the items that fail are named, and `most` numbers are tried."""
    open_networks, drawn, errors = engine
    errors[NAMES[1]] = errors[NAMES[3]] = DataError("no tissue")
    mammograms = [SimpleNamespace(image_id=name) for name in "ab"]
    first = sets.make_first(PatchRecipe, {"a": 1}, CONFIG, {}, target="mass")

    def synthesize(most, wanted=3):
        plan = sets.Plan(first, mammograms, open_networks, None, wanted, most, grouped)
        work = ([plan], {"a": 1}, "identity.json", Skipped(), tmp_path, HERE, False)
        return sets.synthesize(*work, lambda recipes: {"README.md": str(len(recipes))})

    recipes = synthesize(most=9)
    assert [recipe.number for recipe in recipes if not recipe.left_out] == [0, 2, 4]
    assert [recipe.repeat for recipe in recipes] == [0, 0, 1, 1, 2]
    assert (tmp_path / "images" / f"{NAMES[4]}.png").read_text() == f"{NAMES[4]} of a"
    letters = (tmp_path / "failures.csv").read_text().splitlines()
    assert letters[1:] == [f"item {name} of b,no tissue" for name in (NAMES[1], NAMES[3])]
    assert (tmp_path / "README.md").read_text() == "5" and len(drawn) == 5
    assert len(synthesize(most=4)) == 4 and len(drawn) == 5
    errors.update({name: DataError("none") for name in NAMES})
    for path in (tmp_path / "recipes/mass").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="no item could be made.*: none"):
        synthesize(most=1, wanted=1)
    assert not (tmp_path / "README.md").exists(), "it says that the set is finished"
