"""What every other folder may use: URLs, amounts, files, forks, imports, deadlines, names. It imports from none of them."""
