from __future__ import annotations

import json
from pathlib import Path

import pytest

from service.client import Client
from tests.service.cli.command_line import Syncbn
from tests.service.live_api import SPEC, Service
from tests.service.user_code.repository import make_repository


def test_submit_queues_a_job_and_says_how_to_watch_it(syncbn: Syncbn, client: Client, spec: str) -> None:
    result = syncbn("submit", spec)

    (job,) = client.jobs()
    assert result.exit_code == 0
    assert f"queued digits {job.id}" in result.stdout
    assert f"syncbn logs -f {job.id}" in result.stdout


def test_submit_json_is_the_job_and_nothing_else(syncbn: Syncbn, client: Client, spec: str) -> None:
    result = syncbn("submit", spec, "--json")

    (job,) = client.jobs()
    assert json.loads(result.stdout)["id"] == job.id
    assert result.stderr == ""


def test_submit_reads_stdin_and_applies_set(syncbn: Syncbn) -> None:
    result = syncbn(
        "submit", "-", "--set", "resources.workers=3", "--set", "name=other", "--json", stdin=json.dumps(SPEC)
    )

    job = json.loads(result.stdout)
    assert (job["name"], job["spec"]["resources"]["workers"]) == ("other", 3)


def test_submit_again_with_a_key_is_the_same_job(syncbn: Syncbn, spec: str) -> None:
    ids = {json.loads(syncbn("submit", spec, "--key", "k", "--json").stdout)["id"] for _ in range(2)}

    assert len(ids) == 1


def test_submit_uploads_code(syncbn: Syncbn, service: Service, tmp_path: Path, spec: str) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "my_models.py").write_text("class Net: ...\n")

    result = syncbn("submit", spec, "--code", str(code), "--set", "model.class_path=my_models.Net", "--json")

    assert result.exit_code == 0, result.stderr
    digest = json.loads(result.stdout)["spec"]["code"]
    assert service.store.has_code(digest)


def test_submit_says_who_submits_which_commit(
    syncbn: Syncbn, tmp_path: Path, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "ada")
    commit = make_repository(tmp_path / "code", {"nets.py": "class Net: ...\n"})
    submit = (
        "submit",
        spec,
        "--code",
        str(tmp_path / "code"),
        "--set",
        "model.class_path=nets.Net",
        "--json",
    )

    found = json.loads(syncbn(*submit).stdout)["spec"]["source"]
    given = json.loads(syncbn(*submit, "--set", f"source.commit={'ab' * 20}").stdout)["spec"]["source"]

    assert found == {"user": "ada", "commit": commit, "dirty": False, "url": None}
    assert given == {"user": "ada", "commit": "ab" * 20, "dirty": None, "url": None}
    secret = syncbn(*submit, "--set", "source.url=https://me:hunter2@example.org/nets.git")
    assert secret.exit_code == 2
    assert "source.url" in secret.stderr
    assert "hunter2" not in secret.stderr


def test_a_bad_spec_names_each_key_and_what_was_meant(syncbn: Syncbn, spec: str) -> None:
    result = syncbn("submit", spec, "--set", "trainin.seed=1", "--set", "resources.workers=many")

    assert result.exit_code == 2
    assert result.stdout == ""
    assert "error: The spec is not valid\n" in result.stderr
    assert "  trainin: unknown key; did you mean training?\n" in result.stderr
    assert "  resources.workers: should be" in result.stderr


def test_a_refusal_with_json_is_a_problem_document_on_stderr(syncbn: Syncbn, spec: str) -> None:
    result = syncbn("submit", spec, "--set", "trainin.seed=1", "--json")

    problem = json.loads(result.stderr)
    assert (result.exit_code, result.stdout) == (2, "")
    assert (problem["status"], problem["errors"][0]["key"]) == (422, "trainin")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: [", "neither YAML nor JSON"),
        ("just words", "a spec is a mapping"),
        ("{model: .nan}", "a value that JSON cannot hold"),
        ('{name: "\\ud800"}', "a value that JSON cannot hold"),
    ],
)
def test_a_file_that_is_no_spec_is_refused(syncbn: Syncbn, text: str, said: str) -> None:
    result = syncbn("submit", "-", stdin=text)

    assert result.exit_code == 2
    assert said in result.stderr


def test_a_missing_file_or_code_directory_is_named(syncbn: Syncbn, spec: str) -> None:
    no_file, no_code = syncbn("submit", "nowhere.yaml"), syncbn("submit", spec, "--code", "nowhere")

    assert (no_file.exit_code, no_code.exit_code) == (2, 2)
    assert "cannot read nowhere.yaml: No such file" in no_file.stderr
    assert "nowhere is not a directory" in no_code.stderr


def test_validate_says_what_would_run(syncbn: Syncbn, spec: str, client: Client) -> None:
    result = syncbn("validate", spec, "--set", "training.global_batch_size=7", "--set", "resources.workers=3")

    assert result.exit_code == 0
    assert "3 workers, 3 CPUs" in result.stdout
    assert "3, 2, 2" in result.stdout
    assert json.loads(syncbn("validate", spec, "--json").stdout)["valid"]
    assert list(client.jobs()) == []


def test_validate_says_when_a_job_can_never_run(syncbn: Syncbn, spec: str) -> None:
    result = syncbn("validate", spec, "--set", "resources.workers=30")

    assert "never on this cluster as it is" in result.stdout


def test_schema_is_json_schema_and_needs_no_server(syncbn: Syncbn) -> None:
    schema = json.loads(syncbn("schema", SYNCBN_URL="http://127.0.0.1:1").stdout)

    assert "training" in schema["properties"]


def test_an_import_that_fails_where_jobs_run_is_refused_and_one_that_may_fail_is_noted(
    syncbn: Syncbn, client: Client, tmp_path: Path, spec: str
) -> None:
    code = tmp_path / "code"
    code.mkdir()
    given = ("--code", str(code), "--set", "model.class_path=nets.Net")
    (code / "nets.py").write_text("import absent_one\nclass Net: ...\n")

    for command in ("submit", "validate", "train"):
        refused = syncbn(command, spec, *given)
        assert refused.exit_code == 2
        assert "module nets (line 1) imports absent_one, which is neither in the code nor" in refused.stderr
    assert list(client.jobs()) == []

    (code / "nets.py").write_text("class Net:\n    def forward(self):\n        import absent_one\n")
    (note,) = json.loads(syncbn("validate", spec, *given, "--json").stdout)["notes"]
    assert "module nets (line 3) imports absent_one" in note
