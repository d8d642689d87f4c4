"""yaml_files.py: finding, extending, overriding, reporting every problem at once, config hash, and a run's folder."""

from importlib.resources import files
from typing import Literal, get_args

import pytest
import yaml
from pydantic import BaseModel, Field, model_validator

from palindiff.training.loop.device import MachineConfig
from palindiff.training.loop.loop_config import LoopConfig
from palindiff.training.loop.optimizer import OptimizerConfig
from palindiff.training.recipes.schema import ContrastiveRecipe, DiffDisRecipe, VaeRecipe
from palindiff.training.recipes.unidiff_recipe import UniDiffRecipe
from palindiff.training.recipes.yaml_files import (
    config_hash,
    dump_recipe,
    load_recipe,
    prepare_run_dir,
    preset_names,
    recipe_names,
)
from palindiff.training.trainer import recipe_classes


class Inner(BaseModel, frozen=True, extra="forbid"):
    """A section within a section."""

    width: int = Field(4, gt=0)
    kind: Literal["plain", "round"] = "plain"
    sizes: tuple[int, ...] = (1, 2)


class Section(BaseModel, frozen=True, extra="forbid"):
    """A section with one key that has no default."""

    rate: float
    inner: Inner = Inner()
    second: Inner | None = None

    @model_validator(mode="after")
    def _refuse_a_pair(self) -> "Section":
        if self.rate == 13:
            raise ValueError("`rate` is 13. Expected another number. Take 12.")
        return self


class Machine(BaseModel, frozen=True, extra="forbid"):
    """What alters no numbers."""

    num_workers: int = 0


class Toy(BaseModel, frozen=True, extra="forbid"):
    """A recipe."""

    name: str = "toy"
    section: Section
    machine: Machine = Machine()


