"""aft-factory: Aggregation Fine-Tuning (AFT) with LLaMA-Factory and vLLM.

Importing this package loads nothing heavy: every stage imports torch, transformers, vLLM or
LLaMA-Factory only where it needs them.
"""

__version__ = "0.1.0"
