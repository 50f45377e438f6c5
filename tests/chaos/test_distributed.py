"""Several workers of one task end where one does: the same losses and anchors, whatever their number."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from rco.config.shape import STUDENT
from rco.core.errors import InputError
from rco.data.augment import augmented
from rco.data.dataset import Dataset
from rco.data.share import Share
from rco.tasks.preflight import preflight
from rco.tasks.validate import validate
from rco.training.config import ComputeConfig
from rco.training.device import resolve
from rco.training.distributed import WorkerLostError, World, check_batch, joined_group
from rco.training.identity import for_any_workers
from rco.training.packing import packed, unpacked
from rco.training.schedule import learning_rate
from tests import workers
from tests.conftest import CPU
from tests.in_process import run_of

SIZES = (2, 4)
Results = Mapping[int, Mapping[str, list[dict[str, Any]]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workers")


@pytest.fixture(scope="module")
def alone(digits: Path, folder: Path) -> dict[str, dict[str, Any]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {name: workers.alone(digits, folder / "1", name) for name in workers.CASES}
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def together(digits: Path, folder: Path, alone: dict[str, dict[str, Any]]) -> Results:
    return workers.together(digits, folder, *SIZES)


def close(a: Any, b: Any, tolerance: float = 2e-5) -> bool:
    """Whether two results say the same, numbers within a tolerance; and a number for a number, a name for a name."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[name], b[name], tolerance) for name in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(lambda x, y: close(x, y, tolerance), a, b))
    if isinstance(a, float):
        return abs(a - b) <= tolerance * max(1.0, abs(a))
    return bool(a == b)


class TestShares:
    @given(st.integers(0, 200), st.integers(1, 9))
    def test_make_the_whole_batch(self, count: int, size: int) -> None:
        shares = [Share(rank, size) for rank in range(size)]
        rows = np.arange(count)
        parts = [rows[share.of(count)] for share in shares]
        if count >= 2 * size:
            assert np.concatenate(parts).tolist() == rows.tolist()
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
        else:
            assert all(part.tolist() == rows.tolist() for part in parts), "too few to cut"
        if count:
            # The weighted mean of the shares' means is the batch's.
            means = sum(share.weight(count) * part.mean() for share, part in zip(shares, parts, strict=True))
            assert means == pytest.approx(rows.mean())
            assert sum(share.weight(count) for share in shares) == pytest.approx(1)
        batches = [rows[share.batches(count)] for share in shares]
        assert np.concatenate(batches).tolist() == rows.tolist()

    @pytest.mark.parametrize("size", [2, 3, 4])
    @pytest.mark.parametrize(
        "how", [{"augment": "shift"}, {"augment": "crop-flip", "view": 3}, {"augment": "resized-crop-flip", "skip": 2}]
    )
    def test_show_what_one_process_shows(self, digits: Path, size: int, how: dict[str, Any]) -> None:
        split = Dataset.open(digits).split("train")
        options: dict[str, Any] = {"seed": 5, "epoch": 2, **how}
        whole = list(split.indexed_batches(300, **options))
        shares = [list(split.indexed_batches(300, share=Share(rank, size), **options)) for rank in range(size)]
        for i, (x, labels, rows) in enumerate(whole):
            assert torch.equal(torch.cat([share[i][0] for share in shares]), x)
            assert torch.equal(torch.cat([share[i][1] for share in shares]), labels)
            assert np.concatenate([share[i][2] for share in shares]).tolist() == rows.tolist()

    def test_some_batches_are_those_of_the_whole(self, digits: Path) -> None:
        split = Dataset.open(digits).split("train")
        whole = list(split.indexed_batches(100))
        some = list(split.indexed_batches(100, skip=2, count=3))
        assert [rows.tolist() for _, _, rows in some] == [rows.tolist() for _, _, rows in whole[2:5]]
        assert list(split.indexed_batches(100, skip=2, count=0)) == []

    def test_augmentation_is_drawn_as_ever(self) -> None:
        """The weights of every training so far depend on it."""
        images = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).expand(3, 1, 8, 8)
        rng, twin = np.random.default_rng(0), np.random.default_rng(0)
        moved = augmented(images, "shift", rng)
        twin.random((3, 2))
        assert rng.random() == twin.random()
        assert moved.shape == images.shape


