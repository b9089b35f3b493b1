import pytest

from mlites.report.sections.facts import LONGEST_TABLE, Fact, Table, word_facts


def words(**facts):
    figures, tables = word_facts(facts)
    return {one.label: one.shown for one in figures} | {one.label: one for one in tables}


def test_known_facts_have_words_and_units():
    assert words(gain_points=1.39, paid=True, p_value=0.00001, control_validation_accuracy=0.9722) == {
        "gained by learning from the teacher": "+1.39 points",
        "distillation paid": "yes",
        "p-value of this gain": "1.0e-05",
        "the same student without the teacher": "97.22%",
    }


def test_unknown_facts_are_shown_plainly_with_the_unit_their_name_ends_in():
    shown = words(new_trick=3.14159, cache_bytes=2048, spare_accuracy=0.5, idle_seconds=2.0, note="<b>", off=False)
    assert shown == {
        "new trick": "3.142", "cache bytes": "2 KiB", "spare accuracy": "50.00%", "idle seconds": "2.00 s",
        "note": "<b>", "off": "no",
    }  # fmt: skip


def test_before_and_after_stand_side_by_side_whichever_comes_first():
    both = [Fact("channels", "112 → 64 (−42.9%)")]  # noqa: RUF001
    assert word_facts({"channels_before": 112, "channels_after": 64})[0] == both
    assert word_facts({"channels_after": 64, "channels_before": 112})[0] == both
    assert words(size_bytes_before=2048, size_bytes=1024) == {"size bytes": "2 KiB → 1 KiB (−50.0%)"}  # noqa: RUF001
    assert words(channels_before=112) == {"channels before": "112"}


def test_the_sensitivity_analysis_is_a_table_of_layers_and_rates():
    layers = {"stem": {"rate": 0.1, "drops_points": [0.5, 12.25]}, "conv": {"rate": 0.7, "drops_points": [0.0, -0.1]}}
    value = {"probed_rates": [0.25, 0.5], "layers": layers, "protected": ["stem"]}
    (table,) = word_facts({"sensitivity": value})[1]
    assert table.columns == ["layer", "rate given", "at 25%", "at 50%"]
    assert table.rows == [
        ["conv", "70%", "±0 points", "+0.10 points"],
        ["stem", "10% (protected)", "−0.50 points", "−12.25 points"],  # noqa: RUF001
    ]


@pytest.mark.parametrize("value", ["much", None, {}, {"layers": 3}, {"probed_rates": 1, "layers": {"a": {}}}, [1, "x"]])
def test_a_sensitivity_of_another_shape_is_shown_plainly(value):
    figures, tables = word_facts({"sensitivity": value})
    assert [one.label for one in [*figures, *tables]] == ["sensitivity of each layer"]


def test_facts_of_each_layer_become_tables():
    assert words(kept_whole={"output": "it gives the classes"})["layers left as they are"].rows == [
        ["output", "it gives the classes"]
    ]
    assert words(ranks={"conv": [4, 8]})["ranks"].rows == [["conv", "4, 8"]]
    found = words(rounds=[{"removed": 0.5, "validation_accuracy": 0.9}, {"removed": 0.75}])[
        "rounds of pruning and training"
    ]
    assert (found.columns, found.rows) == (["removed", "validation accuracy"], [["50.00%", "90.00%"], ["75.00%", "–"]])  # noqa: RUF001
    nested = words(layers={"a": {"bits": 4, "weight_sparsity": 0.5}, "b": {"bits": 8}})["layers"]
    assert nested.columns == ["layer", "bits", "weight sparsity"]
    assert nested.rows == [["a", "4", "50.00%"], ["b", "8", "–"]]  # noqa: RUF001
    assert words(compared_layers=[["a", "b"], ["c"]])["layers of student and teacher compared"].rows == [
        ["a", "b"],
        ["c", ""],
    ]


def test_layers_stand_in_the_order_of_their_numbers_whatever_the_documents():
    names = ["blocks.10.conv", "blocks.2.conv", "blocks.2.conv1", "stem"]
    found = words(ranks={name: [1] for name in reversed(sorted(names))})["ranks"]
    assert [row[0] for row in found.rows] == ["blocks.2.conv", "blocks.2.conv1", "blocks.10.conv", "stem"]


def test_what_a_pass_found_is_told_in_one_order_however_it_is_stored():
    facts = {"zeros": 9, "new": 1, "sparsity": 0.9, "weights": 10, "channels_after": 3, "channels_before": 4}
    expected = ["channels", "weights", "zeros", "zeros among the weights", "new"]
    for stored in (facts, dict(sorted(facts.items())), dict(sorted(facts.items(), reverse=True))):
        assert list(words(**stored)) == expected


def test_short_lists_are_a_line_and_long_ones_a_table_cut_at_its_length():
    assert words(layers_kept_float=["a", "b"]) == {"layers kept in float": "a, b"}
    assert words(layers_kept_float=[]) == {"layers kept in float": "none"}
    table = words(layers_kept_float=[f"l{index}" for index in range(LONGEST_TABLE + 7)])["layers kept in float"]
    assert isinstance(table, Table) and len(table.rows) == LONGEST_TABLE and table.more == 7


@pytest.mark.parametrize("key", ["gain_points", "p_value", "sparsity", "max_abs_difference", "channels", "x_bytes"])
@pytest.mark.parametrize("value", ["text", None, float("inf"), float("nan"), True, {"a": {"b": 1}}, [[1], 2], -1])
def test_a_value_of_another_kind_than_its_name_says_is_still_shown(key, value):
    figures, tables = word_facts({key: value})
    assert len(figures) + len(tables) == 1
    assert all(one.shown for one in figures)
