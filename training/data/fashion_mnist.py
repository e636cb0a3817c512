"""Fashion-MNIST (Xiao et al. 2017): 70,000 grey images of 28×28 in ten classes of clothing."""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from training.data import arrangement as arrangements
from training.data.arrangement import ArrangedBatches, Arrangement
from training.data.splits import Splits
from training.samples import sample_generator

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}


class FashionMNIST(Splits):
    """Images (1, 28, 28) float32, scaled to zero mean and unit variance, and labels int64.

    55,000 for training, the last 5,000 of the training file for validation, 10,000 for test. root: a folder
    with the IDX files, gzipped or not; if None, uses Debian's package dataset-fashion-mnist, else the cache,
    else downloads the files from `url` into the cache. limit: maximum number of samples per split. augment:
    shifts each training image by up to 2 pixels and flips it with probability 0.5, anew in each epoch.
    binary: pixels are 1 where they are at least half white, else 0, in place of the scaled ones. validate:
    test: validation has the images of the test, to draw its curve during the training. arrangement: of the
    classes within each `batch` training samples, which is the spec's training.global_batch_size, see
    `ArrangedBatches`; None: the loader's own shuffling.

    The files of MNIST, which have the same names, are read too if `root` has them.

    Raises FileNotFoundError naming all three ways if none provides the data; ValueError for a broken file.
    """

    MEAN, STD = 0.2860, 0.3530

    def __init__(
        self,
        root: str | None = None,
        limit: int | None = None,
        url: str = URL,
        *,
        augment: bool = False,
        binary: bool = False,
        validate: Literal["held_out", "test"] = "held_out",
        arrangement: Arrangement | None = None,
        batch: int = 64,
    ) -> None:
        super().__init__()
        self.root, self.limit, self.url, self.augment = root, limit, url, augment
        self.binary, self.validate = binary, validate
        self.arrangement, self.batch = arrangement, batch
        if arrangement is not None:
            arrangements.check(arrangement, batch)

    def prepare_data(self) -> None:
        """Downloads missing files. Lightning calls it once per node."""
        self._folder()

    def setup(self, stage: str | None = None) -> None:  # noqa: ARG002 (Lightning's signature)
        folder = self._folder()
        images, labels = _split(folder, "train")
        held_out = max(1, len(images) // 12)
        test_images, test_labels = _split(folder, "t10k")
        train = self._dataset(images[:-held_out], labels[:-held_out])
        self._labels = train.tensors[1]
        black = 0.0 if self.binary else -self.MEAN / self.STD
        self.train = Augmented(train, black=black) if self.augment else train
        self.test = self._dataset(test_images, test_labels)
        held_out_part = self._dataset(images[-held_out:], labels[-held_out:])
        self.val = self.test if self.validate == "test" else held_out_part

    def train_dataloader(self) -> DataLoader[Any]:
        if self.arrangement is None:
            return super().train_dataloader()
        return DataLoader(self.train, sampler=ArrangedBatches(self._labels, self.arrangement, self.batch))

    def _dataset(self, images: np.ndarray, labels: np.ndarray) -> TensorDataset:
        pixels = torch.tensor(images[: self.limit], dtype=torch.float32).unsqueeze(1) / 255
        scaled = (pixels >= 0.5).float() if self.binary else (pixels - self.MEAN) / self.STD
        return TensorDataset(scaled, torch.tensor(labels[: self.limit], dtype=torch.int64))

    def _folder(self) -> Path:
        if self.root is not None:
            root = Path(self.root).expanduser()
            if not _complete(root):
                raise FileNotFoundError(_not_found(f"data.init_args.root: {root} does not have all files"))
            return root
        for folder in (DEBIAN_FOLDER, cache_folder()):
            if _complete(folder):
                return folder
        return _download(self.url, cache_folder())


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Images shifted by up to PADDING pixels in each direction, filled with `black`; half are flipped."""

    PADDING = 2

    def __init__(self, samples: TensorDataset, black: float) -> None:
        self.samples, self.black = samples, black

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, label = self.samples[index]
        generator = sample_generator()
        top, left = torch.randint(2 * self.PADDING + 1, (2,), generator=generator).tolist()
        flipped = bool(torch.rand((), generator=generator) < 0.5)
        height, width = image.shape[-2:]
        padded = nn.functional.pad(image, [self.PADDING] * 4, value=self.black)
        moved = padded[..., top : top + height, left : left + width]
        return (moved.flip(-1) if flipped else moved), label


def cache_folder() -> Path:
    """Returns the folder into which the files are downloaded."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "syncbn" / "fashion-mnist"


def _not_found(why: str) -> str:
    return (
        f"Fashion-MNIST was not found ({why}). Three ways to provide it: set data.init_args.root to a folder "
        f"with the files {', '.join(MD5)}; install Debian's package dataset-fashion-mnist; or let this "
        f"machine reach {URL} once, so that they are downloaded into {cache_folder()}."
    )


def _candidates(folder: Path, name: str) -> Iterator[Path]:
    yield folder / name
    yield folder / name.removesuffix(".gz")


def _complete(folder: Path) -> bool:
    return all(any(path.is_file() for path in _candidates(folder, name)) for name in MD5)


def _download(url: str, folder: Path) -> Path:
    import pooch  # type: ignore[import-untyped, unused-ignore]

    try:
        for name, md5 in MD5.items():
            pooch.retrieve(f"{url}/{name}", f"md5:{md5}", fname=name, path=folder, progressbar=True)
    except (OSError, ValueError) as error:
        # Either the connection failed, or a file does not match its checksum.
        raise FileNotFoundError(_not_found(f"download from {url}: {error}")) from error
    return folder


def _split(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    images = _read_idx(folder, f"{split}-images-idx3-ubyte.gz")
    labels = _read_idx(folder, f"{split}-labels-idx1-ubyte.gz")
    if len(images) != len(labels):
        raise ValueError(f"{folder}: {len(images)} {split} images but {len(labels)} labels")
    return images, labels


def _read_idx(folder: Path, name: str) -> np.ndarray:
    """Reads the array of an IDX file: two zero bytes, type 8 (uint8), number of dimensions, their sizes."""
    path = next(path for path in _candidates(folder, name) if path.is_file())
    raw = path.read_bytes()
    try:
        content = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        zero, kind, dimensions = struct.unpack(">HBB", content[:4])
        if zero != 0 or kind != 8:
            raise ValueError("not an IDX file of bytes")
        sizes = struct.unpack(f">{dimensions}I", content[4 : 4 + 4 * dimensions])
        return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(sizes)
    except (struct.error, zlib.error, ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is broken: {error}") from error
