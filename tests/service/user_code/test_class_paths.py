from __future__ import annotations

import ast
import asyncio
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.user_code.class_paths import check_class_path, class_path_problems
from service.user_code.modules import NotRead, SharedStamps, Stamp, Stamps, only_remembered
from tests.service.examples import make_spec
from tests.service.user_code.test_check import make_archive

MODULE = b"""
import math as m, os.path
from collections import OrderedDict as Ordered, deque
try:
    from json import loads
except ImportError:
    loads = None
if m.pi > 3:
    class Inside: ...
first, (second, *third) = 1, (2, 3)
with open as handle: pass
typed: int = 1
for item in []: pass
def function():
    local = 1
async def later(): ...
"""


def in_archive(path: str, files: dict[str, bytes]) -> str | None:
    return check_class_path(path, make_archive(files))


@pytest.mark.parametrize(
    "path",
    [
        "training.models.ConvNet",
        "training.models.resnet18",
        "training.data.Digits",
        "training.spec.Spec.model_validate",
        "torch.nn.CrossEntropyLoss",
        "torch.optim.lr_scheduler.StepLR",
        "torchmetrics.classification.MulticlassAccuracy",
        "collections.OrderedDict",
        "math.sqrt",
        "os.path.join",
    ],
)
def test_a_path_that_leads_somewhere_is_accepted(path: str) -> None:
    assert check_class_path(path) is None


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nope.Net", "no module named 'nope' in the environment"),
        ("training.nope.Net", "no module named training.nope"),
        ("training.models.resnet81", "module training.models has no 'resnet81'; did you mean resnet18?"),
        (
            "torch.nn.CrossEntropyLos",
            "module torch.nn has no 'CrossEntropyLos'; did you mean CrossEntropyLoss?",
        ),
        ("training.spec.xyzzy", "module training.spec has no 'xyzzy'"),
        ("training.spec", "training.spec is a module; name a class or a function in it"),
    ],
)
def test_a_path_that_leads_nowhere_says_where_it_breaks_off(path: str, message: str) -> None:
    assert check_class_path(path) == message


@pytest.mark.parametrize(
    "name",
    [
        "m",
        "os",
        "Ordered",
        "deque",
        "loads",
        "Inside",
        "first",
        "second",
        "third",
        "typed",
        "item",
        "function",
        "later",
    ],
)
def test_whatever_defines_a_name_at_the_top_level_counts(name: str) -> None:
    assert in_archive(f"mine.{name}", {"mine.py": MODULE}) is None


@pytest.mark.parametrize("name", ["local", "math", "OrderedDict", "path"])
def test_other_names_in_the_source_do_not_count(name: str) -> None:
    assert in_archive(f"mine.{name}", {"mine.py": MODULE}) is not None


def test_the_uploaded_code_comes_before_the_environment() -> None:
    files = {"torch/__init__.py": b"", "torch/nets.py": b"class Net: ..."}

    assert in_archive("torch.nets.Net", files) is None
    assert in_archive("torch.nn.Linear", files) == "no module named torch.nn"
    assert in_archive("training.models.ConvNet", files) is None
    assert in_archive("nope.Net", files) == "no module named 'nope' in the uploaded code or the environment"


def test_a_package_of_the_environment_wins_over_a_bare_directory() -> None:
    files = {"json/data.txt": b"", "nets/deep/net.py": b"class Net: ..."}

    assert in_archive("json.JSONDecoder", files) is None
    assert in_archive("nets.deep.net.Net", files) is None
    assert in_archive("nets.deep.nets.Net", files) == "no module named nets.deep.nets"


def test_star_imports_are_followed_within_the_code_and_out_of_it() -> None:
    files = {
        "mine/__init__.py": b"from .nets import *\nfrom mine.more import *",
        "mine/nets.py": b"class Net: ...",
        "mine/more.py": b"from torch.nn import *",
        "mine/sub/__init__.py": b"from ..nets import *",
    }

    assert in_archive("mine.Net", files) is None
    assert in_archive("mine.sub.Net", files) is None
    assert in_archive("mine.Linear", files) is None
    assert in_archive("mine.Linnear", files) == "module mine has no 'Linnear'; did you mean Linear?"


