from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from training.data import Digits, FashionMNIST, SyntheticVolumes
from training.data import fashion_mnist as module
from training.loading.batches import ShareLoader, share_loader

THREE_WAYS = r"data\.init_args\.root[\s\S]*dataset-fashion-mnist[\s\S]*let this machine reach"


def tensors(dataset: Dataset[object]) -> tuple[Tensor, ...]:
    assert isinstance(dataset, TensorDataset)
    return dataset.tensors


@pytest.fixture(scope="module")
def digits() -> Digits:
    data = Digits()
    data.prepare_data()
    data.setup("fit")
    return data


def test_digits_have_the_promised_sizes_shapes_and_range(digits: Digits) -> None:
    for split, size in ((digits.train, 1257), (digits.val, 180), (digits.test, 360)):
        images, labels = tensors(split)
        assert images.shape == (size, 1, 8, 8)
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert (images.min().item(), images.max().item()) == (0, 1)


def test_digits_splits_have_every_class_in_the_same_proportion(digits: Digits) -> None:
    counts = [torch.bincount(tensors(split)[1]) for split in (digits.train, digits.val, digits.test)]
    fractions = torch.stack([count / count.sum() for count in counts])

    assert fractions.shape == (3, 10)
    assert (fractions - fractions.mean(0)).abs().max() < 0.005


def test_digits_splits_are_disjoint_and_always_the_same(digits: Digits) -> None:
    def rows(data: Digits) -> list[list[bytes]]:
        splits = (data.train, data.val, data.test)
        return [[image.numpy().tobytes() for image in tensors(split)[0]] for split in splits]

    again = Digits()
    again.setup("test")

    assert rows(again) == rows(digits)
    drawn = [row for split in rows(digits) for row in split]
    assert len(set(drawn)) == len(drawn) == 1797


def test_only_training_data_is_shuffled(digits: Digits) -> None:
    def labels(stage: str) -> list[int]:
        loader = getattr(digits, f"{stage}_dataloader")()
        ((_, labels),) = share_loader(loader, batch_size=2000, rank=0, world_size=1, seed=0)
        return labels.tolist()  # type: ignore[no-any-return]

    assert labels("train") != tensors(digits.train)[1].tolist()
    assert labels("val") == tensors(digits.val)[1].tolist()
    assert labels("test") == tensors(digits.test)[1].tolist()


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def contents() -> dict[str, bytes]:
    """24 images for training and validation and 4 for test, each filled with its index."""
    found = {}
    for split, size in (("train", 24), ("t10k", 4)):
        numbers = np.arange(size, dtype=np.uint8)
        found[f"{split}-images-idx3-ubyte"] = idx(
            np.broadcast_to(numbers[:, None, None], (size, 28, 28)).copy()
        )
        found[f"{split}-labels-idx1-ubyte"] = idx(numbers % 10)
    return found


def write(folder: Path, *, zipped: bool) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents().items():
        path = folder / (f"{name}.gz" if zipped else name)
        path.write_bytes(gzip.compress(content) if zipped else content)
    return folder


@pytest.fixture(autouse=True)
def nothing_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "DEBIAN_FOLDER", tmp_path / "debian")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def ready(data: FashionMNIST) -> FashionMNIST:
    data.prepare_data()
    data.setup("fit")
    return data


@pytest.mark.parametrize("zipped", [True, False])
def test_fashion_mnist_reads_a_folder_of_idx_files(tmp_path: Path, zipped: bool) -> None:
    data = ready(FashionMNIST(root=str(write(tmp_path / "files", zipped=zipped))))

    train, val, test = (tensors(split) for split in (data.train, data.val, data.test))
    assert [len(images) for images, _ in (train, val, test)] == [22, 2, 4]
    assert val[1].tolist() == [2, 3]
    images, labels = train
    assert (images.shape[1:], images.dtype, labels.dtype) == ((1, 28, 28), torch.float32, torch.int64)
    assert images[21, 0, 3, 4].item() == pytest.approx((21 / 255 - 0.2860) / 0.3530, rel=1e-5)