@pytest.fixture
def write(tmp_path):
    """Write one recipe file and say where it is."""

    def write_file(text, name="toy.yaml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write_file


def problems_of(recipe, overrides=(), model=Toy):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 the sentences are what the tests look at
        load_recipe(model, recipe, overrides)
    return str(caught.value)


# --- finding


@pytest.mark.parametrize("name", recipe_names())
def test_every_bundled_recipe_is_valid(name):
    recipe = load_recipe(recipe_classes(), name)
    assert recipe.loop.num_steps > 0
    classes = {"vae": VaeRecipe, "clip": ContrastiveRecipe, "adapt": UniDiffRecipe, "unidiff": UniDiffRecipe}
    assert type(recipe) is classes.get(name.partition("-")[0], DiffDisRecipe)


def test_a_bundled_recipe_states_what_its_file_states():
    recipe = load_recipe(VaeRecipe, "vae-emoji")
    assert (recipe.data.path, recipe.optimizer.decay, recipe.loop.batch_size) == ("data/emoji", "cosine", 32)


def test_the_recipes_beside_the_bundled_weights_can_be_read_again():
    folders = [path for path in files("palindiff").joinpath("checkpoints").iterdir() if path.is_dir()]
    read = {folder.name: type(load_recipe(recipe_classes(), str(folder / "recipe.yaml"))) for folder in folders}
    assert read == {"emoji": DiffDisRecipe, "vae-emoji": VaeRecipe}


def test_an_unknown_name_lists_the_nearest_and_all():
    sentence = problems_of("vae-emojis")
    assert "No recipe is called `vae-emojis`. The nearest is `vae-emoji`." in sentence
    assert all(name in sentence for name in recipe_names())
    assert "nearest" not in problems_of("qqqqqq")


def test_a_missing_file_is_reported():
    with pytest.raises(FileNotFoundError, match=r"`nowhere\.yaml` is not a file\. Expected FILE\.yaml or one of"):
        load_recipe(Toy, "nowhere.yaml")


# --- choosing the class by objective


def test_the_objective_s_name_chooses_the_class_and_diffdis_is_the_default(write):
    vae = "data: {path: x}\nloop: {num_steps: 1}\nobjective: {name: vae, kl_weight: 0.5}"
    assert load_recipe(recipe_classes(), write(vae)).objective.kl_weight == 0.5
    diffdis = "data: {path: x}\ntext: {source: y}\nloop: {num_steps: 1}"
    recipe = load_recipe(recipe_classes(), write(diffdis))
    assert (type(recipe), recipe.objective_name) == (DiffDisRecipe, "diffdis")
    assert type(load_recipe(recipe_classes(), write(diffdis), ["objective.name=diffdis"])) is DiffDisRecipe


def test_an_unknown_objective_is_reported_with_the_nearest(write):
    path = write("objective: {name: difdis}\nloop: {num_steps: 1}")
    told = problems_of(path, model=recipe_classes())
    assert (
        "`objective.name` is 'difdis'. The nearest is `diffdis`. Expected one of contrastive, diffdis, unidiff, vae."
        in told
    )
    assert "Expected 'vae'" in problems_of(path, model=VaeRecipe)


# --- merging


def test_a_recipe_extends_another_key_by_key(write):
    write(
        "name: base\nsection: {rate: 1, inner: {width: 8, sizes: [7, 8, 9]}}\nmachine: {num_workers: 3}", "base.yaml"
    )
    write("extends: base.yaml\nsection: {inner: {sizes: [5]}}", "middle.yaml")
    recipe = load_recipe(Toy, write("extends: middle.yaml\nsection: {rate: 2}"))
    assert recipe.section.rate == 2
    assert (recipe.section.inner.width, recipe.section.inner.sizes) == (8, (5,))  # a list is replaced, not joined
    assert (recipe.name, recipe.machine.num_workers) == ("base", 3)


def test_an_extended_file_stands_beside_the_one_that_extends_it(write, monkeypatch, tmp_path):
    write("section: {rate: 1}", "folder/base.yaml")
    write("extends: base.yaml", "folder/toy.yaml")
    monkeypatch.chdir(tmp_path)
    assert load_recipe(Toy, "folder/toy.yaml").section.rate == 1


def test_a_file_extends_a_bundled_recipe(write):
    recipe = load_recipe(VaeRecipe, write("extends: vae-emoji\nloop: {num_steps: 3}"))
    assert (recipe.loop.num_steps, recipe.loop.batch_size) == (3, 32)


def test_a_circle_is_refused(write):
    write("extends: b.yaml", "a.yaml")
    path = write("extends: a.yaml", "b.yaml")
    assert "in a circle: b.yaml > a.yaml > b.yaml. Remove one `extends`." in problems_of(path)


def test_extending_two_at_once_is_refused(write):
    assert "Expected one recipe's name or file" in problems_of(write("extends: [a, b]"))


# --- overriding


def test_overrides_are_yaml_and_the_last_one_counts(write):
    path = write("section: {rate: 1}")
    overrides = ["section.rate=2", "section.inner.sizes=[3, 4]", "section.inner.kind=round", "section.rate=5e-4"]
    recipe = load_recipe(Toy, path, overrides)
    assert recipe.section.rate == 5e-4  # YAML takes this for text; the recipe's model knows better
    assert (recipe.section.inner.sizes, recipe.section.inner.kind) == ((3, 4), "round")


@pytest.mark.parametrize("value", ["x #y", "#y", "x: y", "2024 #5", "@x"])
def test_an_override_s_text_is_whole(value):
    recipe = load_recipe(DiffDisRecipe, "emoji", [f"data.path={value}"])
    assert recipe.data.path == value
    quoted = load_recipe(DiffDisRecipe, "emoji", [f"data.path='{value}'  # a comment"])
    assert quoted.data.path == value


def test_an_override_that_is_no_text_names_the_quotes_that_make_it_one():
    told = problems_of("emoji", ["data.path=2024"], DiffDisRecipe)
    assert "`data.path` (from --set): found 2024. Expected a valid string" in told
    assert """--set data.path='"2024"'""" in told
    assert load_recipe(DiffDisRecipe, "emoji", ['data.path="2024"']).data.path == "2024"


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("optimizer.learning_rate=.inf", "`optimizer.learning_rate` (from --set): found inf. Expected a"),
        ("optimizer.weight_decay=.inf", "`optimizer.weight_decay` (from --set): found inf."),
        ("optimizer.clip_norm=.inf", "`optimizer.clip_norm` (from --set): found inf."),
        ("objective.alignment_weight=.inf", "`objective.alignment_weight` (from --set): found inf."),
        ("evaluation.guidance_scale=.nan", "`evaluation.guidance_scale` (from --set): found nan."),
        ("optimizer.betas=[1.5, 2]", "`optimizer.betas.0`: found 1.5. Expected a number less than 1."),
        ("optimizer.betas=[0.9, -1]", "`optimizer.betas.1`: found -1. Expected a number greater than or equal to 0."),
    ],
)
def test_numbers_that_cannot_train_are_refused_with_the_recipe(override, sentence):
    assert sentence in problems_of("emoji", [override], DiffDisRecipe)


