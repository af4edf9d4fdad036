"""Reports to send to somebody: of a query, a comparison, an experiment. Each becomes one HTML file or Markdown.

They say what is known and compute nothing. With `content` False nothing of what was asked, said or stored is in them: no
question, answer, document's name or message of an error, only ids, times and settings.
"""

from __future__ import annotations

from latency.reports.blocks import Report
from latency.reports.comparison import comparison_report
from latency.reports.experiment import experiment_report
from latency.reports.query import query_report

__all__ = ["Report", "comparison_report", "experiment_report", "query_report"]
