"""Images of a folder: splits, classes, sizes and what is refused; views of them that are drawn; a small model that learns from them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from orchestrator.config import load_job_spec
from orchestrator.errors import ConfigError, DataError
from workloads.augmentation import Augmentation
from workloads.image_folder import ImageFolder
from workloads.resnet import ResNet

sys.path.append(str(Path(__file__).parent))
from kept import Kept, evaluated, spec_of, train

COLOURS = {"amber": (255, 190, 0), "blue": (0, 0, 255), "crimson": (220, 20, 60)}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def paint(path, colour, size=(12, 9), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)


@pytest.fixture
def colours(tmp_path):
    """Three classes of ten images, of several sizes and formats."""
    for name, colour in COLOURS.items():
        for number in range(10):
            paint(tmp_path / "colours" / name / f"{number}.{('png', 'bmp')[number % 2]}", colour, (8 + number, 20 - number))
    return tmp_path / "colours"


def prepared(path, **options):
    kept = Kept()
    ImageFolder(path=str(path), **{"image_size": 4} | options).prepare(kept)
    return kept


def test_every_image_becomes_a_square_of_its_class(colours):
    kept = prepared(colours, validation_share=0.2)
    assert json.loads(kept.files["classes.json"]) == ["amber", "blue", "crimson"]
    assert (kept.num_samples("train"), kept.num_samples("validation")) == (24, 6)
    for split in ("train", "validation"):
        records = kept.records(split)
        assert records["image"].shape[1:] == (3, 4, 4) and records["image"].dtype == np.uint8
        wanted = np.array(list(COLOURS.values()), dtype=np.uint8)[records["label"]]
        assert (records["image"] == wanted[:, :, None, None]).all()
        assert len(set(records["label"])) == 3
    labels = kept.records("train")["label"]
    assert (labels[1:] != labels[:-1]).sum() > 5  # the classes are mixed
    statistics = json.loads(kept.files["statistics.json"])
    pixels = kept.records("train")["image"].astype(float)
    assert statistics["mean"] == pytest.approx(pixels.mean((0, 2, 3)))
    assert statistics["deviation"] == pytest.approx(pixels.std((0, 2, 3)))


def test_the_split_is_the_same_again_and_another_with_another_seed(colours):
    first, again, other = prepared(colours), prepared(colours), prepared(colours, split_seed=1)
    assert all(first.records(split).tobytes() == again.records(split).tobytes() for split in ("train", "validation"))
    assert first.records("train").tobytes() != other.records("train").tobytes()


@pytest.mark.parametrize("name", ["val", "validation"])
def test_folders_may_say_what_is_held_out(tmp_path, colours, name):
    (tmp_path / "given").mkdir()
    colours.rename(tmp_path / "given" / "train")
    paint(tmp_path / "given" / name / "amber" / "deep" / "a.png", COLOURS["amber"])
    paint(tmp_path / "given" / name / "blue" / "b.png", COLOURS["blue"])
    kept = prepared(tmp_path / "given")
    assert kept.num_samples("train") == 30 and sorted(kept.records("validation")["label"]) == [0, 1]
    paint(tmp_path / "given" / name / "pink" / "p.png", "pink")
    with pytest.raises(DataError, match=rf"{name}/pink is a class that has no training images: it is not among amber, blue, crimson"):
        prepared(tmp_path / "given")


def test_a_class_may_be_called_train(colours):
    (colours / "blue").rename(colours / "train")
    assert json.loads(prepared(colours).files["classes.json"]) == ["amber", "crimson", "train"]


def halves(size=(40, 20)):
    """Left black, right white."""
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    pixels[:, size[0] // 2 :] = 255
    return Image.fromarray(pixels)


def test_a_wide_image_is_cropped_or_stretched(tmp_path):
    for name in ("a", "b"):
        for number in range(2):
            (tmp_path / name).mkdir(exist_ok=True)
            halves().save(tmp_path / name / f"{number}.png")
        Image.new("RGB", (40, 20)).save(tmp_path / name / "black.png")
    cropped = prepared(tmp_path, image_size=8, fit="crop", channels="gray", validation_share=0.4).records("train")["image"]
    stretched = prepared(tmp_path, image_size=8, fit="stretch", channels="gray", validation_share=0.4).records("train")["image"]
    assert cropped.shape[1:] == stretched.shape[1:] == (1, 8, 8)
    assert {tuple(image[0, 0, [0, 7]]) for image in stretched} <= {(0, 255), (0, 0)}
    assert cropped.tobytes() != stretched.tobytes()


def test_a_photograph_is_turned_as_its_camera_says_and_16_bits_become_8(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 3  # upside down
    for number in range(2):
        for name in ("a", "b"):
            (tmp_path / name).mkdir(exist_ok=True)
            halves((32, 32)).save(tmp_path / name / f"{number}.jpg", exif=turned, quality=95)
    images = prepared(tmp_path, image_size=8, validation_share=0.5).records("train")["image"]
    assert (images[:, :, :, 0] > 240).all() and (images[:, :, :, 7] < 15).all()
    Image.fromarray(np.full((8, 8), 0x80FF, dtype=np.uint16)).save(tmp_path / "a" / "0.png")
    Image.fromarray(np.full((8, 8), 0x80FF, dtype=np.uint16)).save(tmp_path / "a" / "2.png")
    images = prepared(tmp_path, image_size=8, validation_share=0.3).records("train")["image"]
    assert sum((image == 0x80).all() for image in images) >= 1


def test_what_is_no_image_is_passed_over_and_counted(colours):
    before = ImageFolder(path=str(colours)).fingerprint()
    (colours / "README").write_text("of no class")
    (colours / "amber" / "Thumbs.db").write_bytes(b"x")
    (colours / ".cache").mkdir()
    kept = prepared(colours)
    assert kept.num_samples("train") == 27
    assert any(said.startswith("passing over 2 files") for said in kept.said) and any("0 of 27" in said for said in kept.said)
    assert ImageFolder(path=str(colours)).fingerprint() == before


def test_the_fingerprint_is_that_of_recipe_and_files(tmp_path, colours):
    prints = {ImageFolder(path=str(colours), image_size=size).fingerprint() for size in (4, 8)}
    paint(colours / "blue" / "0.png", "navy")
    prints.add(ImageFolder(path=str(colours), image_size=4).fingerprint())
    colours.rename(tmp_path / "elsewhere")
    assert len(prints) == 3 and ImageFolder(path=str(tmp_path / "elsewhere"), image_size=4).fingerprint() in prints


def broken(path, kind):
    whole = path.with_suffix(".whole.jpg")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(whole)
    content = {"text": b"this is a text", "empty": b"", "cut off": whole.read_bytes()[:900]}[kind]
    whole.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["text", "empty", "cut off"])
def test_a_file_that_is_no_whole_image_is_refused_by_its_path_or_skipped_and_counted(colours, kind):
    broken(colours / "blue" / "bad.jpg", kind)
    with pytest.raises(DataError, match=r"blue/bad.jpg cannot be read as an image: .* data.options.unreadable=skip leaves such files out"):
        prepared(colours)
    kept = prepared(colours, unreadable="skip")
    assert kept.num_samples("train") + kept.num_samples("validation") == 30
    assert [said for said in kept.said if said.startswith("skipped 1 of ") and "blue/bad.jpg" in said]


def test_a_class_that_has_nothing_left_is_refused(colours):
    for path in (colours / "blue").iterdir():
        path.write_bytes(b"text")
    with pytest.raises(DataError, match="class blue has no training image that can be read"):
        prepared(colours, unreadable="skip")


def test_a_folder_that_cannot_be_is_refused(tmp_path, colours):
    with pytest.raises(DataError, match=r"data.options.path=/nowhere is not a folder"):
        prepared("/nowhere")
    (tmp_path / "bare").mkdir()
    with pytest.raises(DataError, match=r"bare has no folder; at least 2 classes are needed"):
        prepared(tmp_path / "bare")
    paint(tmp_path / "bare" / "one" / "a.png", "red")
    with pytest.raises(DataError, match=r"bare has only the class one; at least 2 classes are needed"):
        prepared(tmp_path / "bare")
    paint(tmp_path / "bare" / "two" / "a.png", "red")
    with pytest.raises(DataError, match=r"validation_share=0.1 of each class is less than one image"):
        prepared(tmp_path / "bare")
    (colours / "dark").mkdir()
    (colours / "dark" / "note.txt").write_text("no image")
    with pytest.raises(DataError, match=r"colours/dark has no images: allowed are .jpg"):
        prepared(colours)
    for name in ("train", "val", "validation"):
        paint(tmp_path / "both" / name / "a" / "a.png", "red")
    with pytest.raises(DataError, match="has both val and validation"):
        prepared(tmp_path / "both")


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ({"path": ""}, {}, "data.options.path='' is not possible: allowed is a folder"),
        ({"image_size": 0}, {}, "data.options.image_size=0"),
        ({"fit": "pad"}, {}, "data.options.fit=pad is not possible: allowed is crop or stretch"),
        ({"channels": "cmyk"}, {}, "data.options.channels=cmyk is not possible: allowed is rgb or gray"),
        ({"validation_share": 1.0}, {}, "data.options.validation_share=1.0"),
        ({"unreadable": "ignore"}, {}, "data.options.unreadable=ignore is not possible: allowed is refuse or skip"),
        ({"image_sise": 8}, {}, r"data.options.image_sise is no setting.*Did you mean 'image_size'"),
        ({}, {"min_crop": 0.0}, "workload.options.min_crop=0.0"),
        ({}, {"max_crop_ratio": 0.5}, "workload.options.max_crop_ratio=0.5"),
        ({}, {"flip": 2.0}, "workload.options.flip=2.0"),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_its_flag(data, options, message):
    with pytest.raises(ConfigError, match=message):
        ResNet(spec_of("workloads.resnet:ResNet", data={"path": "/somewhere"} | data, options=options))


def test_the_shipped_data_is_taken_and_needs_a_path(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.options\.path"):
        load_job_spec(["workload=resnet", "data=image-folder"])
    subject = ResNet(load_job_spec(["workload=resnet", "data=image-folder", f"data.options.path={tmp_path}", "model=vit-tiny"]))
    assert subject.images == ImageFolder(path=str(tmp_path)) and subject.draws_per_sample == 0


# views


def ramp(count=1, size=16):
    """float[n, 2, size, size]: each pixel's place across and down, from -1 to 1."""
    places = (torch.arange(size) * 2 + 1) / size - 1
    return torch.stack([places.expand(size, size), places[:, None].expand(size, size)]).expand(count, 2, size, size)


