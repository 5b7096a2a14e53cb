"""A record file as a data set on the Hugging Face hub: `python -m aft_factory.push`.

Reads any table whose rows are records; makes a folder of Parquet shards and a card (README.md), and
uploads it, or leaves it on disk with --dry-run. Nothing is uploaded before the folder is whole.
Columns that records do not know are left out, unless `--publish` names them. What becomes public is
listed before an upload, which a person at a terminal then confirms.
"""
