"""Interop with other programs: FAISS, NumPy and Parquet files, tables of pgvector and Milvus.

Each format writes an index to its side and reads codes back; a database is also a Searcher.
"""