@pytest.mark.parametrize(
    "source",
    [
        b"def __getattr__(name): ...",
        b"globals()['Net'] = 1",
        b"import sys; setattr(sys.modules[__name__], 'Net', 1)",
        b"exec('class Net: ...')",
        b"from elsewhere import *",
        b"from mine import *",
    ],
)
def test_what_only_running_the_code_could_tell_is_accepted(source: bytes) -> None:
    assert in_archive("mine.Net", {"mine.py": source}) is None


def test_code_that_cannot_be_read_as_source_is_accepted() -> None:
    deep = b"x = " + b"+".join([b"1"] * 20_000)
    long = b"x = 1\n" * 200_000

    for source in (deep, long):
        assert in_archive("mine.Net", {"mine.py": source}) is None
    assert in_archive("mine.Net", {"mine.cpython-311-x86_64-linux-gnu.so": b"ELF"}) is None
    assert in_archive("mine.Net", {"mine.pyc": b""}) is None


def test_uploaded_code_that_does_not_parse_is_named_with_its_line() -> None:
    broken = in_archive("mine.Net", {"mine.py": b"x = 1\nclass Net(:\n"})
    binary = in_archive("mine.Net", {"mine.py": b"x = 1 \0"})

    assert broken == "module mine does not parse: line 2: invalid syntax"
    assert binary == "module mine does not parse: source code string cannot contain null bytes"


def test_every_class_path_of_a_spec_is_checked_under_its_key() -> None:
    spec = make_spec(
        model={"class_path": "a.A"},
        data={"class_path": "b.B"},
        loss={"class_path": "c.C"},
        metrics={"one": {"class_path": "d.D"}},
        optimizer={"class_path": "e.E"},
        lr_scheduler={"class_path": "f.F"},
    )

    assert [problem.key for problem in class_path_problems(spec, None)] == [
        "model.class_path",
        "data.class_path",
        "loss.class_path",
        "metrics.one.class_path",
        "optimizer.class_path",
        "lr_scheduler.class_path",
    ]
    assert class_path_problems(make_spec(), None) == []


def test_namespace_packages_and_single_modules_of_the_path_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spacious" / "inner").mkdir(parents=True)
    (tmp_path / "spacious" / "inner" / "net.py").write_text("class Net: ...")
    monkeypatch.syspath_prepend(tmp_path)

    assert check_class_path("spacious.inner.net.Net") is None
    assert check_class_path("spacious.inner.nets.Net") == "no module named spacious.inner.nets"
    assert check_class_path("spacious.Net") == "module spacious has no 'Net'"


def test_checking_imports_nothing() -> None:
    code = (
        "import sys, json\n"
        "from service.user_code.class_paths import check_class_path\n"
        "before = set(sys.modules)\n"
        "check_class_path('torch.nn.functional.cross_entropy')\n"
        "check_class_path('training.models.resnet18')\n"
        "check_class_path('torchmetrics.classification.MulticlassAccuracy')\n"
        "print(json.dumps(sorted(name for name in set(sys.modules) - before if '.' not in name)))"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout

    assert not {"torch", "torchmetrics", "numpy"} & set(json.loads(output))


def test_no_two_threads_parse_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parse, inside, most = ast.parse, [0], [0]

    def watched(source: bytes) -> ast.Module:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.01)
        inside[0] -= 1
        return parse(source)

    archives = [make_archive({"nets.py": b"class Net%d: ..." % number}) for number in range(8)]
    with monkeypatch.context() as patched, ThreadPoolExecutor(4) as pool:
        patched.setattr(ast, "parse", watched)
        found = [
            pool.submit(check_class_path, f"nets.Net{number}", each) for number, each in enumerate(archives)
        ]
        assert {each.result() for each in found} == {None}

    assert most == [1]