class TestWorkers:
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("case", ["uneven", "tiny_last", "frozen_norm", "regularised", "route", "diverged", "handed_over"])
    def test_end_where_one_does(self, alone: dict[str, dict[str, Any]], together: Results, case: str, size: int) -> None:
        """Losses and weights within float tolerance, the same anchors, whichever way the last batch is cut."""
        assert close(alone[case], together[size][case][0])

    @pytest.mark.parametrize("size", SIZES)
    def test_agree_with_each_other_to_the_last_bit(self, together: Results, size: int) -> None:
        for name, results in together[size].items():
            assert all(result == results[0] for result in results), name

    @pytest.mark.parametrize("size", SIZES)
    def test_measure_what_one_measures_to_the_last_bit(
        self, alone: dict[str, dict[str, Any]], together: Results, size: int
    ) -> None:
        assert together[size]["measured"][0] == alone["measured"]

    @pytest.mark.parametrize("size", SIZES)
    def test_take_batch_statistics_of_their_shares(self, digits: Path, together: Results, size: int) -> None:
        expected = ghost_norm(Dataset.open(digits), size)
        assert close(expected, together[size]["batch_norm"][0]["weights"])
        assert not close(ghost_norm(Dataset.open(digits), 1), together[size]["batch_norm"][0]["weights"])

    @pytest.mark.parametrize("size", SIZES)
    def test_are_stopped_together_and_go_on_to_the_last_bit(self, together: Results, size: int) -> None:
        assert together[size]["resumed"] == [{"status": 143, "same": True}] * size

    @pytest.mark.parametrize("size", SIZES)
    def test_one_goes_on_from_their_points(
        self, digits: Path, folder: Path, alone: dict[str, dict[str, Any]], together: Results, size: int
    ) -> None:
        left = workers.points(folder / str(size) / "handed_over" / "left", every=1e9)
        rest = workers.trained(Dataset.open(digits), workers.STUDENT.build(0), checkpointer=left)
        assert rest["rows"], "the point was of the first epoch"
        assert close(alone["handed_over"], rest)


def ghost_norm(data: Dataset, size: int) -> dict[str, Any]:
    """The training of `workers.batch_norm` by one process that cuts every batch as `size` workers do. Running statistics are
    those of the first share."""
    network = workers.convolutions(nn.BatchNorm2d)
    split = data.split("train")
    batch_size = workers.batch_leaving(data, lambda rest: rest > 8 and rest % 4 != 0)
    config = workers.TRAIN.with_values(batch_size=batch_size)
    used = [parameter for name, parameter in network.named_parameters() if "idle" not in name]
    optimizer = config.optimizer.make(used, lr=config.lr, weight_decay=config.weight_decay)
    per_epoch = split.num_batches(batch_size)
    network.train()
    step = 0
    for epoch in (1, 2):
        for x, labels, _ in split.indexed_batches(batch_size, seed=config.seed, epoch=epoch, augment=config.augment):
            optimizer.param_groups[0]["lr"] = learning_rate(config, step, steps_per_epoch=per_epoch, epochs=2)
            optimizer.zero_grad()
            buffers: dict[str, Tensor] = {}
            for part in np.array_split(np.arange(len(labels)), size):
                loss = F.cross_entropy(network(x[part]), labels[part]) * (len(part) / len(labels))
                loss.backward()
                buffers = buffers or {name: buffer.clone() for name, buffer in network.named_buffers()}
            optimizer.step()
            for name, buffer in network.named_buffers():
                buffer.copy_(buffers[name])
            step += 1
    return workers.summed(network)


