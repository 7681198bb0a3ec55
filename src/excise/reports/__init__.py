"""Pure functions of records: the page and the table of a repair, the gallery. No torch here."""

from excise.reports.gallery import render_gallery
from excise.reports.page import render_repair
from excise.reports.table import RepairTable, markdown_table, repair_table, terminal_table
from excise.reports.write import write_report

__all__ = [
    "RepairTable",
    "markdown_table",
    "render_gallery",
    "render_repair",
    "repair_table",
    "terminal_table",
    "write_report",
]