def settings_of(model):
    """Every section of a recipe, itself included."""
    yield model
    for field in model.model_fields.values():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from settings_of(kind)


@pytest.mark.parametrize("recipe", recipe_classes().values())
def test_no_section_of_a_recipe_takes_infinity(recipe):
    assert all(section.model_config.get("allow_inf_nan") is False for section in settings_of(recipe))


@pytest.mark.parametrize(("size", "accumulation"), [(1, 1), (4, 4)])
def test_a_micro_batch_of_one_row_has_no_negatives(size, accumulation):
    overrides = [f"loop.batch_size={size}", f"loop.accumulation={accumulation}"]
    told = problems_of("emoji", overrides, DiffDisRecipe)
    assert f"`loop.batch_size` is {size} with `loop.accumulation` {accumulation}: a micro-batch of one row" in told
    load_recipe(DiffDisRecipe, "emoji", [*overrides, "objective.task=generation"])


def test_an_override_may_hold_an_equals_sign(write):
    assert load_recipe(Toy, write("section: {rate: 1}"), ["name=a=b"]).name == "a=b"


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("section.rate", "--set section.rate: found no `=`. Expected dotted.key=value."),
        ("=3", "--set =3: found an empty key"),
        ("section..rate=3", "found an empty key"),
        ("name=[", "--set name=[: found a value that is not valid YAML"),
        ("name.x=3", "--set name.x=3: `name` is 'toy'. Expected a section of keys."),
        ("section.rat=3", "`section.rat` (from --set): found an unknown key. The nearest known one is `rate`."),
        ("section.inner.width=0", "`section.inner.width` (from --set): found 0. Expected a number greater than 0."),
    ],
)
def test_a_wrong_override_is_reported(write, override, sentence):
    assert sentence in problems_of(write("name: toy\nsection: {rate: 1}"), [override])


# --- problems


def test_all_problems_are_reported_at_once(write):
    path = write(
        """
        nam: x
        section: {inner: {width: 0, widht: 3, kind: rond, sizes: [1, a]}, second: {width: -1}}
        machine: {qqqq: 1}
        """
    )
    assert problems_of(path, ["machine.num_workers=many", "nothing"]).splitlines() == [
        f"Recipe `{path}` has 10 problems. Fix the file or the --set options.",
        "  --set nothing: found no `=`. Expected dotted.key=value.",
        "  `machine.num_workers` (from --set): found 'many'. Expected a valid integer.",
        "  `machine.qqqq`: found an unknown key. Expected one of num_workers.",
        "  `nam`: found an unknown key. The nearest known one is `name`.",
        "  `section.inner.kind`: found 'rond'. Expected 'plain' or 'round'.",
        "  `section.inner.sizes.1`: found 'a'. Expected a valid integer.",
        "  `section.inner.widht`: found an unknown key. The nearest known one is `width`.",
        "  `section.inner.width`: found 0. Expected a number greater than 0.",
        "  `section.rate`: missing. Expected a number.",
        "  `section.second.width`: found -1. Expected a number greater than 0.",
    ]


def test_a_missing_section_is_reported_with_its_keys(write):
    assert "`section`: missing. Expected a section of keys (rate, inner, second)." in problems_of(write("name: x"))


@pytest.mark.parametrize(("value", "found"), [("3", "3"), ("", "nothing"), ("[1]", "[1]")])
def test_a_section_that_is_none_is_reported(write, value, found):
    told = problems_of(write(f"section: {value}"))
    assert f"`section`: found {found}. Expected a section of keys (rate, inner, second)." in told


def test_a_section_where_a_value_belongs_is_reported(write):
    told = problems_of(write("section: {rate: {a: 1, b: 2}}"))
    assert "`section.rate`: found a section of keys. Expected a valid number." in told


def test_the_message_of_a_model_is_passed_on(write):
    assert "`section`: `rate` is 13. Expected another number. Take 12." in problems_of(write("section: {rate: 13}"))


def test_repeated_keys_are_refused(write):
    told = problems_of(write("section:\n  rate: 1\n  rate: 2\nname: a\nname: b"))
    assert "has 2 problems" in told
    assert "`rate` in line 3 of" in told
    assert "`name` in line 5 of" in told


@pytest.mark.parametrize(
    ("text", "found"), [("- a\n- b", "is ['a', 'b']"), ("just words", "is 'just words'"), ("3", "is 3")]
)
def test_a_file_that_is_no_section_is_refused(write, text, found):
    assert f"{found}. Expected sections of `key: value`." in problems_of(write(text))


