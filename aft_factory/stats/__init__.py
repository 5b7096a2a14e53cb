"""What is in a record file, `python -m aft_factory.stats`: rows, lengths, duplicates, scores.

Reads any table whose rows are records; prints a text, and writes all numbers as JSON and a
histogram of lengths if asked. Counts tokens with a tokenizer or estimates them from bytes.
"""
