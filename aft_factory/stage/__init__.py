"""What the commands share: declared settings, command line, job, outputs, progress."""
