"""train_cfg.early_stop ends a run after evaluations without a better score, and remembers across a kill."""

import time

import pytest
from small_run import differences, finish, lasting, make_datasets, small_config, start, wait_for

from jseg.engine.checkpoint import read_state
from jseg.engine.plan import Patience
from jseg.engine.train_cfg import EarlyStop


@pytest.mark.parametrize("rule, scores, over", [
    (EarlyStop(2), [0.1, 0.2, 0.2, 0.2], [False, False, False, True]), (EarlyStop(2), [0.2, 0.1, 0.3, 0.1],
                                                                        [False] * 4),
    (EarlyStop(1, min_delta=0.1), [0.1, 0.15, 0.9], [False, True, False]), (EarlyStop(2), [None, None], [False, True]),
    (None, [0.1] * 5, [False] * 5)])
def test_patience(rule, scores, over):
    patience = Patience(rule, "mIoU")
    for score, expected in zip(scores, over):
        patience.see({"mIoU": score, "mDice": 0.0})
        assert patience.is_over == expected
        patience = Patience(rule, "mIoU", patience.record)  # as a resumed run has it
    other = Patience(EarlyStop(1, monitor="mDice"), "mIoU")
    other.see({"mIoU": 0.1, "mDice": 0.5})
    other.see({"mIoU": 0.9, "mDice": 0.5})
    assert other.is_over


def test_a_run_stops_early_killed_or_not(tmp_path, plain_children):
    config = small_config(make_datasets(tmp_path / "pictures"))
    # no score is ever 2 better
    config["train_cfg"].update(val_interval=4, early_stop={"patience": 2, "min_delta": 2.0})
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(config, whole), whole)
    assert [entry["iter"] for entry in lasting(whole) if "val" in entry] == [4, 8, 12]
    assert "early stop: 2 evaluations without a better mIoU than" in whole.with_suffix(".txt").read_text()
    assert read_state(whole / "last")[2]["early_stop"]["waited"] == 2
    process = start(config, killed)
    wait_for(process, killed, 9)  # one evaluation went by
    time.sleep(0.05)
    process.kill()
    process.wait()
    finish(start(config, killed, "--resume"), killed)
    assert differences(whole, killed) == []
