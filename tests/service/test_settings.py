from __future__ import annotations

import pytest

from service.errors import Refused
from service.settings import Settings


def test_without_variables_everything_is_on_this_machine() -> None:
    settings = Settings.from_env({})

    assert settings == Settings()
    assert settings.api_key is None
    assert settings.max_code_bytes == 50 * 2**20
    assert settings.mlflow_public_url == settings.mlflow_url == "http://127.0.0.1:5000"


def test_variables_are_read_and_empty_ones_count_as_not_set() -> None:
    settings = Settings.from_env(
        {
            "SYNCBN_DATABASE_URL": "postgresql://u:p@db/x",
            "SYNCBN_MLFLOW_URL": "http://mlflow:5000",
            "SYNCBN_API_KEY": "",
            "SYNCBN_MAX_CODE_BYTES": "1000",
            "storage": "not ours",
        }
    )

    assert settings.database_url == "postgresql://u:p@db/x"
    assert settings.mlflow_public_url == "http://mlflow:5000"
    assert settings.api_key is None
    assert settings.max_code_bytes == 1000
    assert settings.storage == "checkpoints"


@pytest.mark.parametrize("name", ["SYNCBN_RAY_TOKEN", "RAY_AUTH_TOKEN"])
def test_rays_token_goes_by_our_name_or_rays(name: str) -> None:
    token = Settings.from_env({name: "t"}).ray_token

    assert token is not None
    assert token.get_secret_value() == "t"


def test_no_secret_is_shown() -> None:
    settings = Settings.from_env(
        {
            "SYNCBN_API_KEY": "hush1",
            "SYNCBN_RAY_TOKEN": "hush2",
            "SYNCBN_DATABASE_URL": "postgresql://u:hush3@db/x",
        }
    )

    assert "hush" not in repr(settings)
    assert "hush" not in str(settings)


@pytest.mark.parametrize("url", ["s3://bucket", "s3://my.bucket-1/runs/of=us", "s3://bucket/runs/"])
def test_checkpoints_may_be_in_a_bucket(url: str) -> None:
    assert Settings().checkpoints is None
    assert Settings.from_env({"SYNCBN_CHECKPOINTS": url}).checkpoints == url.rstrip("/")


@pytest.mark.parametrize(
    "url",
    [
        "/data/checkpoints",
        "file:///data/checkpoints",
        "http://minio:9000/bucket",
        "s3:bucket",
        "s3://",
        "s3:///prefix",
        "s3://minio:9000/bucket",
        "s3://key:hush@bucket/prefix",
        "s3://bucket/prefix?endpoint_override=minio",
        "s3://bucket//prefix",
        "s3://bucket/a b",
    ],
)
def test_what_is_no_url_of_a_bucket_is_refused_with_the_way_out(url: str) -> None:
    with pytest.raises(Refused, match=r"SYNCBN_CHECKPOINTS: must be s3://BUCKET.*SYNCBN_STORAGE") as refused:
        Settings.from_env({"SYNCBN_CHECKPOINTS": url})

    assert "hush" not in str(refused.value)


def test_a_bad_value_is_refused_by_the_name_of_its_variable() -> None:
    with pytest.raises(Refused, match="SYNCBN_MAX_CODE_BYTES"):
        Settings.from_env({"SYNCBN_MAX_CODE_BYTES": "much"})
