"""The page that submits: its editor, what it says of a spec, uploads, clones."""

from __future__ import annotations

import zipfile
from datetime import timedelta
from io import BytesIO
from pathlib import Path

import httpx
import pytest
import yaml
from playwright.sync_api import Page

from service.access.caller import Scope
from service.access.keys import new_key
from service.client.local_token import token_file
from service.jobs.expected import ExpectedStart
from service.jobs.job import State, utc_now
from service.user_code.pack import pack
from service.web import shown
from service.web.recipes import recipe
from service.web.submit import as_yaml
from tests.service.examples import make_data, make_spec
from tests.service.live_api import NODE, Service, find_ray
from tests.service.web.conftest import NARROW, WIDE, Console
from training.protocol import Progress
from training.spec import load_yaml, parse_spec

SHORT = "model: {class_path: training.models.MLP}\ndata: {class_path: training.data.Digits}\n"
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(1)>'


def write(page: Page, text: str) -> None:
    page.fill("#spec", text)


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_a_template_is_checked_and_submitted(console: Console, size: tuple[int, int]) -> None:
    console.page.set_viewport_size({"width": size[0], "height": size[1]})
    page = console.open("/submit?template=fashion_resnet18")
    page.wait_for_selector("#verdict:has-text('The spec is valid.')")
    assert "fashion-resnet18" in page.inner_text("#plan")
    page.wait_for_selector("#keys button >> text=priority")
    console.check_fits()
    console.check_accessible()

    page.select_option("#template", "digits")
    page.wait_for_selector("#plan >> text=32 on each worker")
    page.click("#go")

    page.wait_for_selector("h1:has-text('digits')")
    [job] = console.service.store.list_jobs(limit=5)[0]
    assert page.url.endswith(f"/jobs/{job.id}")
    assert job.spec == parse_spec(load_yaml(recipe("digits").text)).model_dump(mode="json")


def test_it_says_when_the_job_would_start_as_the_page_of_a_job_does(console: Console) -> None:
    store = console.service.store
    find_ray(store, nodes=[NODE])
    running, _ = store.create_job(make_spec(resources={"workers": 4}))
    assert store.move(running, State.STARTING, attempt=1, workers=4)
    page = console.open("/submit")
    because = f"when job {running.id} ends"
    for left, said in ((740.0, "12 min"), (95_000.0, "1 d 2 h"), (3_680.0, "1 h 1 min"), (7_220.0, "2 h")):
        progress = Progress(step=3, total_steps=9, epoch=1, eta_seconds=left)
        store.write_progress([(store.get(running.id), progress)])
        write(page, f"{SHORT}# {left}\n")

        page.wait_for_selector(f"#plan >> text=in about {said}, {because}")
        start = ExpectedStart(at=utc_now() + timedelta(seconds=left), because=because)
        assert shown.expected(start) == f"in about {said}, {because}"
    assert "CPU" in page.inner_text("#plan dt:has-text('Waits') + dd")


def test_problems_are_on_their_lines_and_a_click_jumps_there(console: Console) -> None:
    console.allow("422")
    page = console.open("/submit")
    write(page, f"{SHORT}training:\n  max_epochs: none\nworkers: 2\nlabels: {{a: {HOSTILE!r}, b: 1}}\n")

    page.wait_for_selector("#verdict:has-text('problem')")
    assert {"Line 4", "Line 5"} <= set(page.locator("#problems button").all_inner_texts())
    assert "training.max_epochs" in page.inner_text("#problems")
    assert page.locator("#gutter .bad").count() >= 2
    page.click("#problems button >> text=Line 4")
    assert page.evaluate("editor.value.slice(editor.selectionStart, editor.selectionEnd)") == "max_epochs"

    write(page, "model: {class_path: [\n")
    page.wait_for_selector("#problems >> text=neither YAML nor JSON")
    write(page, SHORT)
    page.wait_for_selector("#verdict:has-text('The spec is valid.')")
    assert not page.locator("#problems li").count()


def test_keys_of_the_place_are_shown_and_written(console: Console) -> None:
    console.allow("422")  # a spec that is half written is not valid
    page = console.open("/submit")
    write(page, f"{SHORT}resources:\n  ")
    page.wait_for_selector("#keys-title:has-text('Keys of resources')")
    assert "cpus_per_worker" in page.inner_text("#keys")
    page.keyboard.press("Control+ ")
    assert page.evaluate("document.activeElement.textContent") == "workers"
    page.keyboard.press("Enter")
    page.keyboard.type("2")

    page.wait_for_selector("#plan >> text=2, in all 2 CPUs")
    page.keyboard.press("Enter")
    page.keyboard.type("norm:")
    page.wait_for_selector("#keys-title:has-text('norm')")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.click("#keys button >> text=kind")
    page.keyboard.press("Delete")
    assert page.input_value("#spec").endswith("resources:\n  workers: 2\nnorm:\n  kind: ")
    page.keyboard.press("Escape")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") != "spec"


