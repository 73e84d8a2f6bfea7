"""What the head of a comparison says of its protocol."""

from metah_train.compare.grid import plan
from metah_train.compare.publish import batch_norm


def said(*assignments: str) -> str:
    names = ("lsh", "hashnet", "tah")
    seeds = dict.fromkeys(names, (0, 1))
    trials = plan(
        "digits",
        data=None,
        direction=None,
        methods=names,
        bits=(16, 32),
        seeds=seeds,
        assignments=assignments,
    )
    return batch_norm(trials)


def test_the_head_says_whose_batch_statistics_are_those_of_the_target() -> None:
    start = "statistics re-estimated at the end on the unlabelled target training images for "
    also = ", also for those whose loss reads source images alone"
    assert said() == f"{start}HashNet, TAH{also}; statistics as trained for LSH"
    assert said("hashnet:statistics=training") == (
        f"{start}TAH{also}; statistics as trained for LSH, HashNet"
    )
    assert said("statistics=training") == "statistics as trained for LSH, HashNet, TAH"
