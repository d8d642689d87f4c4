"""class_sets.py: the sets of the paper, a user's own, and class numbers from labels as data sets write them."""

import importlib.util
import json
from pathlib import Path

import pytest

from palindiff.data.sources import DataConfig, open_images
from palindiff.evaluation.class_sets import (
    ClassSet,
    class_numbers,
    class_set_names,
    class_set_of,
    classes_without_images,
    load_class_set,
    spelling,
    true_classes,
)
from toys.sources import square, write_images, write_lines, write_tar

SETS = {  # numbers of classes, of templates, and of test images in Table 9 of CLIP's paper; CLIP_benchmark's key
    "CIFAR10": (10, 18, 10_000, "cifar10"),
    "CIFAR100": (100, 18, 10_000, "cifar100"),
    "Caltech101": (102, 34, 6_085, "caltech101"),
    "StanfordCars": (196, 8, 8_041, "cars"),
    "Flowers102": (102, 1, 6_149, "flowers"),
    "Food101": (101, 1, 25_250, "food101"),
    "SUN397": (397, 2, 19_850, "sun397"),
    "DTD": (47, 8, 1_880, "dtd"),
    "FGVC-Aircraft": (100, 2, 3_333, "fgvc_aircraft"),
    "OxfordPets": (37, 1, 3_669, "pets"),
    "EuroSAT": (10, 3, 5_000, "eurosat"),
    "ImageNet": (1_000, 80, 50_000, "imagenet1k"),
}
PETS = ClassSet(name="pets", class_names=("Maine Coon", "Shiba Inu", "Pug"), source="here")


def class_folders(root, *names):
    """One image in each class folder."""
    return open_images(DataConfig(path=str(write_images(root, *(f"{name}/1.png" for name in names)))))


def tars(root, classes, names=None):
    """A tar with KEY.cls and a caption for each image, and the lines of classnames.txt beside it."""
    members = {}
    for number, label in enumerate(classes):
        members |= {f"{number}.png": square(), f"{number}.cls": label.encode(), f"{number}.txt": b"a photo"}
    write_tar(root / "test" / "0.tar", members)
    if names:
        (root / "classnames.txt").write_text("\n".join(names) + "\n")
    return open_images(DataConfig(path=str(root), split="test"))


def of_clip_benchmark(file):
    found = importlib.util.find_spec("clip_benchmark")
    if found is None:
        pytest.skip("needs clip_benchmark, which `make test` installs")
    return json.loads((Path(found.submodule_search_locations[0]) / "datasets" / file).read_text(encoding="utf-8"))


def test_the_sets_are_the_twelve_of_the_paper():
    assert set(class_set_names()) == set(SETS)


@pytest.mark.parametrize("name", SETS)
def test_a_set_has_all_its_classes_once_and_its_templates(name):
    found, (num_classes, num_templates, num_test, _) = load_class_set(name), SETS[name]
    assert (found.name, len(found.class_names), len(found.templates)) == (name, num_classes, num_templates)
    assert found.num_test == num_test
    assert len({each.strip().casefold() for each in found.class_names}) == num_classes
    assert [template.count("{}") for template in found.templates] == [1] * num_templates
    assert not [text for text in (*found.class_names, *found.templates) if "{c}" in text or text != text.strip()]
    is_uneven = name in ("OxfordPets", "Caltech101", "Flowers102", "FGVC-Aircraft")
    assert found.metric == ("mean_per_class_recall" if is_uneven else "acc1")
    assert found.licence == "MIT"


@pytest.mark.parametrize("name", SETS)
def test_no_spelling_of_a_class_or_its_folder_means_another_class(name):
    found = load_class_set(name)
    for names in filter(None, (found.class_names, found.folders)):
        for written in (lambda text: text, str.upper, lambda text: text.replace(" ", "_")):
            labels = [written(each) for each in names]
            assert class_numbers(labels, found) == {label: number for number, label in enumerate(labels)}


@pytest.mark.ecosystem
@pytest.mark.parametrize("name", SETS)
def test_names_and_templates_are_clip_benchmark_s(name):
    found, key = load_class_set(name), SETS[name][3]
    templates = of_clip_benchmark("en_zeroshot_classification_templates.json")[key]
    assert [template.replace("{}", "{c}") for template in found.templates] == templates
    named = of_clip_benchmark("en_classnames.json")
    if key in named:  # it takes the names of the other sets from torchvision
        names = [found.renamed.get(number, class_name) for number, class_name in enumerate(found.class_names)]
        assert names == named[key]
    assert sorted(key for _, _, _, key in SETS.values() if key in named) == [
        "caltech101", "eurosat", "flowers", "imagenet1k", "pets",
    ]  # fmt: skip