def test_a_folder_is_uploaded_as_the_command_line_does(console: Console, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    for path, text in {
        "nets.py": "import torch\n\nclass Net(torch.nn.Linear):\n    pass\n",
        "help/ä.txt": "x" * 5000,
        ".git/config": "no",
        "__pycache__/nets.pyc": "no",
        "venv/pyvenv.cfg": "no",
        "venv/lib.py": "no",
        "empty.py": "",
    }.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    page = console.open("/submit")
    write(
        page,
        "model: {class_path: nets.Net, init_args: {in_features: 64, out_features: 10}}\n"
        "data: {class_path: training.data.Digits}",
    )

    page.set_input_files("#folder", folder)

    page.wait_for_selector("#uploaded:has-text('Uploaded 3 files')")
    page.wait_for_selector("#verdict:has-text('The spec is valid.')")
    digest = load_yaml(page.input_value("#spec"))["code"]  # type: ignore[index]
    sent, packed = (
        {
            entry.filename: (archive.read(entry), entry.external_attr, entry.date_time)
            for entry in archive.infolist()
        }
        for archive in map(
            zipfile.ZipFile, map(BytesIO, (console.service.store.get_code(digest), pack(folder)))
        )
    )
    assert sent == packed

    console.allow("422")
    (tmp_path / "torch.py").write_text("")
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.write(tmp_path / "torch.py", "torch.py")
    page.set_input_files("#archive", tmp_path / "bad.zip")
    page.wait_for_selector("#uploaded.problem:has-text('torch.py')")
    page.click("#go")
    page.wait_for_selector("h1:has-text('Net')")
    assert console.service.store.list_jobs(limit=5)[0][0].spec["code"] == digest


def test_a_clone_shows_what_differs(console: Console) -> None:
    job, _ = console.service.store.create_job(
        make_spec(name=HOSTILE, labels={"a": "<b>"}, training={"seed": 3})
    )
    page = console.open(f"/submit?clone={job.id}")
    page.wait_for_selector("#verdict:has-text('The spec is valid.')")
    assert HOSTILE in page.inner_text("h1")
    assert page.is_visible("#same")

    write(page, page.input_value("#spec").replace("seed: 3", "seed: 4"))

    page.wait_for_selector("#differences >> text=training.seed")
    assert page.locator("#differences li").all_inner_texts() == ["training.seed: 3 → 4"]
    page.select_option("#template", "digits")
    page.click("dialog >> text=Back")
    assert page.input_value("#spec").count("seed: 4") == 1
    page.reload()
    page.wait_for_selector("#drafted")
    assert "seed: 4" in page.input_value("#spec")
    console.check_accessible()
    page.click("#go")
    page.wait_for_url("**/jobs/*")
    made = console.service.store.list_jobs(limit=1)[0][0]
    assert (made.spec["training"]["seed"], made.name) == (4, HOSTILE)


def test_a_spec_with_a_section_sweep_is_a_sweep(console: Console) -> None:
    console.allow("422")
    page = console.open("/submit")
    write(
        page,
        f"# two\nname: two\n{SHORT}sweep:\n  grid:\n    optimizer.init_args.lr: [0.1, 0.01]\n"
        "  repeats: 2\nretries: 0\n",
    )
    page.wait_for_selector("#problems button >> text=Line 8")
    write(page, page.input_value("#spec").replace("repeats: 2", "repeat: 2"))
    page.wait_for_selector("#plan >> text=A sweep of 4 jobs")

    page.click("#go")

    page.wait_for_url("**/sweeps/*")
    [sweep] = console.service.store.list_sweeps(limit=5)[0]
    assert (sweep.name, len(sweep.points)) == ("two", 4)
    console.allow("404")


def test_a_key_that_only_reads_may_check_and_not_submit(console: Console) -> None:
    key, text = new_key("ada", Scope.READ, created_by="a test", now=utc_now())
    console.service.store.add_key(key)
    page = console.page
    page.context.clear_cookies()
    page.goto(f"{console.service.url}/sign-in?token={text}")
    page.wait_for_selector("h1:has-text('Overview')")

    console.open("/submit")

    page.wait_for_selector("#verdict:has-text('The spec is valid.')")
    assert "only reads" in page.inner_text("main")
    assert not page.locator("#go").count()
    console.check_accessible()


def test_unknown_templates_and_jobs_are_a_sentence(service: Service) -> None:
    headers = {"Authorization": f"Bearer {token_file(service.server.port).read_text()}"}
    for query in ("template=../../etc/passwd", "clone=nothing", "template=" + "x" * 300):
        answer = httpx.get(f"{service.url}/submit?{query}", headers=headers, trust_env=False, timeout=60)
        assert answer.status_code in {404, 422}
        assert 'class="problem"' in answer.text


def test_the_shortest_text_means_the_same_spec() -> None:
    for spec in [
        make_spec(),
        make_spec(
            norm={"kind": "ghost_batch_norm", "samples": 2}, resources={"workers": {"min": 1, "max": 4}}
        ),
        parse_spec(make_data(name="ü: {", data=None, model={"class_path": "mine.Lit"}, labels={"a": "1"})),
        parse_spec({"script": {"path": "train.py", "args": ["--lr", "1e-3"]}, "code": "0" * 64}),
    ]:
        assert parse_spec(load_yaml(as_yaml(spec.model_dump(mode="json")))) == spec


def test_other_yaml_is_read_as_before() -> None:
    assert yaml.safe_load("1.2.3") == "1.2.3"
    assert yaml.safe_dump({"a": "1e5"}) == "a: 1e5\n"
