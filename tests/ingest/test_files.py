"""Untrusted files: links, odd paths, bombs and damage are set aside, and the other files are read."""

import dataclasses
import errno
import gzip
import io
import os
import zipfile
from pathlib import Path

import pytest

from lsm_jax.errors import UserError
from lsm_jax.ingest.files.listing import source_files
from lsm_jax.ingest.files.opening import open_file, read_bytes, read_workbook
from lsm_jax.ingest.files.source import Limits, SourceFile, UnreadableFile
from lsm_jax.ingest.report import IngestReport


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "good.csv").write_text("a\n1\n")
    return folder


def labels(source, **limits):
    report = IngestReport()
    found = [file.label for file in source_files(source, report, Limits(**limits))]
    return found, dict(line.split(": ", 1) for line in report.files_set_aside)


def test_links_are_named_and_not_followed(source, tmp_path):
    secret = tmp_path / "secret.csv"
    secret.write_text("x\n")
    (source / "link.csv").symlink_to(secret)
    (source / "folder").symlink_to(tmp_path)
    found, refused = labels(source)
    assert found == ["good.csv"]
    assert "symbolic link" in refused["link.csv"] and "symbolic link" in refused["folder"]


def test_a_path_that_leaves_the_folder_is_refused(source, tmp_path):
    (tmp_path / "outside.csv").write_text("x\n")
    (source / "inner").symlink_to(tmp_path)
    for path in ("../outside.csv", str(tmp_path / "outside.csv"), "inner/outside.csv"):
        with pytest.raises(UnreadableFile, match="leaves"), open_file(SourceFile(source, path)):
            pass


def test_a_named_pipe_is_refused_without_waiting(source):
    os.mkfifo(source / "pipe.csv")
    found, refused = labels(source)
    assert found == ["good.csv"] and "not a plain file" in refused["pipe.csv"]


def test_names_that_are_not_utf8_are_set_aside_and_can_be_printed(source):
    try:
        (source / os.fsdecode(b"caf\xe9")).mkdir()
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    for name in (b"\xff.csv", b"caf\xe9/lost.csv"):
        (source / os.fsdecode(name)).write_text("a\n1\n")
    (source / os.fsdecode(b"\xfe.csv")).symlink_to("good.csv")
    found, refused = labels(source)
    assert found == ["good.csv"] and len(refused) == 3
    assert all("not UTF-8" in why for why in refused.values())
    assert all(name.encode() for name in refused)


def test_a_zip_whose_names_are_damaged_costs_only_itself(source):
    with zipfile.ZipFile(source / "z.zip", "w") as archive:
        archive.writestr("d\u00e9.csv", "a\n1\n")
    content = (source / "z.zip").read_bytes()
    (source / "z.zip").write_bytes(content.replace("d\u00e9".encode(), b"d\xff\xff"))
    found, refused = labels(source)
    assert found == ["good.csv"] and "damaged archive" in refused["z.zip"]


def test_oversize_names_the_limit_and_the_flag(source):
    (source / "huge.csv").write_text("a\n" * 3000)
    found, refused = labels(source, file_bytes=1000)
    assert found == ["good.csv"] and "--max-file-mib" in refused["huge.csv"]


def test_zip_members_are_files_and_hostile_ones_are_refused(source):
    with zipfile.ZipFile(source / "z.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inside/data.csv", "a\n2\n")
        archive.writestr("../escape.csv", "a\n")
        archive.writestr("/root.csv", "a\n")
        archive.writestr("nested.zip", "PK")
        archive.writestr("bomb.csv", b"0" * (65 << 20))
        link = zipfile.ZipInfo("link.csv")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "good.csv")
    found, refused = labels(source)
    assert found == ["good.csv", "z.zip!inside/data.csv"]
    assert len(refused) == 5 and "times its packed size" in refused["z.zip!bomb.csv"]


def test_an_archive_of_many_files_is_read_and_one_of_too_many_names_the_fix(source):
    with zipfile.ZipFile(source / "z.zip", "w") as archive:
        for number in range(10_001):
            archive.writestr(f"{number}.csv", "")
    found, refused = labels(source)
    assert len(found) == 10_002 and not refused
    found, refused = labels(source, members=10_000)
    assert found == ["good.csv"]
    assert refused["z.zip"] == "archive of 10,001 files, limit 10,000: unpack it into a folder"


def test_a_member_larger_than_it_claims_is_cut_off(source):
    with zipfile.ZipFile(source / "z.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.csv", b"1\n" * 5000)
    content = (source / "z.zip").read_bytes()
    claimed = (10_000).to_bytes(4, "little")
    (source / "z.zip").write_bytes(content.replace(claimed, (10).to_bytes(4, "little")))
    file = next(file for file in source_files(source, IngestReport()) if file.member)
    with pytest.raises(UnreadableFile):
        read_bytes(dataclasses.replace(file, limits=Limits(file_bytes=100)))


