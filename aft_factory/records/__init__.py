"""What a row is, and files of rows."""
