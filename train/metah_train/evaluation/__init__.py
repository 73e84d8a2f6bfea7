"""Evaluation: retrieval scores, label-free criteria, unseen domains, reports."""
