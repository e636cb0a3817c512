"""The stable import path of `sample_generator` for data sets."""

from training.loading.sample_rng import sample_generator

__all__ = ["sample_generator"]
