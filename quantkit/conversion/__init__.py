"""The driver: one run writes, checks, records and names every output of a plan, and resumes after a kill."""
