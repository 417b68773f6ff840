"""The page is one file, says everything, and trusts no text."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from ireko_trainer.report import ReportContent, ReportFiles, write_report
from ireko_trainer.report.page import count, mebibytes, ranges, summary

HOSTILE = "<script>alert(1)</script>\"'&"


class Page(HTMLParser):
    """Every tag with its attributes, and the text between them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def files(content: ReportContent, tmp_path_factory: pytest.TempPathFactory) -> ReportFiles:
    return write_report(content=content, directory=tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(files: ReportFiles) -> Page:
    return Page(files.page.read_text())


def bare(content: ReportContent) -> ReportContent:
    """As little as a report may have."""
    member = replace(content.members[0], bits=(), metrics={}, min_quality=None)
    return replace(
        content,
        members=(member,),
        candidates=(),
        baselines=(),
        curves=(),
        importance=(),
        lineage=(),
        tracking_uri=None,
        created=None,
    )


def test_the_page_loads_nothing_from_anywhere(page: Page) -> None:
    loading = {"src", "srcset", "href", "data", "poster", "action", "background"}
    for tag, attributes in page.tags:
        for name in loading & set(attributes):
            assert str(attributes[name]).startswith("data:image/png;base64,"), f"<{tag} {name}>"
    assert {"script", "link", "iframe", "object"}.isdisjoint(tag for tag, _ in page.tags)
    # The parser hands the style sheet over as text.
    assert "url(" not in page.text
    assert "@import" not in page.text


def test_every_member_is_on_the_page_with_its_numbers(page: Page, content: ReportContent) -> None:
    for member in content.members:
        assert member.target in page.text
        assert mebibytes(member.size_bytes) in page.text
        assert f"{member.quality:.4f}" in page.text
        assert f"≤ {mebibytes(member.max_size_bytes)}" in page.text
    assert 'load_model("models:/sentiment@gateway")' in page.text
    assert all(value in page.text for _, value in content.lineage)


def test_pictures_have_words_and_four_forms_each(page: Page) -> None:
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 4
    assert all(len(str(image["alt"])) > 20 for image in images)
    assert len([tag for tag, _ in page.tags if tag == "source"]) == 3 * len(images)


def test_pictures_lie_beside_the_page_and_are_the_ones_on_it(files: ReportFiles) -> None:
    assert [path.name for path in files.pictures] == [
        "pareto.png",
        "bits.png",
        "importance.png",
        "curves.png",
    ]
    html = files.page.read_text()
    for path in files.pictures:
        assert base64.b64encode(path.read_bytes()).decode() in html
        with Image.open(path) as image:
            assert image.width == 1376


def test_texts_from_the_manifest_stay_texts(content: ReportContent, tmp_path: Path) -> None:
    hostile = replace(
        bare(content),
        name=HOSTILE,
        model_name=HOSTILE,
        metric=HOSTILE,
        tracking_uri=HOSTILE,
        lineage=((HOSTILE, HOSTILE),),
        members=(replace(bare(content).members[0], target=HOSTILE, metrics={HOSTILE: 0.5}),),
    )
    html = write_report(content=hostile, directory=tmp_path).page.read_text()
    page = Page(html)
    assert "script" not in [tag for tag, _ in page.tags]
    assert HOSTILE in page.text


def test_a_page_with_little_to_show_has_no_empty_sections(content: ReportContent, tmp_path: Path) -> None:
    files = write_report(content=bare(content), directory=tmp_path)
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", files.page.read_text())
    assert headings == ["Members", "Size and quality", "Loading a member"]
    assert [path.name for path in files.pictures] == ["pareto.png"]


def test_a_missed_limit_is_not_shown_as_kept(content: ReportContent, tmp_path: Path) -> None:
    member = replace(bare(content).members[0], max_size_bytes=1 << 20, min_quality=0.99)
    text = Page(
        write_report(content=replace(bare(content), members=(member,)), directory=tmp_path).page.read_text()
    ).text
    assert "over 1.00 MiB" in text
    assert "under 0.9900" in text


def test_the_summary_names_the_smallest_member_and_what_it_keeps(content: ReportContent) -> None:
    assert summary(content) == (
        "From a teacher of 86.6 MiB with accuracy 0.914 came 3 members. The smallest, sensor-hub, takes 4.80 MiB "
        "(5.5% of the teacher) and has accuracy 0.861, 94.2% of the teacher's."
    )


def test_no_share_of_a_quality_that_is_zero_is_claimed(content: ReportContent) -> None:
    nothing = replace(content, teacher=replace(content.teacher, quality=0.0))
    assert "of the teacher's" not in summary(nothing)


@pytest.mark.parametrize(
    ("numbers", "text"), [((0, 1, 2, 3), "0–3"), ((0, 2, 3, 5), "0, 2–3, 5"), ((4,), "4"), ((), "")]
)
def test_runs_of_layers_are_drawn_together(numbers: tuple[int, ...], text: str) -> None:
    assert ranges(numbers) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(1 << 20, "1.00 MiB"), (20 << 20, "20.0 MiB"), (400 << 20, "400 MiB"), (1 << 17, "0.12 MiB")],
)
def test_sizes_have_three_digits(size: int, text: str) -> None:
    assert mebibytes(size) == text


@pytest.mark.parametrize(("number", "text"), [(22_713_216, "22.7 M"), (94_000, "94.0 k"), (12, "12")])
def test_parameters_are_counted_in_words(number: int, text: str) -> None:
    assert count(number) == text
