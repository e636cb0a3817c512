"""The data of a run as a dataset of MLflow: the class that makes it, and its arguments. Reads no data."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from training.spec import Spec

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

_LONGEST_SOURCE = 60_000  # characters; MLflow accepts 65,535 bytes
_CONTEXT = "training"


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """name: the class path. digest: equal for equal classes, arguments and code. source: JSON."""

    name: str
    digest: str
    source: str

    @classmethod
    def of(cls, spec: Spec) -> Dataset:
        """Returns the dataset of a spec's `data` or, if the model has the loaders, of its `model`."""
        model, own = spec.trained()
        data = own or model
        facts = {"class_path": data.class_path, "init_args": data.init_args, "code": spec.code}
        text = json.dumps(facts, sort_keys=True)
        tags = {
            key: value if isinstance(value, str) else json.dumps(value, sort_keys=True)
            for key, value in facts.items()
        }
        source = _source({key: tags[key] for key in facts if facts[key]})
        if len(source) > _LONGEST_SOURCE:
            source = _source({"class_path": data.class_path, "init_args": "see the run's parameters"})
        return cls(name=data.class_path, digest=hashlib.sha256(text.encode()).hexdigest()[:8], source=source)

    def as_input(self) -> DatasetInput:
        """Returns the dataset as the input of a run, for training."""
        from mlflow.entities import Dataset as Entity
        from mlflow.entities import DatasetInput, InputTag

        # "code" is the type of mlflow.data's CodeDatasetSource, whose import would take seconds.
        entity = Entity(name=self.name, digest=self.digest, source_type="code", source=self.source)
        return DatasetInput(entity, tags=[InputTag("mlflow.data.context", _CONTEXT)])


def _source(tags: dict[str, str]) -> str:
    return json.dumps({"tags": tags})
