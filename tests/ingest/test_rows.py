"""Rows of text, Parquet and workbooks: a bad line is reported with its number, and the other lines are read."""

import contextlib
import datetime as dt
import decimal
import gzip
import io
import types
import zipfile

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsm_jax.ingest.cells import LINE
from lsm_jax.ingest.files.listing import source_files
from lsm_jax.ingest.files.source import Limits, SourceFile, UnreadableFile
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.tables import parquet as parquet_module
from lsm_jax.ingest.tables import text as text_module
from lsm_jax.ingest.tables.header import Layout, read_header
from lsm_jax.ingest.tables.rows import read_rows


def read(folder, content, name="t.csv", columns=("a", "b"), **limits):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    report = IngestReport()
    frames = list(read_rows(SourceFile(folder, name, limits=Limits(**limits)), columns, report))
    return (pl.concat(frames) if frames else pl.DataFrame()), report


def test_line_numbers_are_kept_and_bad_lines_are_reported(tmp_path):
    table, report = read(tmp_path, 'a,b\r\n1,2\r\n\r\n3\r\n"4,4",5\r\n"6,7\r\n8,9,10\r\n11,12')
    assert table.rows() == [(2, "1", "2"), (5, "4,4", "5"), (8, "11", "12")]
    assert report.rows_read == 6
    assert report.quarantined["wrong number of fields"].rows == 3
    assert sorted(report.quarantined["wrong number of fields"].samples) == ["t.csv:4", "t.csv:6", "t.csv:7"]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.integers(0, 99), st.integers(0, 99)).map(lambda pair: b"%d,%d" % pair),
            st.binary(max_size=12).map(lambda junk: junk.replace(b"\n", b"")),
            st.sampled_from([b'"1', b"1,2,3", b'"7","8"', b"\xff\xfe,1", b",", b"\0,\0", b'x"a,"b']),
        ),
        max_size=40,
    ),
    st.integers(1, 64),
)
def test_no_junk_hides_a_good_line(tmp_path_factory, lines, block):
    folder = tmp_path_factory.mktemp("rows")
    keep = text_module.BLOCK_BYTES
    text_module.BLOCK_BYTES = block
    try:
        table, report = read(folder, b"a,b\n" + b"\n".join(lines) + b"\n")
    finally:
        text_module.BLOCK_BYTES = keep
    pairs = [(2 + i, *line.split(b",")) for i, line in enumerate(lines) if line.count(b",") == 1]
    good = {(i, a.decode(), b.decode()) for i, a, b in pairs if a.isdigit() and b.isdigit()}
    assert good <= set(table.rows())
    assert report.rows_read == len(table) + report.rows_quarantined


def test_separator_byte_order_mark_and_repeated_names(tmp_path):
    table, _ = read(tmp_path, b"\xef\xbb\xbfa;b;a\n1;2;3\n", columns=("a", "a#2"))
    assert table.rows() == [(2, "1", "3")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"\n\n", "empty"),
        (b"a,b\r1,2\r", "old Mac"),
        (b"a," + b"x" * 200_000 + b"\n", "no header"),
        ("a,b\n".encode("utf-16"), "UTF-16"),
        (b"\0\1\2\n", "not a text"),
    ],
)
def test_files_without_a_header_are_refused(tmp_path, content, message):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UnreadableFile, match=message):
        read_header(SourceFile(tmp_path, "t.csv"))


def test_an_endless_line_is_refused_and_the_lines_before_it_are_read(tmp_path):
    table, report = read(tmp_path, b"a,b\n1,2\n" + b"x" * 5000, line_bytes=1000)
    assert table.rows() == [(2, "1", "2")]
    assert "longer than 1000 bytes" in report.files_set_aside[0]


BODY = b"a,b\n" + b"".join(b"%d,%d\n" % (number, number * 7919 % 1000) for number in range(300_000))


