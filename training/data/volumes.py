"""Synthetic volumes with spheres, by MONAI, for segmentation."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import TensorDataset

from training.data.splits import Splits


class SyntheticVolumes(Splits):
    """Volumes (1, size, size, size) float32 in [0, 1] with overlapping spheres, and their mask, 0 or 1.

    Made by `monai.data.create_test_image_3d`: 1 to `spheres` spheres of other grey values in uniform noise of
    up to `noise`, before the volume is scaled to [0, 1]. The splits differ, and are always the same.
    Raises ImportError without MONAI; ValueError if size is below 16.
    """

    def __init__(
        self,
        size: int = 24,
        train: int = 64,
        val: int = 8,
        test: int = 64,
        *,
        spheres: int = 8,
        noise: float = 0.5,
    ) -> None:
        super().__init__()
        if size < 16:
            raise ValueError(f"size is {size}; spheres need at least 16 voxels in each direction")
        self.size, self.spheres, self.noise = size, spheres, noise
        self.numbers = (train, val, test)

    def setup(self, stage: str | None = None) -> None:  # noqa: ARG002 (Lightning's signature)
        self.train, self.val, self.test = (
            self._made(number, seed) for seed, number in enumerate(self.numbers)
        )

    def _made(self, number: int, seed: int) -> TensorDataset:
        try:
            from monai.data import create_test_image_3d
        except ImportError as error:
            raise ImportError(
                "SyntheticVolumes needs MONAI: pip install monai, or environment.requirements: [monai]"
            ) from error

        draw = np.random.RandomState(seed)
        pairs = [
            create_test_image_3d(
                *[self.size] * 3,
                num_objs=int(draw.randint(1, self.spheres + 1)),
                rad_max=self.size // 4,
                rad_min=self.size // 8,
                noise_max=self.noise,
                num_seg_classes=1,
                channel_dim=0,
                random_state=draw,
            )
            for _ in range(number)
        ]
        images, masks = (
            torch.as_tensor(np.stack(each), dtype=torch.float32) for each in zip(*pairs, strict=True)
        )
        return TensorDataset(images, masks)
