"""What every room needs and what needs none of them: URLs, amounts, forks, deadlines, files."""
