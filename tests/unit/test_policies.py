"""RandAugment, TrivialAugment, erasing, mixup and cutmix: per image, whoever reads it, and the same for student and anchor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from rco.config.parameters import RunConfig
from rco.core.errors import InputError
from rco.data.augmentation import Augmentation
from rco.data.config import DataConfig
from rco.data.dataset import Dataset
from rco.data.images import Rows
from rco.data.policies import ImageDraws, kept, mixed
from rco.data.prepare import prepare
from rco.data.share import Share
from rco.data.sources.kinds import source_digest
from rco.models.taps import Output
from rco.models.weights import state_digest
from rco.objectives.config import ObjectiveConfig
from rco.objectives.stage import StageLoss
from rco.training.anchor import StoredLogits
from rco.training.config import TrainConfig
from rco.training.distillation import ProbeTargets, train_stage
from rco.training.loop import fit
from rco.training.resume_points import ResumePoints
from tests.conftest import CPU

EVERYTHING = Augmentation(augment="shift", auto_augment="randaugment", erasing=0.5, mixup=0.4, cutmix=1.0)
ALONE = [
    Augmentation(auto_augment="trivialaugment"),
    Augmentation(augment="resized-crop-flip", auto_augment="randaugment", randaugment_ops=1, randaugment_magnitude=15),
    Augmentation(erasing=1.0),
    Augmentation(mixup=0.2),
    Augmentation(augment="crop", cutmix=1.0),
]
Batches = list[tuple[Tensor, Tensor, Rows]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    """One data set of 23 coloured training images, in memory and as files."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name, count in (("cat", 20), ("dog", 14)):
        (root / name).mkdir()
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(root / name / f"{i}.png")
    made = {}
    for storage, gib in (("arrays", 2.0), ("files", 0.0)):
        config, folder = DataConfig(dataset=str(root), in_memory_gib=gib), tmp_path_factory.mktemp(storage)
        prepare(config, folder, source_digest(config))
        made[storage] = Dataset.open(folder)
        assert made[storage].manifest.storage == storage
    return made


def shown(dataset: Dataset, augment: Augmentation, batch_size: int = 6, **options: Any) -> Batches:
    options = {"seed": 3, "epoch": 2, "workers": 0, **options}
    return list(dataset.split("train").indexed_batches(batch_size, augment=augment, **options))


def joined(batches: Batches) -> tuple[Tensor, Tensor, Rows]:
    x, y, rows = zip(*batches, strict=True)
    return torch.cat(x), torch.cat(y), np.concatenate(rows)


def same(a: Batches, b: Batches) -> bool:
    return all(torch.equal(s, t) for s, t in zip(joined(a)[:2], joined(b)[:2], strict=True)) and len(a) > 0


@pytest.mark.parametrize("augment", [EVERYTHING, *ALONE], ids=str)
def test_every_image_is_the_same_whoever_reads_it(folders: dict[str, Dataset], augment: Augmentation) -> None:
    """In memory and from files, alone and in shares, from the beginning and from the middle, in batches of any size."""
    arrays, whole = folders["arrays"], shown(folders["arrays"], augment)
    images, labels, rows = joined(whole)
    assert same(whole, shown(folders["files"], augment))
    other = joined(shown(arrays, augment, batch_size=5))
    count = min(len(images), len(other[0]))
    assert torch.equal(images[:count], other[0][:count])
    assert torch.equal(labels[:count], other[1][:count])
    for dataset in folders.values():
        assert same(whole[2:], shown(dataset, augment, skip=2))
        shares = [shown(dataset, augment, share=Share(rank, 2)) for rank in range(2)]
        for (x, y, numbers), *parts in zip(whole, *shares, strict=True):
            assert torch.equal(x, torch.cat([part[0] for part in parts]))
            assert torch.equal(y, torch.cat([part[1] for part in parts]))
            assert (numbers == np.concatenate([part[2] for part in parts])).all()
    plain, plain_labels, plain_rows = joined(shown(arrays, Augmentation()))
    assert (rows == plain_rows).all(), "the order is what it was"
    assert not torch.equal(images, plain)
    assert augment.mixes or torch.equal(labels, plain_labels)
    assert not torch.equal(images, joined(shown(arrays, augment, epoch=3))[0])
    assert not torch.equal(images, joined(shown(arrays, augment, seed=4))[0])


def test_worker_processes_change_nothing_and_generators_are_left_alone(folders: dict[str, Dataset]) -> None:
    state = torch.get_rng_state()
    assert same(shown(folders["arrays"], EVERYTHING), shown(folders["files"], EVERYTHING, workers=2))
    assert torch.equal(torch.get_rng_state(), state)


def test_an_image_is_mixed_with_the_next_one_of_the_whole_order(folders: dict[str, Dataset]) -> None:
    dataset = folders["arrays"]
    plain, labels, _ = joined(shown(dataset, Augmentation()))
    images, shares, _ = joined(shown(dataset, Augmentation(mixup=1.0), batch_size=7))
    size = len(dataset.split("train"))
    for i in range(len(images)):
        j = (i + 1) % size
        if j >= len(plain):
            continue
        of_pixels = (images[i] - plain[j]).double().norm() / (plain[i] - plain[j]).double().norm()
        expected = torch.zeros(2)
        expected[labels[i]] += float(of_pixels)
        expected[labels[j]] += 1 - float(of_pixels)
        assert torch.allclose(shares[i], expected, atol=1e-4)
        assert torch.allclose(images[i], of_pixels.float() * plain[i] + (1 - of_pixels.float()) * plain[j], atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**30), st.sampled_from([(0.3, 0.0), (0.0, 1.0), (0.4, 0.7)]), st.integers(1, 12), st.integers(1, 12))
