"""Following the change data feed ends where reading the whole table ends."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from conftest import World
from deltalake import DeltaTable, write_deltalake
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from rag.errors import RowKeyError
from rag.mirror import plan

KEYS = list("abcdef")
TEXTS = ["red apple", "blue sky", "  ", None, "green grass is long", "it's ‘quoted’"]
SCHEMA = {"Row Id": pl.String, "text": pl.String, "n": pl.Int64}

keys = st.sampled_from(KEYS)
rows = st.lists(st.tuples(keys, st.sampled_from(TEXTS), st.integers(0, 2)), max_size=4)
steps = st.one_of(
    st.tuples(st.just("merge"), rows),
    st.tuples(st.just("delete"), keys),
    st.tuples(st.just("update"), keys, st.sampled_from([t for t in TEXTS if t])),
    st.tuples(st.just("overwrite"), rows),
    st.tuples(st.just("optimize")),
    st.tuples(st.just("restore"), st.integers(1, 3)),
    st.tuples(st.just("sync")),
)


def frame(rows: list[tuple[str, str | None, int]], *, is_keyed: bool = True) -> pl.DataFrame:
    made = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    return made.unique("Row Id", keep="last", maintain_order=True) if is_keyed else made


def apply(world: World, step: tuple[Any, ...], *, is_keyed: bool) -> None:
    table = DeltaTable(world.uri)
    match step:
        case ("merge", rows) if is_keyed:
            table.merge(
                frame(rows), 's."Row Id" = t."Row Id"', source_alias="s", target_alias="t"
            ).when_matched_update_all().when_not_matched_insert_all().execute()
        case ("merge", rows):
            write_deltalake(world.uri, frame(rows, is_keyed=False), mode="append")
        case ("delete", key):
            table.delete(f"\"Row Id\" = '{key}'")
        case ("update", key, text):
            quoted = text.replace("'", "''")
            table.update(updates={"text": f"'{quoted}'"}, predicate=f"\"Row Id\" = '{key}'")
        case ("overwrite", rows):
            always = [*rows, ("z", "always here", 0)]
            write_deltalake(world.uri, frame(always, is_keyed=is_keyed), mode="overwrite")
        case ("optimize",):
            table.optimize.compact()
        case ("restore", back) if table.version() >= back:
            table.restore(table.version() - back)
        case ("sync",):
            world.sync()


def held(world: World) -> Counter[tuple[object, ...]]:
    """What the index holds, vectors included, without the keys of equal rows."""
    table = world.store.table
    assert table is not None
    nodes = table.search().where("row_hash IS NOT NULL").limit(None).to_list()
    assert len({n["id"] for n in nodes}) == len(nodes)
    return Counter(
        (n["row_key"], n["chunk_no"], n["text"], n["row_hash"], tuple(n["vector"])) for n in nodes
    )


@pytest.mark.parametrize("is_keyed", [True, False], ids=["keyed", "keyless"])
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(history=st.lists(steps, min_size=1, max_size=6), size=st.integers(3, 20))
def test_any_history_ends_as_a_fresh_build(
    tmp_path_factory: pytest.TempPathFactory,
    is_keyed: bool,
    history: list[tuple[Any, ...]],
    size: int,
) -> None:
    followed = World(tmp_path_factory.mktemp("followed"))
    fresh = World(tmp_path_factory.mktemp("fresh"))
    for world in (followed, fresh):
        world.key = ("Row Id",) if is_keyed else ()
        world.splitter.size = size
    fresh.uri = followed.uri
    followed.create(frame([("z", "always here", 0), ("a", "red apple", 1)]))
    followed.sync()
    for step in history:
        apply(followed, step, is_keyed=is_keyed)
    report = followed.sync()
    event(report.read)
    is_updated = any(step[0] == "update" for step in history)
    assert report.read != "table" or (is_updated and not is_keyed)
    whole = fresh.sync()
    assert held(followed) == held(fresh)
    mine, built = followed.store.state(), fresh.store.state()
    assert mine == built
    assert report.n_added + report.n_updated + report.n_unchanged == whole.n_added


def test_only_what_changed_is_read_and_written(world: World) -> None:
    world.create(pl.DataFrame({"row_id": range(2000), "text": [f"text {i}" for i in range(2000)]}))
    world.sync()
    DeltaTable(world.uri).update(updates={"text": "'new'"}, predicate="row_id = 7")
    told: list[tuple[str, int, int]] = []
    report = world.sync(progress=lambda *now: told.append(now))
    assert (report.read, report.n_updated, report.n_embedded) == ("feed", 1, 1)
    assert report.n_unchanged == 1999
    assert ("changes read", 2, 0) in told
    assert {t[2] for t in told if t[0] == "rows"} == {1}
    assert not [t for t in told if t[0] == "reading the table"]
    # the new fragment holds the row and the state
    added = [f.metadata.num_rows for f in world.index.dataset().get_fragments()][1:]
    assert sum(added) == 2


def feed_on_midway(world: World) -> None:
    world.write(pl.DataFrame({"row_id": ["a", "b"], "text": ["red", "blue"]}))
    world.sync()
    DeltaTable(world.uri).delete("row_id = 'b'")
    DeltaTable(world.uri).alter.set_table_properties({"delta.enableChangeDataFeed": "true"})
    DeltaTable(world.uri).update(updates={"text": "'pink'"}, predicate="row_id = 'a'")


def vacuumed(world: World) -> None:
    world.create(pl.DataFrame({"row_id": ["a", "b"], "text": ["red", "blue"]}))
    world.sync()
    world.write(pl.DataFrame({"row_id": ["b"], "text": ["blue"]}))
    world.write(pl.DataFrame({"row_id": ["a"], "text": ["pink"]}))
    DeltaTable(world.uri).vacuum(0, enforce_retention_duration=False, dry_run=False)


def new_column(world: World) -> None:
    world.create(pl.DataFrame({"row_id": ["a", "b"], "text": ["red", "blue"]}))
    world.sync()
    world.write(pl.DataFrame({"row_id": ["a"], "text": ["pink"], "extra": [1]}))


@pytest.mark.parametrize(
    ("change", "read"),
    # switched on midway, the feed is worked out from the files: counted, that is right too
    [(feed_on_midway, "feed"), (vacuumed, "table"), (new_column, "table")],
)
def test_whatever_the_feed_can_tell_the_end_is_right(world: World, change: Any, read: str) -> None:
    change(world)
    report = world.sync()
    assert report.read == read
    assert [n.text for n in world.store.get_nodes()] == ["pink"]


def test_a_duplicate_key_in_the_feed_is_refused(world: World) -> None:
    world.create(pl.DataFrame({"row_id": ["a"], "text": ["red"]}))
    world.sync()
    write_deltalake(world.uri, pl.DataFrame({"row_id": ["a"], "text": ["blue"]}), mode="append")
    with pytest.raises(RowKeyError, match="repeats in 2 rows"):
        world.sync()
    assert [n.text for n in world.store.get_nodes()] == ["red"]


def test_an_update_of_equal_rows_is_read_from_the_table(world: World) -> None:
    """deltalake tells an update as a difference of sets, so equal rows are missing from it."""
    world.key = ()
    world.create(pl.DataFrame({"text": ["red"], "n": [0]}))
    world.sync()
    write_deltalake(world.uri, pl.DataFrame({"text": ["red", "blue"], "n": [0, 0]}), mode="append")
    DeltaTable(world.uri).update(updates={"text": "'red'"})
    assert world.sync().read == "table"
    assert [n.text for n in world.store.get_nodes()] == ["red"] * 3


def test_a_feed_that_hides_a_duplicate_key_is_not_believed(world: World) -> None:
    world.create(pl.DataFrame({"row_id": ["a"], "text": ["red"]}))
    world.sync()
    write_deltalake(world.uri, pl.DataFrame({"row_id": ["a"], "text": ["blue"]}), mode="append")
    DeltaTable(world.uri).update(updates={"text": "'blue'"})
    with pytest.raises(RowKeyError, match="repeats in 2 rows"):
        world.sync()
    assert [n.text for n in world.store.get_nodes()] == ["red"]


def test_another_recipe_does_not_follow_the_feed(world: World) -> None:
    world.create(pl.DataFrame({"row_id": ["a"], "text": ["red"]}))
    world.sync()
    DeltaTable(world.uri).update(updates={"text": "'pink'"})
    world.space = "others"
    assert world.sync().read == "table"


def test_feeds_of_other_writers(shared_data: Path, tmp_path: Path) -> None:
    """Real tables with a feed: followed from version to version, or read whole, always right."""
    n_followed = 0
    for name in ("cdf-table", "simple_table_with_cdc", "cdf-table-non-partitioned"):
        uri = str(shared_data / "delta_tables" / name)
        table = DeltaTable(uri)
        column = next(
            f.name
            for f in table.schema().fields
            if str(f.type.to_json()) in ('"string"', '"integer"')
        )
        followed, fresh = (World(tmp_path / name / which) for which in ("followed", "fresh"))
        for world in (followed, fresh):
            world.uri, world.template, world.key = uri, f"{{{column}}}", ()
        first = 1 if name == "simple_table_with_cdc" else 0  # its version 0 is empty
        followed.sync(version=first)
        for version in range(first + 1, table.version() + 1):
            n_followed += followed.sync(version=version).read == "feed"
        fresh.sync()
        assert held(followed) == held(fresh), name
    assert n_followed > 3


def test_a_feed_that_tells_more_than_the_table_holds_is_not_followed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "_MOST", 5)
    rows = pl.DataFrame({"row_id": range(10), "text": [f"text {i}" for i in range(10)]})
    world.create(rows)
    world.sync()
    for _ in range(3):
        world.write(rows)
    report = world.sync()
    assert (report.read, report.n_unchanged) == ("table", 10)