def test_broken_yaml_is_reported_with_its_line(write):
    told = problems_of(write("name: x\nsection: {rate: 1"))
    assert "is not valid YAML" in told
    assert "line 2" in told
    assert "\n" not in told


def test_an_empty_file_misses_what_is_required(write):
    assert "`section`: missing." in problems_of(write(""))


def test_yaml_cannot_build_python_objects(write):
    assert "is not valid YAML" in problems_of(write("name: !!python/object/apply:os.getcwd []"))


# --- presets


@pytest.mark.parametrize("preset", ["12gb", "24gb", "40gb", "80gb"])
def test_every_preset_fits_every_recipe_of_both_tasks(preset):
    for name in recipe_names():
        if not name.startswith(("vae-", "clip-", "adapt", "unidiff-")):
            recipe = load_recipe(DiffDisRecipe, name, preset=preset)
            assert recipe.machine.precision == "bf16"
            assert recipe.machine.gradient_checkpointing
            assert recipe.model_copy(update={"loop": None, "machine": None, "optimizer": None}) == load_recipe(
                DiffDisRecipe, name
            ).model_copy(
                update={"loop": None, "machine": None, "optimizer": None}
            )  # what is learned stays the recipe's


def test_a_larger_card_saves_less():
    presets = [load_recipe(DiffDisRecipe, "emoji", preset=f"{size}gb") for size in (12, 24, 40, 80)]
    assert preset_names() == ["12gb", "24gb", "40gb", "80gb"]
    assert [recipe.loop.grad_cache_size for recipe in presets] == [4, 32, 128, 0]  # rows that go through at once
    assert [recipe.loop.accumulation for recipe in presets] == [1, 1, 1, 1]  # all captions are negatives
    assert [recipe.machine.ema_device for recipe in presets] == ["cpu", "cpu", "same", "same"]
    assert [recipe.optimizer.kind for recipe in presets] == ["adamw_8bit", "adamw", "adamw", "adamw"]


def test_a_preset_overrides_the_recipe_and_overrides_override_it(write):
    recipe = write("extends: emoji\nloop: {accumulation: 16}\nmachine: {precision: fp32, num_threads: 3}\n")
    laid = load_recipe(DiffDisRecipe, recipe, ["machine.ema_device=same"], preset="24gb")
    assert (laid.loop.accumulation, laid.machine.precision) == (1, "bf16")
    assert (laid.machine.num_threads, laid.machine.ema_device) == (3, "same")


def test_an_unknown_preset_is_reported_with_the_nearest():
    with pytest.raises(
        ValueError, match=r"No preset is called `24GB`\. The nearest is `24gb`\. Expected one of 12gb, 24gb"
    ):
        load_recipe(DiffDisRecipe, "emoji", preset="24GB")
    with pytest.raises(ValueError, match=r"No preset is called `\.\./recipes/emoji`"):
        load_recipe(DiffDisRecipe, "emoji", preset="../recipes/emoji")


# --- writing and config hash


def test_a_dumped_recipe_reads_back_the_same(write):
    recipe = load_recipe(Toy, write("section: {rate: 1e-5, inner: {sizes: [1, 2, 3]}}\nname: 'grün: #1'"))
    text = dump_recipe(recipe, "toy.yaml\n--set x")
    assert text.splitlines()[0] == f"# Recipe toy.yaml --set x, resolved; config hash {config_hash(recipe)[:16]}"
    assert load_recipe(Toy, write(text, "again.yaml")) == recipe
    assert yaml.safe_load(text)["machine"] == {"num_workers": 0}  # defaults are written out


@pytest.mark.parametrize(
    "override", ["optimizer.learning_rate=1e-3", "loop.grad_cache_size=2", "machine.gradient_checkpointing=true"]
)
def test_settings_without_effect_on_a_vae_are_refused(override):
    key = override.partition("=")[0]
    with pytest.raises(ValueError, match=f"`{key}` set for a VAE, where it has no effect"):
        load_recipe(VaeRecipe, "vae-emoji", [override])


def test_relations_of_fewer_than_three_images_are_refused():
    small = ["objective.consistency=relational", "loop.batch_size=4", "loop.accumulation=2"]
    with pytest.raises(ValueError, match=r"'relational' with 2 rows in a micro-batch. Expected 3 or more"):
        load_recipe(UniDiffRecipe, "adapt", small)


