"""The path by which data sets import `sample_generator`, wherever it is kept."""

from training.loading.sample_rng import sample_generator

__all__ = ["sample_generator"]