def test_limit_keeps_the_first_samples_of_each_split(tmp_path: Path) -> None:
    data = ready(FashionMNIST(root=str(write(tmp_path / "files", zipped=True)), limit=3))

    assert [len(tensors(split)[0]) for split in (data.train, data.val, data.test)] == [3, 2, 3]


def test_black_and_white_images_have_two_values_divided_at_half_white(tmp_path: Path) -> None:
    folder = write(tmp_path / "files", zipped=False)
    pixels = np.resize(np.array([0, 127, 128, 255], dtype=np.uint8), (24, 28, 28))
    (folder / "train-images-idx3-ubyte").write_bytes(idx(pixels))

    images, _ = tensors(ready(FashionMNIST(root=str(folder), binary=True)).train)

    assert torch.equal(images[0].flatten()[:8], torch.tensor([0.0, 0, 1, 1] * 2))


def test_validation_may_have_the_images_of_the_test(tmp_path: Path) -> None:
    root = str(write(tmp_path / "files", zipped=True))
    own, same = ready(FashionMNIST(root=root)), ready(FashionMNIST(root=root, validate="test"))

    assert torch.equal(tensors(same.val)[0], tensors(same.test)[0])
    assert torch.equal(tensors(same.train)[0], tensors(own.train)[0])
    assert len(tensors(own.val)[0]) != len(tensors(own.test)[0])


def test_augmentation_moves_and_flips_what_is_trained_on_and_nothing_else(tmp_path: Path) -> None:
    root = str(write(tmp_path / "files", zipped=True))
    plain, augmented = (ready(FashionMNIST(root=root, augment=augment)) for augment in (False, True))
    image = torch.arange(28.0 * 28).reshape(1, 28, 28) + 1
    augmented.train.samples = TensorDataset(image[None], torch.tensor([3]))  # type: ignore[attr-defined]
    padded = torch.full((32, 32), -0.2860 / 0.3530)
    padded[2:30, 2:30] = image[0]
    moved = [padded[top : top + 28, left : left + 28] for top in range(5) for left in range(5)]
    expected = {each.numpy().tobytes() for crop in moved for each in (crop, crop.flip(1).contiguous())}

    found = [augmented.train[0] for _ in range(600)]

    assert {x[0].contiguous().numpy().tobytes() for x, _ in found} == expected
    assert all(label == 3 for _, label in found)
    for before, after in ((plain.val, augmented.val), (plain.test, augmented.test)):
        assert torch.equal(tensors(before)[0], tensors(after)[0])


def test_augmented_images_are_others_in_another_epoch_and_the_same_on_any_number_of_ranks(
    tmp_path: Path,
) -> None:
    data = ready(FashionMNIST(root=str(write(tmp_path / "files", zipped=True)), augment=True))

    def images(epoch: int, world_size: int) -> Tensor:
        found = []
        for rank in range(world_size):
            loader = share_loader(
                DataLoader(data.train), batch_size=22, rank=rank, world_size=world_size, seed=0
            )
            assert isinstance(loader, ShareLoader)
            loader.batch_sampler.set_epoch(epoch)
            found += [x for x, _ in loader]
        return torch.cat(found)

    assert torch.equal(images(1, 1), images(1, 3))
    assert not torch.equal(images(1, 1), images(0, 1))


def test_the_folder_of_debians_package_is_found(tmp_path: Path) -> None:
    write(tmp_path / "debian", zipped=True)

    assert len(tensors(ready(FashionMNIST()).test)[0]) == 4