def test_labels_are_mixed_as_the_pixels_are(seed: int, alphas: tuple[float, float], height: int, width: int) -> None:
    augmentation = Augmentation(mixup=alphas[0], cutmix=alphas[1])
    draws = ImageDraws.of(augmentation, np.arange(5), seed=seed, epoch=1, view=None)
    own, other = torch.ones(5, 1, height, width), torch.full((5, 1, height, width), 3.0)
    y, y_other = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([1, 1, 0, 3, 2])
    images, shares = mixed(own, y, other, y_other, draws, 4)
    mean = images.mean(dim=(1, 2, 3))
    share = (3 - mean) / 2
    assert torch.allclose(shares.sum(dim=1), torch.ones(5), atol=1e-6)
    for i in range(5):
        expected = torch.zeros(4)
        expected[y[i]] += share[i]
        expected[y_other[i]] += 1 - share[i]
        assert torch.allclose(shares[i], expected, atol=1e-5)
    masks = kept(draws, height, width)
    for mask, cut in zip(masks, draws.cut, strict=True):
        assert (np.isin(mask, (0, 1)).all()) if cut else (np.ptp(mask) == 0)
    assert draws.cut.all() or alphas[0]
    assert not draws.cut.any() or alphas[1]


# --- training -------------------------------------------------------------------------------------------------------------


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


TRAIN = TrainConfig.of(epochs=2, batch_size=512, lr=0.05, schedule="constant")
MIXING = TRAIN.with_values(augment="shift", auto_augment="trivialaugment", erasing=0.3, mixup=0.3, cutmix=1.0)


def test_student_and_anchor_see_the_same_mixed_images(data: Dataset) -> None:
    seen: dict[str, list[Tensor]] = {"student": [], "anchor": []}
    student = network(0)
    student.register_forward_pre_hook(lambda _, inputs: seen["student"].append(inputs[0].clone()))

    class Watched:
        def prepare_epoch(self, epoch: int) -> None:
            return None

        def output(self, x: Tensor, rows: Rows, view: int | None) -> Output:
            seen["anchor"].append(x.clone())
            return Output(torch.zeros(len(x), 10))

    list(fit(student, data.split("train"), StageLoss(ObjectiveConfig()), MIXING, CPU, epochs=2, anchor=Watched()))
    assert len(seen["anchor"]) == len(seen["student"]) > 2
    assert all(torch.equal(a, b) for a, b in zip(*seen.values(), strict=True))


def test_an_interrupted_training_on_mixed_images_ends_in_the_same_weights(data: Dataset, tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    class Stops(ResumePoints):
        left = 2

        def keep(self) -> None:
            super().keep()
            self.left -= 1
            if not self.left:
                raise StoppedError

    def run(points: ResumePoints) -> str:
        student = network(0)
        list(fit(student, data.split("train"), StageLoss(ObjectiveConfig(lam="0")), MIXING, CPU, epochs=2, checkpointer=points))
        return state_digest(student)

    whole = run(ResumePoints("", {}))
    with pytest.raises(StoppedError):
        run(Stops(str(tmp_path), {}, every=0.0))
    assert run(ResumePoints(str(tmp_path), {}, every=1e9)) == whole


def test_stored_logits_are_of_the_images_that_are_shown(data: Dataset, tmp_path: Path) -> None:
    split, anchor = data.split("train"), network(1)
    augment = Augmentation(augment="shift", auto_augment="randaugment", erasing=0.5)
    paths = set()
    for how in (augment, Augmentation(augment="shift", auto_augment="trivialaugment"), Augmentation(augment="shift"), "shift"):
        stored = StoredLogits(
            anchor=anchor, train=split, augment=how, views=2, compute=CPU, batch_size=300, anchor_id="x", folder=tmp_path
        )
        for epoch in (1, 2):
            view = stored.prepare_epoch(epoch)
            x, _, rows = next(iter(split.indexed_batches(64, seed=7, epoch=epoch, augment=how, view=view)))
            with torch.no_grad():
                expected = anchor(x)
            assert torch.allclose(stored.output(x, rows, view).logits, expected, atol=2e-2)
        paths.add(stored._path(0))
    assert len(paths) == 3, "a crop alone has the name that it always had"


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"mixup": 0.2, "views": 4}, "mixup"),
        ({"cutmix": 1, "objective": "dkd"}, "cutmix"),
        ({"mixup": -1}, "mixup"),
        ({"erasing": 1.5}, "erasing"),
        ({"auto_augment": "autoaugment"}, "auto_augment"),
        ({"randaugment_ops": 3}, "randaugment_ops"),
        ({"teacher_randaugment_ops": 3}, "teacher_randaugment_ops"),
        ({"auto_augment": "randaugment", "randaugment_magnitude": 31}, "randaugment_magnitude"),
    ],
)
def test_what_cannot_work_is_refused(values: dict[str, Any], name: str) -> None:
    with pytest.raises(InputError) as refused:
        RunConfig.from_flat(values)
    assert refused.value.parameter == name


def test_the_library_refuses_it_too(data: Dataset) -> None:
    nothing = np.zeros((64, 10), np.float32)
    with pytest.raises(InputError, match="views = 2"):
        next(
            train_stage(
                *(network(0), network(1), data, ObjectiveConfig(views=2), MIXING, CPU, ProbeTargets(nothing, nothing)),
                stage=1,
                epochs=2,
                first_epoch=1,
            )
        )
    with pytest.raises(InputError, match="4 channels"):
        Augmentation(auto_augment="randaugment").require_channels(4)
    with pytest.raises(InputError, match="view"):
        data.split("train").indexed_batches(8, augment=MIXING.augmentation, view=0)