def test_imagenet_names_apart_what_its_source_names_alike():
    found = load_class_set("ImageNet")
    alike = {657: ("missile", "n03773504"), 744: ("projectile", "n04008634"), 836: ("sunglass", "n04355933"),
             837: ("sunglasses", "n04356056")}  # fmt: skip
    assert {number: (found.class_names[number], found.folders[number]) for number in alike} == alike
    assert found.repeated == set(alike)
    assert (found.folders[0], found.folders[999]) == ("n01440764", "n15075141")
    assert list(found.folders) == sorted(found.folders)  # as every copy numbers them


@pytest.mark.parametrize("name", ["FGVC-Aircraft", "fgvc_aircraft", "FgvcAircraft"])
def test_case_and_punctuation_of_a_set_s_name_do_not_matter(name):
    assert load_class_set(name).name == "FGVC-Aircraft"


def test_an_unknown_set_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"`caltech 11` is not a class set.*\(nearest: Caltech101\).*Use one"):
        load_class_set("caltech 11")


@pytest.mark.parametrize(
    ("label", "number"),
    [("Maine Coon", 0), ("1", 1), ("maine_coon", 0), ("SHIBA-INU", 1), ("pug ", 2), ("3", None), ("01", None),
     ("Main Coon", None), ("Pug dog", None), ("", None)],
)  # fmt: skip
def test_a_label_is_a_name_a_number_or_another_spelling_and_nothing_else(label, number):
    assert class_numbers([label], PETS) == ({} if number is None else {label: number})


def test_an_exact_name_comes_before_a_number_and_names_that_are_numbers_leave_numbers_out():
    digits = ClassSet(name="digits", class_names=("1", "2", "3"), source="here")
    assert class_numbers(["1", "3", "0"], digits) == {"1": 0, "3": 2}


def test_spellings_of_two_classes_are_not_understood():
    shirts = ClassSet(name="shirts", class_names=("t-shirt", "T shirt"), source="here")
    assert class_numbers(["t-shirt", "T shirt", "t_shirt"], shirts) == {"t-shirt": 0, "T shirt": 1}
    assert spelling(" T__Shirt/blue") == "t shirt blue"


def test_class_folders_of_every_name_are_understood(tmp_path):
    cifar = class_folders(tmp_path / "cifar", "truck", "airplane", "Frog")
    assert true_classes(cifar, load_class_set("CIFAR10")).tolist() == [6, 0, 9]  # in the order of the folders' names
    imagenet = class_folders(tmp_path / "imagenet", "n15075141", "n01440764")
    assert true_classes(imagenet, load_class_set("ImageNet")).tolist() == [0, 999]
    caltech = class_folders(tmp_path / "caltech", "Faces", "Faces_easy", "BACKGROUND_Google", "yin_yang")
    assert true_classes(caltech, load_class_set("Caltech101")).tolist() == [0, 1, 2, 101]
    land = class_folders(tmp_path / "land", "AnnualCrop", "annual_crop_land", "SeaLake")
    assert true_classes(land, load_class_set("EuroSAT")).tolist() == [0, 9, 0]
    cars = class_folders(tmp_path / "cars", "Ram C-V Cargo Van Minivan 2012")
    assert load_class_set("StanfordCars").class_names[int(true_classes(cars, load_class_set("StanfordCars")))] == (
        "Ram C/V Cargo Van Minivan 2012"
    )


def test_true_classes_follow_the_rows_whatever_their_order(tmp_path):
    rows = class_folders(tmp_path, "pug", "Maine_Coon", "shiba inu")
    truth = true_classes(rows, PETS)
    assert truth.dtype.is_signed
    order = [2, 0, 1]
    assert true_classes(rows.select(order), PETS).tolist() == truth[order].tolist()


def test_names_in_classnames_txt_may_stand_in_another_order(tmp_path):
    images = tars(tmp_path, ["0", "1", "0"], ["pug", "maine coon"])
    assert true_classes(images, PETS).tolist() == [2, 0, 2]


def test_numbers_without_names_are_class_numbers(tmp_path):
    assert true_classes(tars(tmp_path, ["2", "0"]), PETS).tolist() == [2, 0]


@pytest.mark.parametrize("name", ["Food101", "SUN397", "Caltech101"])
def test_numbers_that_copies_of_a_set_give_to_other_classes_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match=rf"2 labels of .* are no class of `{name}`.*copies of `{name}` number their"):
        true_classes(tars(tmp_path, ["2", "0"]), load_class_set(name))


