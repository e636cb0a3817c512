from __future__ import annotations

import io
import stat
import struct
import warnings
import zipfile

import pytest

from service.errors import Refused
from service.user_code import check
from service.user_code.check import check_archive

LIMIT = 1_000_000


def make_archive(files: dict[str, bytes] | list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile's own about duplicates
        for name, data in files.items() if isinstance(files, dict) else files:
            archive.writestr(name, data)
    return buffer.getvalue()


def refusal(data: bytes, limit: int = LIMIT) -> list[str]:
    with pytest.raises(Refused) as caught:
        check_archive(data, limit)
    return [str(problem) for problem in caught.value.problems]


def with_mode(name: str, mode: int) -> bytes:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = mode << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(entry, "/etc/passwd")
    return buffer.getvalue()


def test_an_archive_of_a_package_and_modules_is_accepted() -> None:
    check_archive(
        make_archive(
            {"mine/": b"", "mine/__init__.py": b"", "mine/training/net.py": b"x = 1", "training.yaml": b"{}"}
        ),
        LIMIT,
    )


@pytest.mark.parametrize("data", [b"", b"no zip", make_archive({"a.py": b"x"})[:-10]])
def test_what_is_no_whole_zip_is_refused(data: bytes) -> None:
    assert "is not a valid zip archive" in refusal(data)[0]


def test_an_archive_without_files_is_refused() -> None:
    assert refusal(make_archive({})) == refusal(make_archive({"a/": b""})) == ["code: contains no files"]


@pytest.mark.parametrize(
    "name",
    ["/etc/x.py", "../x.py", "a/../../x.py", "a//x.py", "./x.py", "C:/x.py", "a\\x.py", "a\n.py"],
)
def test_a_path_that_may_lead_elsewhere_is_refused_by_name(name: str) -> None:
    problems = refusal(make_archive({"good.py": b"", name: b""}))

    assert len(problems) == 1
    assert problems[0].startswith(f"code:{name}: has a")


def test_a_name_cut_short_by_a_nul_is_refused() -> None:
    data = make_archive({"a.py_evil": b""}).replace(b"a.py_evil", b"a.py\0evil")

    assert "control character" in refusal(data)[0]


def test_a_name_that_no_file_system_takes_is_refused() -> None:
    assert "too long" in refusal(make_archive({"ä" * 200: b""}))[0]


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices_are_refused(kind: int) -> None:
    assert refusal(with_mode("link", kind | 0o777)) == ["code:link: is a link or a device; pack plain files"]


def test_plain_modes_are_accepted() -> None:
    check_archive(with_mode("file", stat.S_IFREG | 0o644), LIMIT)
    check_archive(with_mode("file", 0o644), LIMIT)


def test_an_encrypted_entry_is_refused() -> None:
    data = bytearray(make_archive({"a.py": b"x"}))
    data[data.index(b"PK\x01\x02") + 8] |= 1

    assert refusal(bytes(data)) == ["code:a.py: is encrypted"]


def test_the_same_path_twice_is_refused() -> None:
    assert refusal(make_archive([("a.py", b"1"), ("a.py", b"2")])) == ["code:a.py: appears twice"]
    assert refusal(make_archive([("a", b"1"), ("a/", b"")])) == ["code:a/: appears twice"]


def test_a_file_where_another_needs_a_directory_is_refused() -> None:
    assert refusal(make_archive({"a": b"1", "a/b.py": b"2"})) == ["code:a/b.py: is inside a, which is a file"]


@pytest.mark.parametrize("name", ["training/x.py", "sync_bn.py", "service/", "training.cpython-311.so"])
def test_code_that_would_hide_this_project_is_refused(name: str) -> None:
    problems = refusal(make_archive({"good.py": b"", name: b""}))

    assert len(problems) == 1
    assert "rename it" in problems[0]


def test_code_that_would_hide_what_training_needs_is_refused_file_by_file() -> None:
    data = make_archive({"random.py": b"", "numpy/__init__.py": b"", "net.py": b"", "queue/data.csv": b""})

    assert [problem.partition(" would hide ")[0] for problem in refusal(data)] == [
        "code:numpy:",
        "code:random.py:",
    ]


def test_what_unpacks_to_more_than_the_limit_is_refused() -> None:
    check_archive(make_archive({"a": b"0" * LIMIT}), LIMIT)

    assert refusal(make_archive({"a": b"0" * LIMIT, "b": b"0"})) == [
        f"code: is larger than {LIMIT} bytes when unpacked"
    ]


def test_a_bomb_that_lies_about_its_size_is_refused() -> None:
    data = bytearray(make_archive({"a": b"0" * 10 * LIMIT}))
    struct.pack_into("<I", data, data.index(b"PK\x01\x02") + 24, 10)

    assert refusal(bytes(data)) == ["code:a: cannot be unpacked: Bad CRC-32 for file 'a'"]


def test_a_damaged_entry_is_refused_by_name() -> None:
    content = bytes(range(256))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.bin", content)
    data = buffer.getvalue().replace(content, content[::-1])

    assert refusal(data)[0].startswith("code:a.bin: cannot be unpacked: Bad CRC-32")


def test_too_many_files_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "MAX_FILES", 3)
    check_archive(make_archive({str(n): b"" for n in range(3)}), LIMIT)

    assert refusal(make_archive({str(n): b"" for n in range(4)})) == [
        "code: contains 4 entries; 3 are allowed"
    ]
