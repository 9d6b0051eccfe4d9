"""SQL over the tables: each is a view of its name, whole and at one version."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import headrace as hr
from headrace.cli.main import app
from headrace.lake.errors import QueryError
from headrace.lake.tables import Lake
from headrace.lake.writer import TableWriter, record_columns
from headrace.runtime.settings import load_settings


@pytest.fixture
def project(tmp_path):
    (tmp_path / "headrace.yaml").write_text("project: shop\n")
    folder = load_settings(tmp_path).lake.folder
    payments = TableWriter(folder, "payments")
    for first in (0, 50):
        offsets = np.arange(first, first + 50)
        rows = record_columns("T", 0, offsets, 1_700_000_000_000 + offsets)
        rows = rows.append_column("amount", pa.array(offsets * 0.5))
        if first:
            rows = rows.append_column("country", pa.array(["CH"] * 50))
        payments.append(payments.aligned(rows)[0], [])
    empty = record_columns("T", 0, np.zeros(0, np.int64), np.zeros(0, np.int64))
    TableWriter(folder, "shop_predictions").append(
        empty.append_column("score", pa.array([], pa.float64())), []
    )
    return tmp_path


def headrace(project, *arguments):
    return CliRunner().invoke(app, ["sql", "--project", str(project), *arguments])


def test_a_query_with_parameters_gives_an_arrow_table(project):
    found = hr.sql(
        "select count(*) as n, max(_arrival_time) as last from payments where amount >= $least",
        project=project,
        least=20.0,
    )

    assert found["n"].to_pylist() == [60]
    assert str(found["last"][0].as_py()) == "2023-11-14 22:13:20.099000+00:00"


def test_columns_that_came_later_are_null_in_older_files(project):
    query = "select country, count(*) as n from payments group by 1 order by 1 nulls first"
    found = hr.sql(query, project=project)

    assert found.to_pylist() == [{"country": None, "n": 50}, {"country": "CH", "n": 50}]


def test_a_column_that_no_file_has_any_more_is_there_and_null(project):
    Lake(load_settings(project).lake.folder).table("payments").delta.delete("_offset >= 50")

    found = hr.sql("select country, amount from payments", project=project)

    assert found["country"].null_count == found.num_rows == 50


def test_a_table_without_files_is_a_view_with_its_columns(project):
    found = hr.sql("select * from shop_predictions", project=project)

    assert found.num_rows == 0
    assert found.schema.field("score").type == pa.float64()
    assert str(found.schema.field("_arrival_time").type) == "timestamp[us, tz=UTC]"


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (
            "select * from payment",
            r"Table with name payment does not exist; did you mean 'payments'",
        ),
        ("select amuont from payments", r'Referenced column "amuont" not found.*"amount"'),
        ("select 1 +", "a query must be valid; Parser Error: syntax error at"),
        ("select cast('x' as int) from payments", "Could not convert string 'x' to INT32"),
        ("select * from payments where amount > $x", "x"),
        ("", "must give rows"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(project, query, message):
    with pytest.raises(QueryError, match=message) as caught:
        hr.sql(query, project=project)

    assert "\n" not in str(caught.value)


def test_limits_are_kept_to_and_checked(project):
    assert hr.sql("select current_setting('threads') as t", project=project, threads=1)[
        "t"
    ].to_pylist() == [1]
    with pytest.raises(QueryError, match="threads must be at least 1; got 0"):
        hr.sql("select 1", project=project, threads=0)
    with pytest.raises(QueryError, match="memory must be a size; got 'much'"):
        hr.sql("select 1", project=project, memory="much")
    query = "select count(distinct i) from range(50_000_000) t(i)"
    with pytest.raises(QueryError, match="Out of Memory Error: could not allocate"):
        hr.sql(f"set temp_directory = ''; {query}", project=project, memory="20MB")


def test_the_command_lists_the_tables(project):
    done = headrace(project, "--json")

    tables = {one["table"]: one for one in json.loads(done.stdout)["tables"]}
    assert tables["payments"]["rows"] == 100
    assert tables["payments"]["files"] == 2
    assert tables["payments"]["columns"]["amount"] == "double"
    assert tables["shop_predictions"]["rows"] == 0
    assert "payments" in headrace(project).stdout


def test_the_command_prints_and_writes_what_a_query_gives(project, tmp_path):
    query = "select _offset, amount from payments where amount < 2 order by 1"

    lines = headrace(project, query, "--json").stdout.splitlines()
    assert [json.loads(line) for line in lines] == [
        {"_offset": i, "amount": i * 0.5} for i in range(4)
    ]
    assert headrace(project, query).stdout.split()[:4] == ["_offset", "amount", "0", "0.0"]
    out = tmp_path / "out.parquet"
    assert "4 rows" in headrace(project, query, "--out", str(out)).stdout
    assert pq.read_table(out)["_offset"].to_pylist() == [0, 1, 2, 3]
    headrace(project, query, "--out", str(tmp_path / "out.csv"))
    assert (tmp_path / "out.csv").read_text().splitlines()[1] == "0,0"
    least = headrace(project, "select $a as a", "--parameter", "a=x", "--json")
    assert json.loads(least.stdout) == {"a": "x"}
    assert headrace(project, "select * from payments", "--parameter", "a").exit_code == 1


def test_without_tables_the_command_says_who_writes_them(tmp_path):
    (tmp_path / "headrace.yaml").write_text("project: shop\n")

    assert "'headrace lake' writes them" in headrace(tmp_path).stdout
    with pytest.raises(QueryError, match="the lake has none yet"):
        hr.sql("select * from payments", project=tmp_path)