class TestWorld:
    def test_a_process_by_itself_is_the_only_worker(self) -> None:
        world, values = World.current(), torch.ones(2)
        assert world == World(0, 1)
        assert world.main
        assert world.alone
        assert world.mean(values, 7) is values
        assert world.of_main(values) is values
        assert world.joined(values) is values

    @pytest.mark.parametrize(("batch_size", "size"), [(6, 4), (4, 4), (130, 4), (1, 2)])
    def test_a_batch_that_does_not_divide_is_refused(self, batch_size: int, size: int) -> None:
        with pytest.raises(
            InputError, match=rf"batch_size = {batch_size}: cannot be shared by {size} workers.*Use \d+"
        ) as error:
            check_batch("batch_size", batch_size, size)
        check_batch("batch_size", int(error.value.remedy.split()[1].rstrip(",")), size)

    @pytest.mark.parametrize(("batch_size", "size"), [(8, 4), (128, 4), (1, 1), (5, 1), (6, 3)])
    def test_one_that_divides_is_not(self, batch_size: int, size: int) -> None:
        check_batch("batch_size", batch_size, size)

    def test_others_that_never_come_are_told_of_in_words(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
        for name, value in {**group, "RCO_WORKERS_TIMEOUT": "1"}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(WorkerLostError, match="worker 0 of 2: the others did not come within 1 s"), joined_group(CPU):
            raise AssertionError
        assert World.current().alone

    @pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "inf"])
    def test_a_timeout_that_is_not_one_is_refused(self, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
        monkeypatch.setenv("RCO_WORKERS_TIMEOUT", text)
        with pytest.raises(InputError, match=r"RCO_WORKERS_TIMEOUT.*is not a number of seconds"), joined_group(CPU):
            raise AssertionError

    def test_values_travel_without_a_pickle(self) -> None:
        tensors: dict[str, Tensor] = {}
        value = {"a": [1, None, torch.arange(3)], "b": {"c": torch.tensor(2.5)}, "d": "text"}
        document = packed(value, "", tensors)
        again = unpacked(document, tensors)
        assert torch.equal(again["a"][2], torch.arange(3))
        assert again["b"]["c"] == 2.5
        assert (again["a"][:2], again["d"]) == ([1, None], "text")


class TestSettings:
    @pytest.mark.parametrize(("parameters", "name"), [({"teacher_batch_size": 6}, "teacher_"), ({"batch_size": 6}, "")])
    def test_a_batch_that_does_not_divide_is_refused_before_anything_runs(self, parameters: dict[str, int], name: str) -> None:
        flat = {"teacher": "digits-cnn-s", "student": "digits-mlp", "device": "cpu", **parameters}
        with pytest.raises(InputError, match=f"{name}batch_size = 6: cannot be shared by 4 workers"):
            validate(run_of({**flat, "workers_per_task": 4}))
        even = {"teacher_batch_size": 6, "batch_size": 6, "workers_per_task": 3}
        assert validate(run_of({**flat, **even})).workers_per_task == 3

    def test_a_task_that_needs_one_worker_does_not_depend_on_their_number(self) -> None:
        flat = {"teacher": "digits-cnn-s", "student": "digits-mlp", "device": "cpu", "threads": 1}
        one, two = (preflight(run_of({**flat, "workers_per_task": n})).branches[STUDENT] for n in (1, 2))
        assert (one.init, one.anchors) == (two.init, two.anchors)
        assert one.distill != two.distill

    def test_sync_batchnorm_on_a_cpu_is_refused(self) -> None:
        with pytest.raises(InputError, match="sync_batchnorm = True: needs GPUs"):
            ComputeConfig(device="cpu", sync_batchnorm=True)
        if not torch.cuda.is_available():
            with pytest.raises(InputError, match="sync_batchnorm = True: needs GPUs"):
                resolve(ComputeConfig(sync_batchnorm=True))
        assert ComputeConfig(device="cuda", sync_batchnorm=True).alone.sync_batchnorm is False

    def test_auto_is_one_worker_on_a_cpu_and_left_open_for_a_gpu_elsewhere(self) -> None:
        assert resolve(ComputeConfig(device="cpu")).workers_per_task == 1
        assert resolve(ComputeConfig(device="cpu", workers_per_task=3)).workers_per_task == 3
        assert resolve(ComputeConfig(device="cuda")).workers_per_task == 0

    def test_a_resume_point_is_for_any_number_of_workers(self) -> None:
        one, four = (
            {"settings": ComputeConfig(device="cpu", workers_per_task=n), "also": [{"workers_per_task": n}]} for n in (1, 4)
        )
        assert for_any_workers(one) == for_any_workers(four)
        other = {"settings": ComputeConfig(device="cpu", threads=2), "also": [{}]}
        assert for_any_workers(one) != for_any_workers(other)