def test_classes_that_imagenet_s_classnames_txt_names_alike_stay_apart(tmp_path):
    names = list(load_class_set("ImageNet").class_names)
    names[744], names[836] = "missile", "sunglasses"  # as in CLIP_benchmark's copy
    images = tars(tmp_path, ["657", "744", "0", "836", "837"], names)
    assert true_classes(images, load_class_set("ImageNet")).tolist() == [657, 744, 0, 836, 837]
    with pytest.raises(ValueError, match=r"Several classes .* called `missile`, `sunglasses` \(classnames\.txt\)"):
        class_set_of(images, tmp_path)


def test_numbers_beside_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has the labels `2` beside names such as `pug`.*Fix the labels"):
        true_classes(tars(tmp_path, ["2", "pug"]), PETS)


def test_labels_that_are_no_class_are_refused_with_the_nearest_names(tmp_path):
    images = class_folders(tmp_path, "aeroplane", "zebra", "ship")
    with pytest.raises(ValueError, match="2 labels of") as error:
        true_classes(images, load_class_set("CIFAR10"))
    assert str(error.value) == (
        f"2 labels of `{tmp_path}` are no class of `CIFAR10`: `aeroplane` (nearest: airplane), `zebra`. Expected "
        "class names such as airplane, automobile, or numbers from 0 to 9. Use the class set of these images, or fix "
        "the labels."
    )
    many = class_folders(tmp_path / "many", *"abcdefg")
    with pytest.raises(ValueError, match=r"7 labels of .*`e` and 2 more\. Expected"):
        true_classes(many, load_class_set("CIFAR10"))


def test_images_without_a_class_are_refused(tmp_path):
    rows = [{"file_name": "a.png", "text": "a", "label": "pug"}, {"file_name": "b.png", "text": "b"}]
    images = open_images(DataConfig(path=str(write_lines(tmp_path, rows, ["a.png", "b.png"]))))
    for refuses in (lambda: true_classes(images, PETS), lambda: class_set_of(images, tmp_path)):
        with pytest.raises(ValueError, match=r"1 of 2 images of .* have no class \(the first: `b\.png`\).*KEY\.cls"):
            refuses()


def test_classes_without_images_are_named(tmp_path):
    truth = true_classes(class_folders(tmp_path, "pug", "shiba_inu"), PETS)
    assert classes_without_images(truth, PETS) == ["Maine Coon"]
    assert classes_without_images(truth[:0], PETS) == list(PETS.class_names)


def test_a_set_of_one_s_own_is_read_from_the_files_beside_the_tars(tmp_path):
    images = tars(tmp_path, ["1", "0"], ["red panda", "okapi"])
    (tmp_path / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n\na {c} in a zoo\n")
    for folder in (tmp_path, tmp_path / "test"):
        found = class_set_of(images, folder)
        assert found.class_names == ("red panda", "okapi")
        assert found.templates == ("a photo of a {}.", "a {} in a zoo")
        assert (found.metric, found.num_test) == ("acc1", None)
    assert true_classes(images, found).tolist() == [1, 0]


def test_without_these_files_the_labels_are_the_classes(tmp_path):
    images = class_folders(tmp_path, "t-shirt", "Polo_shirt", "hat")
    found = class_set_of(images, tmp_path)
    assert (found.class_names, found.templates) == (("Polo shirt", "hat", "t-shirt"), ("{}",))
    assert true_classes(images, found).tolist() == [0, 1, 2]


@pytest.mark.parametrize("line", ["a photo", "a {}", "a {c} or {c}"])
def test_a_template_that_does_not_name_the_class_once_is_refused(line, tmp_path):
    images = tars(tmp_path, ["1", "0"], ["red panda", "okapi"])
    (tmp_path / "zeroshot_classification_templates.txt").write_text(f"a {{c}}\n{line}\n")
    with pytest.raises(ValueError, match=r"templates\.txt of .* has the line '.*Expected \{c\} once in each line"):
        class_set_of(images, tmp_path)


def test_labels_that_read_alike_are_refused(tmp_path):
    images = class_folders(tmp_path, "red_panda", "red panda")
    with pytest.raises(ValueError, match=r"Several classes of .* are called `red panda` \(labels\)\..*Fix the names"):
        class_set_of(images, tmp_path)


def test_a_set_with_folders_for_some_classes_only_is_refused():
    with pytest.raises(ValueError, match="has 1 folders and 2 classes"):
        ClassSet(name="x", class_names=("a", "b"), folders=("A",), source="here")
