"""What options repeat of modules that are slow to import is the same there."""

from app.options import TOKEN_LIMIT
from solvers.simulator import constants


def test_the_limit_of_a_batch_is_the_simulators() -> None:
    assert TOKEN_LIMIT == constants.TOKEN_LIMIT