def damaged_zip():
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("t.csv", BODY)
    content = bytearray(packed.getvalue())
    middle = len(content) // 2
    content[middle : middle + 200] = bytes(200)
    return bytes(content)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("z.zip", damaged_zip()),
        ("t.csv.gz", gzip.compress(BODY)[: len(gzip.compress(BODY)) // 2]),
    ],
    ids=["damaged zip", "cut gzip"],
)
def test_the_rows_before_damage_are_read_and_the_line_is_said(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    report = IngestReport()
    (file,) = source_files(tmp_path, report)
    table = pl.concat(read_rows(file, ("a", "b"), report))
    assert 100_000 < len(table) < 300_000
    assert "damaged after line" in report.files_set_aside[0]
    assert table.row(50_000)[1:] == ("50000", str(50_000 * 7919 % 1000))


def test_parquet_keeps_types_and_a_cut_one_is_refused(tmp_path):
    frame = pl.DataFrame({"a": [1, 2], "b": [True, None]})
    frame.write_parquet(tmp_path / "t.parquet")
    report = IngestReport()
    table = pl.concat(read_rows(SourceFile(tmp_path, "t.parquet"), ("b",), report))
    assert table.schema == {LINE: pl.Int64, "b": pl.Boolean} and table[LINE].to_list() == [1, 2]
    content = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(content[:-20])
    with pytest.raises(UnreadableFile, match="Parquet"):
        read_header(SourceFile(tmp_path, "t.parquet"))


def test_parquet_text_may_be_categories_or_bytes(tmp_path):
    words = pl.DataFrame({"a": ["x", "y", None], "b": [b"1", b"\xff", None]}).with_columns(
        pl.col("a").cast(pl.Categorical), c=pl.col("a").cast(pl.Enum(["x", "y"])), d=pl.lit(None)
    )
    words.write_parquet(tmp_path / "t.parquet")
    report = IngestReport()
    table = pl.concat(read_rows(SourceFile(tmp_path, "t.parquet"), ("a", "b", "c", "d"), report))
    assert set(table.dtypes[1:]) == {pl.String}
    assert table.rows() == [(1, "x", "1", "x", None), (2, "y", "\ufffd", "y", None), (3, None, None, None, None)]


def test_parquet_columns_that_no_reader_knows_are_empty_and_named(tmp_path):
    columns = {
        "list": pa.array([[1], [2]]),
        "struct": pa.array([{"x": 1}, None]),
        "lasts": pa.array([dt.timedelta(1), None]),
        "exact": pa.array([decimal.Decimal("1.5"), None], pa.decimal256(50, 2)),
        "at": pa.array([dt.time(10, 30), None]),
        "b": pa.array([1, 2]),
    }
    pq.write_table(pa.table([*columns.values(), pa.array([3, 4])], [*columns, "b"]), tmp_path / "t.parquet")
    file, report = SourceFile(tmp_path, "t.parquet"), IngestReport()
    assert read_header(file).names == (*columns, "b#2")
    (table,) = read_rows(file, (*columns, "b#2"), report)
    assert table.rows() == [(1, None, None, None, 1.5, "10:30:00", 1, 3), (2, None, None, None, None, None, 2, 4)]
    assert [what.partition(" and")[0] for what in sorted(report.incomplete_files)] == [
        "column 'lasts' holds duration[us]", "column 'list' holds list", "column 'struct' holds struct"
    ]  # fmt: skip
    assert list(read_rows(file, ("list",), report)) == []
    assert report.files_set_aside == ["t.parquet: none of its columns holds numbers, text or instants"]


def test_packed_parquet_is_unpacked_once_and_by_blocks(tmp_path, monkeypatch):
    pl.DataFrame({"a": range(100_000), "b": range(100_000)}).write_parquet(tmp_path / "t.parquet")
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.write(tmp_path / "t.parquet", "t.parquet")
    (tmp_path / "g.parquet.gz").write_bytes(gzip.compress((tmp_path / "t.parquet").read_bytes()))
    sizes, opened = [], parquet_module.open_file

    @contextlib.contextmanager
    def watched(*arguments):
        with opened(*arguments) as stream:
            yield types.SimpleNamespace(read=lambda size=-1: sizes.append(size) or stream.read(size))

    monkeypatch.setattr(parquet_module, "open_file", watched)
    monkeypatch.setattr(parquet_module, "_BLOCK_BYTES", 1 << 16)
    for file in (SourceFile(tmp_path, "z.zip", "t.parquet"), SourceFile(tmp_path, "g.parquet.gz")):
        sizes.clear()
        assert read_header(file).names == read_header(file).names == ("a", "b")
        assert sum(map(len, read_rows(file, ("b",), IngestReport()))) == 100_000
        assert set(sizes) == {1 << 16} and len(sizes) == -(-(tmp_path / "t.parquet").stat().st_size // (1 << 16)) + 1


def test_a_packed_parquet_that_ends_early_is_refused(tmp_path, monkeypatch):
    class Cut:
        def read(self, size=-1):
            raise EOFError  # what zipfile says, and nothing with it

    (tmp_path / "z.zip").write_bytes(b"PK")
    monkeypatch.setattr(parquet_module, "open_file", lambda *_: contextlib.nullcontext(Cut()))
    with pytest.raises(UnreadableFile, match="EOFError"):
        read_header(SourceFile(tmp_path, "z.zip", "t.parquet"))


def test_a_line_the_parser_refuses_costs_itself(tmp_path):
    table, report = read(tmp_path, 'a,b\n1,2\n"3",x\ry\n"' + "x" * 200_000 + '",5\n"6",7\n')
    assert table.rows() == [(2, "1", "2"), (5, "6", "7")]
    assert sorted(report.quarantined["wrong number of fields"].samples) == ["t.csv:3", "t.csv:4"]
    assert report.rows_read == 4


def workbook(*sheets: list[list[str]]) -> bytes:
    """A minimal Excel workbook with text cells."""
    bodies = [
        "".join(
            "<row>" + "".join(f'<c t="inlineStr"><is><t>{cell}</t></is></c>' for cell in row) + "</row>"
            for row in cells
        )
        for cells in sheets
    ]
    numbers = range(1, len(sheets) + 1)
    listed = "".join(f'<sheet name="s{i}" sheetId="{i}" r:id="r{i}"/>' for i in numbers)
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006"
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{package}/content-types"><Default Extension="xml" ContentType="application/xml"/></Types>',  # noqa: E501
        "_rels/.rels": f'<Relationships xmlns="{package}/relationships"><Relationship Id="r1" Type="{office}/officeDocument" Target="xl/workbook.xml"/></Relationships>',  # noqa: E501
        "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{office}"><sheets>{listed}</sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{package}/relationships">'
        + "".join(
            f'<Relationship Id="r{i}" Type="{office}/worksheet" Target="worksheets/sheet{i}.xml"/>' for i in numbers
        )
        + "</Relationships>",
    } | {
        f"xl/worksheets/sheet{i}.xml": f'<worksheet xmlns="{main}"><sheetData>{body}</sheetData></worksheet>'
        for i, body in enumerate(bodies, 1)
    }
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in parts.items():
            archive.writestr(name, text)
    return content.getvalue()


def test_workbooks_are_read_and_damaged_ones_refused(tmp_path):
    table, report = read(tmp_path, workbook([["a", "b"], ["1", "x"], ["2", "y"]]), name="t.xlsx")
    assert table.rows() == [(2, "1", "x"), (3, "2", "y")] and report.rows_read == 2
    assert report.notes == []
    table, report = read(tmp_path, workbook([["a", "b"], ["1", "x"]], [["a"]], [["b"]]), name="t.xlsx")
    assert table.rows() == [(2, "1", "x")]
    assert report.notes == ["t.xlsx: 2 further sheets were not read; save each as a file of its own."]
    broken = workbook([["a"]]).replace(b"<sheetData>", b"<sheetDatb>")
    with pytest.raises(UnreadableFile):
        read(tmp_path, broken, name="t.xlsx")


def test_the_header_of_a_workbook_may_be_below_other_lines_or_absent(tmp_path):
    (tmp_path / "t.xlsx").write_bytes(workbook([["Made by X", ""], ["Start", "4"], ["a", "b"], ["1", "x"]]))
    for layout, columns, expected in (
        (Layout(columns=("a", "b")), ("a", "b"), [(4, "1", "x")]),
        (Layout(header=False), ("1", "2"), [(3, "a", "b"), (4, "1", "x")]),
    ):
        (table,) = read_rows(SourceFile(tmp_path, "t.xlsx"), columns, IngestReport(), layout)
        assert table.rows()[-len(expected) :] == expected


def test_workbook_cells_without_a_saved_value_are_counted(tmp_path):
    good = workbook([["a", "b", "a "], ["1", "x", "y"]], [["<f>A1</f>"]])
    cells = (
        "<c><f>A1+1</f></c><c><f t='shared' si='0'/><v></v></c><c t='e'><f>1/0</f><v>#DIV/0!</v></c>"
        "<c><f>A1+1</f><v>3</v></c>"
    )
    content = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(good)) as old, zipfile.ZipFile(content, "w") as new:
        for name in old.namelist():
            text = old.read(name)
            if name.endswith("sheet1.xml"):
                text = text.replace(b"</sheetData>", f"<row>{cells}</row></sheetData>".encode())
            new.writestr(name, text)
    table, report = read(tmp_path, content.getvalue(), name="t.xlsx", columns=("a", "b", "a#2"))
    assert table.rows() == [(2, "1", "x", "y"), (3, None, None, None)]
    assert "t.xlsx: 2 cells are formulas without a saved value and were read as empty; open it" in report.notes[1]
    assert report.notes[2] == "t.xlsx: 1 cells show an error such as #N/A and were read as empty."
