"""From a store's records to a ranking: tables and a page. No torch here."""

from excise.leaderboard.instances import MEASURES
from excise.leaderboard.published import beside, published
from excise.leaderboard.ranking import ORDERS, Ranking, rank
from excise.leaderboard.runs import Runs, read_runs

__all__ = [
    "MEASURES",
    "ORDERS",
    "Ranking",
    "Runs",
    "beside",
    "published",
    "rank",
    "read_runs",
]