def test_gzip_is_capped_as_well(source):
    (source / "a.csv.gz").write_bytes(gzip.compress(b"1\n" * 5000))
    file = next(file for file in source_files(source, IngestReport()) if file.name == "a.csv")
    assert len(read_bytes(file)) == 10_000
    with pytest.raises(UnreadableFile, match="unfolds"):
        read_bytes(dataclasses.replace(file, limits=Limits(file_bytes=5000)))


@pytest.mark.parametrize("keep", [0, 10, 35])
def test_a_zip_that_ends_before_its_first_file_costs_only_itself(source, keep):
    with zipfile.ZipFile(source / "z.zip", "w") as archive:
        archive.writestr("data.csv", "a\n1\n" * 100)
    content = (source / "z.zip").read_bytes()
    (source / "z.zip").write_bytes(content[:keep])
    found, refused = labels(source)
    assert found == ["good.csv"] and "damaged archive" in refused["z.zip"]


class Unseekable(io.BytesIO):
    """Where zipfile cannot go back: it writes sizes behind the members, as programs do that stream an archive."""

    def seekable(self):
        return False

    def seek(self, *_):
        raise io.UnsupportedOperation

    tell = seek


@pytest.mark.parametrize("buffer", [io.BytesIO, Unseekable])
def test_a_zip_that_was_cut_keeps_the_files_and_the_lines_before_the_cut(source, buffer):
    packed = buffer()
    lines = [b"%d,%d\n" % (number, number * 7919 % 1000) for number in range(20_000)]
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("P01")
        archive.writestr("P01/a.csv", b"".join(lines))
        archive.writestr("P02/b.csv", b"".join(lines))
        archive.writestr("P03/c.csv", b"".join(lines))
    content = packed.getvalue()
    (source / "z.zip").write_bytes(content[: len(content) // 2])
    report = IngestReport()
    first, second = (file for file in source_files(source, report) if file.member)
    assert (first.member, second.member) == ("P01/a.csv", "P02/b.csv")
    assert "damaged archive" in report.files_set_aside[0] and "files at its start are read" in report.files_set_aside[0]
    with open_file(first) as stream:
        assert stream.read() == b"".join(lines)
    with open_file(second) as stream:
        kept = stream.read()
        with pytest.raises(UnreadableFile, match="damaged"):
            stream.read(1)
    assert kept.count(b"\n") > 7500 and b"".join(lines).startswith(kept)


def test_packed_members_of_a_zip_are_unpacked(source):
    with zipfile.ZipFile(source / "z.zip", "w") as archive:
        archive.writestr("a.csv.GZ", gzip.compress(b"a\n7\n"))
    file = next(file for file in source_files(source, IngestReport()) if file.name == "a.csv")
    assert read_bytes(file) == b"a\n7\n"


def test_of_members_of_one_name_the_last_is_read_and_that_is_said(source):
    with zipfile.ZipFile(source / "z.zip", "w") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("a.csv", "a\n1\n")
        archive.writestr("a.csv", "a\n2\n")
    found, refused = labels(source)
    assert found == ["good.csv", "z.zip!a.csv"] and "1 files have the name of another" in refused["z.zip"]


def test_a_folder_that_cannot_be_read_is_said(source, monkeypatch):
    (source / "locked").mkdir()
    (source / "locked" / "lost.csv").write_text("a\n1\n")
    scan = os.scandir

    def refuse(path):  # whoever runs the tests may be allowed to read everything
        if Path(path).name == "locked":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found, refused = labels(source)
    assert found == ["good.csv"] and refused["locked"] == "a folder that cannot be read (Permission denied)"


def test_a_file_that_is_no_workbook_is_refused(source):
    (source / "a.xlsx").write_bytes(b"PK\x03\x04 no workbook")
    with pytest.raises(UnreadableFile, match="Excel"):
        read_workbook(SourceFile(source, "a.xlsx"))
    with zipfile.ZipFile(source / "b.xlsx", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/worksheets/sheet1.xml", b"0" * 100_000)
    with pytest.raises(UnreadableFile, match="unfolds"):
        read_workbook(SourceFile(source, "b.xlsx", limits=Limits(workbook_bytes=50_000)))


def test_missing_and_oversized_sources_are_refused(source, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        list(source_files(tmp_path / "nowhere", IngestReport()))
    with pytest.raises(UserError, match="more than 0 files"):
        list(source_files(source, IngestReport(), Limits(files=0)))
    assert [file.name for file in source_files(Path(source / "good.csv"), IngestReport())] == ["good.csv"]


def test_members_of_archives_are_read_by_turns_and_after_a_change(tmp_path):
    """An archive stays open between its members; another archive, or a new version of it, is opened anew."""
    for name in "ab":
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            for member in range(3):
                archive.writestr(f"{member}.txt", f"{name}{member}")

    def read(name, member):
        with open_file(SourceFile(tmp_path, f"{name}.zip", f"{member}.txt")) as stream:
            return stream.read()

    with open_file(SourceFile(tmp_path, "a.zip", "0.txt")) as outer:
        first = outer.read(1)
        assert b"".join(read(name, member) for member in range(3) for name in "ab") == b"a0b0a1b1a2b2"
        assert first + outer.read() == b"a0"
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("0.txt", "another")
    assert read("b", 0) == b"another"
