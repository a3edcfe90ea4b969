"""The figures of ACNet's, FGAN's, MA-SBIR's and TKI's papers: structure, averages, and figures in several tables."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from hystar_fast.experiments.published_tables import (
    PAPERS,
    PublishedTable,
    published_numbers,
    published_table,
    split_names,
)
from hystar_fast.experiments.reproduce_published import figure
from tests.support.cli import refused, run

EVERY = [(paper, number) for paper in PAPERS for number in published_numbers(paper)]
COUNTS = {
    "acnet": {2: 6, 4: 26, 5: 5, 6: 6, 7: 3, 8: 4, 9: 2, 10: 5, 11: 6},
    "fgan": {1: 16, 2: 5, 3: 7, 4: 13, 5: 6},
    "ma_sbir": {1: 14, 2: 9, 3: 6, 4: 5, 5: 4, 6: 2, 7: 3},
    "tki": {2: 12, 3: 32, 4: 16, 5: 4, 6: 3, 7: 18},
}


MISSING = {("ma_sbir", 1), ("ma_sbir", 2), ("ma_sbir", 4)}  # of other methods, and one that is lost


def acnet(number: int) -> PublishedTable:
    return published_table("acnet", number)


def fgan(number: int) -> PublishedTable:
    return published_table("fgan", number)


@pytest.mark.parametrize(("paper", "number"), EVERY)
def test_every_table_is_complete(paper, number):
    table = published_table(paper, number)
    assert len(table.rows) == COUNTS[paper][number]
    assert f"Table {number}: " in table.source and table.subject
    assert len({*table.columns}) == len(table.columns)
    assert {*table.semantics} <= {*table.rows} and {*table.settings} <= {*table.rows}
    for name, values in table.rows.items():
        assert len(values) == len(table.columns)
        for column, value in zip(table.columns, values, strict=True):
            if value is None:
                assert (paper, number) in {("acnet", 4), ("acnet", 6), ("fgan", 3), ("tki", 2), ("tki", 7), *MISSING}, (
                    name
                )
            elif paper in ("acnet", "ma_sbir", "tki"):
                assert 0 < value < 100
            elif number < 5 or column == "mAP Avg":
                assert 0 < value < 1


def test_the_tables_are_all_that_the_papers_have_figures_in():
    assert {paper: {*published_numbers(paper)} for paper in PAPERS} == {p: {*found} for p, found in COUNTS.items()}


def test_the_row_of_acnet_is_the_same_in_every_table():
    full = acnet(2).rows["NormSoftmax, joint"]
    same = {5: "all", 7: "λ = 10, γ = 0.1", 11: "ResNet-50, 512"}
    assert all(acnet(number).rows[row] == full for number, row in same.items())
    sketchy = {8: "NormSoftmax", 9: "CycleGAN's G", 10: "ACNet"}
    assert all(acnet(number).rows[row] == full[:4] for number, row in sketchy.items())
    shared = [acnet(2).columns.index(column) for column in acnet(4).columns]
    assert acnet(4).rows["ACNet 512"] == tuple(full[place] for place in shared)


def test_acnet_without_synthesis_is_the_same_in_three_tables():
    plain = acnet(2).rows["NormSoftmax, none"]
    assert acnet(5).rows["L_s + L_p"] == plain
    assert acnet(10).rows["no synthesis, flips only"] == plain[:4]


def test_the_gains_in_the_text_of_acnet_are_percentage_points():
    average, precision = acnet(4).column("T mAP@all"), acnet(4).column("T Prec@100")
    assert average["ACNet 512"] - average["TCN 512"] == pytest.approx(8.2)
    assert precision["ACNet 512"] - precision["TCN 512"] == pytest.approx(4.2)


def test_map_is_at_most_precision_in_every_row_of_acnet():
    for number in (2, 5, 7, 8, 9, 10, 11):
        for data in ("S", "T")[: len(acnet(number).columns) // 4]:
            average, precision = acnet(number).column(f"{data} mAP@200"), acnet(number).column(f"{data} Prec@200")
            assert all(average[row] <= precision[row] for row in average)
    average, precision = acnet(4).column("S mAP@200"), acnet(4).column("S Prec@200")
    above = {row for row in average if average[row] is not None and average[row] > precision[row]}
    assert above == {"SEM-PCYC 64", "Doodle 4096", "AMF 512"} and "above Prec@200" in acnet(4).note


def test_averages_of_fgan_are_the_means_of_both_directions_but_for_two_that_are_printed_otherwise():
    printed = {("DCCA (TF-IDF, LDA)", "W Avg"): 0.236, ("LCALE", "X Avg"): 0.150}
    wrong = {}
    for number in (1, 2, 3):
        table = fgan(number)
        for name, values in table.rows.items():
            for place, column in enumerate(table.columns):
                if not column.endswith("Avg") or values[place] is None:
                    continue
                mean = (values[place - 2] + values[place - 1]) / 2
                if abs(mean - values[place]) > 0.0005 + 1e-9:
                    wrong[name, column] = values[place]
    assert wrong == printed


def test_the_rows_of_fgan_are_the_same_in_every_table():
    one, two, four = fgan(1), fgan(2), fgan(4)
    parts = ("RE", "LD", "JR")
    pascal = [value for part in parts for value in one.rows[f"FGAN {part}"][:3]]
    assert two.rows["VGG, Doc2Vec"] == tuple(pascal)
    full = dict(zip(four.columns, four.rows["full"], strict=True))
    for data in ("P", "W", "X"):
        averages = one.column(f"{data} Avg")
        assert [full[f"{data} {part}"] for part in parts] == [averages[f"FGAN {part}"] for part in parts]
    speeds, encoders = fgan(5).column("mAP Avg"), two.column("JR Avg")
    names = {"VGG-19, Doc2Vec": "VGG, Doc2Vec", "VGG-19, BERT": "VGG, BERT"}
    shared = {row: names.get(row, row) for row in speeds if row != "ResNet-18, Doc2Vec"}
    assert all(speeds[row] == encoders[other] for row, other in shared.items()) and len(shared) == 5


def test_the_gains_in_the_text_of_fgan_are_relative():
    ours, best = fgan(1).rows["FGAN JR"], fgan(1).rows["MDVAE"]
    gains = [100 * (ours[place] / best[place] - 1) for place in (0, 1, 3, 4)]
    assert gains == pytest.approx([12.0, 9.3, 1.7, 5.8], abs=0.06)


def test_fgan_is_below_cmaam_in_one_column():
    precision = fgan(3).column("Sketchy Prec@100")
    assert precision["FGAN"] < precision["CMAAM"] and "above that of FGAN" in fgan(3).note


def mean_of(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known)


def test_averages_of_tki_follow_from_their_rows_but_for_three_that_are_printed_otherwise():
    found = []
    for number in (2, 5, 6, 7):
        table = published_table("tki", number)
        width = 1 if number == 7 else 2
        for row, values in table.rows.items():
            for place, printed in enumerate(values[-width:]):
                mean = mean_of(values[place:-width:width])
                found += [(number, row, printed, round(mean, 2))] if abs(mean - printed) > 0.006 else []
    for number in (3, 4):
        rows = published_table("tki", number).rows
        for row in (name for name in rows if name.endswith(" avg")):
            parts = [values for name, values in rows.items() if name.startswith(f"{row.removesuffix(' avg')}→")]
            for place, printed in enumerate(rows[row]):
                mean = mean_of([values[place] for values in parts])
                found += [(number, row, printed, round(mean, 2))] if abs(mean - printed) > 0.006 else []
    wrong = [(2, "Quickdraw, CLIP", 0.8, 0.79), (3, "PACS P avg", 88.03, 82.75), (4, "C avg", 60.62, 60.86)]
    assert found == wrong
    for number, _, printed, mean in wrong:
        note = published_table("tki", number).note
        assert f"{printed:.2f}" in note and f"{mean:.2f}" in note


def test_the_art_rows_of_tki_are_the_same_in_three_tables():
    three, five, six = (published_table("tki", number) for number in (3, 5, 6))
    rows = [three.rows[f"PACS A{to}"] for to in ("→C", "→P", "→S", " avg")]
    clip, ours = (tuple(value for row in rows for value in row[at : at + 2]) for at in (0, 2))
    assert five.rows["neither"] == six.rows["none"] == clip
    assert five.rows["L_max + L_min"] == six.rows["names of the data set"] == ours


def test_names_of_tables_are_read_and_refused():
    assert split_names(["all"])[0] == [*range(1, 15)]
    assert [table.number for table in split_names(["fgan:all"])[1]] == [1, 2, 3, 4, 5]
    for name, message in (
        ("acnet:table3", "tables of ACNet must be table2, table4, .*, got 'acnet:table3'"),
        ("acnet:x", "tables of ACNet must be"),
        ("other:table1", "paper must be one of acnet, fgan, ma_sbir, tki, got 'other'"),
        ("table15", "tables must be table1 to table14"),
    ):
        with pytest.raises(ValueError, match=message):
            split_names([name])
    with pytest.raises(ValueError, match="one of the tables 1, 2, 3, 4, 5 of FGAN, got 6"):
        published_table("fgan", 6)
    with pytest.raises(ValueError, match="name must be one of"):
        fgan(1).column("mAP")


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (None, "share", "–"),
        (0.47, "share", "0.470"),
        (23.8, "share", "23.8"),
        (8.0, "per cent", "8.0"),
        (69.05, "per cent", "69.05"),
    ],
)
def test_figures_are_printed_as_in_the_papers(value, unit, shown):
    assert figure(value, unit) == shown


def ma_sbir(number: int) -> PublishedTable:
    return published_table("ma_sbir", number)


def test_the_rows_of_ma_sbir_are_the_same_in_every_table():
    zero_shot, losses, towers = ma_sbir(1), ma_sbir(4), ma_sbir(6)
    rounded = [round(value + 1e-6, 1) for value in losses.rows["clip"]]
    assert rounded == list(zero_shot.rows["Ours [clip]"])
    assert [round(v + 1e-6, 1) for v in towers.rows["full"]] == list(zero_shot.rows["Ours [converted]"])
    full = towers.rows["full"]
    assert (losses.rows["+ rec"][:2], losses.rows["+ mc"][2:4], losses.rows["+ ortho"][4:]) == (
        full[:2],
        full[2:4],
        full[4:],
    )
    lost = [
        (row, c)
        for row, values in losses.rows.items()
        for c, v in zip(losses.columns, values, strict=True)
        if v is None
    ]
    assert lost == [("+ mc", "S mAP@200")]
    assert ma_sbir(7).rows["1.0"] == ma_sbir(3).rows["Ours [original]"]


def test_the_slip_of_ma_sbir_is_kept_as_printed_and_marked():
    assert ma_sbir(7).column("Acc@5") == {"1.0": 58.53, "0.8": 54.79, "0.5": 70.71}
    assert "most likely 50.71" in ma_sbir(7).note
    assert "another test set" in ma_sbir(1).note
    for column, gain in (("S mAP@200", 0.6), ("T mAP@all", 0.0), ("Q mAP@all", 0.5)):
        found = ma_sbir(1).column(column)
        assert found["Ours [converted]"] - found["Ours [clip]"] == pytest.approx(gain)


def test_the_command_prints_published_rows_with_reasons_and_writes_them(tmp_path):
    found = run("experiments", "reproduce", "acnet:table9", "fgan:table4", "--output", tmp_path)
    assert found.exit_code == 0, found.output
    text = " ".join(found.output.split())
    assert "acnet, Table 9: Generators (the paper's figures, per cent)" in text
    assert "not run: StarGAN v2: the generator of StarGAN v2 is not part of this package" in text
    assert "not run: CycleGAN's G: the data set is not part of this package; `--data emoji` runs the row" in text
    written = json.loads((tmp_path / "acnet-table9.json").read_text())
    assert [row["row"] for row in written["rows"]] == [*acnet(9).rows]
    assert written["rows"][0]["paper"] == dict(zip(acnet(9).columns, acnet(9).rows["CycleGAN's G"], strict=True))
    assert json.loads((tmp_path / "fgan-table4.json").read_text())["unit"] == "share"
    assert "tables of ACNet must be" in refused("experiments", "reproduce", "acnet:table3", "--output", tmp_path)
    found = run("experiments", "reproduce", "ma_sbir:table1", "ma_sbir:table3", "--output", tmp_path)
    text = " ".join(found.output.split())
    assert "Prec@k:shortened" in text and "authors' own list" in text
    assert "not run: Ours [clip], Ours [original], Ours [converted]: neither the data set nor OpenAI's weights" in text
    assert "12,694 sketches and 10,453 photos of the unseen categories of Sketchy" in text
    assert "29.96" in text and "not run: Ours [original], Ours [converted]: the data set is not part of this" in text