@pytest.mark.parametrize("missing", [None, "train-labels-idx1-ubyte.gz"])
def test_a_given_folder_without_all_files_names_the_three_ways(tmp_path: Path, missing: str | None) -> None:
    folder = tmp_path / "files"
    if missing:
        (write(folder, zipped=True) / missing).unlink()

    with pytest.raises(FileNotFoundError, match=THREE_WAYS) as caught:
        FashionMNIST(root=str(folder)).prepare_data()

    assert str(folder) in str(caught.value)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a server of small files; their checksums replace the real ones."""
    folder = write(tmp_path / "mirror", zipped=True)
    sums = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in module.MD5}
    monkeypatch.setattr(module, "MD5", sums)
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_files_are_downloaded_once_into_the_cache(tmp_path: Path, mirror: str) -> None:
    assert module.cache_folder() == tmp_path / "cache" / "syncbn" / "fashion-mnist"
    first = ready(FashionMNIST(url=mirror))

    again = ready(FashionMNIST(url="http://127.0.0.1:1"))

    assert sorted(path.name for path in module.cache_folder().iterdir()) == sorted(module.MD5)
    assert torch.equal(tensors(again.train)[0], tensors(first.train)[0])


def test_a_download_with_a_wrong_checksum_is_refused_and_not_kept(
    mirror: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "t10k-images-idx3-ubyte.gz"
    monkeypatch.setitem(module.MD5, name, "0" * 32)

    with pytest.raises(FileNotFoundError, match=THREE_WAYS) as caught:
        FashionMNIST(url=mirror).prepare_data()

    assert "hash" in str(caught.value)
    assert not (module.cache_folder() / name).exists()


def test_a_refused_connection_names_the_three_ways() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    with pytest.raises(FileNotFoundError, match=THREE_WAYS) as caught:
        FashionMNIST(url=f"http://127.0.0.1:{port}").prepare_data()

    assert f"127.0.0.1:{port}" in str(caught.value) or f"port={port}" in str(caught.value)


def test_an_address_without_the_files_names_the_three_ways(mirror: str) -> None:
    with pytest.raises(FileNotFoundError, match=THREE_WAYS):
        FashionMNIST(url=f"{mirror}/elsewhere").prepare_data()


def broken_deflate(zipped: bytes) -> bytes:
    return zipped[:10] + b"\xff" * 20 + zipped[30:]


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"\x00\x00\x08",
        b"<html>not found</html>",
        gzip.compress(contents()["train-images-idx3-ubyte"])[:60],
        broken_deflate(gzip.compress(contents()["train-images-idx3-ubyte"])),
        gzip.compress(contents()["train-images-idx3-ubyte"][:-1]),
        idx(np.zeros((24, 28, 28), np.uint8)).replace(b"\x08", b"\x0d", 1),
    ],
    ids=["empty", "header cut", "a web page", "gzip cut", "deflate broken", "pixels missing", "floats"],
)
def test_a_broken_file_is_named(tmp_path: Path, broken: bytes) -> None:
    path = write(tmp_path / "files", zipped=True) / "train-images-idx3-ubyte.gz"
    path.write_bytes(broken)

    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz is broken"):
        ready(FashionMNIST(root=str(path.parent)))


def test_images_and_labels_of_different_number_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "files", zipped=False)
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(3, np.uint8)))

    with pytest.raises(ValueError, match="4 t10k images but 3 labels"):
        ready(FashionMNIST(root=str(folder)))


def test_synthetic_volumes_have_their_mask_and_are_always_the_same() -> None:
    data, again = (SyntheticVolumes(size=16, train=3, val=1, test=2) for _ in range(2))
    data.setup("fit")
    again.setup("test")

    splits = ((data.train, again.train, 3), (data.val, again.val, 1), (data.test, again.test, 2))
    for split, other, number in splits:
        images, masks = tensors(split)
        assert images.shape == masks.shape == (number, 1, 16, 16, 16)
        assert images.dtype == masks.dtype == torch.float32
        assert (images.min().item(), images.max().item()) == (0, 1)
        assert torch.unique(masks).tolist() == [0, 1]
        assert images[masks == 1].mean() > images[masks == 0].mean()
        assert all(torch.equal(*pair) for pair in zip(tensors(split), tensors(other), strict=True))
    assert not torch.equal(tensors(data.val)[0][0], tensors(data.train)[0][0])


def test_volumes_too_small_for_spheres_are_refused() -> None:
    with pytest.raises(ValueError, match="size is 8; spheres need at least 16 voxels"):
        SyntheticVolumes(size=8)
