"""The page's section on attacks on the repaired network."""

from __future__ import annotations

from typing import Any

import pytest
from tests.reports import records

from excise.errors import DataError
from excise.reports import render_repair

pytestmark = pytest.mark.fast


def attack(name: str, passed: bool | None, **values: Any) -> dict[str, Any]:
    return {
        "name": name, "passed": passed, "sentence": f"What {name} came to.", "values": values,
        "threshold": 0.1, "seconds": 1.5,
    }  # fmt: skip


def audited(*findings: dict[str, Any], told: bool = False) -> dict[str, Any]:
    return {**records.plain(), "audit": {"findings": list(findings), "settings": {}, "told": told}}


def section(record: dict[str, Any]) -> str:
    page = render_repair(record, {})
    start = page.index('<section id="audit"')
    return " ".join(page[start : page.index("</section>", start)].split())


def test_without_an_audit_there_is_no_section() -> None:
    page = render_repair(records.plain(), {})
    assert 'id="audit"' not in page
    assert 'href="#audit"' not in page


def test_findings_stand_with_their_figures() -> None:
    text = section(
        audited(
            attack("invert-again", True, rate=records.rate(5, 45)),
            attack("reactivation", False, size={"value": 1.234, "low": 1.0, "high": 2.0}),
            attack("relearning", None, steps={"value": None, "low": 2, "high": None, "most": 20}),
            told=True,
        )
    )
    assert "<strong>Withstood.</strong> What invert-again came to." in text
    assert "<strong>Not withstood.</strong> What reactivation came to." in text
    assert "<strong>Cannot be told.</strong> What relearning came to." in text
    assert "<td>11.1%</td>" in text
    assert "<td>45 images</td>" in text
    assert "<td>1.23</td><td>1.00 to 2.00</td>" in text
    assert "<td>more than 20</td><td>2 to more than 20</td><td>steps</td>" in text
    assert "were given the true trigger" in text


def test_a_rate_of_no_images_and_an_audit_of_another_name() -> None:
    empty = {"value": None, "low": 0.0, "high": 1.0, "count": 0, "n": 0}
    text = section(audited(attack("<b>new</b>", None, rate=empty)))
    assert "<td>not measured</td>" in text
    assert "<h3>&lt;b&gt;new&lt;/b&gt;</h3>" in text


@pytest.mark.parametrize(
    ("broken", "place"),
    [
        ({"passed": "yes"}, "passed"),
        ({"sentence": None}, "sentence"),
        ({"values": {"x": {"value": None, "low": 0.0, "high": 1.0}}}, "values"),
    ],
)
def test_a_broken_audit_is_refused(broken: dict[str, Any], place: str) -> None:
    with pytest.raises(DataError, match=rf"at audit\.findings\.0\.{place}"):
        render_repair(audited({**attack("relearning", True), **broken}), {})
