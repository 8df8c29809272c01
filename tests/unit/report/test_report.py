"""The page and the tables of a run, on run folders made of the evaluation's own files, with every kind of gap."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from fake_runs import TIOU, make_run
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from apl_jax.data.files import DataError, load_json, write_json
from apl_jax.evaluation.average_precision import average_precision, instances_from_annotations, instances_from_videos
from apl_jax.evaluation.label_quality import label_quality
from apl_jax.report import figures as plots
from apl_jax.report import print_average_precision, print_table, write_report
from apl_jax.report.finished_run import open_run
from apl_jax.report.tables import counts, not_scored
from apl_jax.report.timelines import TIMELINE_LENGTHS, TIMELINE_VIDEOS
from apl_jax.runs.artefacts import seal
from apl_jax.structs import Reason

NASTY = '<script>alert("1")</script> & $x_2$'
CLASSES = ["walking", NASTY, "turning", "sitting"]
SECTIONS = [
    "Results", "Average precision per class", "Training", "Pseudo labels", "Non-target classes",
    "Timelines of unlabelled videos", "Timelines of evaluated videos", "What was run",
]  # fmt: skip


class Page(HTMLParser):
    """What a page holds; an element that is closed out of order is an error."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text("utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []  # element, text
        self._open: list[str] = []
        self.feed(self.source)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self._open[-1] if self._open else "", data.strip()))

    def of(self, tag: str) -> list[str]:
        return [text for element, text in self.texts if element == tag]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every variant, two rounds, and a class name that must be escaped; its page is written."""
    run = make_run(tmp_path_factory.mktemp("whole"), CLASSES, 40.0, 2.0, rounds=2, videos=12, space=True)
    write_report(run)
    return run


# The page


def test_page_holds_every_section_and_nothing_from_elsewhere(whole: Path) -> None:
    page = Page(whole / "report.html")
    assert page.of("h2") == SECTIONS
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object"})
    links = [
        value or "" for _, attrs in page.tags for name, value in attrs.items() if name in ("src", "href", "xlink:href")
    ]
    assert links and all(link.startswith(("#", "data:")) for link in links)
    assert not re.search(r"@import|url\((?!#)", page.source)
    assert NASTY in page.of("td") and NASTY in page.of("span") and any(NASTY in tip for tip in page.of("title"))
    assert any(text.startswith(NASTY[: plots.CLASS_LABEL - 1]) for text in page.of("text"))


def test_page_says_what_the_results_say(whole: Path) -> None:
    page, results = Page(whole / "report.html"), load_json(whole / "results.json")
    cells = page.of("td") + page.of("b")
    for score in results["variants"].values():
        assert f"{100 * score['average_map']:.1f}" in cells
    assert max(f"{100 * s['average_map']:.1f}" for s in results["variants"].values()) in page.of("b")
    text = " ".join(text for _, text in page.texts)
    for labels in results["pseudo_labels"].values():
        assert f"{labels['counts']['kept']} kept, {labels['counts']['promoted']} promoted" in text
    assert results["settings_fingerprint"] in text and "learning.rounds" in page.of("td")


def test_every_instance_of_a_shown_video_can_be_pointed_at(whole: Path) -> None:
    run, tips = open_run(whole), Counter(Page(whole / "report.html").of("title"))
    videos = run.records("evaluation")
    assert len(videos) <= TIMELINE_VIDEOS  # hence all are shown
    for video in videos:
        for label, (start, end) in zip(video.labels, video.segments_s, strict=True):
            assert tips[f"{CLASSES[label]}, {start:.1f} to {end:.1f} s"]
    assert any("similarity" in tip and "tND" in tip for tip in tips)


def test_page_is_the_same_twice(whole: Path) -> None:
    before = (whole / "report.html").read_bytes()
    assert write_report(whole).read_bytes() == before


def test_missing_variants_leave_their_sections_out(tmp_path: Path) -> None:
    page = Page(write_report(make_run(tmp_path, CLASSES, 40.0, 2.0, variants=("supervised",))))
    left = ("Pseudo labels", "Non-target classes", "Timelines of unlabelled videos")
    assert page.of("h2") == [name for name in SECTIONS if name not in left]
    assert not any("points of average mAP" in text for _, text in page.texts)


def test_without_discriminator_no_similarity(whole: Path, tmp_path: Path) -> None:
    without, with_it = (
        Page(write_report(make_run(tmp_path, CLASSES, 40.0, 2.0, icd=False))),
        Page(whole / "report.html"),
    )
    assert "Similarity (ICD)" in with_it.of("figcaption") and "Similarity (ICD)" not in without.of("figcaption")


def test_no_pseudo_label_at_all(tmp_path: Path) -> None:
    run = make_run(tmp_path, CLASSES, 40.0, 2.0)
    path = run / "stages" / "pseudo_label_1" / "pseudo_labels.json"
    document = load_json(path)
    document["database"] = {v: e | {"annotations": [], "ignored": []} for v, e in document["database"].items()}
    write_json(path, document)
    with pytest.raises(DataError, match="another content than the stage wrote"):
        write_report(run)
    seal(path.parent, "made up", {})
    assert Page(write_report(run)).of("h2") == [name for name in SECTIONS if name != "Non-target classes"]


def test_a_method_without_labelling_stage_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, CLASSES, 40.0, 2.0, method="nontarget")
    page = Page(write_report(run))
    left = ("Non-target classes", "Timelines of unlabelled videos")
    assert page.of("h2") == [name for name in SECTIONS if name not in left]
    assert any("this method has no labelling stage" in text for text in page.of("p"))
    print_table(load_json(run / "results.json"))
    assert "this method has no labelling stage" in capsys.readouterr().out


def test_label_space_says_what_was_counted(whole: Path) -> None:
    page, found = Page(whole / "report.html"), load_json(whole / "results.json")["label_space"]["teacher"]["foreground"]
    for name in ("target", "positive", "negative", "ambiguous"):
        assert f"{100 * found[name]:.1f}" in page.of("td")
    assert "where the target is wrong" in page.of("text") and any("★" in text for text in page.of("text"))


def test_many_classes_and_long_videos_are_cut_and_say_so(tmp_path: Path) -> None:
    run = make_run(tmp_path, [f"class {c}" for c in range(60)], 1800.0, 3.0)
    page = Page(write_report(run))
    assert "The 20 most frequent of 60 classes" in page.of("figcaption") and "60 classes" in page.of("summary")
    titles = [m for t in page.of("text") if (m := re.fullmatch(r"video_\d+, ([\d,]+) to ([\d,]+) of 1,800 s", t))]
    assert titles
    for title in titles:
        low, high = (int(x.replace(",", "")) for x in title.groups())
        assert 0 < high - low <= TIMELINE_LENGTHS * 3 + 1
    assert len(page.source) < 2e6


# Reading a run


def test_files_are_read_as_they_were_meant(whole: Path) -> None:
    run, results = open_run(whole), load_json(whole / "results.json")
    truth = instances_from_annotations(run.records("unlabelled"))
    for stage, labels in results["pseudo_labels"].items():
        table = run.pseudo_labels(stage)
        assert label_quality(table.instances, table.reason, truth) == labels["quality"]
        assert {Reason(r).name.lower(): n for r, n in Counter(table.reason.tolist()).items()} == labels["counts"]
    truth = instances_from_annotations(run.records("evaluation"))
    for variant, score in results["variants"].items():
        again = average_precision(truth, run.predictions(variant), TIOU, len(CLASSES), (1, 5)).as_dict(CLASSES)
        assert again == score
    steps, values = run.curves("teacher")["labelled/class"]
    np.testing.assert_array_equal(steps, np.arange(25, 201, 25))  # the half-written last line is no point
    np.testing.assert_allclose(values, 1 / steps)


@pytest.mark.parametrize("name", ["settings", "results", "split"])
def test_an_unfinished_run_is_refused(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path, CLASSES, 40.0, 2.0, variants=("supervised",))
    (run / f"{name}.json").unlink()
    with pytest.raises(DataError, match=rf"{name}\.json: found no such file.*`workdir`"):
        write_report(run)
    assert not (run / "report.html").exists()


def test_other_data_than_the_runs_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path, CLASSES, 40.0, 2.0, variants=("supervised",))
    document = load_json(tmp_path / "data" / "annotations.json")
    del document["database"]["video_8"]
    write_json(tmp_path / "data" / "annotations.json", document)
    with pytest.raises(DataError, match=r"split\.json: evaluation: found video 'video_8'"):
        write_report(run)


# The terminal


def _table(text: str, first: str) -> dict[str, list[str]]:
    """The aligned table whose head begins with ``first``: row -> cells; all its lines are equally long."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(first))
    end = next((i for i in range(start, len(lines)) if not lines[i]), len(lines))
    assert len({len(line) for line in lines[start:end]}) == 1
    rows = [re.split(r" {2,}", line.strip()) for line in lines[start:end] if not line.startswith("─")]
    return {row[0]: row[1:] for row in rows}


