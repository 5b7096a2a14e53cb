"""The LLaMA-Factory plugin: everything that touches LLaMA-Factory's code lives here.

`autoload` waits for LLaMA-Factory's modules at every Python start; `options` reads the data set
entry; `v0` and `v1` hook its two engines; `templates` registers our chat templates.
"""
