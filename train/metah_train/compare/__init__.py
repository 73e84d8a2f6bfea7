"""The grid behind a table of methods: plan its trials, run them, tabulate and draw the results.

A trial is one training run with its scores: one method, one code length, one seed.

    OUT/cells/METHOD-BITS-sSEED-KEY/   run/, codes.safetensors, curves.json, result.json
    OUT/cache/                         backbones and features that trials share
    OUT/results.jsonl                  one line per finished trial, rebuilt from the trials
    OUT/table.md, table.html           mean and deviation over seeds, one table per metric
    OUT/table.csv, table.tex           the same numbers for other programs
    OUT/*.png, gallery-BITS/           curves, maps of codes, what the methods find for a query
"""
