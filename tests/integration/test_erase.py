"""`headrace erase` beside a running worker: states, Redis and the lake forget, a restart too."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from live import LiveWorker
from receipt_cases import as_json, make_fraud

import headrace as hr
from headrace.lake.tables import predictions_table, snapshots_table
from headrace.runtime import topics

COUNT = 2_000
NEW_ID = 1_000_000

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def served(stack, tmp_path_factory, repository):
    folder = tmp_path_factory.mktemp("erase") / "project"
    made = make_fraud(folder, repository / "examples" / "fraud", "erase", stack, 30)
    made.headrace("apply")
    made.headrace("send", "--reports", "first", "--max", str(COUNT))
    return made


def online(served, entity, keys):
    """Return what Redis holds of an entity's keys: values and status by key."""
    view = {"customer": "customer", "terminal": "terminal"}[entity]
    rows = hr.online(view, {f"{entity}_id": keys}, project=served.folder).to_dicts()
    kept = [name for name in rows[0] if not name.endswith("__age_ms")]
    return {row[f"{entity}_id"]: {name: row[name] for name in kept} for row in rows}


def lake_rows(served, table, column):
    return served.lake.table(table).delta.to_pyarrow_table().column(column).to_pylist()


def send_again(served, customer, terminal, first_id, count):
    """Publish new transactions of a customer at a terminal, after all others."""
    table = pq.read_table(served.folder / "data" / "transactions.parquet")
    newest = table.column("event_time")[COUNT - 1].value
    rows = {
        "transaction_id": range(first_id, first_id + count),
        "event_time": [newest + 1_000 * n for n in range(1, count + 1)],
        "customer_id": [customer] * count,
        "terminal_id": [terminal] * count,
        "amount": [10.0] * count,
    }
    made = pa.table(
        {name: pa.array(values, table.schema.field(name).type) for name, values in rows.items()}
    )
    path = served.folder / "new.parquet"
    pq.write_table(made, path)
    served.headrace("send", f"{served.plan.source}={path}")


def snapshots_of(served, first_id, count):
    ids = [str(number) for number in range(first_id, first_id + count)]
    table = served.lake.table(snapshots_table(served.plan.name)).delta.to_pyarrow_table()
    rows = table.filter(pc.field("event_id").isin(ids)).to_pylist()
    return {int(row["event_id"]): row for row in rows}


@dataclass
class Sent:
    """What was sent, and who is to be forgotten: a customer, a terminal, and one too early."""

    customers: list[str]
    terminals: list[str]

    @property
    def gone(self):
        return self.customers[-1]

    @property
    def place(self):
        return self.terminals[-3]

    @property
    def early(self):
        return next(c for c in self.customers[::-1] if c not in {self.gone, self.other})

    @property
    def other(self):
        return next(c for c in self.customers[::-1] if c != self.gone)

    @property
    def rows_gone(self):
        pairs = zip(self.customers, self.terminals, strict=True)
        return sum(c == self.gone or t == self.place for c, t in pairs)

    def online(self, served):
        keys = sorted(set(self.customers)), sorted(set(self.terminals))
        return online(served, "customer", keys[0]), online(served, "terminal", keys[1])


def test_a_key_is_forgotten_everywhere_and_stays_forgotten(served, wait_until):
    plan = served.plan
    tables = (plan.source, predictions_table(plan.name), snapshots_table(plan.name))
    topic = topics.predictions(plan.name)
    table = pq.read_table(served.folder / "data" / "transactions.parquet").slice(0, COUNT)
    sent = Sent(table.column("customer_id").to_pylist(), table.column("terminal_id").to_pylist())
    nobody = served.headrace("erase", "customer", sent.early, "--yes", "--wait", "0", code=1)
    assert "the request stands" in nobody.stderr

    with LiveWorker(served.folder) as worker:
        wait_until(lambda: served.written(topic) >= COUNT, 120)
        wait_until(lambda: not_fresh(sent.online(served)[0]) == {sent.early: "MISSING"})
        served.headrace("lake", "--once")
        before, held = (
            [served.lake.table(name).count_rows() for name in tables],
            sent.online(served),
        )
        counted = as_json(served.headrace("erase", "customer", sent.gone, "--dry-run", "--json"))
        receipts = [
            as_json(served.headrace("erase", entity, key, "--yes", "--json"))
            for entity, key in (("customer", sent.gone), ("terminal", sent.place))
        ]
        after = sent.online(served)
        assert worker.terminate() == 0, worker.output()
    mine = dict.fromkeys(tables, sent.customers.count(sent.gone))
    assert counted["lake_rows"] == receipts[0]["lake_rows"] == mine
    for receipt in receipts:
        assert (receipt["states"], receipt["keys"]) == ({plan.name: 3}, 1)
        assert receipt["online"] == 1
        assert any("models" in text for text in receipt["left"])
    assert [served.lake.table(n).count_rows() + sent.rows_gone for n in tables] == before
    assert_no_trace(served, tables, sent)
    assert changed(held[0], after[0]) == {sent.gone}
    assert not_fresh(after[0]) == {sent.early: "MISSING", sent.gone: "MISSING"}
    assert not_fresh(after[1]) == {sent.place: "MISSING"}

    with LiveWorker(served.folder) as worker:
        send_again(served, sent.gone, sent.place, NEW_ID, 3)
        send_again(served, sent.other, sent.place, NEW_ID + 10, 1)
        send_again(served, sent.early, sent.place, NEW_ID + 20, 1)
        wait_until(lambda: served.written(topic) >= COUNT + 5, 120)
        count = "customer__count_30d"
        wait_until(lambda: online(served, "customer", [sent.gone])[sent.gone][count] == 3)
        assert worker.terminate() == 0, worker.output()
    served.headrace("lake", "--once")
    rows = snapshots_of(served, NEW_ID, 21)
    assert [rows[NEW_ID + n][count] for n in (0, 1, 2, 20)] == [1, 2, 3, 1]
    assert rows[NEW_ID + 10][count] > 1
    assert {row["terminal__count_30d"] for row in rows.values()} == {0}
    replayed = as_json(served.headrace("replay", "--sample", "3000", "--json"))
    assert replayed["equal"], replayed["unequal"][:3]
    assert replayed["vectors_from"] == {"log": replayed["replayed"]}


def assert_no_trace(served, tables, sent):
    """See that neither the tables nor the files below them hold the two keys."""
    for name in tables:
        table = served.lake.table(name)
        files = {path.name for path in table.path.rglob("*.parquet")}
        assert files == {file.rsplit("/", 1)[1] for file in table.files()}
    source, predictions, snapshots = tables
    assert sent.gone not in lake_rows(served, source, "customer_id")
    assert sent.gone not in lake_rows(served, predictions, "customer_key")
    assert sent.place not in lake_rows(served, snapshots, "terminal_key")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("custmer", "C1"), "did you mean 'customer'?"),
        (("merchant", "C1"), "there are customer, terminal"),
    ],
)
def test_an_entity_that_there_is_not_is_told(served, arguments, said):
    done = served.headrace("erase", *arguments, "--yes", code=1)

    assert said in done.stderr
    assert "Traceback" not in done.stderr


def status(row):
    (found,) = [value for name, value in row.items() if name.endswith("__status")]
    return found


def not_fresh(rows):
    return {key: status(row) for key, row in rows.items() if status(row) != "FRESH"}


def changed(before, after):
    """Return the keys whose 30 days are others; shorter or delayed windows move with the clock."""
    names = ("customer__count_30d", "customer__amount_mean_30d")
    return {key for key in before if any(before[key][n] != after[key][n] for n in names)}
