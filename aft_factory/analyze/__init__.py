"""The paper's analyses of your own runs, as plots with their numbers: `aft analyze`."""
