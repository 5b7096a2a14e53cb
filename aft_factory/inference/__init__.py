"""From a query to its answer: strategies, drafting, scoring, accounts, benchmarks' rows."""