def test_table_of_variants_and_of_pseudo_labels(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = load_json(whole / "results.json")
    print_table(results)
    text = capsys.readouterr().out
    table = _table(text, "mAP")
    steps = {name: cells[0] for name, cells in table.items() if name != "mAP, %"}
    assert steps == {
        "supervised only": "500", "supervised, matched steps": "700", "teacher (stage 2)": "500",
        "self-training, round 1": "600", "self-training, round 2": "700",
    }  # fmt: skip
    final = results["variants"]["self_train_2"]
    assert table["self-training, round 2"][1:] == [
        f"{100 * x:.1f}" for x in (*final["map"].values(), final["average_map"])
    ]
    points = 100 * (final["average_map"] - results["variants"]["supervised_matched"]["average_map"])
    assert f"self-training, round 2: {points:+.1f} points" in text
    second = text[text.index("Pseudo labels, round 2") :]
    quality = results["pseudo_labels"]["pseudo_label_2"]["quality"]["after_eap"]
    assert _table(second, "%")["after EAP"][:2] == [f"{quality['count']:,}", f"{100 * quality['class_accuracy']:.1f}"]


def test_table_of_one_prediction_file(capsys: pytest.CaptureFixture[str]) -> None:
    truth = instances_from_videos([[[0, 1], [2, 3]]], [[0, 2]])
    found = instances_from_videos([[[0, 1], [2, 2.6]]], [[0, 2]], [[0.9, 0.8]])
    print_average_precision(average_precision(truth, found, (0.5, 0.7), 3, (1,)).as_dict(["a", "b", "c"]))
    table = _table(capsys.readouterr().out, "%")
    assert table == {
        "%": ["tIoU 0.5", "tIoU 0.7", "average"], "a": ["100.0", "100.0", "100.0"], "b": ["–", "–", "–"],
        "c": ["100.0", "0.0", "50.0"], "mAP": ["100.0", "50.0", "75.0"], "Recall@1x": ["100.0", "50.0", "75.0"],
    }  # fmt: skip


# Figures


def _lab(colour: str) -> np.ndarray:
    """CIELAB of a colour, in which distances are about those that eyes see."""
    red_green_blue = np.array(to_rgb(colour))
    linear = np.where(red_green_blue > 0.04045, ((red_green_blue + 0.055) / 1.055) ** 2.4, red_green_blue / 12.92)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(np.array(to_xyz) @ linear / [0.9505, 1.0, 1.089])  # exact but for the darkest colours
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("marks", [(0.15, 0.2), (0.15, 0.4), (0.5, 0.95), (0.82, 0.9)])
def test_words_of_thresholds_do_not_meet(marks: tuple[float, float]) -> None:
    figure = Figure((5.25, 2.6), layout="constrained")
    values = {"confidence": np.linspace(0, 1, 50)}
    named = {"confidence": [(marks[1], "τ pos"), (marks[0], "τ neg")]}
    plots.reason_histograms(figure, values, np.full(50, int(Reason.KEPT)), named)
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 2 and not boxes[0].overlaps(boxes[1])


def test_class_colours_tell_classes_apart_and_stay() -> None:
    lab = np.array([_lab(colour) for colour in [*plots.class_colours(np.ones(27, int)), plots.OTHER_CLASS, "white"]])
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=-1)
    assert distance[~np.eye(29, dtype=bool)].min() > 20
    frequency = np.arange(200)
    colours = plots.class_colours(frequency)
    assert colours.count(plots.OTHER_CLASS) == 200 - 27 and plots.OTHER_CLASS not in colours[-27:]
    assert plots.class_colours(np.array([5, 9, 1])) == plots.class_colours(np.array([1, 2, 3]))


