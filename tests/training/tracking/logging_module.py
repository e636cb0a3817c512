"""A user's module that logs in every way: through its logger, through MLflow's functions, and by hand."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.loggers import MLFlowLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

EXPERIMENT_OF_USER = "an experiment that the code sets"


class Data(LightningDataModule):
    def __init__(self, fraction: float = 0.5) -> None:  # noqa: ARG002 (saved)
        super().__init__()
        self.save_hyperparameters()

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(torch.ones(8, 2)))


class Module(LightningModule):
    """Logs in its first epoch and, from MLflow's functions, in the constructor and at the end."""

    def __init__(self, lr: float = 0.1, name: str = "mine", odd: Any = None) -> None:  # noqa: ARG002
        super().__init__()
        import mlflow

        self.save_hyperparameters()
        self.layer = nn.Linear(2, 1)
        mlflow.set_experiment(EXPERIMENT_OF_USER)
        active = mlflow.active_run()
        assert active is not None
        mlflow.log_param("known_early", "yes")

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        loss: Tensor = self.layer(batch[0]).square().mean()
        self.log("train_loss", loss)
        assert self.logger is not None
        self.logger.log_metrics({"by_logger": float(index), "text": "left out"}, step=self.global_step)  # type: ignore[dict-item]
        self.logger.log_metrics({"at_this_step": float(index)})
        return loss

    def on_train_epoch_end(self) -> None:
        from matplotlib.figure import Figure

        logger = self.logger
        assert isinstance(logger, MLFlowLogger)
        logger.experiment.log_figure(logger.run_id, Figure(), "by_logger.png")
        logger.experiment.log_dict(logger.run_id, {"a": 1}, "by_logger.json")
        logger.experiment.log_metric(logger.run_id, "by_client", 2.0, step=3)
        logger.log_image("images", [torch.zeros(3, 4, 4)], step=1)  # type: ignore[attr-defined]
        self._log_by_mlflow(Figure())

    def _log_by_mlflow(self, figure: Any) -> None:
        import mlflow

        mlflow.log_metric("by_function", 1.0, step=5)
        mlflow.log_figure(figure, "by_function.png")
        mlflow.log_text("text", "folder/text.txt")
        mlflow.set_tag("tag", "value")
        mlflow.get_artifact_uri()
        with mlflow.start_run() as run:
            mlflow.log_param("within", run.info.run_id)
        with mlflow.start_run(run_id=run.info.run_id):
            mlflow.log_metric("resumed", 1.0)
        with mlflow.start_run(run_name="part", nested=True):
            mlflow.log_metric("of_part", 1.0)
        mlflow.end_run()
        mlflow.log_metric("after_the_end", 1.0)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.hparams["lr"])
