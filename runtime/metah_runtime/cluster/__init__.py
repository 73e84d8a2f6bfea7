"""One index on many machines: shards with replicas, exact answers, no Ray unless asked for.

``plan`` cuts an index, ``shard`` serves one piece, ``routing`` asks the replicas and never takes
a wrong or a partial answer for a whole one, ``searcher`` is the Searcher over all of it: these
know nothing of Ray. ``replica`` is what runs in an actor; ``rays`` starts, finds and stops the
actors. ``parts`` keeps the work of an encoding job, ``encoding`` runs it on Ray Data.
"""