def test_a_crop_lies_in_the_image_and_has_the_area_and_ratio_that_are_allowed():
    options = Augmentation(min_crop=0.25, max_crop_ratio=2.0, flip=0.5)
    draws = torch.from_numpy(np.random.default_rng(0).integers(0, 2**32, (500, 5)))
    views = options.apply(ramp(500), draws, 8)
    assert views.shape == (500, 2, 8, 8) and views.abs().max() <= 1
    width = (views[:, 0, 0, 7] - views[:, 0, 0, 0]).abs() * 8 / 7 / 2
    height = (views[:, 1, 7, 0] - views[:, 1, 0, 0]) * 8 / 7 / 2
    inside = (width < 0.85) & (height < 0.85)  # nearer to the edge the outer pixels are repeated
    area, ratio = (width * height)[inside], (width / height)[inside]
    assert inside.sum() > 150 and area.min() > 0.24 and 0.25 < area.mean() < 0.6
    assert 0.49 < ratio.min() < 0.8 < 1.2 < ratio.max() < 2.05
    assert 0.4 < (views[:, 0, 0, 0] > views[:, 0, 0, 7]).float().mean() < 0.6
    alone = options.apply(ramp(1), draws[7:8], 8)
    assert torch.equal(alone[0], views[7])  # whatever else is in the batch