def test_options_of_text_diffusion_are_unknown_to_unidiff():
    with pytest.raises(ValueError, match=r"`evaluation.naming_steps` \(from --set\): found an unknown key"):
        load_recipe(UniDiffRecipe, "adapt", ["evaluation.naming_steps=3"])


def test_the_config_hash_is_of_what_alters_numbers(write):
    path = write("section: {rate: 1}")
    own = config_hash(load_recipe(Toy, path))
    assert config_hash(load_recipe(Toy, path, ["machine.num_workers=9"])) == own
    assert config_hash(load_recipe(Toy, path, ["section.inner.width=4"])) == own  # the default, said aloud
    assert config_hash(load_recipe(Toy, path, ["section.inner.width=5"])) != own
    assert len(own) == 64


def test_a_run_dir_may_be_used_again_by_the_same_recipe(write, tmp_path):
    path, output = write("section: {rate: 1}"), tmp_path / "new" / "run"
    prepare_run_dir(load_recipe(Toy, path), output, "toy")
    (output / "log.jsonl").touch()
    prepare_run_dir(load_recipe(Toy, path, ["machine.num_workers=2"]), output, "toy")
    assert load_recipe(Toy, str(output / "recipe.yaml")).machine.num_workers == 2
    assert sorted(file.name for file in output.iterdir()) == ["log.jsonl", "recipe.yaml"]


def test_a_folder_of_another_recipe_is_refused_with_what_differs(write, tmp_path):
    path, output = write("section: {rate: 1}"), tmp_path / "run"
    prepare_run_dir(load_recipe(Toy, path), output, "toy")
    (output / "log.jsonl").touch()
    before = (output / "recipe.yaml").read_text()
    other = load_recipe(Toy, path, ["section.rate=2", "section.inner.width=5", "section.second={width: 3}"])
    sentence = (
        r"holds a run of another recipe: `section\.rate` is 1\.0 there and 2\.0 here, `section\.inner\.width` is 4 "
        r"there and 5 here, `section\.second\.width` is nothing there and 3 here and 2 more\. .*Use another --output"
    )
    with pytest.raises(ValueError, match=sentence):
        prepare_run_dir(other, output, "toy")
    assert (output / "recipe.yaml").read_text() == before


def test_a_folder_where_nothing_was_trained_yet_may_take_another_recipe(write, tmp_path):
    """A first attempt that failed on, say, a wrong data path leaves only its recipe."""
    path, output = write("section: {rate: 1}"), tmp_path / "run"
    prepare_run_dir(load_recipe(Toy, path), output, "toy")
    prepare_run_dir(load_recipe(Toy, path, ["section.rate=2"]), output, "toy")
    assert load_recipe(Toy, str(output / "recipe.yaml")).section.rate == 2


def test_a_folder_whose_recipe_is_not_valid_here_is_refused(write, tmp_path):
    write("# Recipe toy, resolved; config hash 0123\nsection: {rate: 1, gone: 2}", "recipe.yaml")
    (tmp_path / "log.jsonl").touch()
    with pytest.raises(ValueError, match=r"holds a run with a recipe not valid here(.|\n)*`section\.gone`") as caught:
        prepare_run_dir(load_recipe(Toy, write("section: {rate: 1}")), tmp_path, "toy")
    assert "Use another --output" in str(caught.value)


@pytest.mark.parametrize("others", [[], ["log.jsonl"]])
def test_a_recipe_that_its_user_wrote_is_never_replaced(write, tmp_path, others):
    path = write("section: {rate: 1}  # mine", "recipe.yaml")
    for name in others:
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"recipe\.yaml` was not written by a run.*Use another --output"):
        prepare_run_dir(load_recipe(Toy, path), tmp_path, "toy")
    assert "# mine" in (tmp_path / "recipe.yaml").read_text()


class Scheduled(BaseModel, frozen=True, extra="forbid"):
    optimizer: OptimizerConfig = OptimizerConfig(warmup_steps=2, decay="cosine", decay_steps=4)
    loop: LoopConfig = LoopConfig(num_steps=20)


def scheduled(optimizer=None, **loop):
    recipe = Scheduled()
    return Scheduled(
        optimizer=recipe.optimizer.model_copy(update=optimizer or {}), loop=recipe.loop.model_copy(update=loop)
    )


def begun(output, num_learned):
    """A run's folder with a state of so many steps."""
    prepare_run_dir(scheduled(), output, "begun")
    state = output / "state" / f"step-{num_learned:08d}"
    state.mkdir(parents=True)
    (state / "state.json").write_text("{}")


