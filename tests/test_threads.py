"""The number of threads follows the size of the work."""

import pytest
import torch
from lightning.pytorch import Callback

from framework.threads import OPERATIONS_PER_THREAD, Threads, threads_for
from tests.models.loe_tools import fit, make_model, write_pictures


@pytest.fixture(autouse=True)
def four_threads(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("share", "threads"), [(0, 1), (0.9, 1), (1, 1), (2.5, 2), (4, 4), (100, 4)])
def test_a_thread_for_every_share_of_work(share, threads) -> None:
    assert threads_for(share * OPERATIONS_PER_THREAD) == threads


def test_the_environment_has_the_last_word(monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert threads_for(1) == 4


def test_the_number_is_given_back() -> None:
    threads = Threads()
    threads.take(1)
    threads.take(1)
    assert torch.get_num_threads() == 1
    threads.give_back()
    threads.give_back()
    assert torch.get_num_threads() == 4


class Counting(Callback):
    def __init__(self, fails: bool = False) -> None:
        self.seen: set[int] = set()
        self.fails = fails

    def on_train_batch_end(self, *args) -> None:
        self.seen.add(torch.get_num_threads())
        if self.fails:
            raise RuntimeError("somebody's")


def test_small_pictures_are_fitted_on_one_thread_and_leave_the_rest_as_it_was(tmp_path) -> None:
    folder, counting = write_pictures(tmp_path / "pictures", ["one"]), Counting()
    fit(make_model(experts=[None] * 4), folder, callbacks=[counting])
    assert counting.seen == {1}
    assert torch.get_num_threads() == 4
    counting.fails = True
    with pytest.raises(RuntimeError, match="somebody's"):
        fit(make_model(experts=[None] * 4), folder, callbacks=[counting])
    assert torch.get_num_threads() == 4