def test_a_module_is_read_once_and_again_after_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "remembered_nets.py"
    module.write_text("class Net: ...")
    monkeypatch.syspath_prepend(tmp_path)

    assert check_class_path("remembered_nets.Net") is None
    with monkeypatch.context() as patched:
        patched.setattr(ast, "parse", lambda _: pytest.fail("it was parsed again"))
        assert check_class_path("remembered_nets.Net") is None
    module.write_text("class Other: ...")
    assert check_class_path("remembered_nets.Net") == "module remembered_nets has no 'Net'"


def test_only_what_is_remembered_is_known_without_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "known_nets.py"
    module.write_text("class Net: ...")
    monkeypatch.syspath_prepend(tmp_path)

    with only_remembered(), pytest.raises(NotRead):
        check_class_path("known_nets.Net")
    assert check_class_path("known_nets.Net") is None
    with only_remembered():
        assert check_class_path("known_nets.Net") is None
    module.write_text("class Another: ...")
    with only_remembered(), pytest.raises(NotRead):
        check_class_path("known_nets.Net")


def test_requests_share_stamps_only_if_all_had_arrived_before_these_were_taken(tmp_path: Path) -> None:
    module = tmp_path / "nets.py"
    module.write_text("class Net: ...")
    shared, changed = SharedStamps(), list[bool]()

    async def answer(before: dict[str, Stamp]) -> None:
        changed.append(not shared.get().are(before))

    async def requests() -> None:
        before = {str(module): Stamps().of(str(module))}
        together = [asyncio.create_task(answer(before)) for _ in range(2)]
        await asyncio.gather(*together)
        module.write_text("class Another: ...")
        await asyncio.create_task(answer(before))  # it arrives after the change

    asyncio.run(requests())
    assert changed == [False, False, True]


def test_a_module_that_comes_later_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    assert check_class_path("late_nets.Net") == "no module named 'late_nets' in the environment"

    (tmp_path / "late_nets.py").write_text("from inner_nets import *")
    assert check_class_path("late_nets.Net") is None  # only importing could tell

    (tmp_path / "inner_nets.py").write_text("class Other: ...")
    assert check_class_path("late_nets.Net") == "module late_nets has no 'Net'"


def test_what_is_known_of_one_archive_is_not_said_of_another() -> None:
    assert in_archive("nets.Net", {"nets.py": b"class Net: ..."}) is None
    assert in_archive("nets.Net", {"nets.py": b"class Other: ..."}) == "module nets has no 'Net'"


NETS = b"""
import functools
from other import Elsewhere
class Base:
    def __init__(self, width): ...
class Plain(Base):
    def __init__(self, width, depth=[1, 2], *, rate=0.1): ...
class Open(Base):
    def __init__(self, **options): ...
class Inherits(Base): ...
@functools.cache
class Decorated:
    def __init__(self, width): ...
class Metaclass(metaclass=type):
    def __init__(self, width): ...
class New:
    def __new__(cls, *args): ...
    def __init__(self, width): ...
def function(width, /, depth): ...
class Twice:
    def __init__(self): ...
if functools:
    class Twice:
        def __init__(self, width): ...
"""


