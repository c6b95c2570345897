"""The pages of the documentation: their code runs, their links lead somewhere, and the site looks right."""