def test_without_crops_an_image_is_itself_or_its_mirror_image():
    draws = torch.from_numpy(np.random.default_rng(0).integers(0, 2**32, (64, 5)))
    views = Augmentation(flip=0.5).apply(ramp(64), draws, 16)
    mirrored = (draws[:, 4] < 2**31)[:, None, None, None]
    assert torch.allclose(views, torch.where(mirrored, ramp(64).flip(3), ramp(64)), atol=1e-5)
    assert 0 < mirrored.sum() < 64 and Augmentation().num_draws == 0


# learning


@pytest.fixture(scope="module")
def digits_folder(tmp_path_factory):
    """600 digits as files: PNG of the even ones, JPEG of the odd ones."""
    folder, digits = tmp_path_factory.mktemp("digits"), load_digits()
    for number, (image, label) in enumerate(zip(digits.images[:600], digits.target[:600], strict=True)):
        path = folder / f"digit-{label}" / f"{number}.{('png', 'jpg')[number % 2]}"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray((image * 255 / 16).astype(np.uint8)).save(path, **({"quality": 95} if number % 2 else {}))
    return folder


def test_a_small_model_learns_from_files(digits_folder):
    data = {"path": str(digits_folder), "image_size": 8, "channels": "gray", "validation_share": 0.2}
    subject = ResNet(spec_of("workloads.resnet:ResNet", {"hidden_sizes": [8, 16], "depths": [1, 1], "embedding_size": 8}, data))
    kept = Kept()
    subject.prepare(kept)
    torch.manual_seed(0)
    built = subject.build_model(kept)
    before = evaluated(subject, built, kept)
    train(subject, built, kept, steps=60, batch_size=48, lr=5e-3)
    after = evaluated(subject, built, kept)
    assert before["accuracy"] < 0.3 < 0.7 < after["accuracy"]
    names = {row["name"] for row in json.loads(subject.report(sums(subject, built, kept), kept)["per_class.json"])}
    assert names == {f"digit-{digit}" for digit in range(10)}