def test_point_12_scores_on_some_videos_say_so() -> None:
    results = {"variants": {"supervised": {"unannotated": 30}}, "data": {"evaluated": 70}}
    assert not_scored(results) == "Scored on 40 of 70 evaluated videos: the others are not annotated."
    assert not_scored({**results, "variants": {"supervised": {}}}) == ""
    number = dict.fromkeys(("kept", "promoted", "dropped", "candidate"), 1)
    labels = {"counts": number, "quality": {"truth": 5, "unannotated": 8}, "tau_pos": 0.5}
    assert counts(labels).endswith("5 true instances; measured without 8 videos that nobody annotated")
    labels["quality"] = {"truth": 5}
    lost = labels | {"warnings": ["1 of 3 classes have no pseudo label: walk"]}
    assert counts(lost).endswith("5 true instances; 1 of 3 classes have no pseudo label: walk")
    assert counts(labels).endswith("5 true instances")


def test_quality_that_is_unknown_is_a_dash() -> None:
    empty = dict.fromkeys(plots.MEASURES)
    figure = Figure(layout="constrained")
    plots.quality_bars(figure, {"before_icd": dict.fromkeys(plots.MEASURES, 0.5), "final": empty})
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["50"] * 3 + ["–"] * 3


def test_histogram_counts_every_detection_once() -> None:
    rng = np.random.default_rng(1)
    values, reason = rng.random(500), rng.integers(1, 5, 500)
    figure = Figure(layout="constrained")
    plots.reason_histograms(figure, {"confidence": values}, reason, {"confidence": [(0.9, "τ pos")]})
    heights = Counter()
    for container, r in zip(figure.axes[0].containers, plots.REASON_COLOURS, strict=True):
        heights[int(r)] = round(sum(bar.get_height() for bar in container))
    assert heights == Counter(reason.tolist())
