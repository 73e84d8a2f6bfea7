"""One index on many machines: shards with replicas, exact answers, no Ray unless asked for.

``plan`` cuts an index into shards, ``shard`` searches one of them, ``routing`` asks the replicas
and returns complete answers or an error, ``searcher`` is the Searcher over all shards: these do
not use Ray. ``replica`` runs in an actor; ``actors`` starts, finds and stops the actors. ``parts``
stores the results of an encoding job, ``encoding`` runs the job on Ray Data.
"""

import os

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read by Ray when it is imported
