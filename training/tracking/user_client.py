"""The MLflow client that user code finds as `self.logger.experiment`. Importing it takes seconds."""

from __future__ import annotations

from typing import NoReturn

from mlflow import MlflowClient

FIGURE = 'self.logger.experiment.log_figure(self.logger.run_id, figure, "NAME.png")'
INSTEAD = {
    "log": "self.log(name, value) or self.log_dict(values); for images self.logger.log_image(name, images)",
    "add_scalar": "self.log(name, value)",
    "add_scalars": "self.log_dict(values)",
    "add_image": "self.logger.log_image(name, [image])",
    "add_images": "self.logger.log_image(name, list(images))",
    "add_figure": FIGURE,
    "add_histogram": f"a histogram of matplotlib, {FIGURE}",
    "add_text": 'self.logger.experiment.log_text(self.logger.run_id, text, "NAME.txt")',
    "add_hparams": "self.save_hyperparameters() or self.logger.log_hyperparams(values)",
}
"""Methods of the clients of TensorBoard and Weights & Biases, and what does the same here."""


class UserClient(MlflowClient):  # type: ignore[misc]
    """An MlflowClient that says what to use instead of another tracker's methods."""

    def __getattr__(self, name: str) -> NoReturn:
        instead = f"; use {INSTEAD[name]}" if name in INSTEAD else ""
        raise AttributeError(
            f"self.logger.experiment has no {name!r}: a job logs to MLflow, and this is an MlflowClient"
            + instead
        )
