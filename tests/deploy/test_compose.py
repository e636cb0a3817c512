"""Whether Compose accepts the compose files, what comes of them, and what goes into the image. No engine.

Compose 1 itself reads them here; for Compose 2 there is the Compose Specification's schema, which it has too.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema  # type: ignore[import-untyped]
from docker.utils.build import exclude_paths  # type: ignore[import-untyped]
from pydantic import SecretStr

from service.settings import Settings, names_of
from tests.deploy.manifests import ON_EVERY_NODE
from tests.deploy.programs import check_line

ROOT = Path(__file__).parents[2]
FILES = ("docker-compose.yml", "deploy/compose.gpu.yaml")
SECRETS = ("SYNCBN_API_KEY", "RAY_AUTH_TOKEN", "POSTGRES_PASSWORD")
SECRETS_KEY = "SYNCBN_SECRETS_KEY"  # made with them; a cluster of an earlier version has none
# What .env.example shows as an example of what could be there; its other settings are the defaults.
EXAMPLES = {"DATASETS", "SYNCBN_CHECKPOINTS", "MLFLOW_ARTIFACTS"}
# Of no use to who has one machine and one image of each.
SCHEDULER = "syncbn-scheduler"  # deploy/scheduler.sh, in the image
VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*)|:\?[^}]*)?\}")

needs_compose = pytest.mark.skipif(
    shutil.which("docker-compose") is None, reason="docker-compose, which reads the files, is not installed"
)

Document = dict[str, Any]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return copied_to(tmp_path)


@pytest.fixture
def project(tree: Path) -> Path:
    """The same with new secrets in .env."""
    make_secrets(tree)
    return tree


def copied_to(folder: Path) -> Path:
    """What belongs to the containers, without secrets."""
    for name in ("docker-compose.yml", ".gitignore", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "deploy", folder / "deploy")
    return folder


def make_secrets(tree: Path) -> str:
    """What the script says."""
    command = [tree / "deploy" / "secrets.sh"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def compose_config(
    project: Path, *options: str, gpu: bool = False, **variables: str
) -> subprocess.CompletedProcess[str]:
    files = [f"--file={name}" for name in FILES[: 2 if gpu else 1]]
    environment = {"PATH": os.environ["PATH"], "HOME": str(project), **variables}
    command = ["docker-compose", *files, "config", *options]
    return subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def resolved(project: Path, *, gpu: bool = False, **variables: str) -> Document:
    """What Compose makes of the files."""
    done = compose_config(project, gpu=gpu, **variables)
    assert done.returncode == 0, done.stderr
    document: Document = yaml.safe_load(done.stdout)
    for service in document["services"].values():  # Compose 1 prints these now in one order, now in another
        service["networks"] = sorted(service["networks"])
        service["volumes"] = sorted(service.get("volumes", []), key=str)
    return document


@pytest.fixture(scope="module", params=[False, True], ids=["without GPUs", "with GPUs"])
def document(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Document:
    tree = copied_to(tmp_path_factory.mktemp("project"))
    make_secrets(tree)
    return resolved(tree, gpu=request.param)


@pytest.fixture
def services(document: Document) -> Document:
    found: Document = document["services"]
    return found


# Validity


def interpolated(name: str) -> Document:
    """One file as written, with the defaults of its variables and its merges resolved."""
    text = VARIABLE.sub(
        lambda match: "x" if match[2] is None else match[2], (ROOT / name).read_text(encoding="utf-8")
    )
    document: Document = yaml.safe_load(text)
    return document


def check(document: Document) -> None:
    """Raises for what the Compose Specification does not know."""
    schema = get_builtin_schema("vendor.compose-spec")
    jsonschema.Draft202012Validator(schema).validate(document)


@pytest.mark.parametrize("name", FILES)
def test_each_file_satisfies_the_compose_specification(name: str) -> None:
    check(interpolated(name))


@needs_compose
def test_what_compose_makes_of_them_satisfies_it_too(document: Document) -> None:
    assert document["services"].keys() == interpolated(FILES[0])["services"].keys()

    check(document)


@needs_compose
@pytest.mark.parametrize("gpu", [False, True])
def test_compose_accepts_the_files(project: Path, gpu: bool) -> None:
    done = compose_config(project, "--quiet", gpu=gpu)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_spoilt_file_is_refused() -> None:
    spoilt = interpolated(FILES[0])
    spoilt["services"]["api"]["healthcheck"].update(intervall="5s")

    with pytest.raises(jsonschema.ValidationError):
        check(spoilt)


# What comes of it


def published(service: Document) -> list[tuple[str, str]]:
    """(address of this machine, its port) of each; Compose 1 prints them short, Compose 2 long."""
    ports = [
        port if isinstance(port, str) else f"{port.get('host_ip')}:{port['published']}:{port['target']}"
        for port in service.get("ports", [])
    ]
    return [(address, number) for address, number, _ in (port.rsplit(":", 2) for port in ports)]


@needs_compose
def test_only_the_api_and_mlflow_are_published_and_to_this_machine_alone(services: Document) -> None:
    assert {name: published(service) for name, service in services.items() if published(service)} == {
        "api": [("127.0.0.1", "8000")],
        "mlflow": [("127.0.0.1", "5000")],
    }


@needs_compose
def test_mlflow_stays_on_this_machine_where_the_api_is_published(project: Path) -> None:
    services = resolved(project, PUBLISH="0.0.0.0", PORT="80", MLFLOW_PORT="81")["services"]

    assert published(services["api"]) == [("0.0.0.0", "80")]
    assert published(services["mlflow"]) == [("127.0.0.1", "81")]


def waits(services: Document) -> Iterator[tuple[str, str]]:
    """(service that is waited for, what for)."""
    for service in services.values():
        for name, wait in service.get("depends_on", {}).items():
            yield name, wait["condition"]


def ours(services: Document) -> Document:
    return {name: service for name, service in services.items() if "build" in service}


@needs_compose
def test_what_runs_on_is_watched_bounded_and_restarted(services: Document) -> None:
    ending = {name for name, condition in waits(services) if condition == "service_completed_successfully"}
    assert ending == {"migrate"}

    for name, service in services.items():
        assert service["mem_limit"], name
        assert service["logging"]["driver"] == "json-file", name
        assert {"max-size", "max-file"} <= service["logging"]["options"].keys(), name
        assert service["restart"] == ("on-failure" if name in ending else "unless-stopped"), name
        assert name in ending or len(service["healthcheck"]["test"]) > 1, name


@needs_compose
def test_services_wait_for_what_they_need_to_work_not_just_to_start(services: Document) -> None:
    assert {condition for _, condition in waits(services)} == {
        "service_healthy",
        "service_completed_successfully",
    }
    assert set(services["scheduler"]["depends_on"]) == {"migrate", "mlflow", "ray-head"}


@needs_compose
def test_the_api_needs_the_database_alone(services: Document) -> None:
    api = services["api"]

    assert set(api["depends_on"]) == {"migrate"}
    assert not [name for name in api["environment"] if name.startswith(("RAY_", "SYNCBN_RAY_"))]


def folders(service: Document) -> dict[str, str]:
    """Where each volume is, and "ro" or "rw"; Compose 1 prints them short, Compose 2 long."""
    found = {}
    for volume in service["volumes"]:
        if isinstance(volume, str):
            _, place, *mode = volume.split(":")
            found[place] = mode[0] if mode else "rw"
        else:
            found[volume["target"]] = "ro" if volume.get("read_only") else "rw"
    return found


@needs_compose
def test_runs_are_in_one_folder_for_all_who_write_or_read_them(services: Document) -> None:
    storage = services["scheduler"]["environment"]["SYNCBN_STORAGE"]
    there = {
        name: mode
        for name, service in services.items()
        for place, mode in folders(service).items()
        if place == storage
    }

    assert there == {"scheduler": "rw", "ray-worker": "rw", "api": "ro"}
    assert services["api"]["environment"]["SYNCBN_STORAGE"] == storage


@needs_compose
def test_credentials_of_s3_go_to_those_who_use_them(services: Document) -> None:
    told = {name for name, service in services.items() if "AWS_SECRET_ACCESS_KEY" in service["environment"]}

    assert told == {"mlflow", "ray-worker", "api"}
    urls = [services[name]["environment"]["SYNCBN_CHECKPOINTS"] for name in ("scheduler", "api")]
    assert urls[0] == urls[1]


@needs_compose
def test_our_services_can_write_nowhere_and_gain_no_rights(services: Document) -> None:
    assert ours(services).keys() == services.keys() - {"postgres"}

    for name, service in ours(services).items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
    for name, service in services.items():
        assert "no-new-privileges:true" in service["security_opt"], name
        assert not service.keys() & {"privileged", "cap_add", "devices", "network_mode", "pid", "user"}, name
        assert not any("docker.sock" in str(volume) for volume in service.get("volumes", [])), name


@needs_compose
def test_jobs_have_no_way_out_unless_one_says_so(project: Path) -> None:
    for isolated in (True, False):
        document = resolved(project) if isolated else resolved(project, ISOLATED="false")
        for name in ("ray-head", "ray-worker", "scheduler", "postgres"):
            (network,) = document["services"][name]["networks"]
            assert document["networks"][network].get("internal", False) is isolated, name


def nodes_of_ray(services: Document) -> dict[str, dict[str, Any]]:
    """How Ray understands the command by which each service becomes a node."""
    return {
        name: ray_options(line)
        for name, service in services.items()
        for line in ray_starts(service.get("command") or "")
    }


def ray_starts(command: str) -> list[str]:
    """The words behind `ray start`, of a command or of our script that it names."""
    script = (ROOT / "deploy/scheduler.sh").read_text(encoding="utf-8").replace("\\\n", " ")
    text = re.sub(r'"\$\{SYNCBN_RAY_ADDRESS\b[^"]*"', "ray-head:6379", script)
    return re.findall(r"\bray start (.*?)(?: &)?$", text if command == SCHEDULER else command, re.M)


def ray_options(line: str) -> dict[str, Any]:
    from ray.scripts.scripts import start

    parameters: dict[str, Any] = start.make_context("start", shlex.split(line)).params
    return parameters


@needs_compose
def test_workers_alone_offer_something_to_jobs(services: Document) -> None:
    offered = {
        name: (options["num_cpus"], options["num_gpus"]) for name, options in nodes_of_ray(services).items()
    }

    assert offered == {"ray-head": (0, 0), "scheduler": (0, 0), "ray-worker": (1, None)}


@needs_compose
def test_nodes_join_the_head_and_are_asked_how_they_are(services: Document) -> None:
    nodes = nodes_of_ray(services)
    (head,) = [name for name, options in nodes.items() if options["head"]]
    address = f"{head}:{nodes[head]['port']}"

    assert services["scheduler"]["environment"]["SYNCBN_RAY_ADDRESS"] == address
    for name, options in nodes.items():
        assert options["block"], name
        # As on Kubernetes.
        assert services[name]["environment"].items() >= ON_EVERY_NODE.items(), name
        assert name == head or options["address"] == address, name
        assert f":{options['dashboard_agent_listen_port']}/api/healthz" in str(
            services[name]["healthcheck"]["test"]
        )


@needs_compose
def test_nobody_speaks_to_ray_without_the_token(services: Document) -> None:
    with_token = {name for name, service in services.items() if "RAY_AUTH_TOKEN" in service["environment"]}
    assert with_token == nodes_of_ray(services).keys()

    environments = [services[name]["environment"] for name in with_token]
    assert {each["RAY_AUTH_MODE"] for each in environments} == {"token"}
    (token,) = {each["RAY_AUTH_TOKEN"] for each in environments}
    assert len(token) == 64


@needs_compose
def test_gpus_change_the_workers_alone(project: Path) -> None:
    without, with_gpus = (resolved(project, gpu=gpu)["services"] for gpu in (False, True))
    assert "deploy" not in without.pop("ray-worker")

    (reserved,) = with_gpus.pop("ray-worker")["deploy"]["resources"]["reservations"]["devices"]

    assert "gpu" in reserved["capabilities"]
    assert with_gpus == without


@needs_compose
def test_the_service_knows_all_that_it_is_told(services: Document) -> None:
    known = {name for field in Settings.model_fields for name in names_of(field)}

    told = {name for service in services.values() for name in service["environment"] if "SYNCBN_" in name}

    assert "SYNCBN_DATABASE_URL" in told <= known


def commands() -> Iterator[str]:
    for service in ours(interpolated(FILES[0])["services"]).values():
        command = service["command"]
        _, shell, script = command.partition("sh -c ")
        if command == SCHEDULER:
            yield from [
                "syncbn serve --role scheduler",
                *(f"ray start {line}" for line in ray_starts(command)),
            ]
        else:
            yield from shlex.split(script)[0].split(" && ") if shell else [command]


@pytest.mark.parametrize("command", list(commands()))
def test_programs_know_the_commands_that_they_are_started_with(command: str) -> None:
    check_line(shlex.split(command))


# Settings and secrets


def example() -> tuple[set[str], dict[str, str]]:
    """Names that .env.example leaves empty, to be filled in; and what it has in comments."""
    text = (ROOT / "deploy/.env.example").read_text(encoding="utf-8")
    return set(re.findall(r"^(\w+)=$", text, re.M)), dict(re.findall(r"^#(\w+)=(.*)$", text, re.M))


def passed_on() -> set[str]:
    """Names in an environment without a value: Compose takes that of its own."""
    services = interpolated(FILES[0])["services"].values()
    return {name for service in services for name, value in service["environment"].items() if value is None}


def test_the_example_names_every_variable_and_no_other() -> None:
    used = {match[1] for name in FILES for match in VARIABLE.finditer((ROOT / name).read_text())}
    empty, commented = example()

    assert empty == {*SECRETS, SECRETS_KEY}
    assert empty | commented.keys() == used | passed_on()


@needs_compose
def test_what_the_example_has_in_comments_is_the_default(project: Path) -> None:
    defaults = {name: value for name, value in example()[1].items() if name not in EXAMPLES | passed_on()}
    assert {"PUBLISH", "WORKER_MEMORY", "MLFLOW_HOST", "ISOLATED"} <= defaults.keys()

    for gpu in (False, True):
        shown = {name: value for name, value in defaults.items() if not (gpu and name == "WORKER_SHM")}
        assert resolved(project, gpu=gpu, **shown) == resolved(project, gpu=gpu)


@needs_compose
def test_every_setting_in_env_arrives(project: Path) -> None:
    values = {name: str(4001 + number) for number, name in enumerate(sorted(example()[1]))}
    values |= {"PUBLISH": "10.11.12.13", "DATASETS": "/there", "ISOLATED": "false"}

    with (project / ".env").open("a") as file:
        file.writelines(f"{name}={value}\n" for name, value in values.items())

    done = compose_config(project, gpu=True)
    assert done.returncode == 0, done.stderr
    assert {name: value for name, value in values.items() if value not in done.stdout} == {}


@needs_compose
@pytest.mark.parametrize("missing", SECRETS)
def test_without_a_secret_compose_says_what_to_do(project: Path, missing: str) -> None:
    env = project / ".env"
    env.write_text(re.sub(rf"^{missing}=.*$", f"{missing}=", env.read_text(), flags=re.M))

    done = compose_config(project, "--quiet")

    assert done.returncode != 0
    assert "run make secrets" in done.stderr


@needs_compose
def test_without_env_compose_says_what_to_do(tree: Path) -> None:
    done = compose_config(tree, "--quiet")

    assert done.returncode != 0
    assert "run make secrets" in done.stderr


def secrets_in(text: str) -> dict[str, str]:
    return dict(re.findall(r"^(\w+)=([0-9a-f]{64})$", text, re.M))


def test_secrets_are_made_once_and_for_one_user(project: Path) -> None:
    env = project / ".env"
    text = env.read_text()

    said = make_secrets(project)

    assert secrets_in(text).keys() == set(SECRETS)
    (key,) = re.findall(rf"^{SECRETS_KEY}=(.+)$", text, re.M)
    assert Settings(secrets_key=SecretStr(key)).secrets_key
    assert env.stat().st_mode & 0o777 == 0o600
    assert env.read_text() == text
    assert "nothing changed" in said
    assert [path.name for path in project.glob(".env*")] == [".env"]


def test_no_two_secrets_are_the_same(project: Path) -> None:
    first = secrets_in((project / ".env").read_text())
    (project / ".env").unlink()
    make_secrets(project)
    second = secrets_in((project / ".env").read_text())

    assert len({*first.values(), *second.values()}) == 6


def git(folder: Path, *words: str) -> list[str]:
    done = subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True, timeout=60)
    return done.stdout.split()


def test_git_takes_no_secrets(project: Path) -> None:
    git(project, "init", "--quiet")
    assert git(project, "ls-files", "--others", "--ignored", "--exclude-standard") == [".env"]

    tracked = git(ROOT, "ls-files", "deploy", "docker-compose.yml")
    assert "deploy/.env.example" in tracked
    assert [name for name in tracked if re.search(r"[0-9a-f]{32}", (ROOT / name).read_text())] == []


# The image


def stages() -> list[str]:
    text = (ROOT / "deploy/Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    return re.split(r"^(?=FROM )", text, flags=re.M)[1:]


def test_the_image_pins_torch_and_asks_for_what_the_service_needs(tree: Path) -> None:
    """The stage's own command, where it runs."""
    (pins,) = (stage for stage in stages() if stage.partition("\n")[0].endswith(" AS pins"))
    (command,) = re.findall(r"^RUN (.*)$", pins, re.M)
    shutil.copy(tree / "deploy/requirements.py", tree)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    subprocess.run(["sh", "-c", command], cwd=tree, env={"PATH": path}, check=True, timeout=60)

    (torch,) = (tree / "torch.txt").read_text().split()
    assert re.fullmatch(r"torch==[\d.]+", torch)
    declared = tomllib.loads((tree / "pyproject.toml").read_text())["project"]
    extras = declared["optional-dependencies"]
    wanted = [*declared["dependencies"], *extras["postgres"], *extras["s3"]]
    assert (tree / "requirements.txt").read_text().splitlines() == wanted
    assert {re.split(r"\W", line)[0] for line in wanted} >= {"torch", "ray", "mlflow", "psycopg", "boto3"}


def test_the_containers_user_is_not_root() -> None:
    *_, last = stages()
    (user,) = re.findall(r"^USER (\S+)$", last, re.M)

    assert re.search(rf"useradd --uid [1-9]\d{{3,}} .* {user}\b", last)


def test_what_the_dockerfile_copies_is_all_that_it_can_see(tmp_path: Path) -> None:
    copied = {
        source
        for words in re.findall(r"^COPY (?!--from)(.*) \S+$", "".join(stages()), re.M)
        for source in words.split()
    }
    files = {source if "." in Path(source).name else f"{source}/module.py" for source in copied}
    hidden = {
        ".env",
        ".git/config",
        "tests/test_x.py",
        "deploy/secrets.sh",
        "demo/up.log",
        ".venv/pyvenv.cfg",
    }
    hidden |= {"training/__pycache__/spec.pyc", "sync_bn/_kernels.so", "docker-compose.yml"}
    for name in files | hidden:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    patterns = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    seen = {name for name in exclude_paths(str(tmp_path), patterns) if (tmp_path / name).is_file()}

    assert all((ROOT / source).exists() for source in copied)
    assert len(files) > 5
    # Compose and Docker add these two, the build's own.
    assert seen - {"Dockerfile", ".dockerignore"} == files