@pytest.mark.parametrize(
    ("num_learned", "changed"),
    [
        (16, scheduled(num_steps=40)),  # longer, before the decay began
        (16, scheduled({"decay": "none"})),
        (16, scheduled({"decay_steps": 2})),
        (20, scheduled({"cycles": 2}, num_steps=40)),  # finished, and once more
        (8, scheduled(num_steps=12)),
    ],
)
def test_a_run_may_be_prolonged_where_the_steps_learned_are_the_same(tmp_path, num_learned, changed):
    begun(tmp_path, num_learned)
    prepare_run_dir(changed, tmp_path, "longer")
    assert load_recipe(Scheduled, str(tmp_path / "recipe.yaml")) == changed


@pytest.mark.parametrize(
    ("num_learned", "changed"),
    [
        (18, scheduled(num_steps=40)),  # two steps of the decay are learned
        (20, scheduled({"cycles": 2})),
        (8, scheduled({"warmup_steps": 3})),
        (16, scheduled(num_steps=15)),  # more was learned than is wanted
        (8, scheduled(num_steps=40, seed=1)),
    ],
)
def test_a_run_is_not_prolonged_as_what_it_was_not(tmp_path, num_learned, changed):
    begun(tmp_path, num_learned)
    with pytest.raises(ValueError, match="holds a run of another recipe"):
        prepare_run_dir(changed, tmp_path, "longer")


class WithMachine(BaseModel, frozen=True, extra="forbid"):
    machine: MachineConfig


FREE = {  # of the recipe `emoji`: what alters no trained number, and paths, whose content fingerprints stand for
    "loop.log_every=7", "loop.save_every=7", "loop.evaluate_every=0", "evaluation.evaluators=[]", "vae=elsewhere",
    "evaluation.num_images=3", "evaluation.validation_split=train", "evaluation.where=[a=b]",
    "data.path=elsewhere", "text.source=elsewhere", "machine.log_with=[]", "machine.gradient_checkpointing=true",
}  # fmt: skip
BOUND = {"loop.ema_every=2", "loop.seed=1", "data.split=test", "views.crops=9", "objective.text_drop_rate=0.3"}


@pytest.mark.parametrize("override", sorted(FREE | BOUND))
def test_the_config_hash_is_of_a_trained_number_alone(override, tmp_path):
    recipe, changed = (load_recipe(DiffDisRecipe, "emoji", overrides) for overrides in ([], [override]))
    assert recipe != changed
    assert (config_hash(recipe) == config_hash(changed)) == (override in FREE)
    prepare_run_dir(recipe, tmp_path, "emoji")
    (tmp_path / "log.jsonl").touch()
    if override in FREE:
        prepare_run_dir(changed, tmp_path, "emoji")
        assert load_recipe(DiffDisRecipe, str(tmp_path / "recipe.yaml")) == changed
    else:
        with pytest.raises(ValueError, match="holds a run of another recipe"):
            prepare_run_dir(changed, tmp_path, "emoji")


@pytest.mark.parametrize(
    "override",
    ["loop.evaluate_every=7", "evaluation.patience=2", "evaluation.keep_best=generation", "evaluation.where=[a=b]"],
)
def test_what_chooses_the_result_of_a_training_that_stops_early_is_part_of_the_config_hash(override):
    def hashed(*overrides):
        return config_hash(load_recipe(recipe_classes(), "adapt", overrides))

    assert hashed() != hashed(override)
    assert hashed("evaluation.prompts=[a]") == hashed()
    assert hashed("clip.source=elsewhere", "stable_diffusion.source=elsewhere") == hashed()
    classes = ("evaluation.evaluators=[classification]", "evaluation.templates=['a {}']")
    assert hashed(classes[0]) != hashed(*classes)
    assert hashed(classes[1]) == hashed(), "recall compares captions, not classes"
    never = "evaluation.patience=0"
    assert hashed(never) == hashed(never, "loop.evaluate_every=7")


def test_precision_is_part_of_the_config_hash_and_the_rest_of_the_machine_is_not():
    elsewhere = {"num_threads": 2, "num_workers": 3, "cache_dir": "kept"}
    here, there, bf16 = (
        config_hash(WithMachine(machine=MachineConfig(**settings)))
        for settings in ({}, elsewhere, {"precision": "bf16"})
    )
    assert here == there != bf16
