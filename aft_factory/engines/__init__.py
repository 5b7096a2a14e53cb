"""The only code that calls a model; `sampling` says what is asked and what comes back."""
