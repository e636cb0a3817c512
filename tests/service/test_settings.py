from __future__ import annotations

import pytest

from service.errors import Refused
from service.settings import Settings
from tests.service.examples import settings_from


def test_without_variables_everything_is_on_this_machine() -> None:
    settings = settings_from({})

    assert settings == Settings()
    assert settings.api_key is None
    assert settings.max_code_bytes == 50 * 2**20
    assert settings.mlflow_public_url == settings.mlflow_url == "http://127.0.0.1:5000"


def test_variables_are_read_and_empty_ones_count_as_not_set() -> None:
    settings = settings_from(
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
    token = settings_from({name: "t"}).ray_token

    assert token is not None
    assert token.get_secret_value() == "t"


def test_no_secret_is_shown() -> None:
    settings = settings_from(
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
    assert settings_from({"SYNCBN_CHECKPOINTS": url}).checkpoints == url.rstrip("/")


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
        settings_from({"SYNCBN_CHECKPOINTS": url})

    assert "hush" not in str(refused.value)


@pytest.mark.parametrize(
    ("value", "wanted"), [("much", "a valid integer.*; got 'much'$"), ("0", "greater .* to 1; got '0'$")]
)
def test_a_number_that_is_not_valid_is_refused_and_shown(value: str, wanted: str) -> None:
    with pytest.raises(Refused, match=rf"^SYNCBN_MAX_CODE_BYTES: .*{wanted}"):
        settings_from({"SYNCBN_MAX_CODE_BYTES": value})


def test_each_bad_variable_is_named_and_no_other() -> None:
    with pytest.raises(Refused) as refused:
        settings_from({"SYNCBN_DATABASE_URL": "nonsense", "SYNCBN_START_SECONDS": "soon"})

    assert [problem.key for problem in refused.value.problems] == [
        "SYNCBN_DATABASE_URL",
        "SYNCBN_START_SECONDS",
    ]


@pytest.mark.parametrize(
    "address", ["10.0.0.1:6379", "head:26379", "[::1]:6379", "head.ray.svc.cluster.local:1"]
)
def test_rays_head_is_a_host_and_a_port(address: str) -> None:
    assert settings_from({"SYNCBN_RAY_ADDRESS": address}).ray_address == address


@pytest.mark.parametrize(
    "address", ["auto", "head", "http://head:8265", "ray://head:10001", "head:port", "::1"]
)
def test_another_address_of_ray_is_refused_with_what_is_meant(address: str) -> None:
    with pytest.raises(Refused, match="SYNCBN_RAY_ADDRESS: must be HOST:PORT of Ray's head"):
        settings_from({"SYNCBN_RAY_ADDRESS": address})


def test_the_variable_of_earlier_versions_is_refused_with_the_one_that_replaces_it() -> None:
    with pytest.raises(Refused, match=r"SYNCBN_RAY_URL: is not read .* SYNCBN_RAY_ADDRESS to HOST:PORT"):
        settings_from({"SYNCBN_RAY_URL": "http://head:8265", "SYNCBN_RAY_ADDRESS": "head:6379"})

    assert settings_from({"SYNCBN_RAY_URL": ""}) == Settings()


@pytest.mark.parametrize(
    "url",
    ["nonsense", "mysql://u:hush@db/x", "postgresql://u:hush@db:port/x", "sqlite:/x", "/data/syncbn.db"],
)
def test_what_is_no_url_of_a_database_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(
        Refused, match="SYNCBN_DATABASE_URL: must be sqlite:///PATH or postgresql://"
    ) as refused:
        settings_from({"SYNCBN_DATABASE_URL": url})

    assert "hush" not in str(refused.value)


def test_a_process_that_is_given_the_variables_has_the_same_settings() -> None:
    settings = settings_from(
        {
            "SYNCBN_DATABASE_URL": "postgresql://u:hush@db/x",
            "SYNCBN_RAY_TOKEN": "t",
            "SYNCBN_CHECKPOINTS": "s3://bucket/runs",
            "SYNCBN_MAX_CODE_BYTES": "7",
        }
    )

    assert settings_from(settings.variables()) == settings
    assert settings_from(Settings().variables()) == Settings()
    assert "SYNCBN_API_KEY" not in settings.variables()