@pytest.mark.parametrize(
    ("path", "arguments", "message"),
    [
        ("nets.Plain", {"width": 1}, None),
        ("nets.Plain", {"width": 1, "depth": 2, "rate": 3}, None),
        (
            "nets.Plain",
            {},
            "missing a required argument: 'width'; it takes (width, depth=[1, 2], *, rate=0.1)",
        ),
        ("nets.Plain", {"widht": 1}, "got an unexpected keyword argument 'widht'; did you mean width?"),
        (
            "nets.Plain",
            {"width": 1, "dept": 1},
            "got an unexpected keyword argument 'dept'; did you mean depth?",
        ),
        ("nets.Elsewhere", {"b": 1}, "got an unexpected keyword argument 'b'; it takes (a)"),
        ("nets.Open", {"anything": 1}, None),
        ("nets.Inherits", {"wrong": 1}, None),
        ("nets.Decorated", {"wrong": 1}, None),
        ("nets.Metaclass", {"wrong": 1}, None),
        ("nets.New", {"wrong": 1}, None),
        ("nets.Twice", {"wrong": 1}, None),
        ("training.models.ConvNet", {"classes": 3}, "got an unexpected keyword argument 'classes'"),
    ],
)
def test_init_args_are_held_against_the_signature_where_the_source_has_it(
    path: str, arguments: dict[str, object], message: str | None
) -> None:
    archive = make_archive({"nets.py": NETS, "other.py": b"class Elsewhere:\n    def __init__(self, a): ..."})
    spec = make_spec(model={"class_path": path, "init_args": arguments})

    problems = class_path_problems(spec, archive)

    if message is None:
        assert problems == []
    else:
        (problem,) = problems
        assert problem.key == "model.init_args"
        assert problem.message.startswith(message)


def test_a_nested_class_is_checked_under_its_key() -> None:
    inner = {"class_path": "nets.Plain", "init_args": {"width": 1, "wrong": 2}}
    spec = make_spec(model={"class_path": "nets.Open", "init_args": {"net": inner}})

    problems = class_path_problems(spec, make_archive({"nets.py": NETS}))

    assert [problem.key for problem in problems] == ["model.init_args.net.init_args"]


def test_what_the_training_adds_is_an_argument_too() -> None:
    source = b"class Own:\n    def __init__(self, params, lr): ..."
    spec = make_spec(optimizer={"class_path": "own.Own", "init_args": {"lr": 1}})
    assert class_path_problems(spec, make_archive({"own.py": source})) == []


def test_classes_of_the_trainer_are_checked_by_path_or_by_name() -> None:
    archive = make_archive({"own.py": b"class Mine:\n    def __init__(self, x): ...\n"})
    spec = make_spec(
        trainer={
            "callbacks": [
                {"class_path": "EarlyStopping", "init_args": {"monitor": "val_loss"}},
                {"class_path": "Mine", "init_args": {"x": 1}},
                {"class_path": "own.Mine", "init_args": {"y": 1}},
                {"class_path": "EarlyStoping"},
                {"class_path": "lightning.pytorch.callbacks.Nothing"},
            ],
            "logger": [{"class_path": "WandbLogger"}],  # whose package need not be there
        }
    )

    found = {problem.key: problem.message for problem in class_path_problems(spec, archive)}

    assert found.keys() == {
        "trainer.callbacks.2.init_args",
        "trainer.callbacks.3.class_path",
        "trainer.callbacks.4.class_path",
    }
    assert "write its whole path" in found["trainer.callbacks.3.class_path"]


def test_a_class_of_the_uploaded_code_may_be_named_without_its_module() -> None:
    files = {"a.py": b"class Net: ...\n", "b/c.py": b"class Twice: ...\n", "d.py": b"class Twice: ...\n"}
    specs = [make_spec(model={"class_path": name}) for name in ("Net", "Twice", "Nowhere")]

    found = [class_path_problems(spec, make_archive(files)) for spec in specs]

    assert found[0] == []
    assert found[1][0].message.startswith("b.c and d define 'Twice'")
    assert found[2][0].message.startswith("nothing in the uploaded code defines 'Nowhere'")


def test_classes_in_lists_and_mappings_are_checked() -> None:
    inner = {"parts": [{"class_path": "math.sqrt"}, {"x": {"class_path": "training.models.ConvNetz"}}]}
    spec = make_spec(model={"class_path": "collections.OrderedDict", "init_args": inner})

    (problem,) = class_path_problems(spec, None)

    assert problem.key == "model.init_args.parts.1.x.class_path"