def sums(subject, model, kept):
    with torch.no_grad():
        return {name: value.numpy() for name, value in subject.evaluate(model, kept.batch("validation")).items()}


@pytest.mark.parametrize("channels", ["gray", "rgb"])
def test_a_published_model_takes_them_scaled_and_in_three_channels(colours, channels):
    shape = {"family": "vit", "image_size": 8, "patch_size": 4, "hidden_size": 16, "intermediate_size": 16, "num_layers": 1, "num_heads": 2}
    data = {"path": str(colours), "image_size": 12, "channels": channels}
    subject, kept = ResNet(spec_of("workloads.resnet:ResNet", shape, data, {"flip": 0.5})), Kept()
    subject.prepare(kept)
    model, batch = subject.build_model(kept), kept.batch(count=4)
    losses = [subject.loss(model, {**batch, **more}) for more in ({}, {"draws": torch.zeros(4, 5, dtype=torch.int64)})]
    losses[1].backward()
    assert model.classifier.weight.shape[0] == 3 and model.classifier.weight.grad.abs().sum() > 0
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=0.2)  # of one colour each: what is cut out is much the same


def test_draws_change_the_loss_of_training_only(digits_folder):
    data = {"path": str(digits_folder), "image_size": 8}
    subject = ResNet(spec_of("workloads.resnet:ResNet", {"depths": [1], "hidden_sizes": [8], "embedding_size": 8}, data, {"min_crop": 0.3}))
    kept = Kept()
    subject.prepare(kept)
    model, batch = subject.build_model(kept), kept.batch(count=8)
    assert subject.draws_per_sample == 5
    drawn = [{**batch, "draws": torch.full((8, 5), place)} for place in (2**30, 2**31)]
    losses = [subject.loss(model, one).item() for one in (batch, *drawn, drawn[0])]
    assert len(set(losses)) == 3 and losses[1] == losses[3]
