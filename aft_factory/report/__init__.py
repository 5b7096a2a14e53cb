"""`aft report`: a page to read drafts on, made of a run's journal."""
