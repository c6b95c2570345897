"""What is kept on disk, and the SQL for it. Decides nothing."""
